package job

import (
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// countPause is how long a counted queue is not counted again, for each job in
// it. That is some eighty times what counting costs, so an account whose queue is full
// hardly slows the others.
const (
	countPause    = 20 * time.Microsecond
	maxCountPause = time.Second
	maxCapacities = 10_000 // accounts remembered, some 200 bytes each
)

// capacities remembers how many more jobs the long queues take. Each accept counts
// a short queue anew. A long one is counted once within countPause; until then this
// process subtracts what it accepts itself, so several processes may pass the bound
// by what they accept in that time.
type capacities struct {
	now func() time.Time

	mu       sync.Mutex
	accounts *simplelru.LRU[string, capacity] // guarded by mu; by account number
}

type capacity struct {
	jobs  int       // how many more the account takes
	until time.Time // when they must be counted again
}

func newCapacities(now func() time.Time) *capacities {
	accounts, _ := simplelru.NewLRU[string, capacity](maxCapacities, nil) // refuses only a size below 1
	return &capacities{now: now, accounts: accounts}
}

// known returns how many more jobs the account takes; nil where they must be counted.
func (c *capacities) known(account string) *int {
	c.mu.Lock()
	defer c.mu.Unlock()
	known, ok := c.accounts.Get(account)
	if !ok {
		return nil
	}
	if !c.now().Before(known.until) {
		c.accounts.Remove(account)
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
	if !c.accounts.Contains(account) { // else the insert did not count: it was given the capacity
		c.accounts.Add(account, capacity{jobs: more, until: c.now().Add(pause)})
	}
}

// use subtracts a job that was accepted.
func (c *capacities) use(account string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if known, ok := c.accounts.Peek(account); ok {
		known.jobs--
		c.accounts.Add(account, known)
	}
}
