package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/passbook/passbook/internal/auth"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/queue"
	"github.com/passbook/passbook/internal/test/local"
)

// cast says which processes play.
type cast struct {
	apis, workers, partitions int
}

// scene is what one load is put on: a database, a Redis and processes that nobody
// has used before.
type scene struct {
	*round
	database string
	pool     *pgxpool.Pool // asks by index alone: a sequential scan for queued jobs would cost the load
	redis    *local.Redis
	token    string
	doors    []*process // where the load goes: apis, or the peer
	workers  []*process
	jobs     int       // asked for so far
	began    time.Time // the last load
	kept     bool      // the database, which was there before, with a history too long to verify
}

// onScene sets a scene, plays on it, checks what came of it, and clears it.
func (r *round) onScene(ctx context.Context, c cast, play func(*scene) error) error {
	s, err := r.newScene(ctx)
	if err != nil {
		return err
	}
	return s.with(ctx, c, play)
}

// onBank does the same on a database that is there, and stays.
func (r *round) onBank(ctx context.Context, database string, c cast, play func(*scene) error) error {
	s, err := r.openScene(ctx, database)
	if err != nil {
		return err
	}
	s.kept = true
	if err := s.pool.QueryRow(ctx, `SELECT count(*) FROM jobs`).Scan(&s.jobs); err != nil {
		return errors.Join(err, s.clear(ctx))
	}
	return s.with(ctx, c, play)
}

func (s *scene) with(ctx context.Context, c cast, play func(*scene) error) (err error) {
	defer func() { err = errors.Join(err, s.clear(context.WithoutCancel(ctx))) }()
	if s.redis, err = local.StartRedis(ctx, local.RedisConfig{Durable: !s.unflushed}); err != nil {
		return err
	}
	if err := s.startWorkers(ctx, c); err != nil {
		return err
	}
	for range c.apis {
		api, err := startProcess(ctx, s.program("api"), nil, s.environment(s.database, s.redis.URL(), c.partitions))
		if err != nil {
			return err
		}
		s.doors = append(s.doors, api)
	}
	return s.played(ctx, play)
}

// onPeerScene does the same with the peer instead. It has no Redis and no worker.
func (r *round) onPeerScene(ctx context.Context, play func(*scene) error) (err error) {
	s, err := r.newScene(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.clear(context.WithoutCancel(ctx))) }()
	// Its jobs are born finished, which only Passbook's own rules forbid; check has the rule again.
	if _, err := s.pool.Exec(ctx, `ALTER TABLE jobs DISABLE TRIGGER jobs_start_queued`); err != nil {
		return err
	}
	const nobody = "redis://127.0.0.1:1" // it reads the api's variables, and uses not all
	peer, err := startProcess(ctx, r.program("bench"), append([]string{"peer"}, r.peer.args()...), r.environment(s.database, nobody, 1))
	if err != nil {
		return err
	}
	s.doors = []*process{peer}
	return s.played(ctx, play)
}

// onBareScene has no processes.
func (r *round) onBareScene(ctx context.Context, play func(*scene) error) (err error) {
	s, err := r.newScene(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.clear(context.WithoutCancel(ctx))) }()
	return s.played(ctx, play)
}

func (s *scene) played(ctx context.Context, play func(*scene) error) error {
	if err := play(s); err != nil {
		return err
	}
	return s.check(ctx)
}

// newScene copies the template and logs the user in there.
func (r *round) newScene(ctx context.Context) (*scene, error) {
	r.databases++
	database := fmt.Sprintf("bench_%d", r.databases)
	if err := r.admin(ctx, "CREATE DATABASE "+database+" TEMPLATE "+templateName); err != nil {
		return nil, err
	}
	return r.openScene(ctx, database)
}

func (r *round) openScene(ctx context.Context, database string) (*scene, error) {
	s := &scene{round: r, database: database}
	pool, err := postgres.Open(ctx, postgres.Config{
		URL: r.databaseURL(database), MaxConns: 2, Application: "passbook-bench", Serving: true,
	})
	if err != nil {
		return nil, err
	}
	s.pool = pool
	service, err := auth.New(pool, auth.Config{Keys: []auth.Key{r.key}})
	if err != nil {
		return nil, errors.Join(err, s.clear(ctx))
	}
	tokens, err := service.LogIn(ctx, email, r.password)
	if err != nil {
		return nil, errors.Join(err, s.clear(ctx))
	}
	s.token = tokens.AccessToken
	return s, nil
}

func (s *scene) startWorkers(ctx context.Context, c cast) error {
	for range c.workers {
		worker, err := startProcess(ctx, s.program("worker"), nil, s.environment(s.database, s.redis.URL(), c.partitions))
		if err != nil {
			return err
		}
		s.workers = append(s.workers, worker)
	}
	return nil
}

// clear ends the processes, in the order of `make run`, notes their memory, and
// drops the database.
func (s *scene) clear(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopWait)
	defer cancel()
	var errs []error
	for _, p := range slices.Concat(s.doors, s.workers) {
		errs = append(errs, s.notePeak(p), p.stop(ctx))
	}
	if s.redis != nil {
		errs = append(errs, s.redis.Remove(ctx))
	}
	s.pool.Close()
	if !s.kept {
		errs = append(errs, s.admin(ctx, "DROP DATABASE "+s.database+" WITH (FORCE)"))
	}
	return errors.Join(errs...)
}

// peaksPart is the part of the largest peak of each program in a round, in MB.
const peaksPart = "memory"

// notePeak notes a program's peak.
func (s *scene) notePeak(p *process) error {
	peak, err := peakMemory(p.pid())
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", p.name, err, p.log())
	}
	key := peaksPart + "/" + p.name
	s.figures[key] = max(s.figures[key], float64(peak)/1e6)
	return nil
}

// takePeaks makes a further turn's peaks the round's.
func (r *round) takePeaks(again figures) {
	for key, peak := range again {
		if strings.HasPrefix(key, peaksPart+"/") {
			r.figures[key] = max(r.figures[key], peak)
			delete(again, key)
		}
	}
}

// check fails unless every job that was asked for has been applied once, and the
// whole ledger agrees with itself.
func (s *scene) check(ctx context.Context) error {
	const sql = `
		SELECT count(*), count(*) FILTER (WHERE status = 'succeeded'), count(entry.job_id)
		FROM jobs LEFT JOIN transactions entry ON entry.job_id = jobs.id`
	pool, err := s.open(ctx, s.database, 1)
	if err != nil {
		return err
	}
	defer pool.Close()
	var jobs, succeeded, posted int
	if err := pool.QueryRow(ctx, sql).Scan(&jobs, &succeeded, &posted); err != nil {
		return fmt.Errorf("check: %w", err)
	}
	if jobs != s.jobs || succeeded != s.jobs || posted != s.jobs {
		return fmt.Errorf("wrong: of %d jobs asked for %d are there, %d succeeded, %d are in the history", s.jobs, jobs, succeeded, posted)
	}
	if s.kept {
		return nil
	}
	if _, err := pool.Exec(ctx, `ALTER TABLE jobs ENABLE ALWAYS TRIGGER jobs_start_queued`); err != nil {
		return fmt.Errorf("check: %w", err)
	}
	var wrong []string
	_, err = ledger.Verify(ctx, pool, func(mismatch string) { wrong = append(wrong, mismatch) }, func(ledger.Verification) {})
	if err != nil {
		return err
	}
	if len(wrong) > 0 {
		return fmt.Errorf("wrong: %s", strings.Join(wrong, "; "))
	}
	return nil
}

// flow is how a load went.
type flow struct {
	accepted float64   // answered, jobs a second from the first POST to the last answer
	applied  float64   // jobs a second from the first POST to the last job finished
	post     quantiles // POST to answer
	finish   quantiles // accepted to finished
	cpu      spent     // by everybody, until all was finished
}

// put puts a load on as fast as it is answered, and waits until it is applied.
func (s *scene) put(ctx context.Context, orders []order) (flow, error) {
	return s.putBy(ctx, orders, nil)
}

// putPaced puts a load on at a rate, in jobs a second, whatever the answers take.
func (s *scene) putPaced(ctx context.Context, orders []order, rate float64) (flow, error) {
	return s.putBy(ctx, orders, evenly(len(orders), rate))
}

func (s *scene) putBy(ctx context.Context, orders []order, due []time.Duration) (flow, error) {
	if err := s.warm(ctx, orders); err != nil {
		return flow{}, err
	}
	before, err := s.cpu()
	if err != nil {
		return flow{}, err
	}
	posted, err := s.post(ctx, orders, due, connections, (*connection).post)
	if err != nil {
		return flow{}, err
	}
	if err := s.awaitFinished(ctx, finishedTick); err != nil {
		return flow{}, err
	}
	finished := time.Since(posted.began)
	after, err := s.cpu()
	if err != nil {
		return flow{}, err
	}
	finish, err := s.finishes(ctx, 0)
	return flow{
		accepted: perSecond(len(orders), posted.took),
		applied:  perSecond(len(orders), finished),
		post:     quantilesOf(posted.waits),
		finish:   finish,
		cpu:      after.since(before),
	}, err
}

// warm puts a few orders of the same kind on before a load that is timed: what
// processes and connections do once, such as to prepare a statement, costs a bank
// nothing, and a short load much.
func (s *scene) warm(ctx context.Context, orders []order) error {
	if err := s.warmAccepts(ctx, orders); err != nil {
		return err
	}
	return s.awaitFinished(ctx, finishedTick)
}

// warmAccepts is as much of it as a scene without workers can do.
func (s *scene) warmAccepts(ctx context.Context, orders []order) error {
	_, err := s.accept(ctx, again(orders[:min(len(orders), s.count(warmJobs))]))
	return err
}

// accept puts a load on, and waits for the answers alone.
func (s *scene) accept(ctx context.Context, orders []order) (took time.Duration, err error) {
	posted, err := s.post(ctx, orders, nil, connections, (*connection).post)
	return posted.took, err
}

// poll puts a light load on and has each client poll for its job's end.
func (s *scene) poll(ctx context.Context, orders []order) (quantiles, error) {
	const clients = 8 // no job waits for a client that still polls for another
	seen, err := s.post(ctx, orders, evenly(len(orders), lightRate), clients, postAndPoll(eager))
	return quantilesOf(seen.waits), err
}

// drain starts the workers of the cast and times them from when the last is ready
// until no job is queued.
func (s *scene) drain(ctx context.Context, c cast) (took time.Duration, err error) {
	if err := s.checkpoint(ctx); err != nil {
		return 0, err
	}
	if err := s.startWorkers(ctx, c); err != nil {
		return 0, err
	}
	began := time.Now()
	err = s.awaitFinished(ctx, drainedTick)
	return time.Since(began), err
}

// checkpoint has Postgres write out what is not yet, and then the file system: flushes
// would wait for what earlier parts have written and dropped.
func (s *scene) checkpoint(ctx context.Context) error {
	if err := s.admin(ctx, "CHECKPOINT"); err != nil {
		return err
	}
	s.sync()
	return nil
}

// How often we ask if all is done: a hundredth of what is timed at most. Asking every
// 10 ms throughout a drain would be a fiftieth of what the processors do for it.
const (
	finishedTick = 10 * time.Millisecond
	drainedTick  = 100 * time.Millisecond
)

func (s *scene) awaitFinished(ctx context.Context, every time.Duration) error {
	const sql = `SELECT EXISTS (SELECT FROM jobs WHERE status = 'queued')`
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		var queued bool
		if err := s.pool.QueryRow(ctx, sql).Scan(&queued); err != nil {
			return fmt.Errorf("wait for the last job: %w", err)
		}
		if !queued {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for the last job: %w", ctx.Err())
		}
	}
}

// finishes is how long the jobs of the last load took from accepted to finished,
// but for those of the first accounts. Our clock is Postgres's too.
func (s *scene) finishes(ctx context.Context, but int) (q quantiles, err error) {
	const sql = `
		SELECT percentile_cont(0.50) WITHIN GROUP (ORDER BY ms), percentile_cont(0.99) WITHIN GROUP (ORDER BY ms)
		FROM (
			SELECT extract(epoch FROM finished_at - job.created_at)::float8 * 1000 AS ms
			FROM jobs job JOIN accounts account ON account.id = job.account_id
			WHERE account.number >= $1 AND job.created_at >= $2
		) finished`
	err = s.pool.QueryRow(ctx, sql, accountNumber(but), s.began).Scan(&q.p50, &q.p99)
	if err != nil {
		return quantiles{}, fmt.Errorf("read how long jobs took: %w", err)
	}
	return q, nil
}

const (
	memoryTick  = 200 * time.Millisecond
	memorySlack = 4096 // bytes, between two readings of a Redis that nobody writes to
)

// redisMemory is Redis's used_memory, in bytes, once it rests: tickets are written
// for a while after their jobs are accepted.
func (s *scene) redisMemory(ctx context.Context) (int64, error) {
	client, err := queue.Connect(s.redis.URL())
	if err != nil {
		return 0, err
	}
	defer client.Close() //nolint:errcheck // nothing is pending on it
	tick := time.NewTicker(memoryTick)
	defer tick.Stop()
	for last := int64(-memorySlack); ; {
		used, err := usedMemory(ctx, client)
		if err != nil {
			return 0, err
		}
		if used-last < memorySlack && last-used < memorySlack {
			return used, nil
		}
		last = used
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

func usedMemory(ctx context.Context, client redis.UniversalClient) (int64, error) {
	info, err := client.Info(ctx, "memory").Result()
	if err != nil {
		return 0, fmt.Errorf("ask Redis for its memory: %w", err)
	}
	_, after, _ := strings.Cut(info, "used_memory:")
	digits, _, _ := strings.Cut(after, "\r\n")
	return strconv.ParseInt(digits, 10, 64)
}
