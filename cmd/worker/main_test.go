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

// A process that can't ever reach its database says so and ends.
func TestRunEndsAtPermanentFaults(t *testing.T) {
	t.Parallel()
	u, err := url.Parse(testenv.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(u.User.Username(), "wrong-password")
	env := map[string]string{
		"DATABASE_URL": u.String(), "REDIS_URL": "redis://127.0.0.1:1",
	}
	for name, args := range map[string][]string{
		"Work": nil, "Verify": {"verify"}, "Replay": {"replay", "0197c1f2-6d3a-7b41-9c55-2f8e4d10a6b3"}, "Archive": {"archive", "-before", "2020-01-01"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := run(t.Context(), args, func(name string) string { return env[name] }, io.Discard, io.Discard)
			if !errors.Is(err, postgres.ErrMisconfigured) || strings.Contains(err.Error(), "wrong-password") {
				t.Errorf("%v, want %v", err, postgres.ErrMisconfigured)
			}
		})
	}
}
