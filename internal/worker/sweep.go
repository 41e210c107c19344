package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

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
)

// suspect is an account with queued jobs: the oldest of them at the last sweep,
// and the ticket that should bring it on.
type suspect struct {
	head   uuid.UUID
	ticket queue.Ticket
}

// sweep rings for the accounts that nothing is going to ring for: those whose
// oldest queued job is the same as a sweep ago, while the ticket that should
// have brought it on is gone, or in the hands of a worker that got nowhere with
// it in all that time. One ticket an account is enough, for its newest job: it
// applies all before it. An account that moves is left alone, and so is one
// whose ticket waits in line, however long the line; so a long backlog adds no
// tickets.
func (w *Worker) sweep(ctx context.Context) {
	heads, err := w.heads(ctx)
	if err != nil {
		if ctx.Err() == nil {
			w.cfg.Log.Warn("sweep put off", "error", err)
		}
		return
	}
	w.cfg.Metrics.backlog(heads)
	stuck := make(map[int64]suspect, len(heads))
	rung := 0
	for _, head := range heads {
		known := w.stuck[head.AccountID]
		if known.head != head.JobID {
			known = suspect{head: head.JobID, ticket: queue.Ticket{AccountID: head.AccountID, JobID: head.JobID}}
			stuck[head.AccountID] = known
			continue
		}
		next, err := w.lookAfter(ctx, known)
		if err != nil {
			w.cfg.Log.Warn("sweep broken off", "error", err)
			return // what is known stays for the next one
		}
		if next != known {
			rung++
		}
		stuck[head.AccountID] = next
	}
	w.stuck = stuck
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
// last one waits in line.
func (w *Worker) lookAfter(ctx context.Context, known suspect) (suspect, error) {
	waiting, err := w.cfg.Tickets.Waiting(known.ticket)
	if err != nil || waiting {
		return known, err
	}
	last, err := w.cfg.Backlog.Last(ctx, known.ticket.AccountID)
	switch {
	case errors.Is(err, job.ErrNotFound): // it moved after all
		return known, nil
	case err != nil:
		return known, fmt.Errorf("look after account: %w", err)
	}
	known.ticket.JobID = last
	known.ticket.Again++
	return known, w.cfg.Tickets.Enqueue(ctx, known.ticket)
}
