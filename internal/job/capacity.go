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

// capacities remembers how many more jobs the long queues take. Each accept counts
// a short queue anew. A long one is counted once within countPause; until then this
// process subtracts what it accepts itself, so several processes may pass the bound
// by what they accept in that time.
type capacities struct {
	now func() time.Time

	mu       sync.Mutex
	accounts map[string]capacity // guarded by mu; by account number
}

type capacity struct {
	jobs  int       // how many more the account takes
	until time.Time // when they must be counted again
}

func newCapacities(now func() time.Time) capacities {
	return capacities{now: now, accounts: map[string]capacity{}}
}

// known returns how many more jobs the account takes; nil where they must be counted.
func (c *capacities) known(account string) *int {
	c.mu.Lock()
	defer c.mu.Unlock()
	known, ok := c.accounts[account]
	if !ok {
		return nil
	}
	if !c.now().Before(known.until) {
		delete(c.accounts, account)
		return nil
	}
	return &known.jobs
}

// counted remembers that a queue had so many jobs and takes more of them.
func (c *capacities) counted(account string, queued, more int) {
	pause := min(time.Duration(queued)*countPause, maxCountPause)
	if pause < time.Millisecond {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.accounts[account]; ok { // what was known went into the insert
		return
	}
	if len(c.accounts) >= maxKnown { // forgetting costs a count each, and is simpler than choosing
		clear(c.accounts)
	}
	c.accounts[account] = capacity{jobs: more, until: c.now().Add(pause)}
}

// use subtracts a job that was accepted.
func (c *capacities) use(account string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if known, ok := c.accounts[account]; ok {
		known.jobs--
		c.accounts[account] = known
	}
}
