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
	Together    bool                           // many orders are due at a time: they share a timer
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
	due  chan int // the orders that are due, where they share a timer
}

// Send visits every order once. Where orders are due at a time, an order's wait for a
// free connection counts as its wait.
func (l Load) Send(ctx context.Context) (Sent, error) {
	s := &sending{Load: l, Sent: Sent{Waits: make([]time.Duration, len(l.Orders)), Refused: make([]bool, len(l.Orders))}, due: make(chan int)}
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
		group.Go(func() error { return s.work(ctx, c) })
	}
	if l.Together {
		group.Go(func() error { return s.share(ctx) })
	}
	err := group.Wait()
	s.Took = time.Since(s.Began)
	for _, c := range open {
		s.Retried += c.Retried
		s.Polls += c.polls
	}
	return s.Sent, err
}

func (s *sending) work(ctx context.Context, c *Connection) error {
	for {
		i, err := s.take(ctx)
		if i >= len(s.Orders) || err != nil {
			return err
		}
		from := time.Now()
		if s.Due != nil {
			from = s.Began.Add(s.Due[i])
		}
		if s.Due != nil && !s.Together {
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

// take returns the next order for a connection that is free; their number where none is left.
func (s *sending) take(ctx context.Context) (int, error) {
	if !s.Together {
		return int(s.next.Add(1)) - 1, nil
	}
	select {
	case i, isDue := <-s.due:
		if !isDue {
			return len(s.Orders), nil
		}
		return i, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// share gives each order to a connection when it is due. A timer for each connection would cost
// the load three system calls more for each request.
func (s *sending) share(ctx context.Context) error {
	defer close(s.due)
	timer, err := newTimer()
	if err != nil {
		return err
	}
	defer timer.Close()                                          //nolint:errcheck // nothing waits for it
	defer context.AfterFunc(ctx, func() { _ = timer.Close() })() // ends a wait
	for i, due := range s.Due {
		if err := timer.wait(s.Began.Add(due)); err != nil {
			return err
		}
		select {
		case s.due <- i:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
