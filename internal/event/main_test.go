package event_test

import (
	"testing"

	"github.com/passbook/passbook/internal/test/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }
