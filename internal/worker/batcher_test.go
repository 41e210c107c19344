package worker

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/test/testenv"
)

// held is an applier whose batches stay under way until they are let go. Of each batch the
// first job is left over, and the second in trouble.
type held struct {
	begun chan []ledger.Due
	letGo chan struct{}
}

func (h held) ApplyShared(_ context.Context, due []ledger.Due, _ int) (applied []ledger.Applied, remaining, troubled []ledger.Due) {
	h.begun <- due
	<-h.letGo
	for _, d := range due[min(2, len(due)):] {
		applied = append(applied, ledger.Applied{JobID: d.JobID})
	}
	return applied, due[:1], due[min(1, len(due)):min(2, len(due))]
}

func dueOf(n int) (due []ledger.Due) {
	for range n {
		due = append(due, ledger.Due{JobID: uuid.New(), Jobs: 1})
	}
	return due
}

// What comes while as many batches are under way as may be shares the next ones, up to a
// maxBatchJobs jobs, and each partition is told of its own jobs.
func TestBatcherSharesBatches(t *testing.T) {
	t.Parallel()
	h := held{begun: make(chan []ledger.Due), letGo: make(chan struct{})}
	b := newBatcher(h)
	b.slow = time.Hour
	told := make(chan *share)
	for n := range b.most {
		go func() { told <- b.apply(t.Context(), dueOf(min(n*maxBatchJobs+1, maxBatchJobs))) }() // full beside the first
		<-h.begun
	}
	const partitions, each = 5, 20 // more than maxBatchJobs
	for range partitions {
		go func() { told <- b.apply(t.Context(), dueOf(each)) }()
	}
	testenv.Eventually(t, "the other partitions to wait", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.waiting) == partitions
	})
	h.letGo <- struct{}{}
	if next := <-h.begun; len(next) != maxBatchJobs/each*each {
		t.Errorf("the next batch has %d jobs, want those of %d partitions", len(next), maxBatchJobs/each)
	}
	go func() {
		for range h.begun {
		}
	}()
	defer close(h.begun)
	close(h.letGo)
	applied, remaining, troubled := 0, 0, 0
	for range b.most + partitions {
		s := <-told
		applied, remaining, troubled = applied+len(s.applied), remaining+len(s.remaining), troubled+len(s.troubled)
		for _, d := range append(s.remaining, s.troubled...) {
			found := false
			for _, own := range s.due {
				found = found || own == d
			}
			if !found {
				t.Errorf("a partition is told of job %s, which is another's", d.JobID)
			}
		}
	}
	if sum, want := applied+remaining+troubled, 1+(b.most-1)*maxBatchJobs+partitions*each; sum != want {
		t.Errorf("%d jobs are told of, want each of %d once", sum, want)
	}
}

// A second batch begins beside the first only once it is full.
func TestBatcherFillsBatches(t *testing.T) {
	t.Parallel()
	h := held{begun: make(chan []ledger.Due), letGo: make(chan struct{})}
	b := newBatcher(h)
	b.slow = time.Hour
	told := make(chan *share)
	begin := func(n int) { go func() { told <- b.apply(t.Context(), dueOf(n)) }() }
	begin(1)
	<-h.begun
	begin(1)
	testenv.Eventually(t, "the second partition to wait", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.waiting) == 1
	})
	begin(maxBatchJobs - 1)
	if full := <-h.begun; len(full) != maxBatchJobs {
		t.Errorf("the second batch has %d jobs, want %d", len(full), maxBatchJobs)
	}
	close(h.letGo)
	for range 3 {
		<-told
	}
}

// A batch that takes long keeps the others from nothing.
func TestBatcherPassesASlowBatch(t *testing.T) {
	t.Parallel()
	h := held{begun: make(chan []ledger.Due), letGo: make(chan struct{})}
	b := newBatcher(h)
	b.slow = time.Millisecond
	told := make(chan *share)
	const more = 3
	for range b.most + more {
		go func() { told <- b.apply(t.Context(), dueOf(1)) }()
		<-h.begun // nothing was let go
	}
	for range b.most + more {
		h.letGo <- struct{}{}
		<-told
	}
}
