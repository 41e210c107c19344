package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/passbook/passbook/internal/bench/environment"
	"github.com/passbook/passbook/internal/bench/report"
	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
)

const (
	ceilingClients = 32
	ceilingThreads = 2
)

// ceiling is what Postgres does of the same work without HTTP and a queue. pgbench sends
// the statements of an accept and those of its apply, each in one transaction and one
// round trip, as Passbook does. Passbook's insert is for many jobs at once, and costs a
// single job more than a plain insert: the ceiling is the faster of the two.
func ceiling(ctx context.Context, p *pass) error {
	batched, err := batchedInsert(p.User)
	if err != nil {
		return err
	}
	inserts := []struct {
		name string
		sql  []string
	}{{"batched", batched}, {"plain", plainInsert(p.User)}}
	if p.round%2 == 1 {
		inserts[0], inserts[1] = inserts[1], inserts[0]
	}
	highest := 0.0
	for _, insert := range inserts {
		found, err := ceilingOf(ctx, p, insert.sql)
		if err != nil {
			return err
		}
		p.set("ceiling", insert.name, found.rate)
		if found.rate > highest {
			highest = found.rate
			p.set("ceiling", "run-p50", found.took.P50)
			p.set("ceiling", "run-p99", found.took.P99)
		}
	}
	p.set("ceiling", "applied", highest)
	return nil
}

func ceilingOf(ctx context.Context, p *pass, insert []string) (b benched, err error) {
	apply, err := boundApply()
	if err != nil {
		return benched{}, err
	}
	script := ceilingScript(insert, apply)
	err = p.in(ctx, environment.Topology{}, func(e *environment.Environment) (err error) {
		b, err = p.pgbench(ctx, e, script, p.perClient(environment.WarmJobs), p.perClient(endToEndJobs))
		return err
	})
	return b, err
}

// perClient is a count's share of each client of pgbench.
func (r *measurement) perClient(n int) int { return max(1, r.Count(n)/ceilingClients) }

// pgbench has each client run the script warm+timed times, and returns the rate of the
// timed runs. Each client has accounts of its own: two clients on one account could
// apply each other's jobs, and then an apply would find nothing to do.
func (r *measurement) pgbench(ctx context.Context, e *environment.Environment, script string, warm, timed int) (benched, error) {
	server, err := pgx.ParseConfig(e.DatabaseURL(e.Database))
	if err != nil {
		return benched{}, err
	}
	folder, err := os.MkdirTemp("", "passbook-bench-")
	if err != nil {
		return benched{}, fmt.Errorf("make a folder for pgbench's log: %w", err)
	}
	defer os.RemoveAll(folder)                                     //nolint:errcheck // a leftover does no harm
	cmd := exec.CommandContext(ctx, e.Postgres.Program("pgbench"), //nolint:gosec // of the same package as the server
		"--no-vacuum", "--protocol=prepared", "--file=/dev/stdin", "--log", "--log-prefix=run",
		fmt.Sprintf("--client=%d", ceilingClients), fmt.Sprintf("--jobs=%d", ceilingThreads), fmt.Sprintf("--transactions=%d", warm+timed),
		"--define=n=0", fmt.Sprintf("--define=accounts=%d", r.perClient(manyAccounts)))
	cmd.Dir, cmd.Stdin = folder, strings.NewReader(script)
	cmd.Env = []string{
		"PGHOST=" + server.Host, fmt.Sprintf("PGPORT=%d", server.Port), "PGDATABASE=" + server.Database,
		"PGUSER=" + server.User, "PGPASSWORD=" + server.Password,
		"PGOPTIONS=-c enable_seqscan=off -c enable_bitmapscan=off", // as Passbook's connections have it
	}
	if err := e.Checkpoint(ctx); err != nil {
		return benched{}, err
	}
	e.Expect((warm + timed) * ceilingClients)
	if out, err := cmd.CombinedOutput(); err != nil {
		return benched{}, fmt.Errorf("pgbench (of the package of Postgres's server): %w\n%s", err, out)
	}
	return readRuns(folder, warm)
}

// benched is the result of pgbench: runs of the script a second, and how long they took.
type benched struct {
	rate float64
	took report.Quantiles
}

// benchRun is one run of the script, by pgbench's log.
type benchRun struct {
	end  int64 // µs since 1970
	took time.Duration
}

// readRuns reads pgbench's logs, which have a line for each run of the script. It returns
// the rate from when the last client had warmed up.
func readRuns(folder string, warm int) (benched, error) {
	var runs []benchRun
	var began, ended int64
	logs, _ := filepath.Glob(filepath.Join(folder, "run.*")) // fails on a bad pattern only
	for _, log := range logs {
		text, err := os.ReadFile(log) //nolint:gosec // in our own folder
		if err != nil {
			return benched{}, fmt.Errorf("read pgbench's log: %w", err)
		}
		for line := range strings.Lines(string(text)) {
			var client, number, latency, script, seconds, micros int64
			if _, err := fmt.Sscan(line, &client, &number, &latency, &script, &seconds, &micros); err != nil {
				return benched{}, fmt.Errorf("read pgbench's log: %q: %w", line, err)
			}
			end := seconds*1e6 + micros
			runs = append(runs, benchRun{end, time.Duration(latency) * time.Microsecond})
			ended = max(ended, end)
			if number <= int64(warm) {
				began = max(began, end)
			}
		}
	}
	var timed []time.Duration
	for _, r := range runs {
		if r.end > began {
			timed = append(timed, r.took)
		}
	}
	if len(timed) == 0 {
		return benched{}, errors.New("pgbench has logged nothing after its warm-up")
	}
	return benched{report.PerSecond(len(timed), time.Duration(ended-began)*time.Microsecond), report.QuantilesOf(timed)}, nil
}

// The script's expressions for a job. n counts a client's runs and r is random, so ids
// are unique and rise as UUIDv7s do, without a round trip that asks for them. Keys
// are random, as those of clients are.
const (
	ceilingID = `(lpad(to_hex(:n::bigint), 12, '0') || '7' || lpad(to_hex(:client_id::bigint), 3, '0') || '8000' ||
		lpad(to_hex(:r::bigint), 12, '0'))::uuid`
	ceilingKey    = `md5(:client_id::text || ' ' || :n::text || ' ' || :r::text)::uuid::text`
	ceilingNumber = `'BENCH-' || lpad(:account::text, 5, '0')`
)

// batchedInsert is Passbook's own insert, for a single job.
func batchedInsert(user uuid.UUID) ([]string, error) {
	return bindAll([]string{job.AcceptStatement()}, [][]string{{
		`ARRAY[` + ceilingID + `]`, `ARRAY['` + user.String() + `'::uuid]`, `ARRAY[` + ceilingNumber + `]`,
		`ARRAY[` + ceilingKey + `]`, `ARRAY[:r::bigint]`, `ARRAY['deposit']`, `ARRAY[100]`, `ARRAY['benchmark']`, `ARRAY[1]`, `ARRAY[NULL]`, `50000`,
	}})
}

// plainInsert inserts the same row with a plain statement.
func plainInsert(user uuid.UUID) []string {
	return []string{`
	INSERT INTO jobs (id, account_id, user_id, idempotency_key, type, amount, description)
	SELECT ` + ceilingID + `, id, user_id, ` + ceilingKey + `, 'deposit', 100, 'benchmark'
	FROM accounts WHERE number = ` + ceilingNumber + ` AND user_id = '` + user.String() + `'`}
}

func boundApply() ([]string, error) {
	return bindAll(ledger.ApplyStatements(), [][]string{{ceilingID, fmt.Sprint(ledger.MaxAmount), "0", "true"}})
}

// ceilingScript accepts and applies one job, in two transactions of a round trip each.
func ceilingScript(transactions ...[]string) string {
	lines := []string{
		fmt.Sprintf(`\set account :client_id + %d * random(0, :accounts - 1)`, ceilingClients),
		`\set n :n + 1`,
		`\set r random(0, 281474976710655)`, // twelve hexadecimal digits
	}
	for _, statements := range transactions {
		lines = append(lines, `\startpipeline`)
		for _, sql := range statements {
			lines = append(lines, sql+";")
		}
		lines = append(lines, `\endpipeline`)
	}
	return strings.Join(lines, "\n") + "\n"
}

// bindAll replaces the parameters $1, $2, … of statements by expressions.
func bindAll(statements []string, params [][]string) ([]string, error) {
	if len(statements) != len(params) {
		return nil, errors.New("the statements of an accept or an apply have changed: bind their parameters here")
	}
	var bound []string
	for i, sql := range statements {
		sql, err := bind(sql, params[i])
		if err != nil {
			return nil, err
		}
		bound = append(bound, sql)
	}
	return bound, nil
}

var parameter = regexp.MustCompile(`\$[0-9]+`)

// bind replaces the parameters of a statement by expressions. Each parameter must have
// an expression.
func bind(sql string, params []string) (string, error) {
	highest := 0
	bound := parameter.ReplaceAllStringFunc(sql, func(name string) string {
		n, _ := strconv.Atoi(name[1:]) // digits
		highest = max(highest, n)
		if n > len(params) {
			return name
		}
		return params[n-1]
	})
	if highest != len(params) {
		return "", fmt.Errorf("a statement has %d parameters, and %d are bound:%s", highest, len(params), sql)
	}
	return bound, nil
}
