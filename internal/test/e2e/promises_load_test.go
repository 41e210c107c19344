package e2e_test

import (
	"bytes"
	"cmp"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// The accounts, the sending clients and the reading ones.
const (
	ownAccounts    = 5 // of one client each, so that a single thread says how each request ends
	sharedAccounts = 3
	sharers        = 5 // clients of each of those
	readers        = 6
	maxUnfinished  = 600 // accepted jobs that no reader has seen finished; clients wait then
	recentRequests = 20  // of a client, whose keys are sent again
	firstBalance   = 1000
)

// round is clients at work, from a fresh user with fresh accounts until all that they were
// read is checked.
type round struct {
	t        *testing.T
	s        *system
	c        *client
	waiting  *client // the same, whose POSTs wait for the job
	record   *record
	accounts []*roundAccount

	stop       chan struct{}
	ended      func() error              // stops the clients and returns the first trouble of one
	only       atomic.Pointer[readRoute] // the only one that readers use; nil is all
	sending    sync.RWMutex              // a client sends under RLock; Lock pauses them all
	exporting  sync.Mutex                // held by the reader that has the user's one export
	slots      chan struct{}             // holds one for each job, from before its accept until a reader saw it finished
	unfinished chan roundRequest         // accepted jobs, for the readers
	group      errgroup.Group
}

// roundAccount is an account and the requests of each of its clients, each in the order in
// which the client sent them: the next one after the 202 of the one before.
type roundAccount struct {
	number   string
	mu       sync.Mutex // guards requests
	requests [][]roundRequest
}

// roundRequest is a request and the job that its 202 names.
type roundRequest struct {
	jobRequest
	job            string
	sent, accepted time.Time // first try sent; 202 arrived
}

func newRound(t *testing.T, s *system) *round {
	t.Helper()
	r := &round{
		t: t, s: s, c: newSignedUpClient(t, s), record: newRecord(), stop: make(chan struct{}),
		slots: make(chan struct{}, maxUnfinished), unfinished: make(chan roundRequest, maxUnfinished),
	}
	r.waiting = r.c.thatPrefers("wait=1")
	r.ended = sync.OnceValue(func() error {
		close(r.stop)
		return r.group.Wait()
	})
	for n := range ownAccounts + sharedAccounts {
		clients := 1
		if n >= ownAccounts {
			clients = sharers
		}
		a := &roundAccount{number: r.c.open(firstBalance).Number, requests: make([][]roundRequest, clients)}
		r.accounts = append(r.accounts, a)
		for client := range clients {
			c := r.c
			if client == 0 && (n == 0 || n >= ownAccounts) { // the others fill the queue, while no worker applies
				c = r.waiting
			}
			r.group.Go(func() error { return r.send(c, a, client) })
		}
	}
	for n := range readers {
		r.group.Go(func() error { return r.read(n) })
	}
	t.Cleanup(func() {
		if err := r.ended(); err != nil {
			t.Log("the first trouble of a client:", err) // it may be why the test failed
		}
	})
	return r
}

func (r *round) stopped() bool {
	select {
	case <-r.stop:
		return true
	default:
		return false
	}
}

// send sends one request after the other through c, while there is room.
func (r *round) send(c *client, a *roundAccount, client int) error {
	for n := 0; ; n++ {
		select {
		case r.slots <- struct{}{}:
		case <-r.stop:
			return nil
		}
		req := jobRequest{account: a.number, entry: "deposits", amount: 1 + rand.Int64N(firstBalance), key: fmt.Sprintf("%s-%d-%d", a.number, client, n)}
		if rand.IntN(2) == 0 {
			req.entry = "withdrawals"
		}
		r.sending.RLock()
		since := r.record.known(cmp.Or(c.prefer, "a 202"))
		body, err := c.settled(n, req)
		r.sending.RUnlock()
		var job jobAnswer
		if err == nil {
			err = json.Unmarshal(body, &job)
		}
		if err != nil {
			return err
		}
		r.record.job(since, body)
		accepted := roundRequest{req, job.ID, since.at, time.Now()}
		r.unfinished <- accepted // a slot is free
		a.mu.Lock()
		a.requests[client] = append(a.requests[client], accepted)
		a.mu.Unlock()
	}
}

// errUnanswered means that a request may be sent again: it got no response, or a 503.
var errUnanswered = errors.New("no answer")

// get reads a path. It returns errUnanswered if the caller should try again.
func (r *round) get(api int, path, accept string) (status int, body []byte, err error) {
	saw, err := r.getWith(api, path, "Accept", accept)
	return saw.status, saw.body, err
}

// getWith is get with a header.
func (r *round) getWith(api int, path, header, value string) (seen, error) {
	req, err := http.NewRequestWithContext(r.t.Context(), http.MethodGet, r.s.api(api)+path, http.NoBody)
	if err != nil {
		return seen{}, err
	}
	req.Header.Set("Authorization", "Bearer "+r.c.token)
	req.Header.Set(header, value)
	saw := r.c.do(req)
	if saw.err != nil || saw.status == http.StatusServiceUnavailable {
		return seen{}, errUnanswered
	}
	return saw, nil
}

// getJSON reads a path into answer.
func (r *round) getJSON(api int, path string, answer any) error {
	status, body, err := r.get(api, path, "application/json")
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("%s: %d %s", path, status, body)
	}
	return json.Unmarshal(body, answer)
}

// readRoute is one way to read an outcome.
type readRoute struct {
	name string
	read func(r *round, since known, api int, a *roundAccount) error
}

var readRoutes = []readRoute{
	{"jobs", (*round).readJob},
	{"jobs that finish while clients wait", (*round).waitForJob},
	{"lists of jobs", (*round).readJobs},
	{"histories", (*round).readHistory},
	{"single transactions", (*round).readTransaction},
	{"accounts", (*round).readAccount},
	{"lists of accounts", (*round).readAccounts},
	{"balances", (*round).readBalance},
	{"balances at a time", (*round).readBalanceAt},
	{"exports", (*round).readExport},
	{"event streams", (*round).readEvents},
	{"heads of event streams", (*round).readEventHead},
	{"jobs that a client has", (*round).readTagged},
	{"answers to keys sent again", (*round).replay},
	{"answers to batches of keys sent again", (*round).replayBatch},
	{"jobs by key", (*round).readByKey},
}

// read uses the routes in random order, every second time the route of a job, or always
// r.only. Some routes write to the log, which flushes what the others have shown.
func (r *round) read(api int) error {
	for n := api; !r.stopped(); n++ {
		route := r.only.Load()
		if route == nil && n%2 == 0 {
			route = &readRoutes[0]
		} else if route == nil {
			route = &readRoutes[rand.IntN(len(readRoutes))]
		}
		if err := route.read(r, r.record.known(route.name), n/2, r.accounts[rand.IntN(len(r.accounts))]); err != nil && !errors.Is(err, errUnanswered) {
			return err
		}
	}
	return nil
}

// readEverything uses each route once for each shared account.
func (r *round) readEverything() {
	r.t.Helper()
	var group errgroup.Group
	for _, route := range readRoutes {
		for n, a := range r.accounts[ownAccounts:] {
			group.Go(func() error {
				if err := route.read(r, r.record.known(route.name), n, a); !errors.Is(err, errUnanswered) {
					return err
				}
				return nil
			})
		}
	}
	if err := group.Wait(); err != nil {
		r.t.Error(err)
	}
}

// readJob reads an accepted job that no reader has seen finished.
func (r *round) readJob(since known, api int, a *roundAccount) error {
	return r.poll(func(req roundRequest) (finished bool, err error) {
		var body json.RawMessage
		err = r.getJSON(api, "/v1/jobs/"+req.job, &body)
		return err == nil && r.record.job(since, body), err
	}, func() error { return r.readJobs(since, api, a) })
}

// waitForJob waits for an accepted job that no reader has seen finished.
func (r *round) waitForJob(since known, api int, a *roundAccount) error {
	return r.poll(func(req roundRequest) (finished bool, err error) {
		var body json.RawMessage
		err = r.getJSON(api, "/v1/jobs/"+req.job+"?wait=1", &body)
		return err == nil && r.record.job(since, body), err
	}, func() error { return r.readJobs(since, api, a) })
}

// readTagged reads a recent job of an account, and then asks whether it has changed. A 304 shows the first
// answer once more.
func (r *round) readTagged(since known, api int, a *roundAccount) error {
	recent := a.recent()
	if len(recent) == 0 {
		return nil
	}
	path := "/v1/jobs/" + recent[rand.IntN(len(recent))].job
	first, err := r.getWith(api, path, "Accept", "application/json")
	if err != nil {
		return err
	}
	if first.status != http.StatusOK || first.header.Get("ETag") == "" {
		return fmt.Errorf("%s: %d %s %v", path, first.status, first.body, first.header)
	}
	r.record.job(since, first.body)
	since = r.record.known(since.route)
	again, err := r.getWith(api+1, path, "If-None-Match", first.header.Get("ETag"))
	switch {
	case err != nil:
		return err
	case again.status == http.StatusNotModified:
		again.body = first.body
	case again.status != http.StatusOK:
		return fmt.Errorf("%s: %d %s", path, again.status, again.body)
	}
	r.record.job(since, again.body)
	return nil
}

// poll takes an unfinished job and reads it, and gives it back where it is still unfinished.
// Without an unfinished job poll calls otherwise.
func (r *round) poll(read func(roundRequest) (finished bool, err error), otherwise func() error) error {
	select {
	case req := <-r.unfinished:
		finished, err := read(req)
		if finished {
			<-r.slots
		} else {
			r.unfinished <- req
		}
		return err
	default:
		return otherwise()
	}
}

// readJobs reads an account's last jobs, or its last ones of a status.
func (r *round) readJobs(since known, api int, a *roundAccount) error {
	filters := []string{"", "&status=queued", "&status=succeeded", "&status=rejected"}
	path := "/v1/accounts/" + a.number + "/jobs?limit=100" + filters[rand.IntN(len(filters))]
	var jobs page[json.RawMessage]
	if err := r.getJSON(api, path, &jobs); err != nil {
		return err
	}
	for _, job := range jobs.Data {
		r.record.job(since, job)
	}
	return nil
}

func (r *round) readHistory(since known, api int, a *roundAccount) error {
	var history page[seenTransaction]
	if err := r.getJSON(api, "/v1/accounts/"+a.number+"/transactions?limit=100", &history); err != nil {
		return err
	}
	for _, x := range history.Data {
		r.record.transaction(since, a.number, x.Seq, x.BalanceAfter, x.line())
	}
	r.record.reaches(since, a.number, history.Data[0].Seq)
	return nil
}

// readTransaction reads the transaction after the last one that is known, or that one.
func (r *round) readTransaction(since known, api int, a *roundAccount) error {
	seq := max(1, since.latest[a.number]+int64(rand.IntN(2)))
	path := fmt.Sprintf("/v1/accounts/%s/transactions/%d", a.number, seq)
	status, body, err := r.get(api, path, "application/json")
	var x seenTransaction
	switch {
	case err != nil:
		return err
	case status == http.StatusNotFound:
		r.record.reaches(since, a.number, seq-1)
		return nil
	case status != http.StatusOK:
		return fmt.Errorf("%s: %d %s", path, status, body)
	}
	if err := json.Unmarshal(body, &x); err != nil {
		return err
	}
	r.record.transaction(since, a.number, x.Seq, x.BalanceAfter, x.line())
	return nil
}

func (r *round) readAccount(since known, api int, a *roundAccount) error {
	var got account
	if err := r.getJSON(api, "/v1/accounts/"+a.number, &got); err != nil {
		return err
	}
	r.record.balance(since, a.number, got.LastSeq, got.Balance)
	return nil
}

func (r *round) readAccounts(since known, api int, _ *roundAccount) error {
	var list page[account]
	if err := r.getJSON(api, "/v1/accounts?limit=100", &list); err != nil {
		return err
	}
	for _, got := range list.Data {
		r.record.balance(since, got.Number, got.LastSeq, got.Balance)
	}
	return nil
}

func (r *round) readBalance(since known, api int, a *roundAccount) error {
	var m moment
	if err := r.getJSON(api, "/v1/accounts/"+a.number+"/balance", &m); err != nil {
		return err
	}
	r.record.balance(since, a.number, m.Seq, m.Balance)
	r.record.moment(since, m, rand.IntN)
	return nil
}

func (r *round) readBalanceAt(since known, api int, a *roundAccount) error {
	const back = 50 * time.Millisecond
	m, err := r.balanceAt(api, a.number, time.Now().Add(-rand.N(back)))
	if err == nil {
		r.record.moment(since, m, rand.IntN)
	}
	return err
}

func (r *round) balanceAt(api int, number string, at time.Time) (m moment, err error) {
	return m, r.getJSON(api, "/v1/accounts/"+number+"/balance?at="+at.UTC().Format("2006-01-02T15:04:05.000000Z"), &m)
}

// replay sends a request again: that of an unfinished job, or a recent one of an account.
func (r *round) replay(since known, api int, a *roundAccount) error {
	recent := func() error {
		requests := a.recent()
		if len(requests) == 0 {
			return nil
		}
		_, err := r.sendAgain(since, api, requests[rand.IntN(len(requests))])
		return err
	}
	if rand.IntN(2) == 0 {
		return recent()
	}
	return r.poll(func(req roundRequest) (bool, error) { return r.sendAgain(since, api, req) }, recent)
}

// either returns the client whose POSTs wait for their jobs, or the other one.
func (r *round) either() *client {
	return []*client{r.c, r.waiting}[rand.IntN(2)]
}

func (r *round) sendAgain(since known, api int, req roundRequest) (finished bool, err error) {
	status, body, err := r.either().send(r.t.Context(), api, req.jobRequest)
	switch {
	case err != nil || status == http.StatusServiceUnavailable:
		return false, errUnanswered
	case status != http.StatusOK && status != http.StatusAccepted:
		return false, fmt.Errorf("key %s sent again: %d %s", req.key, status, body)
	case !bytes.Contains(body, []byte(req.job)):
		r.record.change("key %s made job %s and now answers %s", req.key, req.job, body)
	}
	return r.record.job(since, body), nil
}

// recent returns the last requests of one of the account's clients.
func (a *roundAccount) recent() []roundRequest {
	client := rand.IntN(len(a.requests))
	a.mu.Lock()
	defer a.mu.Unlock()
	requests := a.requests[client]
	return requests[max(0, len(requests)-recentRequests):]
}

// replayBatch sends the last requests of a client again, as a batch.
func (r *round) replayBatch(since known, api int, a *roundAccount) error {
	recent := a.recent()
	if len(recent) == 0 {
		return nil
	}
	var requests []jobRequest
	for _, req := range recent {
		requests = append(requests, req.jobRequest)
	}
	status, body, err := r.either().sendBatch(r.t.Context(), r.s.api(api), requests)
	switch {
	case err != nil || status == http.StatusServiceUnavailable:
		return errUnanswered
	case status != http.StatusOK && status != http.StatusAccepted:
		return fmt.Errorf("batch of %s… sent again: %d %s", requests[0].key, status, body)
	}
	var jobs page[json.RawMessage]
	if err := json.Unmarshal(body, &jobs); err != nil || len(jobs.Data) != len(requests) {
		return fmt.Errorf("batch of %s… sent again: %s, %w", requests[0].key, body, err)
	}
	for i, req := range recent {
		if !bytes.Contains(jobs.Data[i], []byte(req.job)) {
			r.record.change("key %s made job %s and now answers %s", req.key, req.job, jobs.Data[i])
		}
		r.record.job(since, jobs.Data[i])
	}
	return nil
}

// readByKey reads the job of one of a client's last requests by its key.
func (r *round) readByKey(since known, api int, a *roundAccount) error {
	recent := a.recent()
	if len(recent) == 0 {
		return nil
	}
	req := recent[rand.IntN(len(recent))]
	var jobs page[json.RawMessage]
	if err := r.getJSON(api, "/v1/jobs?idempotency_key="+req.key, &jobs); err != nil {
		return err
	}
	if len(jobs.Data) != 1 || !bytes.Contains(jobs.Data[0], []byte(req.job)) {
		r.record.change("key %s made job %s and now finds %s", req.key, req.job, jobs.Data)
		return nil
	}
	r.record.job(since, jobs.Data[0])
	return nil
}

// readExport reads one export at a time, as a user may.
func (r *round) readExport(since known, api int, a *roundAccount) error {
	r.exporting.Lock()
	defer r.exporting.Unlock()
	path := "/v1/accounts/" + a.number + "/transactions?order=asc"
	status, body, err := r.get(api, path, "text/csv")
	switch {
	case err != nil:
		return err
	case status == http.StatusTooManyRequests: // the API has not noticed that the last one ended
		return errUnanswered
	case status != http.StatusOK:
		return fmt.Errorf("%s: %d %s", path, status, body)
	}
	last := int64(0)
	lines := csv.NewReader(bytes.NewReader(body))
	for n := 0; ; n++ {
		fields, err := lines.Read()
		switch {
		case errors.Is(err, io.EOF):
			r.record.reaches(since, a.number, last)
			return nil
		case err != nil:
			return err
		case n == 0: // the names of the columns
			continue
		}
		var balance int64
		if _, err := fmt.Sscan(fields[0]+" "+fields[3], &last, &balance); err != nil {
			return err
		}
		r.record.transaction(since, a.number, last, balance, strings.Join(fields, ","))
	}
}

// end stops the clients and compares all that they have read with what there is now.
func (r *round) end() {
	r.t.Helper()
	if err := r.ended(); err != nil {
		r.t.Fatal(err)
	}
	r.s.drained()
	for _, a := range r.accounts {
		r.checkAccount(a)
	}
	r.checkMoments()
	_, _, changed := r.record.count()
	for _, change := range r.record.changes {
		r.t.Error(change)
	}
	if more := changed - len(r.record.changes); more > 0 {
		r.t.Errorf("and %d more", more)
	}
}

// checkAccount reads everything of an account again: each 202 has its job, finished
// once, in the order of acceptance.
func (r *round) checkAccount(a *roundAccount) {
	r.t.Helper()
	since := r.record.known("the check")
	jobs := map[string]jobAnswer{}
	for _, body := range all[json.RawMessage](r.c, "/v1/accounts/"+a.number+"/jobs") {
		var job jobAnswer
		if err := json.Unmarshal(body, &job); err != nil {
			r.t.Fatal(err)
		}
		if !r.record.job(since, body) {
			r.record.change("job %s is not finished: %s", job.ID, body)
		}
		jobs[job.ID] = job
	}
	for _, x := range all[seenTransaction](r.c, "/v1/accounts/"+a.number+"/transactions") {
		r.record.transaction(since, a.number, x.Seq, x.BalanceAfter, x.line())
	}
	byJob := r.c.checkHistory(a.number)
	r.record.balance(since, a.number, int64(len(byJob)+1), r.c.account(a.number).Balance)
	if err := r.readExport(since, 0, a); err != nil {
		r.t.Errorf("export of %s: %v", a.number, err)
	}
	requests := slices.Concat(a.requests...)
	if len(jobs) != len(requests) {
		r.t.Errorf("account %s has %d jobs for %d requests", a.number, len(jobs), len(requests))
	}
	r.checkOutcomes(a, requests, jobs, byJob)
	r.checkEvents(a, requests)
	r.checkRealTime(a, requests, byJob)
}

// checkOutcomes checks that each request's job is there, as its transaction says and, where
// the account has one client, as a single thread would have done it.
func (r *round) checkOutcomes(a *roundAccount, requests []roundRequest, jobs map[string]jobAnswer, byJob map[string]transaction) {
	r.t.Helper()
	bank := newBank(firstBalance)
	for _, req := range requests {
		job, exists := jobs[req.job]
		x, moved := byJob[req.job]
		switch {
		case !exists:
			r.t.Errorf("account %s: job %s got its 202 and is not there", a.number, req.job)
			return
		case moved != (job.Transaction != nil) || moved && x.Seq != job.Transaction.Seq:
			r.t.Errorf("job %s is %+v, its transaction %+v", req.job, job, x)
		}
		if next, want := bank.do(job.Type, req.amount); len(a.requests) == 1 {
			bank = next
			if got := job.outcome(); got != want {
				r.t.Errorf("account %s, %s of %d: %s, a single thread makes it %s", a.number, req.entry, req.amount, got, want)
				return
			}
		}
	}
}

// checkRealTime checks that what was sent after another request's 202 took effect after it,
// whichever clients sent them.
func (r *round) checkRealTime(a *roundAccount, requests []roundRequest, byJob map[string]transaction) {
	r.t.Helper()
	moved := slices.DeleteFunc(requests, func(req roundRequest) bool { return byJob[req.job].Seq == 0 })
	bySent := slices.SortedFunc(slices.Values(moved), func(x, y roundRequest) int { return x.sent.Compare(y.sent) })
	byAccepted := slices.SortedFunc(slices.Values(moved), func(x, y roundRequest) int { return x.accepted.Compare(y.accepted) })
	last, next := int64(0), 0
	for _, req := range bySent {
		for ; byAccepted[next].accepted.Before(req.sent); next++ { // a request's own 202 comes after it was sent
			last = max(last, byJob[byAccepted[next].job].Seq)
		}
		if seq := byJob[req.job].Seq; seq < last {
			r.t.Errorf("account %s: job %s is transaction %d, and was sent after the 202 of transaction %d", a.number, req.job, seq, last)
			return
		}
	}
}

// checkMoments reads each balance at a time again.
func (r *round) checkMoments() {
	r.t.Helper()
	const atOnce = 8
	var group errgroup.Group
	group.SetLimit(atOnce)
	for n, m := range r.record.moments {
		group.Go(func() error {
			now, err := r.balanceAt(n, m.Number, m.At)
			for deadline := time.Now().Add(patience); errors.Is(err, errUnanswered) && time.Now().Before(deadline) && r.c.pause(r.t.Context()); {
				now, err = r.balanceAt(n, m.Number, m.At) // a 503 may be sent again, as after a crash behind a pooler
			}
			if err == nil && (now.Seq != m.Seq || now.Balance != m.Balance || !now.At.Equal(m.At)) {
				r.record.change("the balance at a time was read as %+v and is now %+v", m, now)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		r.t.Errorf("balances at a time, once more: %v", err)
	}
}
