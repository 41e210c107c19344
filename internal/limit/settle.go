package limit

import (
	"context"
	"errors"
	"math"
	"sync/atomic"
	"time"

	redisrate "github.com/go-redis/redis_rate/v10"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"
)

const (
	// settleEvery is how often Run looks for what must be settled: a new key, one that owes
	// 1/settleShare of its quota, and one that has owed for longestDebt.
	settleEvery = 100 * time.Millisecond
	settleShare = 100
	longestDebt = 5 * time.Second
	// forgiveAfter is the age of a debt that shows that Redis was away.
	forgiveAfter = 2 * longestDebt
	// settling bounds the questions to Redis at once.
	settling = 4
	// settleTimeout bounds one question in the background, shareTimeout one that a request waits
	// for. After a question without an answer Run asks none for awayPause.
	settleTimeout = time.Second
	shareTimeout  = 250 * time.Millisecond
	awayPause     = time.Second
)

// Run settles with Redis until ctx ends. A crash loses what was not settled: the keys gain that
// much of their quota.
func (l *Limiter) Run(ctx context.Context) error {
	if l == nil {
		return nil
	}
	tick := time.NewTicker(settleEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			l.settle(ctx)
		case <-ctx.Done():
			return nil
		}
	}
}

// settle settles every bucket that is due, maxBuckets at most. It stops at the first question
// without an answer. Each question has its own time, so many of them are no sign that Redis is away.
func (l *Limiter) settle(ctx context.Context) {
	due := l.due()
	if len(due) == 0 {
		return
	}
	group, asking := errgroup.WithContext(ctx)
	group.SetLimit(settling)
	var answered atomic.Bool
	for _, b := range due {
		if asking.Err() != nil {
			break
		}
		group.Go(func() error {
			question, cancel := context.WithTimeout(asking, settleTimeout)
			defer cancel()
			_, asked, err := l.exchange(question, b, 0)
			if asked && err == nil {
				answered.Store(true)
			}
			return err
		})
	}
	if err := group.Wait(); ctx.Err() == nil && (err != nil || answered.Load()) {
		l.note(err)
	}
}

// due returns the buckets to settle now.
func (l *Limiter) due() (due []*bucket) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.cfg.Now()
	if now.Before(l.again) {
		return nil
	}
	for b := range l.owing {
		if b.isNew || b.owed >= max(1, l.cfg.Most/settleShare) || now.Sub(b.since) >= longestDebt {
			due = append(due, b)
		}
	}
	return due
}

// TakeShared is Take, but asks Redis before it allows a request. It is for costly requests with a
// small quota. If Redis does not answer in shareTimeout, this process decides.
func (l *Limiter) TakeShared(ctx context.Context, key string) State {
	if l == nil || l.isAway() {
		return l.Take(key)
	}
	l.mu.Lock()
	b := l.bucket(key)
	allowed := b.tokens.AllowN(l.cfg.Now(), 1)
	l.mu.Unlock()
	if allowed {
		asking, cancel := context.WithTimeout(ctx, shareTimeout)
		defer cancel()
		var err error
		if allowed, _, err = l.exchange(asking, b, 1); ctx.Err() == nil {
			l.note(err)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state(b, l.cfg.Now(), allowed, 1)
}

// isAway reports whether Redis has just not answered.
func (l *Limiter) isAway() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cfg.Now().Before(l.again)
}

// exchange takes from the bucket in Redis what b owes, and a token for one request more where more
// is 1. It lowers b to what is left there. allowed says whether that request is allowed; if Redis
// does not answer, it is. asked is false if b owes nothing any more: then exchange does not ask
// Redis.
//
// A crash before the answer may have taken the tokens from Redis: the key has that much less until
// it regains them.
func (l *Limiter) exchange(ctx context.Context, b *bucket, more int) (allowed, asked bool, err error) {
	owed, since := l.claim(b, more)
	claimed := owed + more
	if claimed == 0 {
		return true, false, nil
	}
	quota := redisrate.Limit{Rate: l.cfg.Most, Burst: l.cfg.Most, Period: l.cfg.Per}
	left, err := l.shared.AllowAtMost(ctx, l.name(b.key), quota, claimed)
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.cfg.Now()
	if err != nil {
		l.owe(b, claimed, since)
		return true, true, err
	}
	b.isNew = false
	missing := claimed - left.Allowed
	allowed = missing == 0
	if !allowed {
		missing -= more // a request that is refused owes nothing
	}
	l.owe(b, missing, now)
	if excess := int(b.tokens.TokensAt(now)) - (left.Remaining - b.owed); excess > 0 {
		b.tokens.ReserveN(now, min(excess, l.cfg.Most))
	}
	return allowed, true, nil
}

// claim takes the debt of b, and returns it and when it began. From a debt older than forgiveAfter it
// subtracts what b has regained: after a long outage the user has paid that part by waiting.
//
// From a younger debt it subtracts nothing: other processes may have used what b has regained.
func (l *Limiter) claim(b *bucket, more int) (owed int, since time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.cfg.Now()
	owed, since = b.owed, b.since
	if now.Sub(since) > forgiveAfter {
		lacks := int(math.Ceil(float64(l.cfg.Most)-b.tokens.TokensAt(now))) - more
		owed = max(0, min(owed, lacks))
	}
	if owed == 0 {
		since = now
	}
	b.owed = 0
	delete(l.owing, b)
	return owed, since
}

// note notes whether Redis answers, and logs when that changes.
func (l *Limiter) note(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	was := l.isLocal
	l.isLocal = err != nil
	switch {
	case err != nil:
		l.again = l.cfg.Now().Add(awayPause)
		if !was {
			l.warn(err)
		}
	case was:
		l.cfg.Log.Debug("counting in Redis again", "limit", l.cfg.Name)
	}
}

// warn logs that Redis does not count. While Redis is away it uses the debug level, because the log
// already reports the outage once for all limits.
func (l *Limiter) warn(err error) {
	log := l.cfg.Log.Debug
	if _, answered := errors.AsType[redis.Error](err); answered {
		log = l.cfg.Log.Warn
	}
	log("can't count in Redis; each process applies the limit separately", "limit", l.cfg.Name, "error", err)
}
