package environment

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
)

// meter stands between the processes and Postgres, and counts what passes. A connection has two
// goroutines; max_connections of Postgres bounds the connections, and close ends them.
type meter struct {
	url      string // of the database, through the meter
	target   string
	listener net.Listener

	sent, received, trips atomic.Int64

	running sync.WaitGroup
	mu      sync.Mutex // guards the rest
	open    []net.Conn
	closed  bool
}

const meterBuffer = 32 << 10 // bytes, as large as a client's or server's own

// startMeter starts a meter in front of a database.
func startMeter(ctx context.Context, databaseURL string) (*meter, error) {
	target, err := url.Parse(databaseURL)
	if err != nil {
		return nil, fmt.Errorf("start a meter: %w", err)
	}
	m := &meter{target: target.Host}
	if m.listener, err = new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0"); err != nil {
		return nil, fmt.Errorf("start a meter: %w", err)
	}
	target.Host = m.listener.Addr().String()
	m.url = target.String()
	m.running.Go(m.accept)
	return m, nil
}

// accept takes connections until the meter is closed.
func (m *meter) accept() {
	for {
		client, err := m.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", m.target) //nolint:noctx // on this machine
		if err != nil {
			_ = client.Close()
			continue
		}
		if !m.keep(client, server) {
			return
		}
		answered := new(atomic.Bool)
		answered.Store(true)
		m.running.Go(func() {
			forward(client, server, func(n int) {
				m.sent.Add(int64(n))
				if answered.Swap(false) { // what a client sends before an answer comes belongs to one round trip
					m.trips.Add(1)
				}
			})
		})
		m.running.Go(func() {
			forward(server, client, func(n int) {
				m.received.Add(int64(n))
				answered.Store(true)
			})
		})
	}
}

// keep notes the connections for close. It closes them and returns false after a close.
func (m *meter) keep(conns ...net.Conn) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.open = append(m.open, conns...)
	if m.closed {
		closeAll(conns)
	}
	return !m.closed
}

// forward copies until one of the connections ends, and then ends both.
func forward(from, to net.Conn, count func(int)) {
	defer closeAll([]net.Conn{from, to})
	for buffer := make([]byte, meterBuffer); ; {
		n, err := from.Read(buffer)
		if n > 0 {
			count(n)
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func closeAll(conns []net.Conn) {
	for _, conn := range conns {
		_ = conn.Close() // an error says that it is closed
	}
}

// close ends all connections and waits for the meter's goroutines. A second call does nothing.
func (m *meter) close() error {
	m.mu.Lock()
	m.closed = true
	closeAll(m.open)
	m.mu.Unlock()
	err := m.listener.Close()
	m.running.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
