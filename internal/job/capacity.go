package job

import (
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

const (
	// A queue is not counted again for countPause times the number of its jobs. That is some eighty
	// times as long as the count takes, so an account with a full queue hardly slows the others.
	countPause    = 20 * time.Microsecond
	maxCountPause = time.Second
	// maxCapacities bounds the accounts that capacities remembers, some 200 bytes each.
	maxCapacities = 10_000
)

// capacities remembers how many more jobs the long queues take. Each accept counts a short queue
// anew. A long queue is counted again only after the pause that countPause gives it. Meanwhile
// this process subtracts the jobs that it accepts itself, so several processes together may pass
// the bound by what they accept in that time.
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

// known returns how many more jobs the account takes; nil if its queue must be counted.
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
	if !c.accounts.Contains(account) { // otherwise the insert was given the capacity and did not count
		c.accounts.Add(account, capacity{jobs: more, until: c.now().Add(pause)})
	}
}

// use subtracts jobs that were accepted.
func (c *capacities) use(account string, jobs int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if known, ok := c.accounts.Peek(account); ok {
		known.jobs -= jobs
		c.accounts.Add(account, known)
	}
}
