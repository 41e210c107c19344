package worker

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/queue"
)

const (
	// sweepEvery is the time between two sweeps. An account that stands still
	// from one to the next is looked after, so nothing waits for more than two.
	sweepEvery = 2 * time.Second
	// sweepPage is how many accounts one query reads.
	sweepPage = 1000
	// maxSwept bounds the accounts that one sweep looks at, and so its memory.
	// Those beyond have their turn as the ones before them are drained.
	maxSwept = 100_000
	// sweepers is how many accounts a sweep looks after at once.
	sweepers = 16
	// longStill is after how many sweeps a ticket that waits in line is no
	// longer believed; a power of two.
	longStill = 16
)

// suspect is an account with queued jobs: the oldest of them, the ticket that
// should bring it on, and for how many sweeps it has not.
type suspect struct {
	head   uuid.UUID
	ticket queue.Ticket
	still  int
}

// sweep rings for the accounts that nothing is going to ring for: those whose
// oldest queued job is the same as a sweep ago, while the ticket that should
// have brought it on is gone, or in the hands of a worker that got nowhere with
// it in all that time. One ticket an account is enough, for its newest job: it
// applies all before it. An account that moves is left alone, and so is one
// whose ticket waits in line; so a long backlog adds next to no tickets.
func (w *Worker) sweep(ctx context.Context) {
	heads, err := w.heads(ctx)
	if err != nil {
		if ctx.Err() == nil {
			w.cfg.Log.Warn("sweep put off", "error", err)
		}
		return
	}
	w.cfg.Metrics.backlog(heads)
	suspects := make([]suspect, len(heads))
	var group errgroup.Group
	group.SetLimit(sweepers)
	for i, head := range heads {
		known := w.suspects[head.AccountID]
		if known.head != head.JobID {
			suspects[i] = suspect{head: head.JobID, ticket: queue.Ticket{AccountID: head.AccountID, JobID: head.JobID}}
			continue
		}
		group.Go(func() (err error) {
			suspects[i], err = w.lookAfter(ctx, known)
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
		page, err := w.cfg.Backlog.Heads(ctx, after, sweepPage)
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

// lookAfter writes the next ticket of an account that stands still, unless its
// last one waits in line. After longStill sweeps, and ever more rarely, it does
// so even then: Redis may have lost the line and kept the ticket.
func (w *Worker) lookAfter(ctx context.Context, known suspect) (suspect, error) {
	known.still++
	waiting, err := w.cfg.Tickets.Waiting(known.ticket)
	if err != nil || waiting && !isLongStill(known.still) {
		return known, err
	}
	last, err := w.cfg.Backlog.Last(ctx, known.ticket.AccountID)
	switch {
	case errors.Is(err, job.ErrNotFound): // it moved after all
		return known, nil
	case err != nil:
		return known, fmt.Errorf("look after account: %w", err)
	}
	next := known
	next.ticket.JobID = last
	next.ticket.Again++
	if err := w.cfg.Tickets.Enqueue(ctx, next.ticket); err != nil {
		return known, err
	}
	return next, nil
}

// isLongStill is true at longStill sweeps, and at each doubling.
func isLongStill(still int) bool {
	return still >= longStill && bits.OnesCount(uint(still)) == 1
}
