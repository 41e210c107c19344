package environment

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
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
	"github.com/passbook/passbook/internal/bench/load"
	"github.com/passbook/passbook/internal/bench/peer"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/test/local"
	"github.com/passbook/passbook/migrations"
)

const (
	// AllAccounts is how many accounts the template has, at scale 1.
	AllAccounts = 10_000
	// InitialDeposit of an account covers every withdrawal, in whatever order.
	InitialDeposit = 1_000_000
)

const (
	module       = "github.com/passbook/passbook"
	templateName = "bench_template"
	email        = "bench@example.com"
	openers      = 16 // accounts opened at once
	stopWait     = time.Minute
)

// Config says how to set up the environments of a run.
type Config struct {
	Scale       float64 // of every count and duration; below 1 for a try
	MinAccounts int     // in the template, whatever the scale
	Peer        peer.Settings
	Programs    string // the folder of programs that are built already; empty to build them
	// Unflushed has nothing wait for the disk. It is for tests of the benchmark alone:
	// without flushes a figure means nothing.
	Unflushed bool
	Out       io.Writer // what the run says
}

// RegisterPrograms adds the flag that names the programs.
func (c *Config) RegisterPrograms(flags *flag.FlagSet) {
	flags.StringVar(&c.Programs, "programs", "", "folder with api, worker and bench of another build, to compare builds in turn; empty to build them")
}

// Base is what all environments of a run share: the Postgres server, the template
// database and the programs.
type Base struct {
	Config
	Postgres *local.Postgres
	Key      auth.Key  // signs the access tokens
	User     uuid.UUID // owns every account

	programs  string // the folder of the programs
	password  string // of the user
	databases int    // made so far, for their names
}

// Open builds the programs, starts Postgres and fills the template.
func Open(ctx context.Context, cfg Config) (_ *Base, err error) {
	b := &Base{Config: cfg, Key: auth.Key{ID: "bench", Secret: make([]byte, 32)}, password: rand.Text()}
	_, _ = rand.Read(b.Key.Secret) // never fails since Go 1.24
	defer func() {
		if err != nil {
			err = errors.Join(err, b.Close(context.WithoutCancel(ctx)))
		}
	}()
	if err := b.build(ctx); err != nil {
		return nil, err
	}
	b.Say("Starting Postgres, and opening %d accounts.", b.accounts())
	b.Postgres, err = local.StartPostgres(ctx, local.PostgresConfig{Durable: !b.Unflushed})
	if err != nil {
		return nil, err
	}
	if !b.Unflushed {
		if err := checkDisk(b.Postgres.Dir()); err != nil {
			return nil, err
		}
	}
	return b, b.makeTemplate(ctx)
}

// build builds the programs, unless Config names a folder of them.
func (b *Base) build(ctx context.Context) (err error) {
	if b.Programs != "" {
		b.programs = b.Programs
		return nil
	}
	b.Say("Building api, worker and the peer.")
	if b.programs, err = os.MkdirTemp("", "passbook-bench-"); err != nil {
		return fmt.Errorf("make a folder for the programs: %w", err)
	}
	return BuildPrograms(ctx, b.programs)
}

// Packages are what a run builds: api, worker and the peer.
var Packages = []string{module + "/cmd/api", module + "/cmd/worker", module + "/internal/bench"}

// BuildPrograms builds the programs as they are deployed, but without the tables for
// debuggers, which take a third of the time.
func BuildPrograms(ctx context.Context, folder string) error {
	arguments := append([]string{"build", "-buildvcs=false", "-ldflags=-w", "-o", folder}, Packages...)
	out, err := exec.CommandContext(ctx, "go", arguments...).CombinedOutput() //nolint:gosec // our own packages
	if err != nil {
		return fmt.Errorf("build: %w\n%s", err, out)
	}
	return nil
}

// Sync has the file systems write everything to disk.
func (b *Base) Sync() {
	if !b.Unflushed {
		unix.Sync()
	}
}

// Close stops Postgres and removes what the run made.
func (b *Base) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopWait)
	defer cancel()
	var err error
	if b.Programs == "" {
		err = os.RemoveAll(b.programs)
	}
	if b.Postgres != nil {
		err = errors.Join(err, b.Postgres.Remove(ctx))
	}
	return err
}

// makeTemplate makes the database that every environment copies: the schema, one user
// and the accounts. It opens them without the API, which would cost a run ten seconds
// more; the rows are the same.
func (b *Base) makeTemplate(ctx context.Context) error {
	if err := b.Admin(ctx, "CREATE DATABASE "+templateName); err != nil {
		return err
	}
	if _, err := migrations.Up(ctx, b.DatabaseURL(templateName)); err != nil {
		return err
	}
	pool, err := b.OpenDatabase(ctx, templateName, openers)
	if err != nil {
		return err
	}
	defer pool.Close()
	if b.User, err = b.SignUp(ctx, pool); err != nil {
		return err
	}
	if err := b.openAccounts(ctx, pool); err != nil {
		return err
	}
	// Not jobs, as it is in a new database: once vacuumed while empty it would be
	// planned as a table of one row, until the next time.
	_, err = pool.Exec(ctx, "VACUUM (ANALYZE) accounts, transactions")
	return err
}

// SignUp makes the user that owns everything in a database.
func (b *Base) SignUp(ctx context.Context, pool *pgxpool.Pool) (uuid.UUID, error) {
	service, err := auth.New(pool, auth.Config{Keys: []auth.Key{b.Key}})
	if err != nil {
		return uuid.Nil, err
	}
	user, err := service.SignUp(ctx, email, b.password)
	return user.ID, err
}

func (b *Base) openAccounts(ctx context.Context, pool *pgxpool.Pool) error {
	accounts := ledger.NewAccounts(pool)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(openers)
	for n := range b.accounts() {
		group.Go(func() error {
			_, _, err := accounts.Open(ctx, ledger.Opening{
				UserID: b.User, Number: load.AccountNumber(n), Currency: "KRW", InitialDeposit: InitialDeposit,
			})
			return err
		})
	}
	return group.Wait()
}

// accounts is how many accounts the template has.
func (b *Base) accounts() int { return max(b.MinAccounts, b.Count(AllAccounts)) }

// OpenDatabase opens a database of the server, for the benchmark's own questions.
func (b *Base) OpenDatabase(ctx context.Context, database string, conns int32) (*pgxpool.Pool, error) {
	return postgres.Open(ctx, postgres.Config{URL: b.DatabaseURL(database), MaxConns: conns, Application: "passbook-bench"})
}

// DatabaseURL is the URL of a database of the server.
func (b *Base) DatabaseURL(database string) string {
	u, err := url.Parse(b.Postgres.URL())
	if err != nil {
		panic(err) // a URL of package local
	}
	u.Path = "/" + database
	return u.String()
}

// Admin runs one statement on the server's own database.
func (b *Base) Admin(ctx context.Context, statement string) error {
	conn, err := pgx.Connect(ctx, b.Postgres.URL())
	if err != nil {
		return fmt.Errorf("%s: %w", statement, err)
	}
	defer conn.Close(ctx) //nolint:errcheck // the statement has been answered
	if _, err := conn.Exec(ctx, statement); err != nil {
		return fmt.Errorf("%s: %w", statement, err)
	}
	return nil
}

// variables are the whole environment of a program, so that a variable of the caller
// changes no figure.
func (b *Base) variables(databaseURL, redisURL string, partitions int) []string {
	return []string{
		"DATABASE_URL=" + databaseURL,
		"REDIS_URL=" + redisURL,
		"JWT_KEYS=" + b.Key.ID + ":" + base64.StdEncoding.EncodeToString(b.Key.Secret),
		"HTTP_ADDR=127.0.0.1:0",
		"OPS_ADDR=127.0.0.1:0",
		fmt.Sprintf("QUEUE_PARTITIONS=%d", partitions),
		"RATE_LIMIT_PER_MINUTE=6000000", // one user asks for everything, and each request is counted
	}
}

func (b *Base) program(name string) string { return filepath.Join(b.programs, name) }

// Count scales a count; the result is at least 1.
func (b *Base) Count(n int) int {
	return max(1, int(math.Round(float64(n)*b.Scale)))
}

// Span scales a duration.
func (b *Base) Span(d time.Duration) time.Duration {
	return time.Duration(float64(d) * b.Scale)
}

// Say tells the user of the run about its progress.
func (b *Base) Say(format string, args ...any) {
	fmt.Fprintf(b.Out, format+"\n", args...)
}
