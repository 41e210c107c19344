package limit_test

import (
	"context"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbook/passbook/internal/limit"
	"github.com/passbook/passbook/internal/test/testenv"
)

func TestMain(m *testing.M) {
	testenv.Main(m)
}

func connect(t *testing.T, url string) redis.UniversalClient {
	t.Helper()
	opt, err := redis.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(opt)
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// process makes a Limiter as another process would have it.
func process(t *testing.T, url string, quota limit.Quota, now func() time.Time) *limit.Limiter {
	t.Helper()
	return limit.New(limit.Config{
		Quota: quota, Redis: connect(t, url), Prefix: "test", Name: "requests",
		Log: slog.New(slog.DiscardHandler), Now: now,
	})
}

// run has the Limiter settle until the test ends.
func run(t *testing.T, l *limit.Limiter) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = l.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
}

// clock stands still until it is moved.
type clock struct{ at atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.at.Store(time.Now().UnixNano())
	return c
}

func (c *clock) now() time.Time { return time.Unix(0, c.at.Load()) }

func (c *clock) move(d time.Duration) { c.at.Add(int64(d)) }

const nowhere = "redis://127.0.0.1:1"

// keyOfA is the name in Redis of the key "a".
const keyOfA = "rate:test:requests:61"

var tenAMinute = limit.Quota{Most: 10, Per: time.Minute}

func TestTake(t *testing.T) {
	t.Parallel()
	c := newClock()
	l := process(t, nowhere, tenAMinute, c.now)
	for n := range 10 {
		if got := l.Take("a"); !got.Allowed || got.Remaining != 9-n || got.ResetAfter != time.Duration(n+1)*6*time.Second {
			t.Errorf("request %d: %+v", n+1, got)
		}
	}
	for range 3 {
		if got := l.Take("a"); got.Allowed || got.Remaining != 0 || got.RetryAfter != 6*time.Second || got.ResetAfter != time.Minute {
			t.Errorf("beyond the quota: %+v", got)
		}
	}
	if got := l.Take("b"); !got.Allowed || got.Remaining != 9 {
		t.Errorf("another key: %+v", got)
	}
	c.move(6 * time.Second)
	if got := l.Take("a"); !got.Allowed {
		t.Errorf("six seconds later: %+v", got)
	}
	if got := l.Take("a"); got.Allowed {
		t.Errorf("six seconds later, twice: %+v", got)
	}
}

// Peek says what is left, and takes nothing.
func TestPeek(t *testing.T) {
	t.Parallel()
	c := newClock()
	l := process(t, nowhere, tenAMinute, c.now)
	for n := range 11 {
		for range 2 {
			if got := l.Peek("a"); got.Allowed != (n < 10) || got.Remaining != 10-n {
				t.Errorf("after %d requests: %+v", n, got)
			}
		}
		l.Take("a")
	}
	if got := l.Peek("a"); got.RetryAfter != 6*time.Second {
		t.Errorf("beyond the quota: %+v", got)
	}
}

// A request that counts for several takes all of them or none, and the whole quota at most.
func TestTakeMore(t *testing.T) {
	t.Parallel()
	c := newClock()
	l := process(t, nowhere, tenAMinute, c.now)
	take := func(n int) limit.State {
		t.Helper()
		if got := l.Take("a"); !got.Allowed {
			t.Fatalf("the request itself: %+v", got)
		}
		return l.TakeMore("a", n)
	}
	if got := take(4); !got.Allowed || got.Remaining != 6 || got.ResetAfter != 24*time.Second {
		t.Errorf("the first four: %+v", got)
	}
	refused := take(8)
	if refused.Allowed || refused.Remaining != 5 || refused.RetryAfter != 18*time.Second || refused.ResetAfter != 30*time.Second {
		t.Errorf("eight of six: %+v", refused)
	}
	c.move(refused.RetryAfter)
	if got := take(8); !got.Allowed || got.Remaining != 0 {
		t.Errorf("eight after RetryAfter: %+v", got)
	}
	c.move(time.Minute)
	if got := take(100); !got.Allowed || got.Remaining != 0 {
		t.Errorf("more than the quota: %+v", got)
	}
	c.move(6 * time.Second)
	if got := take(1); !got.Allowed || got.Remaining != 0 {
		t.Errorf("one: %+v", got)
	}
	c.move(6 * time.Second)
	if got := take(100); got.Allowed || got.RetryAfter != time.Minute {
		t.Errorf("more than the quota, which is used: %+v", got)
	}
}

// A nil Limiter is one for a quota of 0.
func TestTake_NoLimit(t *testing.T) {
	t.Parallel()
	l := limit.New(limit.Config{})
	if l != nil || !l.Take("a").Allowed || !l.TakeMore("a", 2).Allowed || !l.TakeShared(t.Context(), "a").Allowed || !l.Peek("a").Allowed || l.IsLocal() || l.Quota() != (limit.Quota{}) {
		t.Error("a quota of 0 limits")
	}
	if err := l.Run(t.Context()); err != nil {
		t.Error(err)
	}
}

// What one process has allowed, the others know soon.
func TestRun_SharesTheQuota(t *testing.T) {
	t.Parallel()
	url := testenv.Redis(t)
	quota := limit.Quota{Most: 10_000, Per: 24 * time.Hour} // more than the other process is asked before it knows
	one, other := process(t, url, quota, nil), process(t, url, quota, nil)
	run(t, one)
	run(t, other)
	for one.Take("a").Allowed { //nolint:revive // until all are taken
	}
	testenv.Eventually(t, "the other process to refuse", func() bool { return !other.Take("a").Allowed })
	if !other.Take("b").Allowed {
		t.Error("another key is refused")
	}
}

// Two processes that are asked without a pause allow together what one would, but for what they
// allowed before they knew of each other.
func TestRun_PaysDebts(t *testing.T) {
	t.Parallel()
	url := testenv.Redis(t)
	quota := limit.Quota{Most: 100, Per: time.Second}
	const span = 3 * time.Second
	var allowed atomic.Int64
	var asking sync.WaitGroup
	began := time.Now()
	for range 2 {
		l := process(t, url, quota, nil)
		run(t, l)
		asking.Go(func() {
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for time.Since(began) < span {
				if <-tick.C; l.Take("a").Allowed {
					allowed.Add(1)
				}
			}
		})
	}
	asking.Wait()
	most := int64(2*quota.Most) + int64(time.Since(began).Seconds()*float64(quota.Most))
	if got := allowed.Load(); got < int64(quota.Most) || got > most {
		t.Errorf("%d requests were allowed, want %d to %d", got, quota.Most, most)
	}
}

// TakeShared holds the quota exactly, however many ask at once, and what it refuses counts for nothing.
func TestTakeShared(t *testing.T) {
	t.Parallel()
	url := testenv.Redis(t)
	anHour := limit.Quota{Most: 10, Per: time.Hour}
	processes := []*limit.Limiter{process(t, url, anHour, nil), process(t, url, anHour, nil)}
	var allowed atomic.Int64
	var asking sync.WaitGroup
	for n := range 40 {
		asking.Go(func() {
			if got := processes[n%2].TakeShared(t.Context(), "a"); got.Allowed {
				allowed.Add(1)
			} else if got.RetryAfter <= 0 || got.RetryAfter > 6*time.Minute {
				t.Errorf("refused for %v", got.RetryAfter)
			}
		})
	}
	asking.Wait()
	if got := allowed.Load(); got != 10 {
		t.Errorf("%d requests were allowed, want 10", got)
	}
	if third := process(t, url, anHour, nil); third.TakeShared(t.Context(), "a").Allowed || !third.TakeShared(t.Context(), "b").Allowed {
		t.Error("a third process does not know what the others allowed")
	}
}

// While Redis is away, each process holds the quota by itself. Afterwards they share it again.
func TestTakeShared_WithoutRedis(t *testing.T) {
	t.Parallel()
	server := testenv.RedisServer(t)
	l := process(t, server.URL(), limit.Quota{Most: 10, Per: time.Hour}, nil)
	run(t, l)
	if !l.TakeShared(t.Context(), "a").Allowed || !l.Peek("a").Allowed || l.IsLocal() {
		t.Error("with Redis")
	}
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	allowed := 0
	for range 20 {
		if l.TakeShared(t.Context(), "a").Allowed {
			allowed++
		}
	}
	if allowed != 9 || !l.IsLocal() {
		t.Errorf("%d more were allowed, want 9; local %t", allowed, l.IsLocal())
	}
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, "the process to settle", func() bool { return !l.IsLocal() })
	// The new Redis knew nothing; it learns of what was allowed meanwhile.
	other := process(t, server.URL(), limit.Quota{Most: 10, Per: time.Hour}, nil)
	if got := other.TakeShared(t.Context(), "a"); !got.Allowed || got.Remaining != 0 {
		t.Errorf("another process: %+v, want the last one of the quota", got)
	}
}

// A key that holds anything else in Redis is counted by each process alone.
func TestTakeShared_SpoiledKey(t *testing.T) {
	t.Parallel()
	url := testenv.Redis(t)
	client := connect(t, url)
	if err := client.Set(t.Context(), keyOfA, "soon", 0).Err(); err != nil {
		t.Fatal(err)
	}
	l := process(t, url, tenAMinute, newClock().now)
	for n := range 11 {
		if got := l.TakeShared(t.Context(), "a"); got.Allowed != (n < 10) {
			t.Errorf("request %d: %+v", n+1, got)
		}
	}
}

// What a key has regained while Redis was away is no debt.
func TestSettle_ForgivesWhatIsRegained(t *testing.T) {
	t.Parallel()
	url := testenv.Redis(t)
	c := newClock()
	l := process(t, url, tenAMinute, c.now)
	for l.Take("a").Allowed { //nolint:revive // ten times, unsettled
	}
	c.move(time.Hour)
	if got := l.TakeShared(t.Context(), "a"); !got.Allowed || got.Remaining != 9 {
		t.Errorf("an hour later: %+v, want 9 more", got)
	}
}

// A question that Redis did not answer makes no debt younger.
func TestSettle_ForgivesAfterAnOutage(t *testing.T) {
	t.Parallel()
	url := testenv.Redis(t)
	client := connect(t, url)
	if err := client.Set(t.Context(), keyOfA, "soon", 0).Err(); err != nil { // Redis refuses to count it
		t.Fatal(err)
	}
	c := newClock()
	l := process(t, url, tenAMinute, c.now)
	for l.Take("a").Allowed { //nolint:revive // ten times
	}
	for range 31 { // in a minute the key regains all that was taken
		l.Settle(t.Context())
		if !l.IsLocal() {
			t.Fatal("a spoiled key was counted")
		}
		c.move(2 * time.Second)
	}
	if l.Settle(t.Context()); !l.IsLocal() { // nothing is owed any more
		t.Error("Redis was not asked, and counts")
	}
	c.move(2 * time.Second)
	if err := client.Del(t.Context(), keyOfA).Err(); err != nil {
		t.Fatal(err)
	}
	if got := l.TakeShared(t.Context(), "a"); !got.Allowed || got.Remaining != 9 {
		t.Errorf("a minute later: %+v, want 9 more", got)
	}
}

// Two processes that are each asked a little less than the quota allow together what one would. The
// bucket of each regains what it allows, so only Redis can tell that they exceed the quota.
func TestSettle_AddsUpProcesses(t *testing.T) {
	t.Parallel()
	const (
		rounds    = 900
		perRound  = 10 * 20 * time.Second / 100 / 9 // a process is asked for nine tenths of its quota
		unsettled = 10                              // rounds from one settlement to the next
	)
	url := testenv.Redis(t)
	client := connect(t, url)
	quota := limit.Quota{Most: 100, Per: 20 * time.Second}
	c := newClock()
	processes := []*limit.Limiter{process(t, url, quota, c.now), process(t, url, quota, c.now)}
	allowed, began := 0, time.Now()
	for n := range rounds {
		c.move(perRound)
		for _, l := range processes {
			if l.Take("a").Allowed {
				allowed++
			}
		}
		if n%unsettled != 0 {
			continue
		}
		// The key in Redis holds when all is regained. Redis has no clock to move, so that is moved.
		if err := client.IncrByFloat(t.Context(), keyOfA, -(unsettled * perRound).Seconds()).Err(); err != nil {
			t.Fatal(err)
		}
		for _, l := range processes {
			l.Settle(t.Context())
		}
	}
	regained := int((rounds*perRound + time.Since(began)) * time.Duration(quota.Most) / quota.Per)
	if most := quota.Most + regained + 4*unsettled; allowed < rounds || allowed > most {
		t.Errorf("%d of %d requests were allowed, want %d to %d", allowed, 2*rounds, rounds, most)
	}
}

// deadlines collects by when Redis must answer each question.
type deadlines struct {
	mu sync.Mutex
	at []time.Time
}

func (d *deadlines) DialHook(next redis.DialHook) redis.DialHook { return next }

func (d *deadlines) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (d *deadlines) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if at, ok := ctx.Deadline(); ok && cmd.Name() == "evalsha" {
			d.mu.Lock()
			d.at = append(d.at, at)
			d.mu.Unlock()
		}
		return next(ctx, cmd)
	}
}

// Each question has its own time: however many there are, the last has as much of it as the first.
func TestSettle_TimesEachQuestion(t *testing.T) {
	t.Parallel()
	const questions = 20 // more than are asked at once
	client := connect(t, testenv.Redis(t))
	asked := &deadlines{}
	client.AddHook(asked)
	l := limit.New(limit.Config{
		Quota: tenAMinute, Redis: client, Prefix: "test", Name: "requests", Log: slog.New(slog.DiscardHandler), Now: newClock().now,
	})
	for n := range questions {
		l.Take(strconv.Itoa(n))
	}
	l.Settle(t.Context())
	if len(asked.at) != questions || l.IsLocal() {
		t.Fatalf("%d questions were asked, want %d; local %t", len(asked.at), questions, l.IsLocal())
	}
	slices.SortFunc(asked.at, time.Time.Compare)
	if first, last := asked.at[0], asked.at[questions-1]; !last.After(first) {
		t.Errorf("the first question and the last must both be answered by %v", first)
	}
}
