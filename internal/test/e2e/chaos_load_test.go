package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Bounds of the load.
const (
	tryTimeout    = 4 * time.Second       // of one request; the next try goes to the other API
	settleTimeout = 3 * time.Minute       // of a request, through every fault
	tryPause      = 20 * time.Millisecond // between two tries
	bookLength    = 250                   // requests, before the clients turn to a fresh account: porcupine is quick with so many
	watchers      = 4                     // clients that read how jobs end
	maxWatched    = 4096
	maxKeys       = 1 << 20 // of a run, then clients send nothing new
)

// placed is a request that got its 202, and all that clients saw of it. Times
// are since the start.
type placed struct {
	jobRequest
	sent, accepted time.Duration // first try sent; answer arrived
	job            string

	mu       sync.Mutex // guards the rest
	finished string     // the job as it was first seen finished, empty before
	seen     time.Duration
}

// sight is a balance that a client saw.
type sight struct {
	asked, answered time.Duration
	balance, seq    int64
}

// book is one account and everything that clients did to it and saw of it.
type book struct {
	number     string
	initial    int64
	sequential bool // one client, one request at a time

	mu       sync.Mutex // guards the rest
	requests []*placed
	sights   []sight
}

// chaosLoad is the clients and what they saw. The checkers believe nothing else.
type chaosLoad struct {
	t       *chaos
	started time.Time
	stop    chan struct{} // closed when no new request shall be placed
	watch   chan *placed
	login   atomic.Pointer[client]
	keys    atomic.Int64

	mu    sync.Mutex // guards the rest
	books []*book
	tries map[string]int // answers, by kind
}

func newLoad(c *chaos, login *client) *chaosLoad {
	l := &chaosLoad{
		t: c, started: time.Now(), stop: make(chan struct{}), watch: make(chan *placed, maxWatched),
		tries: map[string]int{},
	}
	l.login.Store(login)
	return l
}

func (l *chaosLoad) now() time.Duration { return time.Since(l.started) }

// What the clients count, beside what their functions name.
const (
	acceptedRequest = "requests accepted"
	refused503      = "answers 503 unavailable, tried again"
	noAnswer        = "requests without an answer, tried again"
)

func (l *chaosLoad) tally(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tries[what]
}

func (l *chaosLoad) count(what string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tries[what]++
}

func (l *chaosLoad) stopped() bool {
	select {
	case <-l.stop:
		return true
	default:
		return false
	}
}

// pause waits, or less when the load stops.
func (l *chaosLoad) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-l.stop:
	}
}

// settleAnywhere sends a request to one API after the other until the response is final. Only a
// 503 that says to try again, and a missing response, are tried again.
func (l *chaosLoad) settleAnywhere(api int, path, key string, body any) (status int, answer []byte, err error) {
	deadline, cancel := context.WithTimeout(context.Background(), settleTimeout)
	defer cancel()
	for try := api; ; try++ {
		ctx, cancel := context.WithTimeout(deadline, tryTimeout)
		var header http.Header
		status, header, answer, err = l.login.Load().call(ctx, l.t.system.api(try), http.MethodPost, path, key, body)
		cancel()
		switch {
		case err != nil:
			l.count(noAnswer)
		case status != http.StatusServiceUnavailable:
			return status, answer, nil
		case problemCode(answer) != "unavailable" || header.Get("Retry-After") == "":
			return status, answer, nil
		default:
			l.count(refused503)
		}
		select {
		case <-time.After(tryPause):
		case <-deadline.Done():
			return 0, nil, fmt.Errorf("never settled: %d %s %w", status, answer, err)
		}
	}
}

func problemCode(answer []byte) string {
	var problem struct {
		Code string `json:"code"`
	}
	_ = json.Unmarshal(answer, &problem) // no JSON, no code
	return problem.Code
}

// place sends a request and keeps what came of it. It returns false when the
// client can't go on.
func (l *chaosLoad) place(b *book, api int, req jobRequest) bool {
	return l.placeSince(l.now(), b, api, req)
}

func (l *chaosLoad) placeSince(sent time.Duration, b *book, api int, req jobRequest) bool {
	status, answer, err := l.settleAnywhere(api, "/v1/accounts/"+req.account+"/"+req.entry, req.key, map[string]any{"amount": req.amount})
	accepted := l.now()
	switch {
	case err != nil:
		l.t.violation("request %s: %v", req.key, err)
		return false
	case status != http.StatusAccepted && status != http.StatusOK:
		l.t.violation("request %s was answered %d %s", req.key, status, answer)
		return false
	}
	return l.keep(b, &placed{jobRequest: req, sent: sent, accepted: accepted}, answer)
}

// placeBatch sends requests as one batch, which takes effect in their order.
func (l *chaosLoad) placeBatch(b *book, api int, requests []jobRequest) bool {
	sent := l.now()
	status, answer, err := l.settleAnywhere(api, "/v1/accounts/"+b.number+"/jobs", "", batchBody(requests))
	accepted := l.now()
	var jobs page[json.RawMessage]
	if err != nil || status != http.StatusAccepted && status != http.StatusOK || json.Unmarshal(answer, &jobs) != nil || len(jobs.Data) != len(requests) {
		l.t.violation("batch %s… was answered %d %s %v", requests[0].key, status, answer, err)
		return false
	}
	for i, req := range requests {
		if !l.keep(b, &placed{jobRequest: req, sent: sent, accepted: accepted}, jobs.Data[i]) {
			return false
		}
	}
	l.count("batches accepted")
	return true
}

// keep keeps a request that was answered with its job, and has it watched.
func (l *chaosLoad) keep(b *book, p *placed, answer []byte) bool {
	var job jobAnswer
	if json.Unmarshal(answer, &job) != nil || job.ID == "" {
		l.t.violation("request %s was answered with no job: %s", p.key, answer)
		return false
	}
	p.job = job.ID
	if job.Status != "queued" {
		p.saw(string(answer), p.accepted)
	}
	b.mu.Lock()
	b.requests = append(b.requests, p)
	b.mu.Unlock()
	l.count(acceptedRequest)
	select {
	case l.watch <- p:
	default: // the watchers have enough
	}
	return true
}

// saw keeps the finished job as it was first seen. It returns false where the job has changed.
func (p *placed) saw(job string, at time.Duration) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.finished == "" {
		p.finished, p.seen = job, at
	}
	return p.finished == job
}

// open opens an account, with a key, so that whatever crashes there is one.
func (l *chaosLoad) open(api int, random *rand.Rand, sequential bool) *book {
	b := &book{initial: random.Int64N(2000), sequential: sequential}
	request := map[string]any{}
	if b.initial > 0 {
		request["initial_deposit"] = b.initial
	}
	status, answer, err := l.settleAnywhere(api, "/v1/accounts", l.key("open"), request)
	var opened account
	if err != nil || status != http.StatusCreated || json.Unmarshal(answer, &opened) != nil {
		l.t.violation("opening an account: %d %s %v", status, answer, err)
		return nil
	}
	b.number = opened.Number
	l.mu.Lock()
	defer l.mu.Unlock()
	l.books = append(l.books, b)
	return b
}

func (l *chaosLoad) key(kind string) string {
	return fmt.Sprintf("%s-%d", kind, l.keys.Add(1))
}

// client places requests on one account after the other, of its own or shared
// with the group's other clients.
func (l *chaosLoad) client(shared *sharedBook, random *rand.Rand) {
	for api := random.IntN(2); !l.stopped() && l.keys.Load() < maxKeys; api++ {
		b := shared.book(l, api, random)
		if b == nil {
			return
		}
		req := l.request(b, random)
		var ok bool
		switch random.IntN(20) {
		case 0:
			ok = l.placeTwice(b, api, req)
		case 1:
			ok = l.place(b, api, req) && l.reuse(api, req)
		case 2:
			ok = l.placeBatch(b, api, []jobRequest{req, l.request(b, random), l.request(b, random)})
		default:
			ok = l.place(b, api, req)
		}
		if !ok {
			return
		}
		l.look(b, api)
		l.pause(time.Duration(random.Int64N(int64(*chaosThink) + 1)))
	}
}

func (l *chaosLoad) request(b *book, random *rand.Rand) jobRequest {
	req := jobRequest{account: b.number, entry: "deposits", amount: 1 + random.Int64N(400), key: l.key("request")}
	if random.IntN(2) == 0 {
		req.entry = "withdrawals"
	}
	return req
}

// sharedBook is the account that a group of clients works on now.
type sharedBook struct {
	sequential bool
	mu         sync.Mutex // guards now
	now        *book
}

func (s *sharedBook) book(l *chaosLoad, api int, random *rand.Rand) *book {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now != nil {
		s.now.mu.Lock()
		full := len(s.now.requests) >= bookLength
		s.now.mu.Unlock()
		if !full {
			return s.now
		}
	}
	s.now = l.open(api, random, s.sequential)
	return s.now
}

// placeTwice sends one request to both APIs at once: they must agree on its job.
func (l *chaosLoad) placeTwice(b *book, api int, req jobRequest) bool {
	type result struct {
		job jobAnswer
		err error
	}
	other := make(chan result, 1)
	sent := l.now()
	go func() {
		var r result
		var status int
		var answer []byte
		status, answer, r.err = l.settleAnywhere(api+1, "/v1/accounts/"+req.account+"/"+req.entry, req.key, map[string]any{"amount": req.amount})
		if r.err == nil {
			if r.err = json.Unmarshal(answer, &r.job); r.err == nil && r.job.ID == "" {
				r.err = fmt.Errorf("%d %s", status, answer)
			}
		}
		other <- r
	}()
	ok := l.placeSince(sent, b, api, req)
	r := <-other
	if !ok {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.requests {
		if p.key == req.key && (r.err != nil || p.job != r.job.ID) {
			l.t.violation("key %s made job %s at one API and %s (%v) at the other", req.key, p.job, r.job.ID, r.err)
		}
	}
	l.count("requests sent to both APIs at once")
	return true
}

// reuse sends a used key with another amount: it must be refused.
func (l *chaosLoad) reuse(api int, req jobRequest) bool {
	status, answer, err := l.settleAnywhere(api, "/v1/accounts/"+req.account+"/"+req.entry, req.key, map[string]any{"amount": req.amount + 1})
	if err != nil || status != http.StatusUnprocessableEntity || problemCode(answer) != "idempotency_key_reused" {
		l.t.violation("key %s used for something else: %d %s %v", req.key, status, answer, err)
		return false
	}
	l.count("keys used for something else, refused")
	return true
}

// look reads the balance once, and keeps nothing where the read fails.
func (l *chaosLoad) look(b *book, api int) {
	ctx, cancel := context.WithTimeout(context.Background(), tryTimeout)
	defer cancel()
	s := sight{asked: l.now()}
	status, _, answer, err := l.login.Load().call(ctx, l.t.system.api(api), http.MethodGet, "/v1/accounts/"+b.number, "", nil)
	s.answered = l.now()
	var a account
	switch {
	case err != nil || status == http.StatusServiceUnavailable:
		return
	case status != http.StatusOK || json.Unmarshal(answer, &a) != nil:
		l.t.violation("reading account %s: %d %s", b.number, status, answer)
		return
	}
	s.balance, s.seq = a.Balance, a.LastSeq
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sights = append(b.sights, s)
	l.count("balances seen")
}

// watcher polls for jobs until they are finished.
func (l *chaosLoad) watcher(api int) {
	for ; ; api++ {
		var p *placed
		select {
		case p = <-l.watch:
		case <-l.stop:
			return
		}
		if !l.poll(p, api) {
			select {
			case l.watch <- p:
			default:
			}
			l.pause(tryPause / 4)
		}
	}
}

// poll reads a job and reports whether it was finished.
func (l *chaosLoad) poll(p *placed, api int) bool {
	ctx, cancel := context.WithTimeout(context.Background(), tryTimeout)
	defer cancel()
	status, _, answer, err := l.login.Load().call(ctx, l.t.system.api(api), http.MethodGet, "/v1/jobs/"+p.job, "", nil)
	at := l.now()
	var job jobAnswer
	switch {
	case err != nil || status == http.StatusServiceUnavailable:
		return false
	case status != http.StatusOK || json.Unmarshal(answer, &job) != nil:
		l.t.violation("job %s, accepted, is answered with %d %s", p.job, status, answer)
		return true
	case job.Status == "queued":
		return false
	}
	if !p.saw(string(answer), at) {
		l.t.violation("job %s changed after it was finished: %s", p.job, answer)
	}
	l.count("jobs polled to their end")
	return true
}

// stayLoggedIn logs in again before the access token expires.
func (l *chaosLoad) stayLoggedIn() {
	const every = 5 * time.Minute
	for {
		l.pause(every)
		if l.stopped() {
			return
		}
		next, err := l.login.Load().again(l)
		if err != nil {
			l.t.violation("logging in again: %v", err)
			return
		}
		l.login.Store(next)
	}
}

// again logs the same user in again.
func (c *client) again(l *chaosLoad) (*client, error) {
	status, answer, err := l.settleAnywhere(0, "/v1/sessions", "", c.user)
	if err != nil || status != http.StatusCreated {
		return nil, fmt.Errorf("%d %s %w", status, answer, err)
	}
	var made tokens
	if err := json.Unmarshal(answer, &made); err != nil {
		return nil, err
	}
	next := *c
	next.token = made.AccessToken
	return &next, nil
}
