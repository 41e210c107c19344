package load

import (
	"context"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// Load is the orders to send and how.
type Load struct {
	Addresses   []string // of the servers, which the connections take in turn
	Token       string
	Connections int
	Orders      []Order
	Due         []time.Duration                // when each order is due; nil for as soon as a connection is free
	Visit       func(*Connection, Order) error // what a connection does with an order
	Start       func(context.Context) error    // called once all connections are open
}

// Sent is how the responses came.
type Sent struct {
	Began   time.Time       // when the first request was sent
	Took    time.Duration   // to the last response
	Waits   []time.Duration // of each order, from when it was due, or sent where no time was set
	Refused []bool          // of each order, where Visit is PostOnce
	Polls   int             // of jobs, by clients that poll
	Retried int             // requests that were sent again after a 503
}

// sending is a load that is being sent.
type sending struct {
	Load
	Sent
	next atomic.Int64
}

// Send visits every order once. Where orders are due at a time, an order's wait for a
// free connection counts as its wait.
func (l Load) Send(ctx context.Context) (Sent, error) {
	s := &sending{Load: l, Sent: Sent{Waits: make([]time.Duration, len(l.Orders)), Refused: make([]bool, len(l.Orders))}}
	group, ctx := errgroup.WithContext(ctx)
	open := make([]*Connection, l.Connections)
	for i := range open {
		c, err := Connect(ctx, l.Addresses[i%len(l.Addresses)], l.Token)
		if err != nil {
			return Sent{}, err
		}
		defer c.Close() //nolint:errcheck // every response has been read
		open[i] = c
	}
	if err := l.Start(ctx); err != nil {
		return Sent{}, err
	}
	s.Began = time.Now()
	for _, c := range open {
		stop := context.AfterFunc(ctx, func() { _ = c.Close() }) // ends what it waits for
		defer stop()
		group.Go(func() error { return s.work(c) })
	}
	err := group.Wait()
	s.Took = time.Since(s.Began)
	for _, c := range open {
		s.Retried += c.Retried
		s.Polls += c.polls
	}
	return s.Sent, err
}

func (s *sending) work(c *Connection) error {
	for {
		i := int(s.next.Add(1)) - 1
		if i >= len(s.Orders) {
			return nil
		}
		from := time.Now()
		if s.Due != nil {
			from = s.Began.Add(s.Due[i])
			if err := c.timer.wait(from); err != nil {
				return err
			}
		}
		if err := s.Visit(c, s.Orders[i]); err != nil {
			return err
		}
		s.Waits[i], s.Refused[i] = time.Since(from), c.refused
	}
}
