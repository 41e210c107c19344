package job

import (
	"sync"
	"time"
)

const (
	// longestWait is how long an accept may be expected to wait before its batch begins. A longer
	// queue accepts no more in a second; it makes each client wait longer, until all give up.
	longestWait = 50 * time.Millisecond
	// fewWaiting is how many accepts may wait however slow the batches are: slow batches accept the
	// most when they are full, and the first ones after a start are slow. So an accept may have to
	// wait for two batches, even where they take longer than longestWait.
	fewWaiting = 2 * maxBatch
	// The estimate of a batch's time follows a longer batch by half of the difference, and a shorter
	// one by an eighth. So it notices at once that Postgres has become slower, and a single slow batch
	// counts for some ten batches.
	rise, fall = 2, 8
)

// pace estimates how long a batch takes, from the end of one to the end of the next while
// requests wait.
type pace struct {
	mu       sync.Mutex // guards the fields below
	running  int        // batches
	began    time.Time  // the last batch
	ended    time.Time  // the last one that has ended
	estimate time.Duration
}

func (p *pace) begin(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running++
	p.began = now
}

func (p *pace) end(began, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running--
	if p.ended.After(began) { // two batches ran at once
		began = p.ended
	}
	p.ended = now
	weight := time.Duration(fall)
	took := now.Sub(began)
	if took > p.estimate {
		weight = rise
	}
	p.estimate += (took - p.estimate) / weight
}

// batch returns how long a batch takes; at least as long as the last one has been running.
func (p *pace) batch(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running == 0 {
		return p.estimate
	}
	return max(p.estimate, now.Sub(p.began))
}

// IsOverloaded reports whether Accept would return ErrOverloaded now.
func (a *Acceptor) IsOverloaded() bool {
	waiting := len(a.requests)
	if waiting < fewWaiting {
		return false
	}
	batchesBefore := waiting / maxBatch // not 0
	return waiting == maxWaiting || a.pace.batch(time.Now()) > longestWait/time.Duration(batchesBefore)
}
