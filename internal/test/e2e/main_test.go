// Package e2e holds the tests of the whole system: real processes, real
// Postgres, real Redis, and clients that believe only what the API tells them.
package e2e_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/passbook/passbook/internal/test/testenv"
)

func TestMain(m *testing.M) {
	testenv.Main(m,
		goleak.IgnoreAnyFunction("github.com/passbook/passbook/internal/test/e2e_test.launch"),
		// Toxiproxy leaves a toxic behind that waits for a reader that is gone, or the reader before it.
		goleak.IgnoreAnyFunction("github.com/Shopify/toxiproxy/v2/toxics.(*ToxicStub).Run"),
		goleak.IgnoreAnyFunction("github.com/Shopify/toxiproxy/v2.(*ToxicLink).read"),
	)
}
