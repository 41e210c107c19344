package worker

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/crash"
	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/queue"
)

const (
	// sweepEvery is the pause between two sweeps. An account that stands still
	// from one to the next is looked after; those that nothing rings for wait for
	// two of them and a bell, and for at most three pauses more where their
	// partition has a line: that is most of how long a recovery takes. A sweep
	// that finds nothing is one probe of an index, some 100 µs of Postgres's, so
	// even a dozen workers cost it less than 1 % of a core.
	sweepEvery = 500 * time.Millisecond
	// sweepShare makes a sweep that takes its time, because there is a long
	// backlog, take no more than a fifth of it: the pause is so many times as
	// long, up to longestSweepPause. Two of those pauses are what an account of a
	// long backlog waits for when Redis has lost everything.
	sweepShare        = 4
	longestSweepPause = 1500 * time.Millisecond
	// stepTimeout bounds the reading of a page of accounts and the looking after
	// one: a connection that swallows everything must not end the sweeps.
	stepTimeout = 5 * time.Second
	// sweepPage is how many accounts one query reads.
	sweepPage = 1000
	// maxSwept bounds the accounts that one sweep looks at, and so its memory.
	// Those beyond have their turn as the ones before them are drained.
	maxSwept = 100_000
	// sweepers is how many accounts a sweep looks after at once.
	sweepers = 16
)

// After how many sweeps a ticket is no longer believed to bring its account on;
// or after as many of sweepEvery, where sweeps take longer.
const (
	// longInHand passes over a worker that waits for the account's lock, and is
	// soon enough for one that is dead.
	longInHand = 3
	// longPutOff passes over the pause between two tries. It counts sweeps and
	// does not read the time of the next try, which a worker with a wrong clock
	// wrote an hour too late.
	longPutOff = int(queue.LongestPutOff/sweepEvery) + 2
	// longUnseen is for a ticket that is not there by its account's name, while
	// others wait in the partition's line: one that several accounts share has the
	// name of the first one's job alone. Short enough for a ticket that is lost;
	// where sweeps are so far apart that it is over at the first look, a ticket too
	// many costs a round trip, and a lost one that is waited for costs seconds.
	longUnseen = 4
	// longInLine is for a line that Redis has lost; a power of two.
	longInLine = 32
)

// suspect is an account with queued jobs: the oldest of them, the ticket that
// should bring it on, and for how many sweeps it has not.
type suspect struct {
	head   uuid.UUID
	ticket queue.Ticket
	still  int
	place  queue.Place // of the ticket
	same   int         // for how many sweeps it has been there
	since  time.Time   // which it has been for at least, by this process's own clock
}

// sweep rings for the accounts that nothing is going to ring for: those whose
// oldest queued job is the same as a sweep ago, while the ticket that should
// have brought it on is gone, or has been where it is for too long. One ticket
// an account is enough, for its newest job: it applies all before it. An account
// that moves is left alone, and so is one whose ticket waits in line or for
// another try.
func (w *Worker) sweep(ctx context.Context) {
	heads, err := w.heads(ctx)
	if err != nil {
		if ctx.Err() == nil {
			w.cfg.Log.Warn("sweep put off", "error", err)
		}
		return
	}
	w.cfg.Metrics.backlog(heads)
	lines, err := w.lines(ctx, heads)
	if err != nil {
		if ctx.Err() == nil {
			w.cfg.Log.Warn("sweep put off", "error", err)
		}
		return
	}
	suspects := make([]suspect, len(heads))
	group, looking := errgroup.WithContext(ctx) // one failure is Redis's or Postgres's: the rest would fare no better
	group.SetLimit(sweepers)
	for i, head := range heads {
		known := w.suspects[head.AccountID]
		if suspects[i] = known; known.head != head.JobID {
			suspects[i] = suspect{
				head: head.JobID, since: time.Now(),
				ticket: queue.Ticket{AccountID: head.AccountID, JobID: head.JobID},
			}
			continue
		}
		group.Go(func() (err error) {
			if looking.Err() == nil {
				suspects[i], err = w.lookAfter(ctx, known, lines)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil && ctx.Err() == nil {
		w.cfg.Log.Warn("sweep could not look after every account", "error", err)
	}
	w.remember(heads, suspects)
}

// remember keeps what this sweep found for the next one, and tells how often it
// rang.
func (w *Worker) remember(heads []job.Head, suspects []suspect) {
	rung := 0
	next := make(map[int64]suspect, len(heads))
	for i, head := range heads {
		if suspects[i].still > 0 && suspects[i].ticket != w.suspects[head.AccountID].ticket {
			rung++
		}
		next[head.AccountID] = suspects[i]
	}
	w.suspects = next
	if rung > 0 {
		w.cfg.Metrics.swept.Add(float64(rung))
		w.cfg.Log.Info("sweep rang for accounts that stood still", "accounts", rung)
	}
}

func (w *Worker) heads(ctx context.Context) (heads []job.Head, err error) {
	for after := int64(0); len(heads) < maxSwept; after = heads[len(heads)-1].AccountID {
		page, err := w.page(ctx, after)
		if err != nil {
			return nil, err
		}
		heads = append(heads, page...)
		if len(page) < sweepPage {
			return heads, nil
		}
	}
	return heads, nil
}

func (w *Worker) page(ctx context.Context, after int64) ([]job.Head, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	return w.cfg.Backlog.Heads(ctx, after, sweepPage)
}

// lines looks which partitions' lines have tickets, as they are before this sweep
// writes any; where no account stands still, nobody asks.
func (w *Worker) lines(ctx context.Context, heads []job.Head) (queue.Lines, error) {
	still := func(head job.Head) bool { return w.suspects[head.AccountID].head == head.JobID }
	if !slices.ContainsFunc(heads, still) {
		return queue.Lines{}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	return w.cfg.Tickets.Lines(ctx)
}

// lookAfter writes the next ticket of an account that stands still, unless its
// last one is going to ring.
func (w *Worker) lookAfter(ctx context.Context, known suspect, lines queue.Lines) (suspect, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	place, err := w.cfg.Tickets.Find(known.ticket)
	if err != nil {
		return known, err
	}
	if known.stand(place, lines.Waits(known.ticket.AccountID)) {
		return known, nil
	}
	last, err := w.cfg.Backlog.Last(ctx, known.ticket.AccountID)
	switch {
	case errors.Is(err, job.ErrNotFound): // it moved after all
		return known, nil
	case err != nil:
		return known, fmt.Errorf("look after account: %w", err)
	}
	next := suspect{head: known.head, ticket: known.ticket, still: known.still, since: time.Now()}
	next.ticket.JobID = last
	next.ticket.Again++
	// A kill before the ticket is written leaves the account to the sweeps of
	// others. One after it leaves it to the ticket; they leave one in line alone.
	crash.At(crash.SweepUnwritten)
	if err := w.cfg.Tickets.Enqueue(ctx, next.ticket); err != nil {
		return known, err
	}
	crash.At(crash.SweepWritten)
	return next, nil
}

// stand counts one more sweep in which the account stood still, and tells
// whether its ticket, in that place, is still believed to ring. line tells
// whether any ticket waits in the partition's line.
func (s *suspect) stand(place queue.Place, line bool) (believed bool) {
	s.still++
	s.same++
	if place != s.place {
		s.place, s.same, s.since = place, 1, time.Now()
	}
	switch place.Position {
	case queue.InLine:
		return !isLongInLine(s.still)
	case queue.InHand:
		return !s.isLong(longInHand)
	case queue.PutOff:
		return !s.isLong(longPutOff)
	default:
		return line && s.ticket.Again == 0 && !s.isLong(longUnseen)
	}
}

// isLong is true for a ticket that has been in its place for so many sweeps.
func (s *suspect) isLong(sweeps int) bool {
	return s.same >= sweeps || time.Since(s.since) >= time.Duration(sweeps)*sweepEvery
}

// isLongInLine is true at longInLine sweeps, and at each doubling: should the
// line be only long, then ever fewer tickets join it.
func isLongInLine(still int) bool {
	return still >= longInLine && bits.OnesCount(uint(still)) == 1
}
