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

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
)

const (
	ceilingClients = 32
	ceilingThreads = 2
)

// ceiling is what Postgres does of the same work when nobody else is there:
// pgbench sends the statements of an accept and those of its apply, each pair in
// one transaction and one round trip, as Passbook does. Passbook's insert is made
// for many jobs at once, and costs a single one more than a plain insert would: the
// ceiling is what the faster of the two makes possible.
func ceiling(ctx context.Context, r *round) error {
	batched, err := batchedInsert(r.user)
	if err != nil {
		return err
	}
	inserts := []struct {
		name string
		sql  []string
	}{{"batched", batched}, {"plain", plainInsert(r.user)}}
	if r.number%2 == 1 {
		inserts[0], inserts[1] = inserts[1], inserts[0]
	}
	highest := 0.0
	for _, insert := range inserts {
		found, err := ceilingOf(ctx, r, insert.sql)
		if err != nil {
			return err
		}
		r.set("ceiling", insert.name, found.rate)
		if found.rate > highest {
			highest = found.rate
			r.set("ceiling", "run-p50", found.took.p50)
			r.set("ceiling", "run-p99", found.took.p99)
		}
	}
	r.set("ceiling", "applied", highest)
	return nil
}

func ceilingOf(ctx context.Context, r *round, insert []string) (b benched, err error) {
	apply, err := boundApply()
	if err != nil {
		return benched{}, err
	}
	script := ceilingScript(insert, apply)
	err = r.onBareScene(ctx, func(s *scene) (err error) {
		b, err = s.pgbench(ctx, script, r.perClient(warmJobs), r.perClient(endToEndJobs))
		return err
	})
	return b, err
}

// perClient is a count's share of each client of pgbench.
func (r *rig) perClient(n int) int { return max(1, r.count(n)/ceilingClients) }

// pgbench has each client run the script so many times, and answers with what those after
// the warm-up did. Each client has accounts of its own: two on one could apply each
// other's jobs, and one of them would come to apply and find nothing to do.
func (s *scene) pgbench(ctx context.Context, script string, warm, timed int) (benched, error) {
	server, err := pgx.ParseConfig(s.databaseURL(s.database))
	if err != nil {
		return benched{}, err
	}
	folder, err := os.MkdirTemp("", "passbook-bench-")
	if err != nil {
		return benched{}, fmt.Errorf("make a folder for pgbench's log: %w", err)
	}
	defer os.RemoveAll(folder)                                                  //nolint:errcheck // it is in nobody's way
	cmd := exec.CommandContext(ctx, filepath.Join(s.postgres.Bin(), "pgbench"), //nolint:gosec // stands beside the server we run
		"--no-vacuum", "--protocol=prepared", "--file=/dev/stdin", "--log", "--log-prefix=run",
		fmt.Sprintf("--client=%d", ceilingClients), fmt.Sprintf("--jobs=%d", ceilingThreads), fmt.Sprintf("--transactions=%d", warm+timed),
		"--define=n=0", fmt.Sprintf("--define=accounts=%d", s.perClient(manyAccounts)))
	cmd.Dir, cmd.Stdin = folder, strings.NewReader(script)
	cmd.Env = []string{
		"PGHOST=" + server.Host, fmt.Sprintf("PGPORT=%d", server.Port), "PGDATABASE=" + server.Database,
		"PGUSER=" + server.User, "PGPASSWORD=" + server.Password,
		"PGOPTIONS=-c enable_seqscan=off -c enable_bitmapscan=off", // as Passbook's connections have it
	}
	if err := s.checkpoint(ctx); err != nil {
		return benched{}, err
	}
	s.jobs += (warm + timed) * ceilingClients
	if out, err := cmd.CombinedOutput(); err != nil {
		return benched{}, fmt.Errorf("pgbench (of the package of Postgres's server): %w\n%s", err, out)
	}
	return readRuns(folder, warm)
}

// benched is what pgbench found: runs of the script a second, and how long they took.
type benched struct {
	rate float64
	took quantiles
}

// benchRun is one run of the script, by pgbench's log.
type benchRun struct {
	end  int64 // µs since 1970
	took time.Duration
}

// readRuns reads pgbench's logs, a line for each run of the script, and answers with what
// the runs did from when the last client was warm.
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
	return benched{perSecond(len(timed), time.Duration(ended-began)*time.Microsecond), quantilesOf(timed)}, nil
}

// What the script says of a job. n counts a client's runs and r is random, so ids
// are unique and rise as UUIDv7s do, without a round trip to ask for them; keys
// are random, as clients' are.
const (
	ceilingID = `(lpad(to_hex(:n::bigint), 12, '0') || '7' || lpad(to_hex(:client_id::bigint), 3, '0') || '8000' ||
		lpad(to_hex(:r::bigint), 12, '0'))::uuid`
	ceilingKey    = `md5(:client_id::text || ' ' || :n::text || ' ' || :r::text)::uuid::text`
	ceilingNumber = `'BENCH-' || lpad(:account::text, 5, '0')`
)

// batchedInsert is the product's own, for a single job.
func batchedInsert(user uuid.UUID) ([]string, error) {
	return bindAll(job.InsertStatements(), [][]string{
		{`ARRAY[:r::bigint]`},
		{
			`ARRAY[` + ceilingID + `]`, `ARRAY['` + user.String() + `'::uuid]`, `ARRAY[` + ceilingNumber + `]`,
			`ARRAY[` + ceilingKey + `]`, `ARRAY['deposit']`, `ARRAY[100]`, `ARRAY['benchmark']`, `ARRAY[NULL]`, `50000`,
		},
	})
}

// plainInsert is the same row as one would write it by hand.
func plainInsert(user uuid.UUID) []string {
	return []string{`
	INSERT INTO jobs (id, account_id, user_id, idempotency_key, type, amount, description)
	SELECT ` + ceilingID + `, id, user_id, ` + ceilingKey + `, 'deposit', 100, 'benchmark'
	FROM accounts WHERE number = ` + ceilingNumber + ` AND user_id = '` + user.String() + `'`}
}

func boundApply() ([]string, error) {
	return bindAll(ledger.ApplyStatements(), [][]string{{ceilingID, fmt.Sprint(ledger.MaxAmount), "0", "true"}})
}

// ceilingScript is one job's way, in two transactions of a round trip each.
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

// bindAll binds statements to what stands for their parameters $1, $2, …
func bindAll(statements []string, params [][]string) ([]string, error) {
	if len(statements) != len(params) {
		return nil, errors.New("the statements of an accept or an apply are others now: bind them anew")
	}
	var bound []string
	for i, sql := range statements {
		sql, err := bind(sql, params[i]) //nolint:gosec // there are as many
		if err != nil {
			return nil, err
		}
		bound = append(bound, sql)
	}
	return bound, nil
}

var parameter = regexp.MustCompile(`\$[0-9]+`)

// bind puts expressions in the place of a statement's parameters; each must have
// one.
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
