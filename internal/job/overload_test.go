package job

import (
	"errors"
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	t.Parallel()
	var p pace
	now := time.Now()
	batch := func(took time.Duration) {
		p.begin(now)
		began := now
		now = now.Add(took)
		p.end(began, now)
	}
	want := func(after string, estimate time.Duration) {
		t.Helper()
		if got := p.batch(now); got != estimate {
			t.Errorf("after %s a batch takes %v, want %v", after, got, estimate)
		}
	}
	want("none", 0)
	batch(8 * time.Millisecond)
	want("one of 8 ms", 4*time.Millisecond)
	batch(4 * time.Millisecond)
	want("one of the same", 4*time.Millisecond)
	batch(20 * time.Millisecond)
	want("a slow one", 12*time.Millisecond)
	batch(4 * time.Millisecond)
	want("a quick one", 11*time.Millisecond)
	now = now.Add(time.Hour)
	want("a rest", 11*time.Millisecond)

	p.begin(now)
	now = now.Add(5 * time.Millisecond)
	want("5 ms of another", 11*time.Millisecond)
	now = now.Add(25 * time.Millisecond)
	want("30 ms of another", 30*time.Millisecond)
	p.begin(now) // beside it
	want("the beginning of one more", 11*time.Millisecond)
}

// Batches that run at once count from the end of the one before.
func TestPace_TwoAtOnce(t *testing.T) {
	t.Parallel()
	var p pace
	began := time.Now()
	p.begin(began)
	p.begin(began.Add(10 * time.Millisecond))
	p.end(began, began.Add(20*time.Millisecond))
	p.end(began.Add(10*time.Millisecond), began.Add(30*time.Millisecond))
	if got := p.batch(began); got != 10*time.Millisecond {
		t.Errorf("a batch takes %v, want 10ms", got)
	}
}

// Accept refuses at once what would wait too long, and never a few.
func TestAccept_Overloaded(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		waiting  int
		batch    time.Duration
		overload bool
	}{
		"Idle":               {0, 0, false},
		"Few":                {fewWaiting - 1, time.Minute, false},
		"SlowBatches":        {fewWaiting, longestWait/2 + 1, true},
		"SlowBatches/Within": {fewWaiting, longestWait / 2, false},
		"Long":               {10 * maxBatch, longestWait/10 + 1, true},
		"Long/Within":        {10 * maxBatch, longestWait / 10, false},
		"Full":               {maxWaiting, 0, true},
		"AlmostFull":         {maxWaiting - 1, 0, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := NewAcceptor(nil, nil, 1)
			a.pace.estimate = test.batch
			for range test.waiting {
				a.requests <- &request{}
			}
			if got := a.IsOverloaded(); got != test.overload {
				t.Errorf("overloaded %t, want %t", got, test.overload)
			}
			if !test.overload {
				return
			}
			if _, _, err := a.Accept(t.Context(), Request{}); !errors.Is(err, ErrOverloaded) {
				t.Errorf("%v, want %v", err, ErrOverloaded)
			}
			if _, err := a.AcceptBatch(t.Context(), []Request{{}}); !errors.Is(err, ErrOverloaded) {
				t.Errorf("a batch: %v, want %v", err, ErrOverloaded)
			}
			if len(a.requests) != test.waiting || len(a.batches) > 0 {
				t.Error("it waits nevertheless")
			}
		})
	}
}

// So many batches may wait, and no more.
func TestAcceptBatch_Overloaded(t *testing.T) {
	t.Parallel()
	a := NewAcceptor(nil, nil, 1)
	for range maxWaitingBatches {
		a.batches <- &batchRequest{}
	}
	if _, err := a.AcceptBatch(t.Context(), []Request{{}}); !errors.Is(err, ErrOverloaded) {
		t.Errorf("%v, want %v", err, ErrOverloaded)
	}
}
