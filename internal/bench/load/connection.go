package load

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/valyala/fasthttp"
)

// Connection is an open connection to a server. A request reuses the same bytes and
// overwrites the account and the key in them, and fasthttp reads every response into
// the same memory: making them anew would cost more than the rest of the load.
type Connection struct {
	net.Conn
	timer      timer
	reader     *bufio.Reader
	response   fasthttp.Response
	deposit    request
	withdrawal request
	held       struct{ deposit, withdrawal request } // with Prefer: wait
	poll       request
	head       string // of every request
	polls      int    // of jobs so far
	refused    bool   // the last order

	// Retried counts the requests that were sent again after a 503.
	Retried int
}

// request is the bytes of one, and where its parts are.
type request struct {
	bytes  []byte
	number int // of the account's
	key    int
	id     int // of the job's
}

const (
	maxResponse = 64 << 10 // bytes
	orderBody   = `{"amount":100,"description":"benchmark"}`
	noUUID      = "00000000-0000-0000-0000-000000000000"
	prefer      = "Prefer: wait=5\r\n"
)

// Connect opens a connection to a server.
func Connect(ctx context.Context, addr, token string) (*Connection, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	timer, err := newTimer()
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	head := "Host: " + addr + "\r\nAuthorization: Bearer " + token + "\r\n"
	c := &Connection{
		Conn:       conn,
		timer:      timer,
		reader:     bufio.NewReader(conn),
		deposit:    orderRequest("deposits", head),
		withdrawal: orderRequest("withdrawals", head),
		poll:       pollRequest(head),
		head:       head,
	}
	c.held.deposit, c.held.withdrawal = orderRequest("deposits", head+prefer), orderRequest("withdrawals", head+prefer)
	return c, nil
}

// Close ends what the connection waits for.
func (c *Connection) Close() error {
	return errors.Join(c.Conn.Close(), c.timer.Close())
}

func orderRequest(kind, head string) request {
	text := fmt.Appendf(nil, "POST /v1/accounts/%s/%s HTTP/1.1\r\n%sContent-Type: application/json\r\nIdempotency-Key: %s\r\nContent-Length: %d\r\n\r\n%s",
		AccountNumber(0), kind, head, noUUID, len(orderBody), orderBody)
	return request{bytes: text, number: bytes.Index(text, []byte(AccountNumber(0))), key: bytes.Index(text, []byte(noUUID))}
}

func pollRequest(head string) request {
	text := []byte("GET /v1/jobs/" + noUUID + " HTTP/1.1\r\n" + head + "\r\n")
	return request{bytes: text, id: bytes.Index(text, []byte(noUUID))}
}

// Post asks for one job and waits for the response.
func (c *Connection) Post(o Order) error {
	return c.send(fill(o, &c.deposit, &c.withdrawal))
}

// PostAndWait asks for one job, and waits for a response that shows it finished.
func (c *Connection) PostAndWait(o Order) error {
	held := fill(o, &c.held.deposit, &c.held.withdrawal)
	err := c.send(held)
	for err == nil && c.isQueued() { // after five seconds
		c.polls++
		err = c.send(held)
	}
	return err
}

// fill returns one of the two requests with the order's account and key.
func fill(o Order, deposit, withdrawal *request) *request {
	r := deposit
	if o.withdrawal {
		r = withdrawal
	}
	copy(r.bytes[r.number:], AccountNumber(o.account))
	copy(r.bytes[r.key:], o.key)
	return r
}

// PostOnce asks for one job and notes whether it was refused. It sends the request again, as Post
// does, where the server does not know whether the job was accepted.
func (c *Connection) PostOnce(o Order) error {
	r := fill(o, &c.deposit, &c.withdrawal)
	status, err := c.roundTrip(r)
	c.refused = status == http.StatusServiceUnavailable && bytes.Contains(c.response.Body(), []byte("Nothing happened"))
	if err != nil || c.refused || status == http.StatusAccepted {
		return err
	}
	return c.send(r)
}

// isQueued reports whether the last response shows a job that is not finished.
func (c *Connection) isQueued() bool {
	return bytes.Contains(c.response.Body(), []byte(`"status":"queued"`))
}

// Pauses returns how long a client waits before it polls its job for the nth time, from 0.
type Pauses func(n int) time.Duration

// Eager is for a client on the same machine that measures how soon a job is finished.
func Eager(int) time.Duration { return time.Millisecond }

// Doubling is for a client as clients should be: it waits twice as long each time.
func Doubling(n int) time.Duration {
	const first, most = 4 * time.Millisecond, 1024 * time.Millisecond
	return min(first<<min(n, 16), most)
}

// PostAndPoll posts jobs, one at a time, and polls each job until it is finished.
func PostAndPoll(pauses Pauses) func(*Connection, Order) error {
	return func(c *Connection, o Order) error { return c.postAndPoll(o, pauses) }
}

func (c *Connection) postAndPoll(o Order, pauses Pauses) error {
	if err := c.Post(o); err != nil {
		return err
	}
	location := c.response.Header.Peek("Location")
	if len(location) < len(noUUID) {
		return fmt.Errorf("the response has no location: %s", c.response.Header.String())
	}
	copy(c.poll.bytes[c.poll.id:], location[len(location)-len(noUUID):])
	for n := 0; c.isQueued(); n++ {
		if err := c.timer.wait(time.Now().Add(pauses(n))); err != nil {
			return err
		}
		c.polls++
		if err := c.send(&c.poll); err != nil {
			return err
		}
	}
	return nil
}

// Bounds of the retries after a 503. They are safe, for they reuse the key.
const (
	retryPause  = 50 * time.Millisecond
	maxAttempts = 100
)

// Get reads a path. The body is the connection's until its next request.
func (c *Connection) Get(path string) ([]byte, error) {
	if err := c.send(&request{bytes: []byte("GET " + path + " HTTP/1.1\r\n" + c.head + "\r\n")}); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c.response.Body(), nil
}

// send sends a request, again after each 503, and reads the response. The time of the
// retries counts as the request's.
func (c *Connection) send(r *request) error {
	for attempt := 1; ; attempt++ {
		status, err := c.roundTrip(r)
		switch {
		case err != nil:
			return err
		case status >= 200 && status <= 299:
			return nil
		case status != http.StatusServiceUnavailable || attempt == maxAttempts:
			return fmt.Errorf("status %d: %s", status, c.response.Body())
		}
		c.Retried++
		<-time.After(retryPause)
	}
}

func (c *Connection) roundTrip(r *request) (status int, err error) {
	if _, err := c.Write(r.bytes); err != nil {
		return 0, fmt.Errorf("send a request: %w", err)
	}
	if err := c.response.ReadLimitBody(c.reader, maxResponse); err != nil {
		return 0, fmt.Errorf("read the response: %w", err)
	}
	return c.response.StatusCode(), nil
}
