package e2e_test

import (
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/passbook/passbook/internal/auth"
	"github.com/passbook/passbook/internal/test/contract"
	"github.com/passbook/passbook/internal/test/fuzz"
)

var (
	fuzzRequests = flag.Int("fuzz.requests", 600, "requests of TestFuzzAPI")
	fuzzSeed     = flag.Uint64("fuzz.seed", 0, "repeats the requests of a run of TestFuzzAPI; 0 is a fixed seed and then one that is drawn")
)

const (
	fuzzClients     = 4 // each sends one request at a time
	fuzzFixedSeed   = 1
	requestsACaller = 300 // before its client is another user, whose histories are short
	maxFindings     = 20
)

// Requests that are made from openapi.yaml, valid and changed in every way, get no 500 and no answer
// that the document does not describe. Only what was accepted moves money, and an answer to one user
// shows nothing of another.
func TestFuzzAPI(t *testing.T) {
	t.Parallel()
	f := newFuzzRun(t)
	seeds := []uint64{*fuzzSeed}
	if *fuzzSeed == 0 {
		seeds = []uint64{fuzzFixedSeed, rand.Uint64()}
	}
	stop := f.report()
	for _, seed := range seeds {
		t.Logf("seed %d: %d requests", seed, *fuzzRequests/len(seeds))
		f.send(seed, *fuzzRequests/len(seeds))
	}
	stop()
	f.reconcile()
}

// fuzzRun is a system that is sent requests, and what it has answered.
type fuzzRun struct {
	t        *testing.T
	system   *system
	document []byte
	contract *contract.Contract
	auth     *auth.Service // past the API, which limits log-ins
	started  time.Time

	mu         sync.Mutex // guards the rest
	sent       int
	statuses   map[int]int
	findings   map[string]int
	jobs       map[string]fuzzJob // that answers accepted, by id
	accounts   map[string]int64   // that answers opened, and their initial deposits, by number
	owners     map[string]string  // the callers' emails, by number
	unanswered []string           // requests that may have been accepted
}

func newFuzzRun(t *testing.T) *fuzzRun {
	t.Helper()
	f := &fuzzRun{
		t: t, system: newSystem(t, plain, 1, 1), started: time.Now(), statuses: map[int]int{}, findings: map[string]int{},
		jobs: map[string]fuzzJob{}, accounts: map[string]int64{}, owners: map[string]string{},
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.system.api(0)+"/openapi.yaml", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close() //nolint:errcheck // it is read to its end
	if f.document, err = io.ReadAll(res.Body); err != nil {
		t.Fatal(err)
	}
	if f.contract, err = contract.New(f.document); err != nil {
		t.Fatal(err)
	}
	key := auth.Key{ID: "k1", Secret: []byte("01234567890123456789012345678901")} // as in system.env
	if f.auth, err = auth.New(f.system.pool, auth.Config{Keys: []auth.Key{key}}); err != nil {
		t.Fatal(err)
	}
	return f
}

// newSession adds a user and logs in.
func (f *fuzzRun) newSession(email string) (token string, err error) {
	if err := addUser(f.t.Context(), f.system.pool, email); err != nil {
		return "", err
	}
	session, err := f.auth.LogIn(f.t.Context(), email, password)
	return session.AccessToken, err
}

// send sends n requests that a seed makes.
func (f *fuzzRun) send(seed uint64, n int) {
	f.t.Helper()
	var clients sync.WaitGroup
	for i := range fuzzClients {
		source, err := fuzz.NewSource(f.document, f.contract, seed, i)
		if err != nil {
			f.t.Fatal(err)
		}
		c := &fuzzClient{run: f, source: source, address: strings.TrimPrefix(f.system.api(0), "http://"), name: fmt.Sprintf("fuzz-%x-%d", seed, i)}
		clients.Go(func() {
			defer c.hangUp()
			for range n / fuzzClients {
				if _, err := c.step(); err != nil {
					f.t.Error(err)
					return
				}
				if f.isEnough() {
					return
				}
			}
		})
	}
	clients.Wait()
}

// report says every few seconds how far the run is, until stop.
func (f *fuzzRun) report() (stop func()) {
	const every = 5 * time.Second
	ended, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				f.t.Log(f.progress())
			case <-ended:
				return
			}
		}
	}()
	return func() {
		close(ended)
		<-done
		f.t.Log(f.progress())
	}
}

func (f *fuzzRun) progress() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var statuses []string
	for _, status := range slices.Sorted(maps.Keys(f.statuses)) {
		statuses = append(statuses, fmt.Sprintf("%d×%d", f.statuses[status], status))
	}
	took := time.Since(f.started)
	return fmt.Sprintf("%4.0fs %d requests, %.0f a second, %d kinds of finding: %s",
		took.Seconds(), f.sent, float64(f.sent)/took.Seconds(), len(f.findings), strings.Join(statuses, " "))
}

// isNew counts a finding and returns whether it is the first of its kind.
func (f *fuzzRun) isNew(kind string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.findings[kind]++
	return f.findings[kind] == 1
}

func (f *fuzzRun) isEnough() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.findings) >= maxFindings
}

// fuzzJob is a job as a client asked for it.
type fuzzJob struct {
	account, kind, description string
	amount                     int64
}

// reconcile checks that the database has the jobs and accounts that answers said are accepted, and no
// others, and that the ledger is right.
func (f *fuzzRun) reconcile() {
	f.t.Helper()
	f.system.drained()
	balances := maps.Clone(f.accounts)
	missing := maps.Clone(f.jobs)
	f.each(`SELECT job.id::text, account.number, job.type::text, job.amount, coalesce(job.description, ''), job.status::text, job.idempotency_key
		FROM (SELECT id, account_id, type, amount, description, status, idempotency_key FROM job_states
			UNION ALL SELECT id, account_id, type, amount, description, status, idempotency_key FROM archived_jobs) job
		JOIN accounts account ON account.id = job.account_id`, func(scan func(...any) error) error {
		var (
			id, status, key string
			job             fuzzJob
		)
		if err := scan(&id, &job.account, &job.kind, &job.amount, &job.description, &status, &key); err != nil {
			return err
		}
		accepted, ok := f.jobs[id]
		switch {
		case !ok && !f.isUnanswered(key):
			f.t.Errorf("job %s (%+v, %s) was never accepted; its key is %q", id, job, status, key)
		case ok && accepted != job:
			f.t.Errorf("job %s is %+v; %+v was accepted", id, job, accepted)
		}
		delete(missing, id)
		if status == "succeeded" && job.kind == "deposit" {
			balances[job.account] += job.amount
		} else if status == "succeeded" {
			balances[job.account] -= job.amount
		}
		return nil
	})
	for id, job := range missing {
		f.t.Errorf("job %s (%+v) was accepted, and is not there", id, job)
	}
	f.each(`SELECT number, balance FROM accounts`, func(scan func(...any) error) error {
		var (
			number  string
			balance int64
		)
		if err := scan(&number, &balance); err != nil {
			return err
		}
		if _, opened := f.accounts[number]; !opened && !f.isUnanswered("") {
			f.t.Errorf("account %s was never opened", number)
		} else if opened && balances[number] != balance {
			f.t.Errorf("account %s has %d, its jobs and its initial deposit make %d", number, balance, balances[number])
		}
		delete(balances, number)
		return nil
	})
	for number := range balances {
		f.t.Errorf("account %s was opened, and is not there", number)
	}
	f.t.Logf("%d jobs, %d accounts, %d requests without a last answer", len(f.jobs), len(f.accounts), len(f.unanswered))
	f.system.verify()
}

// isUnanswered reports whether a request with the key may have been accepted without an answer; where
// the key is empty, any request.
func (f *fuzzRun) isUnanswered(key string) bool {
	return slices.ContainsFunc(f.unanswered, func(text string) bool { return strings.Contains(text, key) })
}

func (f *fuzzRun) each(sql string, visit func(scan func(...any) error) error) {
	f.t.Helper()
	rows, err := f.system.pool.Query(f.t.Context(), sql)
	if err != nil {
		f.t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := visit(rows.Scan); err != nil {
			f.t.Fatal(err)
		}
	}
	if err := rows.Err(); err != nil {
		f.t.Fatal(err)
	}
}
