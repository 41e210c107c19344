package main

import (
	"errors"
	"io"
	"net/url"
	"strings"
	"testing"

	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/test/testenv"
)

func TestMain(m *testing.M) {
	testenv.Main(m)
}

// A process that can never reach its database ends with an error.
func TestRunEndsAtPermanentFaults(t *testing.T) {
	t.Parallel()
	u, err := url.Parse(testenv.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(u.User.Username(), "wrong-password")
	env := map[string]string{
		"DATABASE_URL": u.String(), "REDIS_URL": "redis://127.0.0.1:1", "OPS_ADDR": "127.0.0.1:0",
		"JWT_KEYS": "k1:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
	}
	for name, args := range map[string][]string{"Serve": nil, "Migrate": {"migrate"}, "Status": {"migrate", "--status"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := run(t.Context(), args, func(name string) string { return env[name] }, io.Discard, io.Discard)
			if !errors.Is(err, postgres.ErrMisconfigured) || strings.Contains(err.Error(), "wrong-password") {
				t.Errorf("%v, want %v", err, postgres.ErrMisconfigured)
			}
		})
	}
}
