package api

import (
	"container/list"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"
	"golang.org/x/time/rate"
)

const (
	// lingerTime and lingerBytes bound what the API reads of a connection after its
	// last answer. To close it with bytes unread would reset it, and a reset can take
	// the answer away from the client.
	lingerTime  = time.Second
	lingerBytes = 1 << 20
	// arrivalTime is how long a request that has begun to arrive may take once the
	// API stops. It is unanswered, so nothing is lost: the client sends it again.
	arrivalTime = time.Second
	// shortestPause and longestPause bound the wait before another accept, where the
	// system has no file descriptor or memory left for a connection.
	shortestPause = 5 * time.Millisecond
	longestPause  = time.Second
	// logInterval bounds how often the listener logs, whatever clients do.
	logInterval = 10 * time.Second
	// addressBits are what one client of IPv6 commonly has of an address to itself.
	addressBits = 64
)

// listener accepts a bounded number of connections, in total and from an address, and
// outlives a shortage of file descriptors. At a bound a new connection takes the place of
// the one to which the API has owed nothing for longest: a client who holds connections
// without using them can't keep others out. Where all are in use the new one is closed.
//
// Its connections end without a reset, and those that wait for the rest of a request end
// soon after the API stops.
type listener struct {
	net.Listener
	total, perAddress int // 0 is no bound
	log               *slog.Logger
	logs              rate.Sometimes
	metrics           *metrics
	closed            chan struct{}
	closeOnce         func() error
	open              sync.WaitGroup // connections in conns; nothing is added once stopped

	mu        sync.Mutex // guards what follows
	conns     map[*conn]struct{}
	addresses map[netip.Prefix]int // how many connections each has
	waiting   list.List            // connections to which the API owes nothing, the longest first
	stopped   bool
}

func (a *API) newListener(inner net.Listener) *listener {
	l := &listener{
		Listener: inner, total: a.cfg.MaxConnections, perAddress: a.cfg.MaxConnectionsPerAddress,
		log: a.cfg.Log, logs: rate.Sometimes{Interval: logInterval}, metrics: a.metrics,
		closed: make(chan struct{}), conns: map[*conn]struct{}{}, addresses: map[netip.Prefix]int{},
	}
	l.closeOnce = sync.OnceValue(func() error {
		close(l.closed)
		return inner.Close()
	})
	return l
}

// shortages are the errors of accept(2) that concern one connection, or pass.
var shortages = []error{
	syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM,
	syscall.ECONNABORTED, syscall.EPERM, syscall.EPROTO, syscall.ENOPROTOOPT, syscall.EOPNOTSUPP,
	syscall.ENETDOWN, syscall.ENETUNREACH, syscall.EHOSTDOWN, syscall.EHOSTUNREACH, syscall.ENONET,
}

// Accept waits for the next connection that there is room for. The server ends at the
// first error, so it returns none that passes.
func (l *listener) Accept() (net.Conn, error) {
	for pause := shortestPause; ; {
		inner, err := l.Listener.Accept()
		if err == nil {
			if c := l.admit(inner); c != nil {
				return c, nil
			}
			_ = inner.Close()
			pause = shortestPause
			continue
		}
		if !slices.ContainsFunc(shortages, func(shortage error) bool { return errors.Is(err, shortage) }) {
			return nil, err
		}
		l.logs.Do(func() { l.log.Error("no connection can be accepted; trying again", "error", err) })
		select {
		case <-time.After(pause):
			pause = min(2*pause, longestPause)
		case <-l.closed:
		}
	}
}

// Close may be called more than once.
func (l *listener) Close() error { return l.closeOnce() }

// admit is nil where there is no room.
func (l *listener) admit(inner net.Conn) *conn {
	c := &conn{Conn: inner, listener: l, address: addressOf(inner)}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped || !l.makeRoom(c.address) {
		return nil
	}
	l.conns[c] = struct{}{}
	l.addresses[c.address]++
	l.open.Add(1)
	c.place = l.waiting.PushBack(c)
	return c
}

func addressOf(inner net.Conn) netip.Prefix {
	tcp, ok := inner.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	addr := tcp.AddrPort().Addr().Unmap()
	prefix, _ := addr.Prefix(min(addr.BitLen(), addressBits)) // fails for no address
	return prefix
}

// makeRoom reports whether another connection of the address is within the bounds, now
// that, where it had to, it closed one.
func (l *listener) makeRoom(address netip.Prefix) bool {
	if l.perAddress > 0 && l.addresses[address] >= l.perAddress {
		return l.evict("address", func(c *conn) bool { return c.address == address })
	}
	if l.total > 0 && len(l.conns) >= l.total {
		return l.evict("total", func(*conn) bool { return true })
	}
	return true
}

// evict closes the connection that has waited for longest of those that fit; it reports
// whether there was one. What a client sends on it at that moment is not answered.
func (l *listener) evict(bound string, fits func(*conn) bool) bool {
	l.metrics.crowded.WithLabelValues(bound).Inc()
	l.logs.Do(func() {
		l.log.Warn("too many connections", "bound", bound, "connections", len(l.conns), "addresses", len(l.addresses))
	})
	for place := l.waiting.Front(); place != nil; place = place.Next() {
		if c, _ := place.Value.(*conn); fits(c) {
			c.isClosed.Store(true)
			l.remove(c)
			_ = c.Conn.Close() // at once: a bound holds for connections that linger too
			return true
		}
	}
	return false
}

func (l *listener) forget(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.remove(c)
}

func (l *listener) remove(c *conn) {
	if _, there := l.conns[c]; !there {
		return
	}
	delete(l.conns, c)
	if l.addresses[c.address]--; l.addresses[c.address] == 0 {
		delete(l.addresses, c.address)
	}
	l.setWaiting(c, false)
	l.open.Done()
}

func (l *listener) setWaiting(c *conn, waits bool) {
	if c.place != nil {
		l.waiting.Remove(c.place)
		c.place = nil
	}
	if _, there := l.conns[c]; there && waits {
		c.place = l.waiting.PushBack(c)
	}
}

// follow hears from the server what each connection does.
func follow(inner net.Conn, state fasthttp.ConnState) {
	c, ok := inner.(*conn)
	if !ok || state != fasthttp.StateActive && state != fasthttp.StateIdle {
		return
	}
	c.listener.mu.Lock()
	defer c.listener.mu.Unlock()
	c.listener.setWaiting(c, state == fasthttp.StateIdle)
}

// stop accepts no more connections, and ends the reading of those that there are after
// arrivalTime. What is being answered then is not read.
func (l *listener) stop() {
	_ = l.Close() // Serve says what was wrong with it
	latest := time.Now().Add(arrivalTime)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopped = true
	for c := range l.conns {
		c.readUntil(latest)
	}
}

// conn is a connection that ends without a reset.
type conn struct {
	net.Conn
	listener *listener
	address  netip.Prefix
	place    *list.Element // in the listener's waiting, guarded by its mu; nil where it does not wait
	hasBegun bool          // a byte has arrived; used by the one who reads
	isEnded  atomic.Bool   // by the client
	isClosed atomic.Bool

	mu     sync.Mutex // guards latest
	latest time.Time  // after which nothing is read; zero for no such time
}

// Read ends with io.EOF where a client sent nothing in time: there is no request to
// answer.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	switch {
	case n > 0:
		c.hasBegun = true
	case err == nil:
	case c.isClosed.Load():
		err = net.ErrClosed
	case !errors.Is(err, os.ErrDeadlineExceeded):
		c.isEnded.Store(true)
	case !c.hasBegun:
		err = io.EOF
	}
	return n, err
}

// SetReadDeadline sets the deadline, but not past the latest.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.latest.IsZero() && (t.IsZero() || t.After(c.latest)) {
		t = c.latest
	}
	return c.Conn.SetReadDeadline(t)
}

func (c *conn) readUntil(latest time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.latest = latest
	_ = c.Conn.SetReadDeadline(latest) // fails where the connection is closed
}

// Close tells the client that nothing more comes. The connection is released once the
// client has closed it too, or lingerTime is over.
func (c *conn) Close() error {
	if c.isClosed.Swap(true) {
		return nil
	}
	half, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok || c.isEnded.Load() || half.CloseWrite() != nil {
		return c.release()
	}
	c.readUntil(time.Now().Add(lingerTime))
	c.listener.mu.Lock()
	c.listener.setWaiting(c, true)
	c.listener.mu.Unlock()
	go c.linger()
	return nil
}

// linger reads what the client still sends; the listener waits for it.
func (c *conn) linger() {
	_, _ = io.Copy(io.Discard, io.LimitReader(c.Conn, lingerBytes))
	_ = c.release() // the client has its answers
}

func (c *conn) release() error {
	defer c.listener.forget(c)
	return c.Conn.Close()
}
