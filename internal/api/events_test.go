package api

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/testenv"
)

// streamWait bounds the reading of a stream in a test.
const streamWait = time.Minute

// signals is a watcher whose test says when it signals.
type signals struct {
	mu       sync.Mutex // guards watchers
	watchers map[chan struct{}]int64
}

func (s *signals) WatchAccount(accountID int64) (changed <-chan struct{}, stop func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watchers == nil {
		s.watchers = map[chan struct{}]int64{}
	}
	ch := make(chan struct{}, 1)
	s.watchers[ch] = accountID
	return ch, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watchers, ch)
	}
}

// signal tells all watchers to look.
func (s *signals) signal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ch := range s.watchers {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

func (s *signals) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.watchers)
}

// startStreaming serves with signals, and with a heartbeat only where beat is set.
func startStreaming(t *testing.T, beat time.Duration, edits ...func(*settings)) (*server, *signals) {
	t.Helper()
	hub := &signals{}
	return start(t, append([]func(*settings){func(set *settings) {
		set.edit = func(a *API) { a.streams.watcher, a.streams.beat = hub, beat }
	}}, edits...)...), hub
}

const noBeat = time.Hour

// sseEvent is an event as it came; a heartbeat has none of these.
type sseEvent struct{ name, id, data string }

// sse is an open stream.
type sse struct {
	t      *testing.T
	res    *http.Response
	lines  *bufio.Reader
	lastID string
	close  context.CancelFunc
}

// events opens a stream after lastID, or from now on where that is empty.
func (c client) events(account accountJSON, lastID string) *sse {
	c.t.Helper()
	s, err := c.tryEvents(account, lastID)
	if err != nil {
		c.t.Fatal(err)
	}
	return s
}

func (c client) tryEvents(account accountJSON, lastID string) (*sse, error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), streamWait)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.server.addr+jobsOf(account, "events"), http.NoBody)
	if err != nil {
		cancel()
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	req.Header.Set("Accept", "text/event-stream")
	if lastID != "" {
		req.Header.Set("Last-Event-ID", lastID)
	}
	res, err := c.server.http.Do(req) //nolint:bodyclose // close does
	if err != nil {
		cancel()
		return nil, err
	}
	for _, fault := range againstContract(c.t, req, "", answer{t: c.t, status: res.StatusCode, header: res.Header}) {
		c.t.Errorf("openapi.yaml: %s", fault)
	}
	s := &sse{t: c.t, res: res, lines: bufio.NewReader(res.Body), close: func() {
		cancel()
		_ = res.Body.Close()
	}}
	c.t.Cleanup(s.close)
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %d", res.StatusCode)
	}
	head, err := s.block()
	if err != nil {
		return nil, err
	}
	s.lastID = head.id
	return s, nil
}

// block reads up to the next empty line.
func (s *sse) block() (e sseEvent, err error) {
	for {
		line, err := s.lines.ReadString('\n')
		if err != nil {
			return e, err
		}
		field, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		switch field {
		case "":
			return e, nil
		case "event":
			e.name = value
		case "id":
			e.id = value
		case "data":
			e.data = value
		case "retry", ":":
		default:
			return e, fmt.Errorf("unknown line %q", line)
		}
	}
}

// at is when the event took effect; such texts compare as their times do.
func (e sseEvent) at() string {
	name := map[string]string{"job": "finished_at", "transaction": "created_at"}[e.name]
	_, after, _ := strings.Cut(e.data, `"`+name+`":"`)
	at, _, _ := strings.Cut(after, `"`)
	return at
}

// tryNext reads the next event, over heartbeats.
func (s *sse) tryNext() (sseEvent, error) {
	for {
		e, err := s.block()
		if err != nil || e.name != "" {
			if e.id != "" {
				s.lastID = e.id
			}
			return e, err
		}
	}
}

func (s *sse) next() sseEvent {
	s.t.Helper()
	e, err := s.tryNext()
	if err != nil {
		s.t.Fatal(err)
	}
	return e
}

// wantEnd fails the test unless the stream ends in order, with nothing more in it.
func (s *sse) wantEnd() {
	s.t.Helper()
	if e, err := s.tryNext(); !errors.Is(err, io.EOF) {
		s.t.Errorf("got %v, %v; want the end", e, err)
	}
}

// A stream tells what the routes of transactions and jobs show, in the order in which it took
// effect, and goes on where it was.
func TestEvents(t *testing.T) {
	t.Parallel()
	s, hub := startStreaming(t, noBeat)
	ledgertest.Exec(t, s.pool, `ALTER TABLE transactions ADD CONSTRAINT unlucky CHECK (amount <> 13)`)
	c := s.user(t)
	account, another := c.open(100), c.open(100)
	live := c.events(account, "")
	if live.lastID != "1" {
		t.Errorf("the stream begins after %q, want 1", live.lastID)
	}
	var want []sseEvent
	seq := 1
	for n := range 12 {
		kind := []string{"deposits", "withdrawals", "withdrawals", "deposits"}[n%4]
		amount := []int64{5, 1, 1_000_000, 13}[n%4]
		made := c.ask(account, kind, amount)
		s.apply(t, made.ID)
		s.apply(t, c.ask(another, "deposits", 1).ID)
		e := sseEvent{name: "job", data: string(c.get("/v1/jobs/" + made.ID).want(http.StatusOK).body)}
		if n%4 < 2 {
			seq++
			e = sseEvent{"transaction", strconv.Itoa(seq), string(c.get(fmt.Sprintf("%s/%d", jobsOf(account, "transactions"), seq)).want(http.StatusOK).body)}
		}
		want = append(want, e)
		hub.signal()
		if got := live.next(); got != e {
			t.Errorf("got %v\nwant %v", got, e)
		}
	}
	for i := range want {
		resumed := c.events(account, cmp.Or(lastID(want[:i]), "1"))
		for _, e := range want[lastTransaction(want[:i])+1:] { // jobs since the last transaction come again
			if got := resumed.next(); got != e {
				t.Errorf("after the first %d: got %v\nwant %v", i, got, e)
			}
		}
		resumed.close()
	}
	all := c.events(account, "0")
	if first := all.next(); first.id != "1" || all.lastID != "1" || all.next() != want[0] {
		t.Errorf("from the beginning the first event is %v", first)
	}
}

// lastTransaction is the index of the last transaction, -1 where there is none.
func lastTransaction(events []sseEvent) int {
	for i, e := range slices.Backward(events) {
		if e.id != "" {
			return i
		}
	}
	return -1
}

func lastID(events []sseEvent) string {
	if i := lastTransaction(events); i >= 0 {
		return events[i].id
	}
	return ""
}

// A history longer than a page comes whole, to many streams at once.
func TestEvents_Long(t *testing.T) {
	t.Parallel()
	s, _ := startStreaming(t, noBeat)
	c := s.user(t)
	account := largeHistory(t, s, c)
	const streams, entries = 10, 20_000
	var reading errgroup.Group
	for n := range streams {
		after := entries - 250*(n+1)
		stream := c.events(account, strconv.Itoa(after))
		reading.Go(func() error {
			for seq := after + 1; seq <= entries; seq++ {
				if e, err := stream.tryNext(); err != nil || e.id != strconv.Itoa(seq) {
					return fmt.Errorf("got %v, %w; want transaction %d", e, err, seq)
				}
			}
			return nil
		})
	}
	if err := reading.Wait(); err != nil {
		t.Error(err, s.log.lines("can't be read"))
	}
}

// Without signals a stream looks with each heartbeat.
func TestEvents_WithoutSignals(t *testing.T) {
	t.Parallel()
	s, _ := startStreaming(t, 50*time.Millisecond)
	c := s.user(t)
	account := c.open(0)
	stream := c.events(account, "")
	for range 3 {
		if e, err := stream.block(); err != nil || e != (sseEvent{}) {
			t.Fatalf("got %v, %v; want a heartbeat", e, err)
		}
	}
	s.apply(t, c.ask(account, "deposits", 1).ID)
	if e := stream.next(); e.id != "1" {
		t.Errorf("got %v", e)
	}
}

func TestEvents_Refused(t *testing.T) {
	t.Parallel()
	s, _ := startStreaming(t, noBeat)
	c := s.user(t)
	account := c.open(1)
	target := jobsOf(account, "events")
	for _, id := range []string{"2", "-1", "01", "+1", "1.0", "x", "9223372036854775808", "9223372036854775807", `"1"`} {
		c.get(target, "Last-Event-ID", id).problem(http.StatusBadRequest, "last_event_id_invalid")
	}
	c.get(target+"?after=1").problem(http.StatusBadRequest, "invalid_parameter", "after unknown_parameter")
	for _, accept := range []string{"application/json", "text/csv", "text/html, application/xml;q=0.9"} {
		c.get(target, "Accept", accept).problem(http.StatusNotAcceptable, "not_acceptable")
	}
	for _, accept := range []string{"text/event-stream", "text/*", "*/*", "application/json, text/event-stream;q=0.1"} {
		c.get(target, "Accept", accept).want(http.StatusOK).wantHeader("Content-Type", "text/event-stream").wantHeader("X-Accel-Buffering", "no")
	}
	missing := c.get(jobsOf(accountJSON{Number: "none-such"}, "events"), "X-Request-Id", "r").problem(http.StatusNotFound, "account_not_found")
	s.user(t).get(target, "X-Request-Id", "r").sameAs(missing)
	s.user(t).get(target, "X-Request-Id", "r", "Last-Event-ID", "1").sameAs(missing)
	s.anonymous(t).get(target).problem(http.StatusUnauthorized, "unauthenticated")
	if head := c.send(http.MethodHead, target, "").want(http.StatusOK).wantHeader("Content-Type", "text/event-stream"); len(head.body) > 0 {
		t.Errorf("got %s", head)
	}
	conn := s.dial(t)
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.0\r\nHost: h\r\nAuthorization: Bearer %s\r\n\r\n", target, c.token); err != nil {
		t.Fatal(err)
	}
	if answer, err := io.ReadAll(conn); err != nil || !strings.Contains(string(answer), `"code":"http_version_not_supported"`) {
		t.Errorf("got %s, %v", answer, err)
	}
}

// A user has a bounded number of streams, and so has an API. One that ends makes room, also where
// its client asked for the connection to be closed.
func TestEvents_Bounds(t *testing.T) {
	t.Parallel()
	const total = maxStreamsPerUser + 2
	s, hub := startStreaming(t, noBeat, func(set *settings) {
		edit := set.edit
		set.edit = func(a *API) {
			edit(a)
			a.streams.max = total
		}
	})
	c, another := s.user(t), s.user(t)
	account, anothers := c.open(0), another.open(0)
	var open []*sse
	for range maxStreamsPerUser {
		open = append(open, c.events(account, ""))
	}
	c.get(jobsOf(account, "events")).problem(http.StatusTooManyRequests, "too_many_requests").wantHeader("Retry-After", "1")
	for range total - maxStreamsPerUser {
		another.events(anothers, "")
	}
	another.get(jobsOf(anothers, "events")).problem(http.StatusServiceUnavailable, "unavailable").wantHeader("Retry-After", "1")
	another.get("/v1/users/me").want(http.StatusOK)
	open[0].close()
	testenv.Eventually(t, "the stream is closed", func() bool { return s.openStreams() == total-1 })
	c.get(jobsOf(account, "events"), "Connection", "close").want(http.StatusOK)
	testenv.Eventually(t, "that one too", func() bool { return s.openStreams() == total-1 && hub.count() == total-1 })
	c.events(account, "")
}

// A stream whose connection the server does not hand over makes room too.
func TestEvents_Reserved(t *testing.T) {
	t.Parallel()
	s, _ := startStreaming(t, noBeat)
	user := uuid.New()
	var releases []func()
	for range maxStreamsPerUser {
		release, err := s.api.streams.reserve(user)
		if err != nil {
			t.Fatal(err)
		}
		releases = append(releases, release)
	}
	if _, err := s.api.streams.reserve(user); !errors.Is(err, errTooManyStreams) {
		t.Errorf("got %v, want %v", err, errTooManyStreams)
	}
	for _, release := range releases {
		ours, theirs := net.Pipe()
		c := &conn{Conn: ours, listener: &listener{}}
		c.atClose(release)
		_ = c.Close()
		_ = c.Close()
		_ = theirs.Close()
	}
	if n := s.openStreams(); n != 0 {
		t.Errorf("%d streams are open, want none", n)
	}
}

func (s *server) openStreams() int {
	s.api.streams.mu.Lock()
	defer s.api.streams.mu.Unlock()
	return s.api.streams.open
}

// A stream ends with its access token.
func TestEvents_EndWithTheToken(t *testing.T) {
	t.Parallel()
	s, _ := startStreaming(t, noBeat)
	c := s.user(t)
	account := c.open(0)
	claims := c.claims()
	claims["exp"] = time.Now().Add(3 * time.Second).Unix()
	c.token = signToken(t, jwt.SigningMethodHS256, firstKey, claims)
	c.events(account, "").wantEnd()
	c.get("/v1/users/me").problem(http.StatusUnauthorized, "unauthenticated")
}

// A stream shows nothing once its session is revoked, and ends with the next look.
func TestEvents_EndWithTheSession(t *testing.T) {
	t.Parallel()
	s, hub := startStreaming(t, noBeat)
	c := s.user(t)
	account := c.open(0)
	stream := c.events(account, "")
	s.apply(t, c.ask(account, "deposits", 1).ID)
	hub.signal()
	if e := stream.next(); e.id != "1" {
		t.Fatalf("got %v", e)
	}
	ledgertest.Exec(t, s.pool, `UPDATE sessions SET revoked_at = now() WHERE user_id = $1`, c.userID)
	s.apply(t, ledgerJob(t, s, account))
	hub.signal()
	stream.wantEnd()
}

// A stream ends where the request of a job is lost, and the log says so, also where it has just said
// that streams could not be read. The other streams go on.
func TestEvents_Damaged(t *testing.T) {
	t.Parallel()
	s, hub := startStreaming(t, noBeat)
	c := s.user(t)
	damaged, sound := c.open(0), c.open(0)
	goesOn := c.events(sound, "")
	lost := c.ask(damaged, "withdrawals", 1).ID
	s.apply(t, lost)
	ledgertest.Unguarded(t, s.pool, fmt.Sprintf(`DELETE FROM jobs WHERE id = '%s'`, lost))
	s.apply(t, c.ask(sound, "deposits", 1).ID)
	hub.signal()
	s.api.streams.logs.Do(func() {}) // the line that streams could not be read
	c.events(damaged, "0").wantEnd()
	if lines := s.log.lines(`"msg":"event stream ended","account":"` + damaged.Number); len(lines) != 1 {
		t.Errorf("the log: %q", lines)
	}
	if e := goesOn.next(); e.id != "1" {
		t.Errorf("got %v", e)
	}
}

// ledgerJob has a deposit accepted that no client asks for.
func ledgerJob(t *testing.T, s *server, account accountJSON) string {
	t.Helper()
	id := uuid.Must(uuid.NewV7())
	ledgertest.Exec(t, s.pool, `INSERT INTO jobs (id, account_id, user_id, type, amount, idempotency_key)
		SELECT $1, id, user_id, 'deposit', 1, $1::uuid::text FROM accounts WHERE number = $2`, id, account.Number)
	return id.String()
}

// A stop ends all streams in order, and admits none.
func TestEvents_EndAtAStop(t *testing.T) {
	t.Parallel()
	s, _ := startStreaming(t, noBeat)
	c := s.user(t)
	account := c.open(0)
	streams := []*sse{c.events(account, ""), c.events(account, "0")}
	var stopping errgroup.Group
	stopping.Go(func() error { return s.api.Shutdown(t.Context()) })
	for _, stream := range streams {
		stream.wantEnd()
	}
	if err := stopping.Wait(); err != nil {
		t.Error(err)
	}
	if _, err := s.api.streams.reserve(c.userID); !errors.Is(err, &unavailable) {
		t.Errorf("got %v, want %v", err, &unavailable)
	}
	if n := s.openStreams(); n != 0 {
		t.Errorf("%d streams are open after the stop", n)
	}
}

// A client that does not read is cut off, holds up no other stream, and goes on where it was.
func TestEvents_SlowReader(t *testing.T) {
	t.Parallel()
	hub := &signals{}
	s := start(t, func(set *settings) {
		set.control = setBuffer(syscall.SO_SNDBUF)
		set.edit = func(a *API) { a.streams.watcher, a.streams.beat, a.streams.take = hub, noBeat, 200*time.Millisecond }
	})
	c := s.user(t)
	account, quick := largeHistory(t, s, c), c.open(0)
	other := c.events(quick, "")
	conn := sendEvents(c, account)
	testenv.Eventually(t, "the slow stream is dropped", func() bool { return len(s.log.lines("event stream dropped")) == 1 })
	s.apply(t, c.ask(quick, "deposits", 1).ID)
	hub.signal()
	if e := other.next(); e.id != "1" {
		t.Errorf("got %v", e)
	}
	testenv.Eventually(t, "its slot is free", func() bool { return s.openStreams() == 1 })
	rest, err := io.ReadAll(conn)
	if err == nil && strings.HasSuffix(string(rest), lastChunk) {
		t.Error("a stream that was cut off ended in order")
	}
	ids := strings.Count(string(rest), "\nid: ")
	if resumed := c.events(account, strconv.Itoa(ids-2)); resumed.next().id != strconv.Itoa(ids-1) {
		t.Errorf("the stream does not go on after %d", ids-2)
	}
}

// sendEvents asks for all events of an account over a connection with a small buffer.
func sendEvents(c client, account accountJSON) net.Conn {
	c.t.Helper()
	dialer := net.Dialer{Control: setBuffer(syscall.SO_RCVBUF)}
	conn, err := dialer.DialContext(c.t.Context(), "tcp", c.server.addr)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = conn.Close() })
	_, err = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: h\r\nLast-Event-ID: 0\r\nAuthorization: Bearer %s\r\n\r\n", jobsOf(account, "events"), c.token)
	if err != nil {
		c.t.Fatal(err)
	}
	return conn
}

// Nothing that a crash could undo is in a stream: it waits until what it shows is durable.
func TestEvents_Unflushed(t *testing.T) {
	t.Parallel()
	server := testenv.PostgresServer(t)
	s, _ := startStreaming(t, 20*time.Millisecond, func(set *settings) { set.pool = openPool(t, server.URL()) })
	c := s.user(t)
	account := c.open(0)
	stream := c.events(account, "")
	made := []jobJSON{c.ask(account, "deposits", 1), c.ask(account, "withdrawals", 1_000_000)}
	back := testenv.AwayStandby(t, server.URL())
	for _, job := range made {
		s.applyUnflushed(t, job.ID)
	}
	type read struct {
		event sseEvent
		err   error
	}
	events := make(chan read, 1)
	go func() {
		e, err := stream.tryNext()
		events <- read{e, err}
	}()
	testenv.Eventually(t, "a look that can't be confirmed", func() bool { return len(s.log.lines("event streams can't be read")) > 0 })
	select {
	case got := <-events:
		t.Errorf("before it is durable: %v, %v", got.event, got.err)
	default:
	}
	back()
	if got := <-events; got.err != nil || got.event.id != "1" {
		t.Errorf("got %v, %v", got.event, got.err)
	}
	if e := stream.next(); e.name != "job" {
		t.Errorf("got %v", e)
	}
}

// While jobs are applied from everywhere, clients that connect again and again get every transaction
// once, and every rejection.
func TestEvents_MissNothing(t *testing.T) {
	t.Parallel()
	const jobs, appliers, readers = 400, 4, 4
	s, hub := startStreaming(t, noBeat)
	c := s.user(t)
	account := c.open(0)
	var reading, applying errgroup.Group
	for n := range readers {
		reading.Go(func() error { return readTo(c, account, jobs/2, 20+10*n) })
	}
	for range appliers {
		applying.Go(func() error {
			for n := range jobs / appliers {
				kind := []string{"deposit", "withdrawal"}[n%2]
				id := uuid.Must(uuid.NewV7())
				if _, err := s.pool.Exec(t.Context(), `INSERT INTO jobs (id, account_id, user_id, type, amount, idempotency_key)
					SELECT $1, id, user_id, $3, CASE $3::entry_type WHEN 'deposit' THEN 1 ELSE 1000000 END, $1::uuid::text FROM accounts WHERE number = $2`,
					id, account.Number, kind); err != nil {
					return err
				}
				if _, _, err := ledger.NewApplier(s.pool).Apply(t.Context(), id, manyQueued); err != nil {
					return err
				}
				hub.signal()
			}
			return nil
		})
	}
	if err := errors.Join(applying.Wait(), reading.Wait()); err != nil {
		t.Error(err)
	}
}

// readTo follows an account up to a transaction, and connects again after every few events. It
// returns an error unless each transaction comes once, and each of as many rejections.
func readTo(c client, account accountJSON, last, few int) error {
	seq, rejected := 0, map[string]bool{}
	for seq < last || len(rejected) < last {
		stream, err := c.tryEvents(account, strconv.Itoa(seq))
		if err != nil {
			return err
		}
		at := ""
		for range few {
			if seq == last && len(rejected) == last {
				break
			}
			e, err := stream.tryNext()
			if err != nil {
				return err
			}
			before := at
			if at = e.at(); at <= before {
				return fmt.Errorf("%v follows what took effect at %s", e, before)
			}
			switch {
			case e.name == "job":
				rejected[e.data] = true
			case e.id != strconv.Itoa(seq+1):
				return fmt.Errorf("got transaction %s after %d", e.id, seq)
			default:
				seq++
			}
		}
		stream.close()
	}
	return nil
}

// Idle streams cost no query, and little memory: two thousand less than 100 MB. When all are signalled
// at once, they share statements.
//
// It does not run in parallel: other tests use memory too.
func TestEvents_ManyIdle(t *testing.T) {
	const streams, most = 120, 50 << 10 // bytes of each, with its client
	s, hub := startStreaming(t, noBeat)
	c := s.user(t)
	account := c.open(0)
	c.events(account, "").close() // what the first stream and the first answers cost is not theirs
	testenv.Eventually(t, "the stream is closed", func() bool { return s.openStreams() == 0 })
	before := memory()
	var conns []net.Conn
	for n := range streams {
		if n%maxStreamsPerUser == 0 {
			c = s.user(t)
			account = c.open(0)
		}
		conns = append(conns, sendEvents(c, account))
	}
	for _, conn := range conns {
		if _, err := io.ReadFull(conn, make([]byte, len("HTTP/1.1 200"))); err != nil {
			t.Fatal(err)
		}
	}
	testenv.Eventually(t, "all streams are at rest", func() bool { return hub.count() == streams && s.pool.Stat().AcquiredConns() == 0 })
	used := int64(memory()-before) / streams
	t.Logf("a stream and its client use %d bytes", used)
	if used > most {
		t.Errorf("a stream and its client use %d bytes, want %d at most", used, most)
	}
	queries := s.pool.Stat().AcquireCount()
	hub.signal() // of all accounts at once
	testenv.Eventually(t, "they share reads", func() bool { return s.pool.Stat().AcquireCount() > queries && s.pool.Stat().AcquiredConns() == 0 })
	if n := s.pool.Stat().AcquireCount() - queries; n > 2*streams/maxLooks+100 {
		t.Errorf("%d streams looked with %d statements", streams, n)
	}
}

// More streams look at once than a statement reads for. Each gets its events.
func TestEvents_ManyLooks(t *testing.T) {
	t.Parallel()
	const streams, atOnce = 36, 4
	s, hub := startStreaming(t, noBeat, func(set *settings) {
		edit := set.edit
		set.edit = func(a *API) {
			edit(a)
			a.streams.atOnce = atOnce
		}
	})
	var open []*sse
	for range 2 { // users: each may have 20 streams
		c := s.user(t)
		account := c.open(0)
		for range streams / 2 {
			open = append(open, c.events(account, ""))
		}
		s.apply(t, c.ask(account, "deposits", 1).ID)
	}
	hub.signal() // all of them at once
	for _, stream := range open {
		if e := stream.next(); e.name != "transaction" || e.id != "1" {
			t.Errorf("got %v, want the deposit", e)
		}
	}
}

func memory() uint64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapInuse + stats.StackInuse
}
