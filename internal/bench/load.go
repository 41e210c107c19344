package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/valyala/fasthttp"
	"golang.org/x/sync/errgroup"
)

// order is one deposit or withdrawal to ask for.
type order struct {
	account    int
	withdrawal bool // every third
	key        string
}

// seed makes the orders of a round, the same for every part that asks for the
// same.
func (r *round) seed() *rand.Rand {
	return rand.New(rand.NewPCG(uint64(r.number), 0)) //nolint:gosec // which account is no secret
}

// evenOrders are n orders over the first accounts, each as likely.
func evenOrders(random *rand.Rand, n, accounts int) []order {
	return makeOrders(n, func() int { return random.IntN(accounts) })
}

// zipfOrders are n orders over the first accounts, of which account k is (k+1)^s
// times less likely than account 0: of 10,000, that is asked for one in seven
// times, and the first hundred for two in three.
func zipfOrders(random *rand.Rand, n, accounts int) []order {
	zipf := rand.NewZipf(random, zipfS, 1, uint64(accounts-1))     //nolint:gosec // a count
	return makeOrders(n, func() int { return int(zipf.Uint64()) }) //nolint:gosec // less than accounts
}

func makeOrders(n int, account func() int) []order {
	orders := make([]order, n)
	for i := range orders {
		orders[i] = order{account: account(), withdrawal: i%3 == 2, key: uuid.NewString()}
	}
	return orders
}

// again is the same orders under new keys.
func again(orders []order) []order {
	renewed := slices.Clone(orders)
	for i := range renewed {
		renewed[i].key = uuid.NewString()
	}
	return renewed
}

// evenly says when each of n orders is due at a rate, in orders a second.
func evenly(n int, rate float64) []time.Duration {
	due := make([]time.Duration, n)
	for i := range due {
		due[i] = time.Duration(float64(i) / rate * float64(time.Second))
	}
	return due
}

// posted is how the answers came.
type posted struct {
	began time.Time       // the first request
	took  time.Duration   // to the last answer
	waits []time.Duration // of each order, from when it was due, or sent where no time was set
	looks int             // at jobs, by clients that poll
}

// posting is a load on its way.
type posting struct {
	orders []order
	due    []time.Duration // since began; nil for as soon as a connection is free
	next   atomic.Int64
	posted
}

// post has visit see to every order once, over n connections to the doors in
// turn. Where orders are due at a time, what one waits for a free connection counts
// as its wait.
func (s *scene) post(ctx context.Context, orders []order, due []time.Duration, n int, visit func(*connection, order) error) (posted, error) {
	s.jobs += len(orders)
	p := &posting{orders: orders, due: due, posted: posted{waits: make([]time.Duration, len(orders))}}
	group, ctx := errgroup.WithContext(ctx)
	open := make([]*connection, n)
	for i := range open {
		c, err := connect(ctx, s.doors[i%len(s.doors)].address(), s.token)
		if err != nil {
			return posted{}, err
		}
		defer c.Close() //nolint:errcheck // all is answered
		open[i] = c
	}
	if err := s.checkpoint(ctx); err != nil {
		return posted{}, err
	}
	p.began = time.Now()
	s.began = p.began
	for _, c := range open {
		stop := context.AfterFunc(ctx, func() { _ = c.Close() }) // ends what it waits for
		defer stop()
		group.Go(func() error { return p.work(c, visit) })
	}
	err := group.Wait()
	p.took = time.Since(p.began)
	again := 0
	for _, c := range open {
		again += c.again
		p.looks += c.looks
	}
	if again > 0 {
		s.say("  %d requests were answered 503 and asked again", again)
	}
	return p.posted, err
}

func (p *posting) work(c *connection, visit func(*connection, order) error) error {
	for {
		i := int(p.next.Add(1)) - 1
		if i >= len(p.orders) {
			return nil
		}
		from := time.Now()
		if p.due != nil {
			from = p.began.Add(p.due[i])
			if err := c.alarm.wait(from); err != nil {
				return err
			}
		}
		if err := visit(c, p.orders[i]); err != nil {
			return err
		}
		p.waits[i] = time.Since(from)
	}
}

// connection is one that is kept alive. The load shares the machine with what it
// measures, so a request is a copy of bytes that are there already, in which an
// account and a key are overwritten, and fasthttp reads the answer into the same
// memory each time.
type connection struct {
	net.Conn
	alarm      alarm
	reader     *bufio.Reader
	response   fasthttp.Response
	deposit    request
	withdrawal request
	look       request
	head       string // of every request
	again      int    // how many requests were asked again
	looks      int    // at jobs so far
}

// request is the bytes of one, and where its parts are.
type request struct {
	bytes  []byte
	number int // of the account's
	key    int
	id     int // of the job's
}

const (
	maxAnswer = 64 << 10 // bytes
	orderBody = `{"amount":100,"description":"benchmark"}`
	noUUID    = "00000000-0000-0000-0000-000000000000"
)

func connect(ctx context.Context, addr, token string) (*connection, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	alarm, err := newAlarm()
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	head := "Host: " + addr + "\r\nAuthorization: Bearer " + token + "\r\n"
	return &connection{
		Conn:       conn,
		alarm:      alarm,
		reader:     bufio.NewReader(conn),
		deposit:    orderRequest("deposits", head),
		withdrawal: orderRequest("withdrawals", head),
		look:       lookRequest(head),
		head:       head,
	}, nil
}

// Close ends what the connection waits for.
func (c *connection) Close() error {
	return errors.Join(c.Conn.Close(), c.alarm.Close())
}

func orderRequest(kind, head string) request {
	text := fmt.Appendf(nil, "POST /v1/accounts/%s/%s HTTP/1.1\r\n%sContent-Type: application/json\r\nIdempotency-Key: %s\r\nContent-Length: %d\r\n\r\n%s",
		accountNumber(0), kind, head, noUUID, len(orderBody), orderBody)
	return request{bytes: text, number: bytes.Index(text, []byte(accountNumber(0))), key: bytes.Index(text, []byte(noUUID))}
}

func lookRequest(head string) request {
	text := []byte("GET /v1/jobs/" + noUUID + " HTTP/1.1\r\n" + head + "\r\n")
	return request{bytes: text, id: bytes.Index(text, []byte(noUUID))}
}

// post asks for one job and waits for the answer.
func (c *connection) post(o order) error {
	r := &c.deposit
	if o.withdrawal {
		r = &c.withdrawal
	}
	copy(r.bytes[r.number:], accountNumber(o.account))
	copy(r.bytes[r.key:], o.key)
	return c.ask(r)
}

// pauses says how long a client rests before it looks at its job for the nth time, from 0.
type pauses func(n int) time.Duration

// eager is a client on the same machine that measures how soon a job is finished.
func eager(int) time.Duration { return time.Millisecond }

// doubling is a client as clients should be: it rests twice as long each time.
func doubling(n int) time.Duration {
	const first, most = 4 * time.Millisecond, 1024 * time.Millisecond
	return min(first<<min(n, 16), most)
}

// postAndPoll asks for jobs, one at a time, and looks at each until it is finished.
func postAndPoll(rest pauses) func(*connection, order) error {
	return func(c *connection, o order) error { return c.postAndPoll(o, rest) }
}

func (c *connection) postAndPoll(o order, rest pauses) error {
	if err := c.post(o); err != nil {
		return err
	}
	location := c.response.Header.Peek("Location")
	if len(location) < len(noUUID) {
		return fmt.Errorf("the answer has no location: %s", c.response.Header.String())
	}
	copy(c.look.bytes[c.look.id:], location[len(location)-len(noUUID):])
	for n := 0; bytes.Contains(c.response.Body(), []byte(`"status":"queued"`)); n++ {
		if err := c.alarm.wait(time.Now().Add(rest(n))); err != nil {
			return err
		}
		c.looks++
		if err := c.ask(&c.look); err != nil {
			return err
		}
	}
	return nil
}

// How a client asks again that hears 503: with the same key, so it is safe.
const (
	againPause = 50 * time.Millisecond
	againTries = 100
)

// ask asks, and again as long as it is told to: what that takes is the request's.
func (c *connection) ask(r *request) error {
	for try := 1; ; try++ {
		if _, err := c.Write(r.bytes); err != nil {
			return fmt.Errorf("ask: %w", err)
		}
		if err := c.response.ReadLimitBody(c.reader, maxAnswer); err != nil {
			return fmt.Errorf("read the answer: %w", err)
		}
		status := c.response.StatusCode()
		switch {
		case status >= 200 && status <= 299:
			return nil
		case status != http.StatusServiceUnavailable || try == againTries:
			return fmt.Errorf("answered %d: %s", status, c.response.Body())
		}
		c.again++
		<-time.After(againPause)
	}
}
