//go:build clients

package api

import (
	"testing"

	"github.com/passbook/passbook/internal/test/testenv"
)

// With the tag, Prism stands between each test's client and its server. make test-clients
// runs the tests whose requests are all valid: Prism refuses others itself.
func init() {
	inFront = func(t *testing.T, addr string) string {
		t.Helper()
		return testenv.Prism(t, "../..", addr)
	}
}
