package scaling

import (
	"context"

	"github.com/passbook/passbook/internal/bench/environment"
	"github.com/passbook/passbook/internal/bench/load"
)

// cell is Passbook with more of one thing than the first cell has.
type cell struct {
	name, label string
	environment.Topology
}

const plain = "plain"

// cells begin with what `make run` starts.
var cells = []cell{
	{plain, "1 API, 1 worker, 16 partitions, 1 Redis", environment.Default},
	{"apis-2", "2 APIs", environment.Topology{APIs: 2, Workers: 1, Partitions: 16}},
	{"workers-2", "2 workers", environment.Topology{APIs: 1, Workers: 2, Partitions: 16}},
	{"partitions-64", "64 partitions", environment.Topology{APIs: 1, Workers: 1, Partitions: 64}},
	{"masters-3", "a Redis cluster of 3 masters", environment.Topology{APIs: 1, Workers: 1, Partitions: 16, Masters: 3}},
}

// processes are those whose CPU time counts, in the order of a job's way.
var processes = []string{"api", "redis", "worker", "postgres"}

// measure sends jobs over many accounts as fast as 64 connections can, and then measures what the
// processes do at rest.
func (c cell) measure(ctx context.Context, r *round) error {
	peaks, err := r.Run(ctx, c.Topology, func(e *environment.Environment) error {
		orders := r.orders(jobsOfCell, r.Count(manyAccounts))
		went, err := e.Put(ctx, orders)
		if err != nil {
			return err
		}
		r.set(c.name, "applied", went.Applied)
		for _, process := range processes {
			r.set(c.name, "cpu-"+process, went.CPU.Micros(len(orders), process))
		}
		if err := c.countConnections(ctx, r, e); err != nil {
			return err
		}
		return c.rest(ctx, r, e)
	})
	for process, peak := range peaks {
		r.set(c.name, "memory-"+process, float64(peak)/1e6)
	}
	return err
}

// countConnections counts those to Postgres and to Redis, under load until just now.
func (c cell) countConnections(ctx context.Context, r *round, e *environment.Environment) error {
	open := 0
	for _, program := range []string{"api", "worker"} {
		pids, err := e.Backends(ctx, program)
		if err != nil {
			return err
		}
		open += len(pids)
	}
	info, err := e.RedisInfo(ctx)
	r.set(c.name, "connections-postgres", float64(open))
	// A count of each server has the connection that asks.
	r.set(c.name, "connections-redis", float64(info["connected_clients"]-int64(max(1, c.Masters))))
	return err
}

func (c cell) rest(ctx context.Context, r *round, e *environment.Environment) error {
	if err := environment.Sleep(ctx, r.Span(restSettle)); err != nil {
		return err
	}
	spent, span, err := e.CPUDuring(ctx, r.Span(restSpan))
	if err != nil {
		return err
	}
	r.set(c.name, "rest", 100*spent.Micros(1, processes...)/float64(span.Microseconds()))
	return nil
}

// compare sets what each cell has beside the first cell of the same round.
func (r *round) compare() {
	rate, ok := r.figures[plain+"/applied"]
	if !ok {
		return
	}
	for _, c := range cells[1:] {
		if applied, ok := r.figures[c.name+"/applied"]; ok {
			r.set(c.name, "speed", applied/rate)
			r.set(c.name, "more", r.cpu(c.name)-r.cpu(plain))
		}
	}
}

// cpu is the time that a job of a cell takes of all processes.
func (r *round) cpu(cell string) (sum float64) {
	for _, process := range processes {
		sum += r.figures[cell+"/cpu-"+process]
	}
	return sum
}

// paced sends jobs at full speed, and then as many at a share of that rate: fewer jobs then share a
// batch, and each costs more.
func paced(ctx context.Context, r *round) error {
	_, err := r.Run(ctx, environment.Default, func(e *environment.Environment) error {
		orders := r.orders(jobsOfPaced, r.Count(manyAccounts))
		full, err := e.Put(ctx, orders)
		if err != nil {
			return err
		}
		went, err := e.PutPaced(ctx, load.WithNewKeys(orders), share*full.Applied)
		r.set("paced", "cpu-full", full.CPU.Micros(len(orders), processes...))
		r.set("paced", "cpu", went.CPU.Micros(len(orders), processes...))
		return err
	})
	return err
}

// hot sends jobs of one account: they are applied one after another, whatever is added.
func hot(ctx context.Context, r *round) error {
	_, err := r.Run(ctx, environment.Default, func(e *environment.Environment) error {
		went, err := e.Put(ctx, r.orders(jobsOfHot, 1))
		r.set("hot", "applied", went.Applied)
		return err
	})
	return err
}
