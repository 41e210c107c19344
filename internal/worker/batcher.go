package worker

import (
	"context"
	"runtime"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/ledger"
)

// slowBatch is how long a batch may take before the next one begins beside it: one that is
// slow waits for an account's lock perhaps, or for a standby, for which the others need not.
const slowBatch = 50 * time.Millisecond

// batcher has the partitions' batches share round trips and flushes: what comes while a batch
// is under way is applied with the next. It uses no timer, so the batches grow with the load
// alone. A second batch begins beside the first only where it is full: smaller ones cost more
// for each job, and take the processors from each other. As many are under way at once as the
// process has processors, and slow ones beside them, one for each partition at most.
type batcher struct {
	applier sharedApplier
	most    int           // batches that are under way at once, beside slow ones
	slow    time.Duration // slowBatch; tests have more time, or less

	mu       sync.Mutex // guards what follows
	waiting  []*share
	underWay int // batches that are not slow
}

// share is one partition's part of a batch.
type share struct {
	due  []ledger.Due
	done chan struct{} // closed once the rest is there

	applied             []ledger.Applied // of the whole batch, at one share of it
	remaining, troubled []ledger.Due
}

func newBatcher(applier sharedApplier) *batcher {
	const least = 2 // while one waits for its flush the other has Postgres work
	return &batcher{applier: applier, slow: slowBatch, most: max(runtime.GOMAXPROCS(0), least)}
}

// apply applies what is due as ApplyShared does, together with what is due in other partitions.
func (b *batcher) apply(ctx context.Context, due []ledger.Due) *share {
	mine := &share{due: due, done: make(chan struct{})}
	b.mu.Lock()
	b.waiting = append(b.waiting, mine)
	b.mu.Unlock()
	b.begin(context.WithoutCancel(ctx)) // the others' patience may be longer
	<-mine.done
	return mine
}

// begin begins the batches for which it is time. Each ends before the callers of apply whose
// shares it has return.
func (b *batcher) begin(ctx context.Context) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.waiting) > 0 && (b.underWay == 0 || b.underWay < b.most && jobsOf(b.waiting) >= maxBatchJobs) {
		b.underWay++
		go b.applyTogether(ctx, b.take())
	}
}

func jobsOf(shares []*share) (n int) {
	for _, s := range shares {
		n += len(s.due)
	}
	return n
}

// applyTogether applies a batch, and begins the next when it has ended, or takes long.
func (b *batcher) applyTogether(ctx context.Context, shares []*share) {
	over := sync.OnceFunc(func() {
		b.mu.Lock()
		b.underWay--
		b.mu.Unlock()
		b.begin(ctx)
	})
	slow := time.AfterFunc(b.slow, over)
	var due []ledger.Due
	owner := map[uuid.UUID]*share{}
	for _, s := range shares {
		due = append(due, s.due...)
		for _, d := range s.due {
			owner[d.JobID] = s
		}
	}
	applied, remaining, troubled := b.applier.ApplyShared(ctx, due, maxBatchJobs)
	for _, d := range remaining {
		owner[d.JobID].remaining = append(owner[d.JobID].remaining, d)
	}
	for _, d := range troubled {
		owner[d.JobID].troubled = append(owner[d.JobID].troubled, d)
	}
	shares[0].applied = applied
	slow.Stop()
	over()
	for _, s := range shares {
		close(s.done)
	}
}

// take takes the shares that wait, the oldest first, up to about maxBatchJobs jobs. Its caller
// has the lock.
func (b *batcher) take() (shares []*share) {
	n := 0
	for len(b.waiting) > 0 && (n == 0 || n+len(b.waiting[0].due) <= maxBatchJobs) {
		n += len(b.waiting[0].due)
		shares, b.waiting = append(shares, b.waiting[0]), b.waiting[1:]
	}
	return shares
}
