package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/passbook/passbook/internal/auth"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/test/local"
	"github.com/passbook/passbook/migrations"
)

const (
	module         = "github.com/passbook/passbook"
	templateName   = "bench_template"
	email          = "bench@example.com"
	initialDeposit = 1_000_000 // covers every withdrawal, in whatever order
	openers        = 16        // accounts opened at once
	stopWait       = time.Minute
)

// rig is what all parts of a run share: the server of Postgres, the template of
// the databases, and the programs.
type rig struct {
	settings
	began     time.Time
	out       io.Writer
	bin       string // the folder of the programs
	postgres  *local.Postgres
	key       auth.Key // signs the access tokens
	password  string   // of the user
	user      uuid.UUID
	databases int // made so far, for their names
}

func newRig(ctx context.Context, s settings, out io.Writer) (_ *rig, err error) {
	r := &rig{settings: s, began: time.Now(), out: out, key: auth.Key{ID: "bench", Secret: make([]byte, 32)}, password: rand.Text()}
	_, _ = rand.Read(r.key.Secret) // never fails since Go 1.24
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close(context.WithoutCancel(ctx)))
		}
	}()
	if err := r.build(ctx); err != nil {
		return nil, err
	}
	r.say("Starting Postgres, and opening %d accounts.", r.accounts())
	r.postgres, err = local.StartPostgres(ctx, local.PostgresConfig{Durable: !s.unflushed})
	if err != nil {
		return nil, err
	}
	if err := checkDisk(r.postgres.Dir()); err != nil {
		return nil, err
	}
	return r, r.makeTemplate(ctx)
}

// build builds the programs, unless that is done.
func (r *rig) build(ctx context.Context) (err error) {
	if r.built != "" {
		r.bin = r.built
		return nil
	}
	r.say("Building api, worker and the peer.")
	if r.bin, err = os.MkdirTemp("", "passbook-bench-"); err != nil {
		return fmt.Errorf("make a folder for the programs: %w", err)
	}
	return buildPrograms(ctx, r.bin)
}

// buildPrograms builds the programs as they are deployed, but without what a debugger
// reads, which takes a third of the time.
func buildPrograms(ctx context.Context, folder string) error {
	out, err := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-ldflags=-w", "-o", folder, //nolint:gosec // our own packages
		module+"/cmd/api", module+"/cmd/worker", module+"/internal/bench").CombinedOutput()
	if err != nil {
		return fmt.Errorf("build: %w\n%s", err, out)
	}
	return nil
}

// sync has the file systems write out what is not yet.
func (r *rig) sync() {
	if !r.unflushed {
		unix.Sync()
	}
}

func (r *rig) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopWait)
	defer cancel()
	var err error
	if r.built == "" {
		err = os.RemoveAll(r.bin)
	}
	if r.postgres != nil {
		err = errors.Join(err, r.postgres.Remove(ctx))
	}
	return err
}

// makeTemplate makes the database that each scene's is a copy of: the schema, one
// user, and the accounts. They are opened past the API, which would cost a run
// ten seconds more; what a load works with is the same.
func (r *rig) makeTemplate(ctx context.Context) error {
	if err := r.admin(ctx, "CREATE DATABASE "+templateName); err != nil {
		return err
	}
	if err := migrations.Up(ctx, r.databaseURL(templateName)); err != nil {
		return err
	}
	pool, err := r.open(ctx, templateName, openers)
	if err != nil {
		return err
	}
	defer pool.Close()
	if r.user, err = r.signUp(ctx, pool); err != nil {
		return err
	}
	if err := r.openAccounts(ctx, pool); err != nil {
		return err
	}
	// Not jobs, as it is in a new database: once vacuumed while empty it would be
	// planned as a table of one row, until the next time.
	_, err = pool.Exec(ctx, "VACUUM (ANALYZE) accounts, transactions")
	return err
}

// signUp makes the user that owns everything in a database.
func (r *rig) signUp(ctx context.Context, pool *pgxpool.Pool) (uuid.UUID, error) {
	service, err := auth.New(pool, auth.Config{Keys: []auth.Key{r.key}})
	if err != nil {
		return uuid.Nil, err
	}
	user, err := service.SignUp(ctx, email, r.password)
	return user.ID, err
}

func (r *rig) openAccounts(ctx context.Context, pool *pgxpool.Pool) error {
	accounts := ledger.NewAccounts(pool)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(openers)
	for n := range r.accounts() {
		group.Go(func() error {
			_, _, err := accounts.Open(ctx, ledger.Opening{
				UserID: r.user, Number: accountNumber(n), Currency: "KRW", InitialDeposit: initialDeposit,
			})
			return err
		})
	}
	return group.Wait()
}

// accounts is how many the template has: enough for each client of pgbench.
func (r *rig) accounts() int { return max(ceilingClients, r.count(allAccounts)) }

// accountNumber names the accounts of the template; all names are as long.
func accountNumber(n int) string {
	return fmt.Sprintf("BENCH-%05d", n)
}

// open opens one of the server's databases, for the benchmark's own questions.
func (r *rig) open(ctx context.Context, database string, conns int32) (*pgxpool.Pool, error) {
	return postgres.Open(ctx, postgres.Config{URL: r.databaseURL(database), MaxConns: conns, Application: "passbook-bench"})
}

func (r *rig) databaseURL(database string) string {
	u, err := url.Parse(r.postgres.URL())
	if err != nil {
		panic(err) // our own URL
	}
	u.Path = "/" + database
	return u.String()
}

// admin runs one statement on the server's own database.
func (r *rig) admin(ctx context.Context, statement string) error {
	conn, err := pgx.Connect(ctx, r.postgres.URL())
	if err != nil {
		return fmt.Errorf("%s: %w", statement, err)
	}
	defer conn.Close(ctx) //nolint:errcheck // the statement has been answered
	if _, err := conn.Exec(ctx, statement); err != nil {
		return fmt.Errorf("%s: %w", statement, err)
	}
	return nil
}

// environment is what every program starts with. It is given no more, so that a
// variable of the caller's changes no figure.
func (r *rig) environment(database, redisURL string, partitions int) []string {
	return []string{
		"DATABASE_URL=" + r.databaseURL(database),
		"REDIS_URL=" + redisURL,
		"JWT_KEYS=" + r.key.ID + ":" + base64.StdEncoding.EncodeToString(r.key.Secret),
		"HTTP_ADDR=127.0.0.1:0",
		"OPS_ADDR=127.0.0.1:0",
		fmt.Sprintf("QUEUE_PARTITIONS=%d", partitions),
		"RATE_LIMIT_PER_MINUTE=0", // one user asks for everything
	}
}

func (r *rig) program(name string) string { return filepath.Join(r.bin, name) }
