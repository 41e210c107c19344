package scaling

import (
	"context"
	"fmt"

	"github.com/passbook/passbook/internal/bench/environment"
)

// job measures what a job costs the disk and the network. Bytes and round trips to Postgres are
// counted between the processes and Postgres, which takes time: no rate is measured here.
func job(ctx context.Context, r *round) error {
	t := environment.Default
	t.Metered = true
	_, err := r.Run(ctx, t, func(e *environment.Environment) error {
		before, err := e.ReadCounts(ctx)
		if err != nil {
			return err
		}
		kept, err := e.Kept(ctx, false)
		if err != nil {
			return err
		}
		orders := r.orders(jobsOfCell, r.Count(manyAccounts))
		if _, err := e.Put(ctx, orders); err != nil {
			return err
		}
		if err := r.setBackend(ctx, e); err != nil {
			return err
		}
		if err := e.Stop(ctx); err != nil {
			return err
		}
		after, err := e.ReadCounts(ctx)
		if err != nil {
			return err
		}
		r.setCounts(before, after)
		records, pages, err := e.Log(ctx)
		if err != nil {
			return err
		}
		r.set("job", "log-records", float64(records)/float64(len(orders)))
		r.set("job", "log-pages", float64(pages)/float64(len(orders)))
		keptAfter, err := e.Kept(ctx, true)
		r.set("job", "kept", float64(keptAfter-kept)/float64(after.Jobs-before.Jobs))
		return err
	})
	return err
}

// setBackend sets the memory of a connection that has worked.
func (r *round) setBackend(ctx context.Context, e *environment.Environment) error {
	var all []int
	for _, program := range []string{"api", "worker"} {
		pids, err := e.Backends(ctx, program)
		if err != nil {
			return err
		}
		all = append(all, pids...)
	}
	own, err := environment.OwnMemory(all)
	r.set("job", "connection", float64(own)/1e3)
	return err
}

func (r *round) setCounts(before, after environment.Counts) {
	jobs := float64(after.Jobs - before.Jobs)
	each := func(name string, before, after int64) { r.set("job", name, float64(after-before)/jobs) }
	each("to-postgres", before.ToPostgres, after.ToPostgres)
	each("from-postgres", before.FromPostgres, after.FromPostgres)
	each("trips-postgres", before.PostgresTrips, after.PostgresTrips)
	each("to-redis", before.ToRedis, after.ToRedis)
	each("from-redis", before.FromRedis, after.FromRedis)
	each("trips-redis", before.RedisTrips, after.RedisTrips)
	each("commands-redis", before.RedisCommands, after.RedisCommands)
	each("flushes", before.Flushes, after.Flushes)
}

// How many requests an API holds while their memory is measured, at scale 1. Those that come first
// are not counted: they pay for what is allocated once.
const (
	firstHeld      = 20
	heldStreams    = 400
	heldWaiting    = 900
	streamsPerUser = 20 // the API's bound
)

// held measures the memory of what an API holds, event streams and requests that wait for a job,
// and Redis's memory of queued jobs. No worker runs, so jobs stay queued.
func held(ctx context.Context, r *round) error {
	t := environment.Topology{APIs: 1, Partitions: environment.Default.Partitions, Variables: []string{
		"MAX_CONNECTIONS_PER_ADDRESS=0", fmt.Sprint("MAX_CONNECTIONS=", 2*(firstHeld+heldStreams+firstHeld+heldWaiting)),
	}}
	_, err := r.Run(ctx, t, func(e *environment.Environment) error {
		if err := r.holdBoth(ctx, e); err != nil {
			return err
		}
		if err := r.queued(ctx, e); err != nil {
			return err
		}
		_, err := e.Drain(ctx, environment.Default)
		return err
	})
	return err
}

// holdBoth measures streams first, and then requests that wait while the streams stay open: an API
// frees what a load has used bit by bit, which would hide what a stream takes.
func (r *round) holdBoth(ctx context.Context, e *environment.Environment) error {
	streams := e.NewHeld("passbook_event_streams")
	defer streams.Close()
	n := r.Count(heldStreams)
	owners, err := e.Owners(ctx, (firstHeld+n+streamsPerUser-1)/streamsPerUser)
	if err != nil {
		return err
	}
	err = r.hold(ctx, streams, "stream", n, func(i int) (token, path string) {
		owner := owners[i/streamsPerUser]
		return owner.Token, "/v1/accounts/" + owner.Number + "/events"
	})
	if err != nil {
		return err
	}
	if _, err := e.Accept(ctx, r.orders(1, 1)); err != nil {
		return err
	}
	var id string
	if err := e.Pool.QueryRow(ctx, `SELECT job_id::text FROM queue LIMIT 1`).Scan(&id); err != nil {
		return fmt.Errorf("find a queued job: %w", err)
	}
	waiting := e.NewHeld("passbook_waiting_requests")
	defer waiting.Close()
	return r.hold(ctx, waiting, "waiting", r.Count(heldWaiting), func(int) (token, path string) {
		return e.Token, "/v1/jobs/" + id + "?wait=30"
	})
}

func (r *round) queued(ctx context.Context, e *environment.Environment) error {
	orders := r.orders(jobsQueued, r.Count(manyAccounts))
	if err := e.WarmAccepts(ctx, orders); err != nil { // opens the connections to Redis
		return err
	}
	empty, err := e.RedisMemory(ctx)
	if err != nil {
		return err
	}
	if _, err := e.Accept(ctx, orders); err != nil {
		return err
	}
	full, err := e.RedisMemory(ctx)
	r.set("held", "queued", max(0, float64(full-empty)/float64(len(orders))))
	return err
}

// hold measures the memory of one more held request.
func (r *round) hold(ctx context.Context, h *environment.Held, name string, n int, request func(int) (token, path string)) error {
	var memory []int64
	for _, more := range []int{firstHeld, n} {
		if err := h.Add(ctx, more, request); err != nil {
			return err
		}
		used, err := h.Memory(ctx)
		if err != nil {
			return err
		}
		memory = append(memory, used)
	}
	r.set("held", name, float64(memory[1]-memory[0])/1e3/float64(n))
	return nil
}
