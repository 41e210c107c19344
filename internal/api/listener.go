package api

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
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
)

// listener accepts connections that end without a reset, and ends those that wait for
// the rest of a request when the API stops.
type listener struct {
	net.Listener
	closeOnce func() error
	open      sync.WaitGroup // connections that are not released; nothing is added once stopped

	mu      sync.Mutex // guards what follows
	conns   map[*conn]struct{}
	stopped bool
}

func newListener(inner net.Listener) *listener {
	return &listener{Listener: inner, closeOnce: sync.OnceValue(inner.Close), conns: map[*conn]struct{}{}}
}

// Accept waits for the next connection.
func (l *listener) Accept() (net.Conn, error) {
	inner, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: inner, listener: l}
	if !l.admit(c) {
		_ = inner.Close()
		return nil, net.ErrClosed
	}
	return c, nil
}

// Close may be called more than once.
func (l *listener) Close() error { return l.closeOnce() }

func (l *listener) admit(c *conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped {
		return false
	}
	l.conns[c] = struct{}{}
	l.open.Add(1)
	return true
}

func (l *listener) forget(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
	l.open.Done()
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
	hasBegun bool        // a byte has arrived; used by the one who reads
	isEnded  atomic.Bool // by the client
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
