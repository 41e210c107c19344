package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/time/rate"

	"github.com/passbook/passbook/internal/event"
	"github.com/passbook/passbook/internal/postgres"
)

const (
	// maxStreams and maxStreamsPerUser bound the open streams. Half of MaxConnections remains for
	// other requests.
	maxStreams        = 4000
	maxStreamsPerUser = 20
	// maxLooks bounds how many streams a statement reads for, each a page.
	maxLooks = 128
	// lookTimeout bounds that statement and the confirmation of what it has read.
	lookTimeout = 5 * time.Second
	// lookPause is how long a stream waits after events before it looks again: an account under load
	// costs a bounded number of reads.
	lookPause = 20 * time.Millisecond
	// failedPause is the same after a look that failed.
	failedPause = time.Second
	// beatInterval is how often a stream looks without a signal, and then sends a heartbeat where
	// there is nothing else to send.
	beatInterval = 15 * time.Second
	// A client must take each page in takeTime, and in endTime once its stream ends.
	takeTime = 10 * time.Second
	endTime  = time.Second
	// streamBuffer bounds what the kernel keeps of a stream that its client does not read.
	streamBuffer = 64 << 10
)

var (
	errTooManyStreams = &problem{
		Status: http.StatusTooManyRequests, Code: "too_many_requests", retryAfter: busyRetry, reason: refusedStream,
		Detail: fmt.Sprintf("You have %d streams open. Try again when one is closed.", maxStreamsPerUser),
	}
	errStreamsFull = &problem{
		Status: http.StatusServiceUnavailable, Code: "unavailable", retryAfter: busyRetry, reason: refusedStream,
		Detail: "This server has as many streams open as it takes. Try again, perhaps at another.",
	}
)

// watcher is the part of finished.Hub that streams use. A signal means that there may be new events. It
// is an interface so that the streams' tests can decide when it signals.
type watcher interface {
	WatchAccount(accountID int64) (changed <-chan struct{}, stop func())
}

// streams are the open event streams. Idle ones cost two goroutines, a timer and a connection each,
// and no query. Those that look at the same time share a statement.
type streams struct {
	reader     *event.Reader
	gate       *postgres.Gate
	watcher    watcher
	log        *slog.Logger
	logs       rate.Sometimes
	metrics    *metrics
	max        int           // maxStreams, or half of the connections
	atOnce     int           // maxLooks; fewer in tests
	beat, take time.Duration // beatInterval and takeTime; shorter in tests
	begun      time.Time     // the heartbeats of all streams fall together, so that their looks share statements

	ctx    context.Context // of all streams and their reads; ends when the API stops
	cancel context.CancelFunc

	mu      sync.Mutex // guards the fields below
	open    int        // streams from their reservation until their connections close
	users   map[uuid.UUID]int
	looks   []*look // that have not begun, at most one of each stream
	looking bool    // runLooks takes them
	running sync.WaitGroup
}

func newStreams(cfg Config, m *metrics) streams {
	limit := maxStreams
	if cfg.MaxConnections > 0 {
		limit = min(limit, cfg.MaxConnections/2)
	}
	ctx, cancel := context.WithCancel(context.Background())
	return streams{
		reader: cfg.Events, gate: cfg.Gate, watcher: cfg.Finished, log: cfg.Log, logs: rate.Sometimes{Interval: logInterval}, metrics: m,
		max: limit, atOnce: maxLooks, beat: beatInterval, take: takeTime, begun: time.Now(), ctx: ctx, cancel: cancel, users: map[uuid.UUID]int{},
	}
}

// reserve counts a stream of the user, until release.
func (s *streams) reserve(user uuid.UUID) (release func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ctx.Err() != nil:
		return nil, &unavailable
	case s.users[user] == maxStreamsPerUser:
		return nil, errTooManyStreams
	case s.open == s.max:
		return nil, errStreamsFull
	}
	s.count(user, 1)
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.count(user, -1)
	}), nil
}

func (s *streams) count(user uuid.UUID, n int) {
	s.open += n
	s.metrics.streams.Add(float64(n))
	if s.users[user] += n; s.users[user] == 0 {
		delete(s.users, user)
	}
}

// stop ends all streams, and waits for their ends.
func (s *streams) stop() {
	s.mu.Lock()
	s.cancel() // under the lock: start adds no stream afterwards
	s.mu.Unlock()
	s.running.Wait()
}

// look is a stream's wait for its next page. done is closed once page and err are set.
type look struct {
	at   event.Stream
	page event.Page
	err  error
	done chan struct{}
}

// next reads the stream's next page, and returns it once it is durable. Looks that arrive while a
// statement is under way share the next one: a look never sees less than what was there when it
// began.
func (s *streams) next(ctx context.Context, at event.Stream) (event.Page, error) {
	if ctx.Err() != nil {
		return event.Page{}, ctx.Err()
	}
	l := &look{at: at, done: make(chan struct{})}
	s.mu.Lock()
	s.looks = append(s.looks, l)
	if !s.looking {
		s.looking = true
		s.running.Go(s.runLooks)
	}
	s.mu.Unlock()
	select {
	case <-l.done:
		return l.page, l.err
	case <-ctx.Done():
		return event.Page{}, ctx.Err()
	}
}

// runLooks ends when no look is left.
func (s *streams) runLooks() {
	for {
		s.mu.Lock()
		n := min(len(s.looks), s.atOnce)
		batch := s.looks[:n:n]
		s.looks = s.looks[n:]
		s.looking = n > 0
		s.mu.Unlock()
		if n == 0 {
			return
		}
		s.look(batch)
	}
}

// look reads the pages of some streams. A crash of Postgres before they are confirmed drops them:
// the streams keep their cursors and look again.
func (s *streams) look(batch []*look) {
	at := make([]event.Stream, len(batch))
	for i, l := range batch {
		at[i] = l.at
	}
	pages, err := s.read(at)
	if err != nil {
		s.logs.Do(func() { s.log.Warn("event streams can't be read", "streams", len(batch), "error", err) })
	}
	for i, l := range batch {
		if l.err = err; err == nil {
			l.page, l.err = pages[i], pages[i].Err
			if errors.Is(l.err, event.ErrDamaged) {
				s.log.Error("event stream ended", "account", l.at.Account.Number, "error", l.err) // the logger bounds the lines
			}
		}
		close(l.done)
	}
}

func (s *streams) read(at []event.Stream) (pages []event.Page, err error) {
	defer func() {
		if cause := recover(); cause != nil {
			err = panicked{cause: cause, stack: debug.Stack()}
		}
	}()
	ctx, cancel := context.WithTimeout(s.ctx, lookTimeout)
	defer cancel()
	ctx, shown := s.gate.Watch(ctx)
	if pages, err = s.reader.Read(ctx, at); err != nil {
		return nil, err
	}
	return pages, s.gate.Wait(ctx, shown)
}

// stream is one open stream. It holds one page at most.
type stream struct {
	streams   *streams
	accountID int64
	at        event.Stream
	life      time.Duration // until the access token expires
	conn      *conn
	log       *slog.Logger
	ctx       context.Context // ends the stream, which outlives its handler
}

// start runs the stream on a goroutine of its own. The server's goroutine ends, and releases what it
// has allocated for the request.
func (s *stream) start(head []byte) {
	all := s.streams
	var cancel context.CancelFunc
	s.ctx, cancel = context.WithTimeout(all.ctx, s.life)
	all.mu.Lock()
	defer all.mu.Unlock()
	if all.ctx.Err() != nil {
		cancel()
		_ = s.conn.Close()
		return
	}
	all.running.Go(func() { s.run(head, cancel) })
}

func (s *stream) run(head []byte, cancel context.CancelFunc) {
	all := s.streams
	defer func() {
		if cause := recover(); cause != nil { // ends no other stream
			s.log.Error("event stream failed", "error", panicked{cause: cause, stack: debug.Stack()})
		}
		cancel()
		_ = s.conn.Close() // the client connects again, with the last id that it has read
	}()
	context.AfterFunc(s.ctx, s.hurry)
	all.running.Go(func() { // until the connection closes
		defer cancel()
		_, _ = s.conn.Read(make([]byte, 1)) // a client has nothing to send: it is gone, or is no reader of a stream
	})
	err := s.follow(head)
	if errors.Is(err, os.ErrDeadlineExceeded) && s.ctx.Err() == nil {
		all.metrics.streamsDropped.Inc()
		s.log.Info("event stream dropped: its client is too slow")
	}
}

// follow sends events until the stream ends, and then the end of the answer.
func (s *stream) follow(head []byte) error {
	changed, unwatch := s.streams.watcher.WatchAccount(s.accountID) // before the first look, so that nothing is missed in between
	defer unwatch()
	if tcp, ok := s.conn.Conn.(*net.TCPConn); ok {
		_ = tcp.SetWriteBuffer(streamBuffer) // the kernel's own bound holds otherwise
	}
	if err := s.write(append(head, chunk(streamHead(s.at.After.Seq))...)); err != nil {
		return err
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	beat := s.streams.nextBeat()
	for {
		page, err := s.streams.next(s.ctx, s.at)
		if s.ctx.Err() != nil || errors.Is(err, event.ErrOver) || errors.Is(err, event.ErrDamaged) {
			return s.write([]byte(lastChunk))
		}
		if err != nil {
			s.pause(failedPause)
			continue
		}
		switch {
		case len(page.Events) > 0:
			if err := s.write(chunk(string(appendEvents(nil, page.Events)))); err != nil {
				return err
			}
			s.at.After = page.Next
			beat = s.streams.nextBeat()
			if len(page.Events) == event.PageSize {
				continue
			}
			s.pause(lookPause)
		case !time.Now().Before(beat):
			if err := s.write(chunk(heartbeat)); err != nil {
				return err
			}
			beat = s.streams.nextBeat()
		}
		timer.Reset(time.Until(beat))
		select {
		case <-changed:
		case <-timer.C:
		case <-s.ctx.Done():
		}
	}
}

func (s *streams) nextBeat() time.Time {
	now := time.Now()
	return now.Add(s.beat - now.Sub(s.begun)%s.beat)
}

func (s *stream) pause(d time.Duration) {
	select {
	case <-time.After(d):
	case <-s.ctx.Done():
	}
}

const lastChunk = "0\r\n\r\n"

// chunk is text as a chunk of a body (RFC 9112, section 7.1).
func chunk(text string) []byte { return fmt.Appendf(nil, "%x\r\n%s\r\n", len(text), text) }

// write returns os.ErrDeadlineExceeded where the client does not take the bytes in time.
func (s *stream) write(text []byte) error {
	if err := s.conn.SetWriteDeadline(time.Now().Add(s.streams.take)); err != nil {
		return err
	}
	if s.ctx.Err() != nil { // hurry may have been before
		s.hurry()
	}
	_, err := s.conn.Write(text)
	return err
}

// hurry bounds the writes of a stream that ends.
func (s *stream) hurry() { _ = s.conn.SetWriteDeadline(time.Now().Add(endTime)) }
