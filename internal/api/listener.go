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
	// lingerTime and lingerBytes bound what the API reads from a connection after its last
	// answer. A close with unread bytes resets the connection, and a reset can destroy the
	// answer before the client has read it.
	lingerTime  = time.Second
	lingerBytes = 1 << 20
	// arrivalTime is how long a request may still take to arrive once the API stops. A later
	// request is not answered, so nothing is lost: the client sends it again.
	arrivalTime = time.Second
	// shortestPause and longestPause bound the wait before the next accept, where the system has
	// no file descriptor or memory for a connection.
	shortestPause = 5 * time.Millisecond
	longestPause  = time.Second
	// logInterval is the shortest time between two lines about connections beyond a bound, and
	// between two about streams that can't be read.
	logInterval = 10 * time.Second
	// addressBits is the prefix of an IPv6 address that one client commonly has to itself.
	addressBits = 64
)

// listener accepts a bounded number of connections, in total and from an address, and survives a
// shortage of file descriptors. At a bound it closes the connection that has been idle for
// longest, so a client that holds idle connections can't keep other clients out. Where no
// connection is idle, it closes the new one.
//
// Its connections end without a reset. A connection that waits for more of a request ends soon
// after the API stops.
type listener struct {
	net.Listener
	total, perAddress int // 0 is no bound
	log               *slog.Logger
	logs              rate.Sometimes
	metrics           *metrics
	closed            chan struct{}
	closeOnce         func() error
	open              sync.WaitGroup // counts conns; grows no more once stopped

	mu        sync.Mutex // guards the fields below
	conns     map[*conn]struct{}
	addresses map[netip.Prefix]int // how many connections each has
	waiting   list.List            // idle connections, the longest idle first
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

// shortages are the errors of accept(2) that pass, or concern one connection.
var shortages = []error{
	syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM,
	syscall.ECONNABORTED, syscall.EPERM, syscall.EPROTO, syscall.ENOPROTOOPT, syscall.EOPNOTSUPP,
	syscall.ENETDOWN, syscall.ENETUNREACH, syscall.EHOSTDOWN, syscall.EHOSTUNREACH, syscall.ENONET,
}

// Accept waits for the next connection within the bounds. The server ends at the first error, so
// Accept returns no temporary error.
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
		l.log.Error("accept failed; trying again", "error", err) // the logger bounds the lines
		select {
		case <-time.After(pause):
			pause = min(2*pause, longestPause)
		case <-l.closed:
		}
	}
}

// Close may be called more than once.
func (l *listener) Close() error { return l.closeOnce() }

// admit returns nil where the connection is beyond a bound, or the listener has stopped.
func (l *listener) admit(inner net.Conn) *conn {
	c := &conn{Conn: inner, listener: l, address: addressOf(inner)}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped || !l.fits(c.address) {
		return nil
	}
	l.conns[c] = struct{}{}
	l.addresses[c.address]++
	l.open.Add(1)
	l.metrics.connections.Inc()
	c.waits = l.waiting.PushBack(c)
	return c
}

func addressOf(inner net.Conn) netip.Prefix {
	tcp, ok := inner.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	return networkOf(tcp.AddrPort().Addr().Unmap())
}

// networkOf returns the prefix of an address that one client commonly has to itself.
func networkOf(address netip.Addr) netip.Prefix {
	prefix, _ := address.Prefix(min(address.BitLen(), addressBits)) // fails for no address
	return prefix
}

// Bounds of connections, as the metric and the log name them.
const (
	boundAddress = "address"
	boundTotal   = "total"
)

// fits reports whether another connection of the address is within the bounds. At a bound it first
// closes an idle connection.
func (l *listener) fits(address netip.Prefix) bool {
	if l.perAddress > 0 && l.addresses[address] >= l.perAddress {
		return l.evict(boundAddress, func(c *conn) bool { return c.address == address })
	}
	if l.total > 0 && len(l.conns) >= l.total {
		return l.evict(boundTotal, func(*conn) bool { return true })
	}
	return true
}

// evict closes the longest idle connection that matches, and reports whether there was one. A
// request that its client sends at that moment is not answered.
func (l *listener) evict(bound string, matches func(*conn) bool) bool {
	l.metrics.crowded.WithLabelValues(bound).Inc()
	l.logs.Do(func() {
		l.log.Warn("too many connections", "bound", bound, "connections", len(l.conns), "addresses", len(l.addresses))
	})
	for element := l.waiting.Front(); element != nil; element = element.Next() {
		if c, _ := element.Value.(*conn); matches(c) {
			c.isClosed.Store(true)
			l.remove(c)
			_ = c.Conn.Close() // at once: lingering connections count for the bounds too
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
	l.metrics.connections.Dec()
	l.open.Done()
}

func (l *listener) setWaiting(c *conn, isIdle bool) {
	if c.waits != nil {
		l.waiting.Remove(c.waits)
		c.waits = nil
	}
	if _, there := l.conns[c]; there && isIdle {
		c.waits = l.waiting.PushBack(c)
	}
}

// follow is the server's ConnState hook: it records which connections are idle.
func follow(inner net.Conn, state fasthttp.ConnState) {
	c, ok := inner.(*conn)
	if !ok || state != fasthttp.StateActive && state != fasthttp.StateIdle {
		return
	}
	c.listener.mu.Lock()
	defer c.listener.mu.Unlock()
	c.listener.setWaiting(c, state == fasthttp.StateIdle)
}

// stop accepts no more connections, and ends all reads after arrivalTime. A request that is being
// answered by then needs no more reads.
func (l *listener) stop() {
	_ = l.Close() // Serve returns its error
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
	waits    *list.Element // in the listener's waiting, guarded by its mu; nil unless idle
	hasBegun bool          // a byte has arrived; only Read uses it
	isEnded  atomic.Bool   // the client has closed it
	isClosed atomic.Bool

	mu      sync.Mutex // guards the fields below
	latest  time.Time  // the latest read deadline; zero for none
	onClose func()     // nil for nothing
}

// Read returns io.EOF where the client sent nothing in time: there is no request to answer.
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

// SetReadDeadline sets the deadline, or the latest that is allowed.
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

// Close ends the API's side of the connection. It releases the connection once the client has
// closed its side too, or after lingerTime.
func (c *conn) Close() error {
	if c.isClosed.Swap(true) {
		return nil
	}
	c.mu.Lock()
	onClose := c.onClose
	c.mu.Unlock()
	if onClose != nil {
		onClose()
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

// atClose has Close call f once, also where Close has been called already.
func (c *conn) atClose(f func()) {
	c.mu.Lock()
	c.onClose = f
	c.mu.Unlock()
	if c.isClosed.Load() {
		f()
	}
}

// linger reads what the client still sends. Shutdown waits for it.
func (c *conn) linger() {
	_, _ = io.Copy(io.Discard, io.LimitReader(c.Conn, lingerBytes))
	_ = c.release() // the client has its answers already
}

func (c *conn) release() error {
	defer c.listener.forget(c)
	return c.Conn.Close()
}
