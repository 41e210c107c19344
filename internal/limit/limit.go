// Package limit bounds how often something may happen for a key, such as the requests of a user,
// in all processes together. Its promise: in the long run no key exceeds its quota, whichever
// processes it goes to. Take decides about a request without waiting for Redis; TakeShared waits
// for shareTimeout at most.
//
// Each process decides by a token bucket of its own. In the background it settles with Redis: it
// takes the tokens of the requests that it has allowed from the key's bucket in Redis, and lowers its
// own bucket to what remains there. If the bucket in Redis has too few tokens, the process takes the
// missing ones in later settlements, and allows fewer requests meanwhile. So a key may exceed its
// quota by what the processes allow between two settlements, and for no longer. While Redis is away,
// each process holds the quota by itself.
package limit

import (
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	redisrate "github.com/go-redis/redis_rate/v10"
	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/redis/go-redis/v9"
	"golang.org/x/time/rate"
)

// maxBuckets bounds the keys that a process remembers, some 400 bytes each. A forgotten key has its
// whole quota here, until Redis says what is left.
const maxBuckets = 50_000

// Quota is how often something may happen: Most times at once, and on average Most times in
// each Per.
type Quota struct {
	Most int
	Per  time.Duration
}

// State is a key's quota after a request.
type State struct {
	Allowed    bool
	Remaining  int           // requests that are allowed now
	ResetAfter time.Duration // until the whole quota is there again
	RetryAfter time.Duration // until as many requests are allowed as were asked for
}

// Config is what a Limiter counts, and where.
type Config struct {
	Quota
	Redis  redis.UniversalClient
	Prefix string // begins the names of the keys in Redis, after redis_rate's own "rate:"
	Name   string // what is limited; a part of the names
	Log    *slog.Logger
	Now    func() time.Time // time.Now where nil
}

// Limiter holds the quota of each key. A nil Limiter allows everything.
type Limiter struct {
	cfg    Config
	shared *redisrate.Limiter

	mu      sync.Mutex                      // guards the fields below, and the buckets
	buckets *simplelru.LRU[string, *bucket] // by key
	owing   map[*bucket]struct{}            // those that owe anything
	isLocal bool                            // Redis did not answer the last question
	again   time.Time                       // when to ask again after Redis did not answer
}

// bucket is the quota of a key in this process.
type bucket struct {
	key    string
	tokens *rate.Limiter
	owed   int       // allowed here, and not yet taken from the bucket in Redis
	since  time.Time // when it began to owe
	isNew  bool      // Redis has never said what is left
}

// New makes a Limiter; nil where the quota is 0, which is no limit.
func New(cfg Config) *Limiter {
	if cfg.Most == 0 {
		return nil
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	l := &Limiter{cfg: cfg, shared: redisrate.NewLimiter(cfg.Redis), owing: map[*bucket]struct{}{}}
	l.buckets, _ = simplelru.NewLRU(maxBuckets, func(_ string, b *bucket) { delete(l.owing, b) }) // refuses only a size below 1
	return l
}

// Quota returns the quota; zero where there is no limit.
func (l *Limiter) Quota() Quota {
	if l == nil {
		return Quota{}
	}
	return l.cfg.Quota
}

// Take allows or refuses a request of the key, by what this process knows. A refused request does
// not count.
func (l *Limiter) Take(key string) State {
	if l == nil {
		return State{Allowed: true}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.cfg.Now()
	b := l.bucket(key)
	allowed := b.tokens.AllowN(now, 1)
	if allowed {
		l.owe(b, 1, now)
	}
	return l.state(b, now, allowed, 1)
}

// TakeMore allows or refuses a request that counts as n, after Take has allowed it as one. It takes
// the other n-1, or none. RetryAfter is the time until all n would be allowed. A request counts as the
// whole quota at most: otherwise a small quota would refuse it for ever.
func (l *Limiter) TakeMore(key string, n int) State {
	if l == nil {
		return State{Allowed: true}
	}
	n = min(n, l.cfg.Most)
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.cfg.Now()
	b := l.bucket(key)
	allowed := n <= 1 || b.tokens.AllowN(now, n-1)
	if allowed {
		l.owe(b, n-1, now)
	}
	return l.state(b, now, allowed, n)
}

// Peek returns what Take would, and counts nothing.
func (l *Limiter) Peek(key string) State {
	if l == nil {
		return State{Allowed: true}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	b, ok := l.buckets.Get(key)
	if !ok {
		return State{Allowed: true, Remaining: l.cfg.Most}
	}
	now := l.cfg.Now()
	return l.state(b, now, b.tokens.TokensAt(now) >= 1, 1)
}

// bucket returns the key's bucket, a full one where the key is new.
func (l *Limiter) bucket(key string) *bucket {
	b, ok := l.buckets.Get(key)
	if !ok {
		every := rate.Every(l.cfg.Per / time.Duration(l.cfg.Most))
		b = &bucket{key: key, tokens: rate.NewLimiter(every, l.cfg.Most), isNew: true}
		l.buckets.Add(key, b)
	}
	return b
}

// owe adds n to the debt of b. A debt is as old as its oldest part.
func (l *Limiter) owe(b *bucket, n int, since time.Time) {
	if n <= 0 {
		return
	}
	if b.owed == 0 || since.Before(b.since) {
		b.since = since
	}
	b.owed += n
	if kept, _ := l.buckets.Peek(b.key); kept == b { // else it was forgotten meanwhile
		l.owing[b] = struct{}{}
	}
}

// state is the key's quota after n requests were asked for.
func (l *Limiter) state(b *bucket, now time.Time, allowed bool, n int) State {
	tokens := b.tokens.TokensAt(now)
	state := State{Allowed: allowed, Remaining: max(0, int(tokens)), ResetAfter: l.until(float64(l.cfg.Most) - tokens)}
	if missing := float64(n) - tokens; missing > 0 {
		state.RetryAfter = l.until(missing)
	}
	return state
}

// until returns how long it takes to regain so many tokens.
func (l *Limiter) until(tokens float64) time.Duration {
	each := float64(l.cfg.Per) / float64(l.cfg.Most)
	return time.Duration(math.Ceil(tokens * each))
}

// IsLocal reports whether Redis did not answer lately, so that this process holds the quotas by itself.
func (l *Limiter) IsLocal() bool {
	if l == nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.isLocal
}

// name is the key's name in Redis. The key itself may be any bytes.
func (l *Limiter) name(key string) string {
	return fmt.Sprintf("%s:%s:%x", l.cfg.Prefix, l.cfg.Name, key)
}
