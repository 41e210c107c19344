package job

import (
	"sync"
	"time"
)

// countPause is how long a counted queue is not counted again, for each job in
// it: some eighty times what counting it costs, so that an account that is full
// costs the others next to nothing.
const (
	countPause    = 20 * time.Microsecond
	maxCountPause = time.Second
	maxKnown      = 10_000 // accounts
)

// rooms remembers how many more jobs the long queues take. A short one is
// counted anew with every accept; a long one within countPause by what this
// process has accepted itself, so that other processes may pass its bound by
// what they accept in that time.
type rooms struct {
	now func() time.Time

	mu    sync.Mutex
	known map[string]room // guarded by mu; by account number
}

type room struct {
	left  int
	until time.Time // when it must be counted again
}

// left is how many more jobs the account takes; nil where it must be counted.
func (r *rooms) left(account string) *int {
	r.mu.Lock()
	defer r.mu.Unlock()
	known, ok := r.known[account]
	if !ok {
		return nil
	}
	if !r.now().Before(known.until) {
		delete(r.known, account)
		return nil
	}
	return &known.left
}

// counted remembers a queue that was found with so many jobs and room for left
// more.
func (r *rooms) counted(account string, queued, left int) {
	pause := min(time.Duration(queued)*countPause, maxCountPause)
	if pause < time.Millisecond {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.known[account]; ok { // what was known went into the insert
		return
	}
	if len(r.known) >= maxKnown { // forgetting costs a count each, and is simpler than choosing
		clear(r.known)
	}
	r.known[account] = room{left: left, until: r.now().Add(pause)}
}

// take notes a job that was accepted.
func (r *rooms) take(account string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if known, ok := r.known[account]; ok {
		known.left--
		r.known[account] = known
	}
}
