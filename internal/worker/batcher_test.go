package worker

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/test/testenv"
)

// heldApplier is an applier whose batches run until the test releases them. Of each batch the
// first job remains, and the second is in trouble.
type heldApplier struct {
	begun   chan []ledger.Due
	release chan struct{}
}

func (h heldApplier) ApplyShared(_ context.Context, due []ledger.Due, _ int) (applied []ledger.Applied, remaining []ledger.Due, troubled []ledger.Troubled) {
	h.begun <- due
	<-h.release
	for _, d := range due[min(2, len(due)):] {
		applied = append(applied, ledger.Applied{JobID: d.JobID})
	}
	for _, d := range due[min(1, len(due)):min(2, len(due))] {
		troubled = append(troubled, ledger.Troubled{Due: d})
	}
	return applied, due[:1], troubled
}

func dueOf(n int) (due []ledger.Due) {
	for range n {
		due = append(due, ledger.Due{JobID: uuid.New(), Jobs: 1})
	}
	return due
}

// Jobs that come while the most batches run that may are applied together with the next ones,
// up to maxBatchJobs jobs a batch. Each partition gets the results of its own jobs.
func TestBatcherJoinsPartitions(t *testing.T) {
	t.Parallel()
	h := heldApplier{begun: make(chan []ledger.Due), release: make(chan struct{})}
	b := newBatcher(h)
	b.slow = time.Hour
	results := make(chan *part)
	for n := range b.most {
		go func() { results <- b.apply(t.Context(), dueOf(min(n*maxBatchJobs+1, maxBatchJobs))) }() // full beside the first
		<-h.begun
	}
	const partitions, each = 5, 20 // more than maxBatchJobs
	for range partitions {
		go func() { results <- b.apply(t.Context(), dueOf(each)) }()
	}
	testenv.Eventually(t, "the other partitions to wait", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.waiting) == partitions
	})
	h.release <- struct{}{}
	if next := <-h.begun; len(next) != maxBatchJobs/each*each {
		t.Errorf("the next batch has %d jobs, want those of %d partitions", len(next), maxBatchJobs/each)
	}
	go func() {
		for range h.begun {
		}
	}()
	defer close(h.begun)
	close(h.release)
	applied, remaining, troubled := 0, 0, 0
	for range b.most + partitions {
		p := <-results
		applied, remaining, troubled = applied+len(p.applied), remaining+len(p.remaining), troubled+len(p.troubled)
		due, _ := splitTroubled(p.troubled)
		for _, d := range append(p.remaining, due...) {
			if !slices.Contains(p.due, d) {
				t.Errorf("a partition gets job %s, which is another partition's", d.JobID)
			}
		}
	}
	if sum, want := applied+remaining+troubled, 1+(b.most-1)*maxBatchJobs+partitions*each; sum != want {
		t.Errorf("%d jobs have a result, want each of %d once", sum, want)
	}
}

// While a batch runs, fewer than enoughBeside accounts wait for its end, and more start another batch.
func TestBatcherCollectsAFew(t *testing.T) {
	t.Parallel()
	h := heldApplier{begun: make(chan []ledger.Due), release: make(chan struct{})}
	b := newBatcher(h)
	b.slow = time.Hour
	results := make(chan *part)
	apply := func(n int) { go func() { results <- b.apply(t.Context(), dueOf(n)) }() }
	await := func(parts int) {
		testenv.Eventually(t, "the partitions to wait", func() bool {
			b.mu.Lock()
			defer b.mu.Unlock()
			return len(b.waiting) == parts
		})
	}
	apply(1)
	<-h.begun
	apply(1)
	apply(enoughBeside - 2)
	await(2)
	apply(1)
	if beside := <-h.begun; len(beside) != enoughBeside {
		t.Errorf("a batch of %d accounts begins beside the first, want %d", len(beside), enoughBeside)
	}
	apply(1)
	await(1)
	h.release <- struct{}{} // one batch runs on
	<-results
	await(1)
	h.release <- struct{}{}
	<-h.begun
	go func() { h.release <- struct{}{} }()
	for range 4 { // of the batches that had three parts and one
		<-results
	}
}

// The next batches begin while a slow one runs. In the bubble's time a batch is slow at once.
func TestBatcherPassesASlowBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := heldApplier{begun: make(chan []ledger.Due), release: make(chan struct{})}
		b := newBatcher(h)
		results := make(chan *part)
		const more = 3
		began := time.Now()
		for range b.most + more {
			go func() { results <- b.apply(t.Context(), dueOf(1)) }()
			<-h.begun // no batch was released
		}
		if took, most := time.Since(began), time.Duration(b.most+more)*b.slow; took > most {
			t.Errorf("%d batches have begun after %v, want %v at most", b.most+more, took, most)
		}
		for range b.most + more {
			h.release <- struct{}{}
			<-results
		}
	})
}

// A partition without due jobs does not wait for ever: synctest fails where it does.
func TestBatcherWithoutJobs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if p := newBatcher(ledger.NewApplier(nil)).apply(t.Context(), nil); len(p.applied)+len(p.remaining)+len(p.troubled) > 0 {
			t.Errorf("%+v", p)
		}
	})
}
