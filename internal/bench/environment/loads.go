package environment

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbook/passbook/internal/bench/load"
	"github.com/passbook/passbook/internal/bench/report"
)

const (
	// Connections is how many every load has, but a light one.
	Connections = 64
	// WarmJobs is how many jobs go before those that are timed, at scale 1.
	WarmJobs = 512
)

// Outcome is what a load measured.
type Outcome struct {
	Accepted float64          // jobs a second, from the first POST to the last response
	Applied  float64          // jobs a second, from the first POST to the last job finished
	Post     report.Quantiles // from POST to its response
	Finish   report.Quantiles // from accepted to finished
	CPU      CPU              // of all processes, until every job was finished
}

// Put sends orders as fast as the responses come, and waits until all are applied.
func (e *Environment) Put(ctx context.Context, orders []load.Order) (Outcome, error) {
	return e.putBy(ctx, orders, nil)
}

// PutPaced sends orders at a rate, in jobs a second, however long the responses take.
func (e *Environment) PutPaced(ctx context.Context, orders []load.Order, rate float64) (Outcome, error) {
	return e.putBy(ctx, orders, load.Evenly(len(orders), rate))
}

func (e *Environment) putBy(ctx context.Context, orders []load.Order, due []time.Duration) (Outcome, error) {
	if err := e.warm(ctx, orders); err != nil {
		return Outcome{}, err
	}
	before, err := e.cpu()
	if err != nil {
		return Outcome{}, err
	}
	sent, err := e.Send(ctx, orders, due, Connections, (*load.Connection).Post)
	if err != nil {
		return Outcome{}, err
	}
	if err := e.awaitFinished(ctx, finishedTick); err != nil {
		return Outcome{}, err
	}
	finished := time.Since(sent.Began)
	after, err := e.cpu()
	if err != nil {
		return Outcome{}, err
	}
	finish, err := e.Finishes(ctx, 0)
	return Outcome{
		Accepted: report.PerSecond(len(orders), sent.Took),
		Applied:  report.PerSecond(len(orders), finished),
		Post:     report.QuantilesOf(sent.Waits),
		Finish:   finish,
		CPU:      after.since(before),
	}, err
}

// warm sends a few orders of the same kind before a load that is timed. Processes and
// connections do some work once, such as preparing a statement; a short load would
// show it.
func (e *Environment) warm(ctx context.Context, orders []load.Order) error {
	if err := e.WarmAccepts(ctx, orders); err != nil {
		return err
	}
	return e.awaitFinished(ctx, finishedTick)
}

// WarmAccepts does the same where no worker runs.
func (e *Environment) WarmAccepts(ctx context.Context, orders []load.Order) error {
	_, err := e.Accept(ctx, load.WithNewKeys(orders[:min(len(orders), e.Count(WarmJobs))]))
	return err
}

// Accept sends orders, and waits for the responses alone.
func (e *Environment) Accept(ctx context.Context, orders []load.Order) (took time.Duration, err error) {
	sent, err := e.Send(ctx, orders, nil, Connections, (*load.Connection).Post)
	return sent.Took, err
}

// Poll sends orders at a rate, in jobs a second. Each client polls its job until that is
// finished.
func (e *Environment) Poll(ctx context.Context, orders []load.Order, rate float64) (report.Quantiles, error) {
	return e.lightly(ctx, orders, rate, load.PostAndPoll(load.Eager))
}

// Wait sends orders at a rate, in jobs a second. Each client waits for the response that shows
// its job finished.
func (e *Environment) Wait(ctx context.Context, orders []load.Order, rate float64) (report.Quantiles, error) {
	return e.lightly(ctx, orders, rate, (*load.Connection).PostAndWait)
}

func (e *Environment) lightly(ctx context.Context, orders []load.Order, rate float64, visit func(*load.Connection, load.Order) error) (report.Quantiles, error) {
	const clients = 8 // no job waits for a client that is busy with another
	sent, err := e.Send(ctx, orders, load.Evenly(len(orders), rate), clients, visit)
	return report.QuantilesOf(sent.Waits), err
}

// Send sends orders over n connections, after a checkpoint, and counts them as jobs to
// check.
func (e *Environment) Send(ctx context.Context, orders []load.Order, due []time.Duration, n int, visit func(*load.Connection, load.Order) error) (load.Sent, error) {
	return e.sendLoad(ctx, load.Load{Connections: n, Orders: orders, Due: due, Visit: visit})
}

// sendLoad completes a load with what all loads have, and sends it.
func (e *Environment) sendLoad(ctx context.Context, l load.Load) (load.Sent, error) {
	e.jobs += len(l.Orders)
	for _, server := range e.Servers {
		l.Addresses = append(l.Addresses, server.Address())
	}
	l.Token, l.Start = e.Token, e.Checkpoint
	sent, err := l.Send(ctx)
	e.began = sent.Began
	if sent.Retried > 0 {
		e.Say("  %d requests got a 503 and were sent again", sent.Retried)
	}
	return sent, err
}

// Expect counts n jobs to check that something other than Send asks for.
func (e *Environment) Expect(n int) { e.jobs += n }

// Drain starts the workers of a topology and times them, from when the last worker is
// ready until no job is queued.
func (e *Environment) Drain(ctx context.Context, t Topology) (took time.Duration, err error) {
	if err := e.Checkpoint(ctx); err != nil {
		return 0, err
	}
	if err := e.startWorkers(ctx, t); err != nil {
		return 0, err
	}
	began := time.Now()
	err = e.awaitFinished(ctx, drainedTick)
	return time.Since(began), err
}

// Checkpoint has Postgres and then the file system write everything to disk. Otherwise
// flushes would wait for what earlier parts have written and dropped.
func (e *Environment) Checkpoint(ctx context.Context) error {
	if err := e.Admin(ctx, "CHECKPOINT"); err != nil {
		return err
	}
	e.Sync()
	return nil
}

// How often awaitFinished asks whether any job is queued: a hundredth of what is timed
// at most. Every 10 ms in a drain would be a fiftieth of its CPU.
const (
	finishedTick = 10 * time.Millisecond
	drainedTick  = 100 * time.Millisecond
)

func (e *Environment) awaitFinished(ctx context.Context, every time.Duration) error {
	const sql = `SELECT EXISTS (SELECT FROM queue)`
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		var queued bool
		if err := e.Pool.QueryRow(ctx, sql).Scan(&queued); err != nil {
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

// Finishes is how long the jobs of the last load took from accepted to finished. It
// leaves out the jobs of the first accounts. Postgres has the same clock as the load.
func (e *Environment) Finishes(ctx context.Context, but int) (q report.Quantiles, err error) {
	const sql = `
		SELECT percentile_cont(0.50) WITHIN GROUP (ORDER BY ms), percentile_cont(0.99) WITHIN GROUP (ORDER BY ms)
		FROM (
			SELECT extract(epoch FROM finished_at - job.created_at)::float8 * 1000 AS ms
			FROM job_states job JOIN accounts account ON account.id = job.account_id
			WHERE account.number >= $1 AND job.created_at >= $2
		) finished`
	err = e.Pool.QueryRow(ctx, sql, load.AccountNumber(but), e.began).Scan(&q.P50, &q.P99)
	if err != nil {
		return report.Quantiles{}, fmt.Errorf("read how long jobs took: %w", err)
	}
	return q, nil
}

// SlowestTogether is the share, in percent, of the slowest hundredth of the last load's jobs that were
// accepted in the twentieth of the time that has most of them. It is some 10 where each of 100 jobs waits
// for something of its own, and near 100 where they wait for one pause of the whole machine.
func (e *Environment) SlowestTogether(ctx context.Context) (percent float64, err error) {
	const sql = `
		WITH job AS (
			SELECT finished_at - created_at AS took, width_bucket(extract(epoch FROM created_at)::float8,
				extract(epoch FROM min(created_at) OVER ())::float8, extract(epoch FROM max(created_at) OVER ())::float8 + 1e-6, 20) AS span
			FROM job_states WHERE created_at >= $1
		), slowest AS (
			SELECT span FROM job ORDER BY took DESC LIMIT (SELECT greatest(1, count(*) / 100) FROM job)
		)
		SELECT 100 * max(n) / sum(n) FROM (SELECT count(*)::float8 AS n FROM slowest GROUP BY span) spans`
	err = e.Pool.QueryRow(ctx, sql, e.began).Scan(&percent)
	if err != nil {
		return 0, fmt.Errorf("read when the slowest jobs were accepted: %w", err)
	}
	return percent, nil
}

const (
	memoryTick  = 200 * time.Millisecond
	memorySlack = 4096 // bytes, between two readings of an idle Redis
)

// RedisMemory is Redis's used_memory, in bytes, once it is idle: the notifier writes
// tasks for a while after their jobs are accepted.
func (e *Environment) RedisMemory(ctx context.Context) (used int64, err error) {
	err = e.redis.ask(func(clients []redis.UniversalClient) error {
		for last := int64(-memorySlack); ; {
			info, err := sumInfo(ctx, clients)
			if err != nil {
				return err
			}
			used = info["used_memory"]
			if used-last < memorySlack && last-used < memorySlack {
				return nil
			}
			last = used
			if err := Sleep(ctx, memoryTick); err != nil {
				return err
			}
		}
	})
	return used, err
}

// Sleep waits for d, or until ctx ends.
func Sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
