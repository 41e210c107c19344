package worker_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/queue"
	"github.com/passbook/passbook/internal/test/testenv"
	"github.com/passbook/passbook/internal/worker"
)

// verifier is a worker's verifier whose steps a test takes.
type verifier struct {
	*worker.Verifier
	t        *testing.T
	registry *prometheus.Registry
	log      *lines
}

func newVerifier(t *testing.T, pool *pgxpool.Pool, client redis.UniversalClient) *verifier {
	t.Helper()
	const lasting = time.Hour
	return newVerifierThatForgets(t, pool, client, lasting)
}

func newVerifierThatForgets(t *testing.T, pool *pgxpool.Pool, client redis.UniversalClient, lasts time.Duration) *verifier {
	t.Helper()
	v := &verifier{t: t, registry: prometheus.NewRegistry(), log: &lines{}}
	log := slog.New(slog.NewJSONHandler(v.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	v.Verifier = worker.NewVerifierThatForgets(pool, queue.NewShared(client, queues, "verification"), v.registry, log, lasts)
	return v
}

// round takes steps until a round ends.
func (v *verifier) round() {
	v.t.Helper()
	const most = 1000
	v.EndRest()
	for begun, n := false, 0; n < most; n++ {
		v.Step(v.t.Context())
		running := v.Round().Table != ""
		if begun && !running {
			return
		}
		begun = begun || running
	}
	v.t.Fatalf("no round has ended after %d steps", most)
}

// gauges are the verifier's metrics; those that are absent are missing.
func (v *verifier) gauges() map[string]float64 {
	v.t.Helper()
	families, err := v.registry.Gather()
	if err != nil {
		v.t.Fatal(err)
	}
	all := map[string]float64{}
	for _, family := range families {
		metric := family.GetMetric()[0]
		all[strings.TrimPrefix(family.GetName(), "passbook_")] = metric.GetGauge().GetValue() + metric.GetCounter().GetValue()
	}
	return all
}

// lines are log lines.
type lines struct {
	mu  sync.Mutex // guards all
	all []map[string]any
}

// Write keeps a line.
func (l *lines) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var parsed map[string]any
	if err := json.Unmarshal(bytes.TrimSpace(line), &parsed); err != nil {
		return 0, err
	}
	l.all = append(l.all, parsed)
	return len(line), nil
}

// with are the lines with a message.
func (l *lines) with(message string) (found []map[string]any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.all {
		if line["msg"] == message {
			found = append(found, line)
		}
	}
	return found
}

// accountsOf opens so many accounts with two jobs each, which are applied.
func accountsOf(t *testing.T, pool *pgxpool.Pool, n int) (accounts []ledger.Account) {
	t.Helper()
	user := ledgertest.User(t, pool)
	for range n {
		account := ledgertest.Account(t, pool, user, 10)
		for range 2 {
			id := ledgertest.Job(t, pool, account, ledger.Deposit, 1)
			if _, _, err := ledger.NewApplier(pool).Apply(t.Context(), id, 1); err != nil {
				t.Fatal(err)
			}
		}
		accounts = append(accounts, account)
	}
	return accounts
}

// A damaged account is counted and logged at error, at once and in each round until it is repaired.
func TestVerifierFindsDamage(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	accounts := accountsOf(t, pool, 3)
	v := newVerifier(t, pool, connectTo(t, testenv.Redis(t)))
	if gauges := v.gauges(); len(gauges) != 1 { // the counter
		t.Errorf("before the first round: %v", gauges)
	}
	v.round()
	gauges := v.gauges()
	if got, there := gauges["verification_mismatches"]; got != 0 || !there || gauges["verified_accounts_total"] != 3 {
		t.Errorf("of a sound ledger: %v", gauges)
	}
	if at := gauges["verification_last_round_timestamp_seconds"]; at < float64(time.Now().Add(-time.Hour).Unix()) || gauges["verification_round_seconds"] <= 0 {
		t.Errorf("of the round: %v", gauges)
	}

	ledgertest.Unguarded(t, pool, `UPDATE accounts SET balance = balance + 1 WHERE number = '`+accounts[1].Number+`'`)
	v.EndRest()
	for v.gauges()["verification_mismatches"] == 0 {
		v.Step(t.Context())
	}
	if v.Round().Table == "" {
		t.Error("the mismatch is shown only at the end of the round")
	}
	v.round()
	found := v.log.with("ledger mismatch")
	if len(found) != 1 || found[0]["level"] != "ERROR" || found[0]["account"] != accounts[1].Number || found[0]["finding"] != "balance 13, its history makes 12" {
		t.Errorf("logged %v", found)
	}
	v.round()
	if n := len(v.log.with("ledger mismatch")); n != 2 || v.gauges()["verification_mismatches"] != 1 {
		t.Errorf("in the next round: %d lines, %v", n, v.gauges())
	}
	ledgertest.Unguarded(t, pool, `UPDATE accounts SET balance = balance - 1 WHERE number = '`+accounts[1].Number+`'`)
	v.round()
	if got, there := v.gauges()["verification_mismatches"]; got != 0 || !there {
		t.Errorf("of a repaired ledger: %v", v.gauges())
	}
}

// A round goes on in the next process where it stood, and no account is verified twice. Of two
// workers one verifies, and both show what it found.
func TestVerifierResumes(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	accounts := accountsOf(t, pool, 4)
	ledgertest.Unguarded(t, pool, `UPDATE accounts SET balance = balance + 1 WHERE number = '`+accounts[0].Number+`'`)
	client := connectTo(t, testenv.Redis(t))
	one, two := newVerifier(t, pool, client), newVerifier(t, pool, client)
	one.SliceOf(1)
	one.Step(t.Context())
	one.SliceOf(1)
	one.Step(t.Context())
	if pause := two.Step(t.Context()); pause != worker.OtherVerifier || two.gauges()["verified_accounts_total"] != 0 {
		t.Errorf("the second worker verifies too, and pauses for %v", pause)
	}
	if one.gauges()["verification_mismatches"] != 1 || two.gauges()["verification_mismatches"] != 1 {
		t.Errorf("the first shows %v, the second %v", one.gauges(), two.gauges())
	}
	one.Release(t.Context())
	two.round()
	first, second := one.gauges()["verified_accounts_total"], two.gauges()["verified_accounts_total"]
	if first != 2 || second != 2 {
		t.Errorf("of %d accounts the first verified %v, the second %v", len(accounts), first, second)
	}
	if got := two.gauges()["verification_mismatches"]; got != 1 || len(two.log.with("ledger mismatch")) != 0 {
		t.Errorf("the second shows %v mismatches", got)
	}
	if said := two.log.with("ledger verified"); len(said) != 1 || said[0]["accounts"] != float64(len(accounts)) {
		t.Errorf("logged %v", said)
	}
}

// After a small ledger was verified, the verifier rests. A large one is verified at a bounded rate.
func TestVerifierRests(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	accountsOf(t, pool, 2)
	v := newVerifier(t, pool, connectTo(t, testenv.Redis(t)))
	v.SliceOf(2)
	if pause := v.Step(t.Context()); pause < 2*time.Second/worker.VerifyRate {
		t.Errorf("a pause of %v after two rows", pause)
	}
	v.round()
	for range 3 {
		if pause := v.Step(t.Context()); pause < time.Second || v.Round().Table != "" {
			t.Errorf("no rest: a pause of %v", pause)
		}
	}
}

// Without Redis the verification goes on.
func TestVerifierWithoutRedis(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	accounts := accountsOf(t, pool, 2)
	client := connectTo(t, testenv.Redis(t))
	v := newVerifier(t, pool, client)
	v.SliceOf(1)
	v.Step(t.Context())
	if err := client.Close(); err != nil { // every call fails from here on
		t.Fatal(err)
	}
	ledgertest.Unguarded(t, pool, `UPDATE accounts SET balance = balance + 1 WHERE number = '`+accounts[1].Number+`'`)
	v.round()
	if got := v.gauges()["verification_mismatches"]; got != 1 || v.gauges()["verified_accounts_total"] != 2 {
		t.Errorf("without Redis: %v", v.gauges())
	}
}

// While nothing can be verified, the metrics show no mismatches, one warning is logged, and the
// verification goes on afterwards.
func TestVerifierWithoutPostgres(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	accountsOf(t, pool, 2)
	v := newVerifierThatForgets(t, pool, connectTo(t, testenv.Redis(t)), 50*time.Millisecond)
	v.round()
	ledgertest.Exec(t, pool, `ALTER TABLE accounts RENAME TO gone`)
	v.EndRest()
	for range 3 {
		v.Step(t.Context())
	}
	if n := len(v.log.with("could not verify the ledger")); n != 1 {
		t.Errorf("%d warnings, want one", n)
	}
	testenv.Eventually(t, "the mismatches to be unknown", func() bool {
		v.Step(t.Context())
		_, there := v.gauges()["verification_mismatches"]
		return !there
	})
	if v.gauges()["verification_last_round_timestamp_seconds"] == 0 {
		t.Errorf("the time of the last round is unknown too: %v", v.gauges())
	}
	ledgertest.Exec(t, pool, `ALTER TABLE gone RENAME TO accounts`)
	v.round()
}

// A row that can't be read is found by smaller and smaller slices, and does not stop the verifier.
func TestVerifierPassesWhatCantBeRead(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	accounts := accountsOf(t, pool, 3)
	ledgertest.Exec(t, pool, `ALTER DOMAIN balance DROP CONSTRAINT balance_check`)
	ledgertest.Unguarded(t, pool, `UPDATE transactions SET balance_after = 9223372036854775807 WHERE seq = 2`)
	v := newVerifier(t, pool, connectTo(t, testenv.Redis(t)))
	v.round()
	passed := 0
	for _, line := range v.log.with("ledger mismatch") {
		if strings.Contains(line["finding"].(string), "can't be verified") {
			passed++
		}
	}
	if passed != len(accounts) || v.gauges()["verification_mismatches"] == 0 {
		t.Errorf("%d rows were passed over, want %d: %v", passed, len(accounts), v.gauges())
	}
}

// Many mismatches are counted, and a bounded number of them is logged.
func TestVerifierLogsABoundedNumber(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	const damaged = worker.MaxMismatchLines + 5
	accountsOf(t, pool, damaged)
	ledgertest.Unguarded(t, pool, `UPDATE accounts SET balance = balance + 1`)
	v := newVerifier(t, pool, connectTo(t, testenv.Redis(t)))
	v.round()
	logged, more := len(v.log.with("ledger mismatch")), len(v.log.with("more ledger mismatches, which are not logged; worker verify prints all"))
	if logged != worker.MaxMismatchLines || more != 1 || v.gauges()["verification_mismatches"] != damaged {
		t.Errorf("%d lines and %d of more, %v", logged, more, v.gauges())
	}
}

// A worker that stops leaves the round to the next one at once.
func TestVerifierRun(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	accountsOf(t, pool, 1)
	client := connectTo(t, testenv.Redis(t))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	v := newVerifier(t, pool, client)
	done := make(chan error, 1)
	go func() { done <- v.Run(ctx) }()
	testenv.Eventually(t, "an account to be verified", func() bool { return v.gauges()["verified_accounts_total"] > 0 })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	next := newVerifier(t, pool, client)
	if pause := next.Step(t.Context()); pause == worker.OtherVerifier {
		t.Error("the next worker waits for one that has stopped")
	}
}

// A stop that cuts off the answer of Redis leaves the round to the next worker at once, too.
func TestVerifierRun_CutOff(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	accountsOf(t, pool, 1)
	client := connectTo(t, testenv.Redis(t))
	v := newVerifier(t, pool, client)
	v.round()
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	v.Step(stopped) // it rests, and asks Redis to keep its hold
	v.Release(stopped)
	if pause := newVerifier(t, pool, client).Step(t.Context()); pause == worker.OtherVerifier {
		t.Error("the next worker waits for one that has stopped")
	}
}
