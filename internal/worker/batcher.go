package worker

import (
	"context"
	"runtime"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/ledger"
)

// slowBatch is after how long a batch counts as slow, and the next one may begin beside it. A slow
// batch may be waiting for an account's lock or for a standby, and the others need not wait too.
const slowBatch = 50 * time.Millisecond

// enoughBeside is how many accounts must be due to start a second batch while one runs. Fewer wait
// until that batch ends: two small batches cost Postgres and the worker more than one larger batch.
const enoughBeside = 16

// batcher puts the due jobs of several partitions into one batch, so that they use the same
// round trips and the same flush. Jobs that come while a batch runs wait for the next one. No
// timer delays a batch: its size follows from the load. Where enough jobs wait, as many batches run
// at once as the process has processors, two at least. Slow batches run beside them. The sweep's own
// applies share the batches too.
type batcher struct {
	applier sharedApplier
	most    int           // batches that run at once, beside the slow ones
	slow    time.Duration // slowBatch; tests set another

	mu      sync.Mutex // guards what follows
	waiting []*part    // of the next batches, the oldest first
	running int        // batches that are not slow
}

// part is what one task, or one apply of the sweep, has in a batch.
type part struct {
	due  []ledger.Due
	done chan struct{} // closed once the fields below are set

	applied   []ledger.Applied // of the whole batch, in the first of its parts
	remaining []ledger.Due
	troubled  []ledger.Troubled
}

func newBatcher(applier sharedApplier) *batcher {
	const least = 2 // while one batch waits for its flush, Postgres works on the other
	return &batcher{applier: applier, slow: slowBatch, most: max(runtime.GOMAXPROCS(0), least)}
}

// apply applies the due jobs as ApplyShared does, together with those of other partitions.
func (b *batcher) apply(ctx context.Context, due []ledger.Due) *part {
	mine := &part{due: due, done: make(chan struct{})}
	b.mu.Lock()
	b.waiting = append(b.waiting, mine)
	b.mu.Unlock()
	runtime.Gosched()                   // lets other partitions add the notifications that they have taken
	b.begin(context.WithoutCancel(ctx)) // the other parts may have later deadlines
	<-mine.done
	return mine
}

// begin starts each batch that may run now. The owners of the batch's goroutine are the calls of
// apply whose parts are in the batch: they wait until it has applied them.
func (b *batcher) begin(ctx context.Context) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.mayBegin() {
		b.running++
		go b.run(ctx, b.nextBatch())
	}
}

// mayBegin returns whether another batch may run now. Its caller holds the lock.
func (b *batcher) mayBegin() bool {
	if b.running == 0 {
		return len(b.waiting) > 0
	}
	due := 0
	for _, p := range b.waiting {
		due += len(p.due)
	}
	return b.running < b.most && due >= enoughBeside
}

// run applies a batch. It starts the next batches when this one has ended or is slow.
func (b *batcher) run(ctx context.Context, parts []*part) {
	next := sync.OnceFunc(func() {
		b.mu.Lock()
		b.running--
		b.mu.Unlock()
		b.begin(ctx)
	})
	slow := time.AfterFunc(b.slow, next)
	var due []ledger.Due
	owner := map[uuid.UUID]*part{}
	for _, p := range parts {
		due = append(due, p.due...)
		for _, d := range p.due {
			owner[d.JobID] = p
		}
	}
	applied, remaining, troubled := b.applier.ApplyShared(ctx, due, maxBatchJobs)
	for _, d := range remaining {
		owner[d.JobID].remaining = append(owner[d.JobID].remaining, d)
	}
	for _, d := range troubled {
		owner[d.JobID].troubled = append(owner[d.JobID].troubled, d)
	}
	parts[0].applied = applied
	slow.Stop()
	next()
	for _, p := range parts {
		close(p.done)
	}
}

// nextBatch removes the oldest parts from waiting, up to about maxBatchJobs jobs, and returns
// them. Its caller holds the lock.
func (b *batcher) nextBatch() (parts []*part) {
	n := 0
	for len(b.waiting) > 0 && (n == 0 || n+len(b.waiting[0].due) <= maxBatchJobs) {
		n += len(b.waiting[0].due)
		parts, b.waiting = append(parts, b.waiting[0]), b.waiting[1:]
	}
	return parts
}
