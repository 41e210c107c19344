package ledgertest

import (
	"context"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/test/testenv"
)

// Fault is what an operator may do wrong to a database, and how to fix it.
type Fault struct {
	Name       string
	Cause, Fix string // statements
	Want       string // in the error of the check
}

// noLanguage keeps new connections from loading the language of the functions.
var noLanguage = Fault{
	"NoLanguage", `UPDATE pg_proc SET probin = '$libdir/gone' WHERE proname = 'plpgsql_call_handler'`,
	`UPDATE pg_proc SET probin = '$libdir/plpgsql' WHERE proname = 'plpgsql_call_handler'`, "58P01",
}

// FindsFaults tests a check that the role server makes: it finds each of the faults, and noLanguage,
// and nothing wrong before and after them. The role keeper has every right on the tables, and server
// may read them. rights are statements that give them what else they need.
func FindsFaults(t *testing.T, rights string, check func(context.Context, *pgxpool.Pool) error, faults []Fault) {
	t.Helper()
	server := testenv.PostgresServer(t)
	admin, err := pgxpool.New(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	Exec(t, admin, `
		CREATE ROLE keeper; GRANT ALL ON ALL TABLES IN SCHEMA public TO keeper;
		CREATE ROLE server LOGIN PASSWORD 'server'; GRANT SELECT ON ALL TABLES IN SCHEMA public TO server;
		`+rights)
	u, err := url.Parse(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("server", "server")
	checkAnew := func() error {
		pool, err := pgxpool.New(t.Context(), u.String()) // new connections: some faults concern only these
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		return check(t.Context(), pool)
	}
	if err := checkAnew(); err != nil {
		t.Fatal(err)
	}
	for _, fault := range append(faults, noLanguage) {
		t.Run(fault.Name, func(t *testing.T) {
			Exec(t, admin, fault.Cause)
			if err := checkAnew(); err == nil || !strings.Contains(err.Error(), fault.Want) {
				t.Errorf("%v, want %s", err, fault.Want)
			}
			Exec(t, admin, fault.Fix)
			if err := checkAnew(); err != nil {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}
