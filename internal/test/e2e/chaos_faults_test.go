package e2e_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/passbook/passbook/internal/queue"
)

// fault is one kind of fault. inject injects it, waits as long as it should last, and
// repairs it.
type fault struct {
	name              string
	shortest, longest time.Duration
	inject            func(r *rand.Rand, lasts time.Duration)
}

// injection is one fault at its time.
type injection struct {
	fault     fault
	at, lasts time.Duration
	seed      uint64
}

// The shape of a schedule.
const (
	aloneShare = 0.6                     // of the time, one kind at a time; the rest all together
	aloneRound = 6 * time.Second         // how long each kind lasts, at least, before there is a second round
	together   = 1200 * time.Millisecond // between two injections when faults overlap
	pastLease  = 33 * time.Second        // Asynq's lease is 30

	// longRefusal is long enough for the sweep to apply jobs while Redis refuses, also
	// where it first has to see that a pending list does not move, on a slow machine.
	// Only schedules of longRefusalFrom and more have the time for one.
	longRefusal     = 20 * time.Second
	longRefusalFrom = 2 * time.Minute
)

// plan draws a schedule: a long refusal of Redis, where there is time; each kind alone,
// in rounds; then all together; and a worker that is frozen past Asynq's lease.
func plan(seed uint64, total time.Duration, faults []fault) (injections []injection) {
	r := rand.New(rand.NewPCG(seed, 0))
	add := func(f fault, at, lasts time.Duration) {
		injections = append(injections, injection{f, at, lasts, r.Uint64()})
	}
	alone, from := time.Duration(float64(total)*aloneShare), time.Duration(0)
	refusing := slices.DeleteFunc(slices.Clone(faults), func(f fault) bool { return !f.refuses() })
	if total >= longRefusalFrom && len(refusing) > 0 {
		add(refusing[r.IntN(len(refusing))], 0, longRefusal)
		from = longRefusal + aloneRound
	}
	rounds := max(1, int((alone-from)/(aloneRound*time.Duration(len(faults)))))
	slot := (alone - from) / time.Duration(rounds*len(faults))
	for round := range rounds {
		for i, n := range r.Perm(len(faults)) {
			at := from + time.Duration(round*len(faults)+i)*slot
			add(faults[n], at, min(faults[n].drawn(r), slot*7/10))
		}
	}
	for at := alone; at < total-together; at += together {
		f := faults[r.IntN(len(faults))]
		add(f, at, min(f.drawn(r), total-at))
	}
	for i, f := range faults {
		if f.name == frozenWorker && total > pastLease {
			add(faults[i], min(alone, total-pastLease), pastLease)
		}
	}
	slices.SortStableFunc(injections, func(x, y injection) int { return cmp.Compare(x.at, y.at) })
	return injections
}

func (f fault) drawn(r *rand.Rand) time.Duration {
	return f.shortest + time.Duration(r.Int64N(int64(f.longest-f.shortest)+1))
}

const (
	frozenWorker = "worker frozen"
	redisRefuses = "redis refuses" // jobs finish meanwhile
)

func (f fault) refuses() bool { return strings.HasPrefix(f.name, redisRefuses) }

// faults returns all kinds, or the kinds that the run names.
func (c *chaos) faults() []fault {
	const s, ms = time.Second, time.Millisecond
	all := []fault{
		{"api killed", 0, s, c.ended(c.apis, syscall.SIGKILL)},
		{"worker killed", 0, s, c.ended(c.workers, syscall.SIGKILL)},
		{"api restarted in order", 0, s, c.ended(c.apis, syscall.SIGTERM)},
		{"worker restarted in order", 0, s, c.ended(c.workers, syscall.SIGTERM)},
		{"api frozen", s, 6 * s, c.frozen(c.apis)},
		{frozenWorker, s, 8 * s, c.frozen(c.workers)},

		{"postgres crashed", 0, 3 * s, c.postgresCrashed},
		{"backends terminated", 100 * ms, s, c.backendsTerminated},
		{"cut between COMMIT and its answer", 500 * ms, 3 * s, c.spoilt(toPostgres, cutBeforeAnswer)},
		{"postgres slow", s, 5 * s, c.spoilt(toPostgres, slow)},
		{"postgres connections reset", 500 * ms, 3 * s, c.spoilt(toPostgres, reset)},
		{"postgres half-open", s, 8 * s, c.spoilt(toPostgres, halfOpen)},
		{"postgres swallowed", s, 8 * s, c.spoilt(toPostgres, blackhole)},
		{"postgres refused", s, 3 * s, c.refused(toPostgres)},

		{"redis crashed, back with an old file", 500 * ms, 3 * s, c.redisAged},
		{"redis flushed", 100 * ms, s, c.redisFlushed},
		{"redis without keyspace events", s, 3 * s, c.redisSilent},
		{"redis busy with a script", s, 4 * s, c.redisBusyScript},
		{"redis slow", s, 5 * s, c.spoilt(toRedis, slow)},
		{"redis connections reset", 500 * ms, 3 * s, c.spoilt(toRedis, reset)},
		{"redis half-open", s, 8 * s, c.spoilt(toRedis, halfOpen)},
		{"redis swallowed", s, 8 * s, c.spoilt(toRedis, blackhole)},
		{"redis refused", s, 3 * s, c.refused(toRedis)},

		{redisRefuses + ": full", s, 8 * s, c.redisFull},
		{redisRefuses + ": read-only", s, 8 * s, c.redisReadOnly},
		{redisRefuses + ": paused", s, 8 * s, c.redisPaused},
		{redisRefuses + ": values of a wrong type", s, 8 * s, c.redisWrongTypes},
		{redisRefuses + ": names of lost tasks", s, 8 * s, c.tasks(c.lost)},

		{"tasks doubled, and in other accounts' queues", 200 * ms, s, c.tasks(c.doubled)},
		{"tasks reordered", 200 * ms, s, c.tasks(c.reordered)},
		{"tasks delayed", 200 * ms, s, c.tasks(c.delayed)},
		{"tasks forged, with another account's job", 200 * ms, s, c.tasks(c.swapped)},
		{"tasks forged, of no job", 200 * ms, s, c.tasks(c.forged)},
	}
	return slices.DeleteFunc(all, func(f fault) bool { return !strings.Contains(f.name, *chaosFaults) })
}

type injector = func(r *rand.Rand, lasts time.Duration)

func (c *chaos) last(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	<-timer.C
}

func drawn(r *rand.Rand, members []*member) *member { return members[r.IntN(len(members))] }

// ended ends a process by a signal, and starts the next in its place.
func (c *chaos) ended(members []*member, by syscall.Signal) injector {
	return func(r *rand.Rand, lasts time.Duration) {
		m := drawn(r, members)
		m.busy.Lock()
		defer m.busy.Unlock()
		c.end(m, by)
		c.last(lasts)
		c.begin(m)
	}
}

func (c *chaos) frozen(members []*member) injector {
	return func(r *rand.Rand, lasts time.Duration) {
		m := drawn(r, members)
		m.busy.Lock()
		defer m.busy.Unlock()
		process := c.process(m).cmd.Process
		_ = process.Signal(syscall.SIGSTOP)
		c.last(lasts)
		_ = process.Signal(syscall.SIGCONT)
	}
}

// postgresCrashed is an immediate shutdown: no checkpoint, no notice to clients.
func (c *chaos) postgresCrashed(_ *rand.Rand, lasts time.Duration) {
	c.postgresBusy.Lock()
	defer c.postgresBusy.Unlock()
	if err := c.system.postgres.Kill(); err != nil {
		c.violation("crashing Postgres: %v", err)
	}
	c.last(lasts)
	if err := c.system.postgres.Restart(c.t.Context()); err != nil {
		c.violation("Postgres does not come back: %v", err)
	}
}

func (c *chaos) backendsTerminated(_ *rand.Rand, lasts time.Duration) {
	c.postgresBusy.Lock()
	defer c.postgresBusy.Unlock()
	const sql = `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE application_name LIKE 'passbook-%' AND random() < 0.5`
	if _, err := c.system.pool.Exec(c.t.Context(), sql); err != nil { // the pool's connection is from before a crash
		c.system.pool.Reset()
	}
	c.last(lasts)
}

func toPostgres(m *member) *link { return m.postgres }
func toRedis(m *member) *link    { return m.redis }

// spoilt lets the links of some processes, sometimes of all, go bad.
func (c *chaos) spoilt(which func(*member) *link, toxics []toxic) injector {
	return c.links(which, func(l *link) error { return l.spoil(toxics) })
}

func (c *chaos) refused(which func(*member) *link) injector {
	return c.links(which, func(l *link) error {
		l.refuse()
		return nil
	})
}

func (c *chaos) links(which func(*member) *link, do func(*link) error) injector {
	return func(r *rand.Rand, lasts time.Duration) {
		members := c.all()
		if r.IntN(3) > 0 {
			r.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
			members = members[:1+r.IntN(len(members))]
			slices.SortFunc(members, func(x, y *member) int { return cmp.Compare(x.String(), y.String()) }) // one order of locks
		}
		for _, m := range members {
			l := which(m)
			l.busy.Lock()
			defer l.busy.Unlock()
			if err := do(l); err != nil {
				c.violation("%v", err)
			}
		}
		c.last(lasts)
		for _, m := range members {
			if err := which(m).repair(); err != nil {
				c.violation("repair: %v", err)
			}
		}
	}
}

// withRedis does something to the real Redis, past every link. A Redis that is
// not there for it has trouble enough.
func (c *chaos) withRedis(do func(context.Context, redis.UniversalClient) error) {
	client := c.system.redisClient()
	defer client.Close() //nolint:errcheck // nothing is pending on it
	ctx, cancel := context.WithTimeout(c.t.Context(), tryTimeout)
	defer cancel()
	if err := do(ctx, client); err != nil {
		c.load.count("injections that missed a Redis in trouble")
	}
}

// redisAged crashes Redis and brings it back with the append-only file of a
// while before: it has tasks of jobs that are long finished, and no task of the new jobs.
func (c *chaos) redisAged(_ *rand.Rand, lasts time.Duration) {
	c.redisBusy.Lock()
	defer c.redisBusy.Unlock()
	file := filepath.Join(c.system.redis.Dir(), "data", "appendonlydir")
	old := file + ".old"
	if err := copyFolder(c.t.Context(), file, old); err != nil {
		c.violation("%v", err)
		return
	}
	c.last(lasts)
	err := c.system.redis.Kill()
	if err == nil {
		err = os.RemoveAll(file)
	}
	if err == nil {
		err = os.Rename(old, file)
	}
	if err == nil {
		err = c.system.redis.Restart(c.t.Context())
	}
	if err != nil {
		c.violation("Redis does not come back with an old file: %v", err)
	}
}

// copyFolder keeps the owners of the files, which need not be the test's user.
func copyFolder(ctx context.Context, from, to string) error {
	if out, err := exec.CommandContext(ctx, "cp", "-a", from, to).CombinedOutput(); err != nil {
		return fmt.Errorf("copy %s: %w\n%s", from, err, out)
	}
	return nil
}

func (c *chaos) redisFlushed(_ *rand.Rand, lasts time.Duration) {
	c.withRedis(func(ctx context.Context, r redis.UniversalClient) error { return r.FlushAll(ctx).Err() })
	c.last(lasts)
}

// redisSilent turns keyspace events off, also over a restart, by CONFIG REWRITE.
func (c *chaos) redisSilent(_ *rand.Rand, lasts time.Duration) {
	if c.takesRedis() { // what another fault has set must not be kept
		c.withRedis(func(ctx context.Context, r redis.UniversalClient) error {
			if err := r.ConfigSet(ctx, "notify-keyspace-events", "").Err(); err != nil {
				return err
			}
			return r.ConfigRewrite(ctx).Err()
		})
		c.redisBusy.Unlock()
	}
	c.last(lasts)
}

// takesRedis locks redisBusy, unless another fault has Redis in hand: to wait for that
// one would make the run longer than its schedule.
func (c *chaos) takesRedis() bool {
	taken := c.redisBusy.TryLock()
	if !taken {
		c.load.count("injections that missed a Redis in trouble")
	}
	return taken
}

// redisSet gives Redis a command that makes it refuse, and later the one that ends that.
func (c *chaos) redisSet(lasts time.Duration, refuse, end []any) {
	if !c.takesRedis() {
		return
	}
	defer c.redisBusy.Unlock()
	c.withRedis(func(ctx context.Context, r redis.UniversalClient) error { return r.Do(ctx, refuse...).Err() })
	c.last(lasts)
	c.withRedis(func(ctx context.Context, r redis.UniversalClient) error {
		err := r.Do(ctx, end...).Err()
		if err != nil {
			c.violation("Redis does not take %v: %v", end, err)
		}
		return err
	})
}

func (c *chaos) redisFull(_ *rand.Rand, lasts time.Duration) {
	c.redisSet(lasts, []any{"CONFIG", "SET", "maxmemory", "1", "maxmemory-policy", "noeviction"}, []any{"CONFIG", "SET", "maxmemory", "0"})
}

// redisReadOnly makes it the replica of a server that is not there.
func (c *chaos) redisReadOnly(_ *rand.Rand, lasts time.Duration) {
	c.redisSet(lasts, []any{"REPLICAOF", "127.0.0.1", "1"}, []any{"REPLICAOF", "NO", "ONE"})
}

// redisPaused keeps its connections, takes what is sent and answers nothing.
func (c *chaos) redisPaused(_ *rand.Rand, lasts time.Duration) {
	c.redisSet(lasts, []any{"CLIENT", "PAUSE", lasts.Milliseconds(), "ALL"}, []any{"CLIENT", "UNPAUSE"})
}

// allKeys are the keys of every queue, and taskKeys those of the tasks.
const (
	allKeys  = "asynq:{*tx:*}:*"
	taskKeys = "asynq:{*tx:*}:t:*"
)

// eachKey does something with the keys of a pattern, some hundred at a time.
func eachKey(ctx context.Context, client redis.UniversalClient, pattern string, do func(redis.Pipeliner, string)) error {
	const some = 500
	for cursor := uint64(0); ; {
		keys, next, err := client.Scan(ctx, cursor, pattern, some).Result()
		if err != nil {
			return err
		}
		if len(keys) > 0 {
			_, err = client.Pipelined(ctx, func(p redis.Pipeliner) error {
				for _, key := range keys {
					do(p, key)
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		if cursor = next; cursor == 0 {
			return nil
		}
	}
}

// redisWrongTypes puts strings where Asynq has its lists, sets and tasks, and takes them
// away again: what was there is lost.
func (c *chaos) redisWrongTypes(_ *rand.Rand, lasts time.Duration) {
	const times = 10
	const wrong = "of a wrong type"
	if !c.takesRedis() {
		return
	}
	defer c.redisBusy.Unlock()
	for range times {
		c.withRedis(func(ctx context.Context, r redis.UniversalClient) error {
			_, err := r.Pipelined(ctx, func(p redis.Pipeliner) error {
				for partition := range partitions {
					for _, key := range []string{"pending", "active", "lease", "retry", "scheduled", "archived", "completed"} {
						p.Set(ctx, queueKey(partition, key), wrong, 0)
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
			return eachKey(ctx, r, taskKeys, func(p redis.Pipeliner, key string) { p.Set(ctx, key, wrong, 0) })
		})
		c.last(lasts / times)
	}
	c.withRedis(func(ctx context.Context, r redis.UniversalClient) error {
		return eachKey(ctx, r, allKeys, func(p redis.Pipeliner, key string) {
			if !strings.Contains(key, ":processed:") && !strings.Contains(key, ":failed:") {
				p.Del(ctx, key)
			}
		})
	})
}

// queueKey is Asynq's key of a partition.
func queueKey(partition int, key string) string {
	return "asynq:{" + queues.Name(partition) + "}:" + key
}

// lost deletes tasks whose names stay in the lists, as an eviction does.
func (c *chaos) lost(ctx context.Context, _ *rand.Rand, client redis.UniversalClient) error {
	return eachKey(ctx, client, taskKeys, func(p redis.Pipeliner, key string) { p.Del(ctx, key) })
}

// finishesDuring checks that jobs which are accepted while a fault lasts finish
// while it lasts.
func (c *chaos) finishesDuring(i injection) {
	const settled = time.Second // the tasks that the workers had are finished by then
	c.last(settled)
	var since time.Time
	err := c.system.pool.QueryRow(c.t.Context(), `SELECT clock_timestamp()`).Scan(&since)
	c.last(i.lasts - 2*settled)
	finished := 0
	if err == nil {
		err = c.system.pool.QueryRow(c.t.Context(),
			`SELECT count(*) FROM job_states WHERE status <> 'queued' AND created_at > $1`, since).Scan(&finished)
	}
	if err != nil || finished == 0 {
		c.violation("no job that was accepted while %q for %v finished meanwhile: %v", i.fault.name, i.lasts, err)
	}
	c.say("%d jobs were accepted and finished while %q", finished, i.fault.name)
}

// redisBusyScript keeps Redis from everything else, and lets it answer BUSY.
func (c *chaos) redisBusyScript(_ *rand.Rand, lasts time.Duration) {
	c.redisBusy.Lock()
	defer c.redisBusy.Unlock()
	started := make(chan struct{})
	go func() {
		defer close(started)
		c.withRedis(func(ctx context.Context, r redis.UniversalClient) error {
			_ = r.Eval(ctx, "while true do end", nil).Err() // it is killed
			return nil
		})
	}()
	c.last(lasts)
	c.withRedis(func(ctx context.Context, r redis.UniversalClient) error { return r.ScriptKill(ctx).Err() })
	<-started
}

// tasks changes tasks, several times.
func (c *chaos) tasks(do func(context.Context, *rand.Rand, redis.UniversalClient) error) injector {
	return func(r *rand.Rand, lasts time.Duration) {
		const times = 5
		for range times {
			c.withRedis(func(ctx context.Context, client redis.UniversalClient) error { return do(ctx, r, client) })
			c.last(lasts / times)
		}
	}
}

const partitions = 16

var queues = queue.Queues{Prefix: "passbook", Partitions: partitions}

// someJobs are jobs that clients know, finished or not.
func (c *chaos) someJobs(r *rand.Rand, n int) (ids []string) {
	c.load.mu.Lock()
	books := slices.Clone(c.load.books)
	c.load.mu.Unlock()
	if len(books) == 0 { // the first accounts are still being opened
		return nil
	}
	for range n {
		b := books[r.IntN(len(books))]
		b.mu.Lock()
		if len(b.requests) > 0 {
			ids = append(ids, b.requests[len(b.requests)-1-r.IntN(min(len(b.requests), 50))].job)
		}
		b.mu.Unlock()
	}
	return ids
}

// enqueue enqueues a task as Passbook does, but under a name of its own and in any queue.
func enqueue(ctx context.Context, client redis.UniversalClient, partition int, payload string, opts ...asynq.Option) error {
	opts = append([]asynq.Option{asynq.Queue(queues.Name(partition)), asynq.TaskID(uuid.NewString())}, opts...)
	_, err := asynq.NewClientFromRedisClient(client).EnqueueContext(ctx, asynq.NewTask("job:apply", []byte(payload)), opts...)
	return err
}

// doubled enqueues tasks of jobs that already have a task, or had one, in any queue,
// mostly another account's.
func (c *chaos) doubled(ctx context.Context, r *rand.Rand, client redis.UniversalClient) error {
	for _, id := range c.someJobs(r, 10) {
		for range 4 {
			if err := enqueue(ctx, client, r.IntN(partitions), id); err != nil {
				return err
			}
		}
	}
	return nil
}

// swapped enqueues tasks with the name of one job and the payload of another. The name is
// then in use.
func (c *chaos) swapped(ctx context.Context, r *rand.Rand, client redis.UniversalClient) error {
	ids := c.someJobs(r, 20)
	for i, id := range ids {
		err := enqueue(ctx, client, r.IntN(partitions), id, asynq.TaskID(ids[(i+1)%len(ids)]))
		if err != nil && !errors.Is(err, asynq.ErrTaskIDConflict) {
			return err
		}
	}
	return nil
}

// forged enqueues tasks of unknown jobs, and payloads that are no task.
func (c *chaos) forged(ctx context.Context, r *rand.Rand, client redis.UniversalClient) error {
	for _, payload := range []string{uuid.NewString(), uuid.Nil.String(), "", "{}", "'; DROP TABLE jobs; --", strings.Repeat("9", 36)} {
		if err := enqueue(ctx, client, r.IntN(partitions), payload); err != nil {
			return err
		}
	}
	return nil
}

// reorderScript reverses a pending list.
var reorderScript = redis.NewScript(`
	local ids = redis.call("LRANGE", KEYS[1], 0, -1)
	redis.call("DEL", KEYS[1])
	for _, id in ipairs(ids) do redis.call("LPUSH", KEYS[1], id) end
	return #ids`)

func (c *chaos) reordered(ctx context.Context, _ *rand.Rand, client redis.UniversalClient) error {
	for partition := range partitions {
		if err := reorderScript.Run(ctx, client, []string{queueKey(partition, "pending")}).Err(); err != nil {
			return err
		}
	}
	return nil
}

// delayScript moves a pending list to the scheduled tasks.
//
// KEYS[1] the pending list, KEYS[2] the scheduled tasks; ARGV[1] when they are due, in
// Unix seconds, ARGV[2] the prefix of the tasks' keys.
var delayScript = redis.NewScript(`
	local ids = redis.call("LRANGE", KEYS[1], 0, -1)
	redis.call("DEL", KEYS[1])
	for _, id in ipairs(ids) do
		redis.call("ZADD", KEYS[2], ARGV[1], id)
		redis.call("HSET", ARGV[2] .. id, "state", "scheduled")
	end
	return #ids`)

func (c *chaos) delayed(ctx context.Context, r *rand.Rand, client redis.UniversalClient) error {
	for partition := range partitions {
		due := time.Now().Add(time.Duration(r.IntN(60)) * time.Second).Unix()
		err := delayScript.Run(ctx, client, []string{queueKey(partition, "pending"), queueKey(partition, "scheduled")}, due, queueKey(partition, "t:")).Err()
		if err != nil {
			return err
		}
	}
	return nil
}
