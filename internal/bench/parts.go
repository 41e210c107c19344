package main

import (
	"context"
	"math"
	"slices"
	"time"

	"github.com/passbook/passbook/internal/bench/environment"
	"github.com/passbook/passbook/internal/bench/load"
	"github.com/passbook/passbook/internal/bench/report"
)

// How large the loads are, at scale 1.
const (
	manyAccounts = 1_000 // of most loads; the skewed loads have all
	hottest      = 100   // accounts of a skewed load that don't count as cold

	endToEndJobs = 20_000
	hotJobs      = 5_000
	skewJobs     = 20_000
	scaleJobs    = 10_000 // in each cell
	backlogJobs  = 100_000

	// paceShare of the end-to-end rate is what the paced loads of skew offer.
	paceShare = 0.6

	lightRate  = 20  // jobs a second
	lightJobs  = 300 // 15 s
	lightWarm  = 20  // more before them: opening connections and preparing statements happens once
	restSettle = 2 * time.Second
	restSpan   = 10 * time.Second

	pollingJobs = 10_000
	latencySpan = 5 * time.Second // at each share of the peak
)

// part is one thing to measure. Its figures are in report.Catalogue, under its name.
type part struct {
	name    string
	measure func(ctx context.Context, p *pass) error
	group   string // parts of one group are measured in turn; empty for none
}

// Name is the part's in -parts.
func (p part) Name() string { return p.name }

func parts() []part {
	return []part{
		{"end-to-end", endToEnd, "many accounts"},
		{"peer", peerOnMany, "many accounts"},
		{"submit-and-poll", submitAndPoll, "many accounts"},
		{"submit-and-wait", submitAndWait, "many accounts"},
		{"accepts", accepts, "many accounts"},
		{"ceiling", ceiling, ""},
		{"hot", oneHotAccount, "one account"},
		{"peer-hot", peerOnOne, "one account"},
		{"skew", skew, ""},
		{"latency", latency, ""},
		{"light", light, ""},
		{"peer-light", peerLight, ""},
		{"scale-out", scaleOut(cells), ""},
		{"backlog", backlog, ""},
		{"overload", overload, ""},
	}
}

// groupPasses is how often a round measures the parts of a group, in turn: a machine's
// speed changes within seconds, and each pass has ratios of its own.
const groupPasses = 3

// group is the first part and the following parts of its group.
func group(parts []part) []part {
	n := 1
	for n < len(parts) && parts[0].group != "" && parts[n].group == parts[0].group {
		n++
	}
	return parts[:n]
}

// endToEnd is 20,000 jobs over 1,000 accounts as fast as 64 connections send them.
func endToEnd(ctx context.Context, p *pass) error {
	const part = "end-to-end"
	return p.in(ctx, environment.Default, func(e *environment.Environment) error {
		jobs := p.Count(endToEndJobs)
		went, err := e.Put(ctx, load.EvenOrders(load.Random(p.round), jobs, p.Count(manyAccounts)))
		if err != nil {
			return err
		}
		p.setOutcome(part, went)
		p.setCPU(part, went.CPU, jobs)
		return nil
	})
}

// endToEndRate measures the end-to-end rate now, for a figure to be compared with it: a
// machine's speed some minutes ago says little.
func endToEndRate(ctx context.Context, p *pass) (float64, error) {
	aside := p.newPass(p.round)
	err := endToEnd(ctx, aside)
	return aside.figures["end-to-end/applied"], err
}

// oneHotAccount is 5,000 jobs of one account.
func oneHotAccount(ctx context.Context, p *pass) error {
	return p.in(ctx, environment.Default, func(e *environment.Environment) error {
		went, err := e.Put(ctx, load.EvenOrders(load.Random(p.round), p.Count(hotJobs), 1))
		if err != nil {
			return err
		}
		p.setOutcome("hot", went)
		return nil
	})
}

// The peer gets the same loads. Its response means that the job is applied.

func peerOnMany(ctx context.Context, p *pass) error {
	return peerOn(ctx, p, "peer", p.Count(endToEndJobs), p.Count(manyAccounts))
}

func peerOnOne(ctx context.Context, p *pass) error {
	return peerOn(ctx, p, "peer-hot", p.Count(hotJobs), 1)
}

func peerOn(ctx context.Context, p *pass, part string, jobs, accounts int) error {
	return p.in(ctx, environment.Topology{Peer: true}, func(e *environment.Environment) error {
		went, err := e.Put(ctx, load.EvenOrders(load.Random(p.round), jobs, accounts))
		if err != nil {
			return err
		}
		p.set(part, "applied", went.Accepted)
		p.set(part, "post-p50", went.Post.P50)
		p.set(part, "post-p99", went.Post.P99)
		p.setCPU(part, went.CPU, jobs)
		return nil
	})
}

// accepts is the same load, accepted while no worker runs.
func accepts(ctx context.Context, p *pass) error {
	return p.in(ctx, environment.Topology{APIs: 1, Partitions: environment.Default.Partitions}, func(e *environment.Environment) error {
		orders := load.EvenOrders(load.Random(p.round), p.Count(endToEndJobs), p.Count(manyAccounts))
		if err := e.WarmAccepts(ctx, orders); err != nil {
			return err
		}
		var took time.Duration
		spent, err := e.CPUOf(func() (err error) {
			took, err = e.Accept(ctx, orders)
			return err
		})
		if err != nil {
			return err
		}
		p.set("accepts", "accepted", report.PerSecond(len(orders), took))
		p.setCPU("accepts", spent, len(orders))
		_, err = e.Drain(ctx, environment.Default)
		return err
	})
}

// skew measures how long jobs of cold accounts wait behind jobs of hot accounts. At full
// speed jobs wait for the backlog, however the load is spread. So two loads of the same
// size are sent at the same pace, however long the responses take: one over all
// accounts evenly, one by Zipf's law.
//
// The pace is 60 % of the end-to-end rate, measured just before. The same accounts, all
// but the hottest of the second load, count as cold in both loads.
func skew(ctx context.Context, p *pass) error {
	const part = "skew"
	if err := zipfFlood(ctx, p); err != nil {
		return err
	}
	rate, err := endToEndRate(ctx, p)
	if err != nil {
		return err
	}
	pace := paceShare * rate
	p.set(part, "pace", pace)
	jobs, accounts := p.Count(skewJobs), p.Count(environment.AllAccounts)
	loads := []struct {
		name   string
		orders []load.Order
	}{
		{"uniform", load.EvenOrders(load.Random(p.round), jobs, accounts)},
		{"zipf", load.ZipfOrders(load.Random(p.round), jobs, accounts)},
	}
	if p.round%2 == 1 {
		loads[0], loads[1] = loads[1], loads[0]
	}
	for _, l := range loads {
		err := p.in(ctx, environment.Default, func(e *environment.Environment) error {
			if _, err := e.PutPaced(ctx, l.orders, pace); err != nil {
				return err
			}
			cold, err := e.Finishes(ctx, p.Count(hottest))
			if err != nil {
				return err
			}
			p.set(part, l.name+"-cold-p50", cold.P50)
			p.set(part, l.name+"-cold-p99", cold.P99)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// zipfFlood is the skewed load as fast as 64 connections send it.
func zipfFlood(ctx context.Context, p *pass) error {
	return p.in(ctx, environment.Default, func(e *environment.Environment) error {
		went, err := e.Put(ctx, load.ZipfOrders(load.Random(p.round), p.Count(skewJobs), p.Count(environment.AllAccounts)))
		if err != nil {
			return err
		}
		p.set("skew", "zipf-applied", went.Applied)
		return nil
	})
}

// light is what a client sees at light load, and the CPU that Passbook uses without load.
func light(ctx context.Context, p *pass) error {
	const part = "light"
	return p.in(ctx, environment.Default, func(e *environment.Environment) error {
		accounts := p.Count(manyAccounts)
		if _, err := e.Poll(ctx, load.EvenOrders(load.Random(p.round), p.Count(lightWarm), accounts), lightRate); err != nil {
			return err
		}
		seen, err := e.Poll(ctx, load.EvenOrders(load.Random(p.round), p.Count(lightJobs), accounts), lightRate)
		if err != nil {
			return err
		}
		p.set(part, "seen-p50", seen.P50)
		p.set(part, "seen-p99", seen.P99)
		held, err := e.Wait(ctx, load.EvenOrders(load.Random(p.round+1), p.Count(lightJobs), accounts), lightRate)
		if err != nil {
			return err
		}
		p.set(part, "held-p50", held.P50)
		p.set(part, "held-p99", held.P99)
		if err := environment.Sleep(ctx, p.Span(restSettle)); err != nil {
			return err
		}
		spent, span, err := e.CPUDuring(ctx, p.Span(restSpan))
		if err != nil {
			return err
		}
		percent := func(d time.Duration) float64 { return 100 * d.Seconds() / span.Seconds() }
		p.set(part, "rest-ours", percent(spent["api"]+spent["worker"]+spent["redis"]))
		p.set(part, "rest-api", percent(spent["api"]))
		p.set(part, "rest-worker", percent(spent["worker"]))
		p.set(part, "rest-redis", percent(spent["redis"]))
		p.set(part, "rest-postgres", percent(spent["postgres"]))
		return nil
	})
}

// cell is one way to scale out.
type cell struct {
	name string
	environment.Topology
}

// compared are the cells that a target compares.
var compared = []cell{
	{"plain", environment.Default},
	{"workers-4", environment.Topology{APIs: 1, Workers: 4, Partitions: 16}},
}

// cells are all cells in the order of a round; those that are compared come several
// times, in turn.
var cells = slices.Concat(slices.Repeat(compared, groupPasses), []cell{
	{"workers-2", environment.Topology{APIs: 1, Workers: 2, Partitions: 16}},
	{"apis-2", environment.Topology{APIs: 2, Workers: 1, Partitions: 16}},
	{"partitions-4", environment.Topology{APIs: 1, Workers: 1, Partitions: 4}},
	{"partitions-64", environment.Topology{APIs: 1, Workers: 1, Partitions: 64}},
})

// scaleOut is the end-to-end load, half as many jobs, with more of one thing at a
// time. A cell that is measured several times counts with the mean.
func scaleOut(cells []cell) func(context.Context, *pass) error {
	return func(ctx context.Context, p *pass) error {
		cells := slices.Clone(cells)
		if p.round%2 == 1 {
			slices.Reverse(cells)
		}
		found := map[string][]float64{}
		for _, cell := range cells {
			err := p.in(ctx, cell.Topology, func(e *environment.Environment) error {
				went, err := e.Put(ctx, load.EvenOrders(load.Random(p.round), p.Count(scaleJobs), p.Count(manyAccounts)))
				found[cell.name] = append(found[cell.name], went.Applied)
				for process := range went.CPU {
					key := cell.name + "-cpu-" + process
					found[key] = append(found[key], went.CPU.Micros(p.Count(scaleJobs), process))
				}
				return err
			})
			if err != nil {
				return err
			}
		}
		for name, values := range found {
			p.set("scale-out", name, report.Mean(values))
		}
		return nil
	}
}

// backlog is 100,000 jobs accepted while no worker runs, and then drained, with the
// end-to-end rate just before and just after.
func backlog(ctx context.Context, p *pass) error {
	const part = "backlog"
	before, err := endToEndRate(ctx, p)
	if err != nil {
		return err
	}
	err = p.in(ctx, environment.Topology{APIs: 1, Partitions: environment.Default.Partitions}, func(e *environment.Environment) error {
		jobs := p.Count(backlogJobs)
		empty, err := e.RedisMemory(ctx)
		if err != nil {
			return err
		}
		took, err := e.Accept(ctx, load.EvenOrders(load.Random(p.round), jobs, p.Count(manyAccounts)))
		if err != nil {
			return err
		}
		p.set(part, "accepted", report.PerSecond(jobs, took))
		full, err := e.RedisMemory(ctx)
		if err != nil {
			return err
		}
		p.set(part, "redis-bytes", math.Max(0, float64(full-empty))/float64(jobs))
		took, err = e.Drain(ctx, environment.Default)
		if err != nil {
			return err
		}
		p.set(part, "drained", report.PerSecond(jobs, took))
		return nil
	})
	if err != nil {
		return err
	}
	after, err := endToEndRate(ctx, p)
	if err != nil {
		return err
	}
	p.set(part, "end-to-end", report.Mean([]float64{before, after}))
	return nil
}

// setCPU sets what n jobs cost each process, in µs a job.
func (p *pass) setCPU(part string, spent environment.CPU, n int) {
	for name := range spent {
		p.set(part, "cpu-"+name, spent.Micros(n, name))
	}
}

// setOutcome sets the figures of a load from POST to finished.
func (p *pass) setOutcome(part string, went environment.Outcome) {
	p.set(part, "accepted", went.Accepted)
	p.set(part, "applied", went.Applied)
	p.set(part, "post-p50", went.Post.P50)
	p.set(part, "post-p99", went.Post.P99)
	p.set(part, "finish-p50", went.Finish.P50)
	p.set(part, "finish-p99", went.Finish.P99)
}
