package main

import (
	"context"
	"math"
	"slices"
	"time"
)

// How large the loads are, at scale 1.
const (
	connections  = 64     // of every load but the light one
	manyAccounts = 1_000  // of most loads
	allAccounts  = 10_000 // in the template, and of the skewed loads
	hottest      = 100    // accounts of a skewed load that don't count as cold

	endToEndJobs = 20_000
	hotJobs      = 5_000
	skewJobs     = 20_000
	scaleJobs    = 10_000 // in each cell
	backlogJobs  = 100_000
	warmJobs     = 512 // before those that are timed, where a load is warmed up

	zipfS = 1.1
	// paceShare of the end-to-end rate is what the paced loads of skew offer.
	paceShare = 0.6

	lightRate  = 20  // jobs a second
	lightJobs  = 300 // 15 s
	lightWarm  = 20  // more before them: connections and statements are made once
	restSettle = 2 * time.Second
	restSpan   = 10 * time.Second

	pollingJobs = 10_000
	latencySpan = 5 * time.Second // at each share of the peak
)

// part is one thing to measure. Its figures are in the catalogue, under its name.
type part struct {
	name    string
	measure func(ctx context.Context, r *round) error
	group   string // whatever parts have in common that are measured in turn
}

func parts() []part {
	return []part{
		{"end-to-end", endToEnd, "many accounts"},
		{"peer", peerOnMany, "many accounts"},
		{"submit-and-poll", submitAndPoll, "many accounts"},
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
	}
}

// groupTurns is how often a round measures the parts of a group, in turn: a machine's speed
// changes within seconds, and each turn has ratios of its own.
const groupTurns = 3

// group is the first of the parts, with those behind it that are measured in turn with it.
func group(parts []part) []part {
	n := 1
	for n < len(parts) && parts[0].group != "" && parts[n].group == parts[0].group {
		n++
	}
	return parts[:n]
}

// plain is Passbook as `make run` starts it.
var plain = cast{apis: 1, workers: 1, partitions: 16}

// endToEnd is 20,000 jobs over 1,000 accounts as fast as 64 connections ask.
func endToEnd(ctx context.Context, r *round) error {
	const part = "end-to-end"
	return r.onScene(ctx, plain, func(s *scene) error {
		jobs := r.count(endToEndJobs)
		went, err := s.put(ctx, evenOrders(r.seed(), jobs, r.count(manyAccounts)))
		if err != nil {
			return err
		}
		r.setFlow(part, went)
		for name, spent := range went.cpu {
			r.set(part, "cpu-"+name, microsEach(spent, jobs))
		}
		return nil
	})
}

// endToEndRate is the end-to-end rate of this minute, for what is held against it: a
// machine's speed of some minutes ago says little.
func endToEndRate(ctx context.Context, r *round) (float64, error) {
	aside := r.newRound(r.number)
	err := endToEnd(ctx, aside)
	return aside.figures["end-to-end/applied"], err
}

func oneHotAccount(ctx context.Context, r *round) error {
	return r.onScene(ctx, plain, func(s *scene) error {
		went, err := s.put(ctx, evenOrders(r.seed(), r.count(hotJobs), 1))
		if err != nil {
			return err
		}
		r.setFlow("hot", went)
		return nil
	})
}

// The peer gets the same loads; what it has answered is applied.

func peerOnMany(ctx context.Context, r *round) error {
	return peerOn(ctx, r, "peer", r.count(endToEndJobs), r.count(manyAccounts))
}

func peerOnOne(ctx context.Context, r *round) error {
	return peerOn(ctx, r, "peer-hot", r.count(hotJobs), 1)
}

func peerOn(ctx context.Context, r *round, part string, jobs, accounts int) error {
	return r.onPeerScene(ctx, func(s *scene) error {
		went, err := s.put(ctx, evenOrders(r.seed(), jobs, accounts))
		if err != nil {
			return err
		}
		r.set(part, "applied", went.accepted)
		r.set(part, "post-p50", went.post.p50)
		r.set(part, "post-p99", went.post.p99)
		r.set(part, "cpu-postgres", microsEach(went.cpu["postgres"], jobs))
		return nil
	})
}

// accepts is the same load, accepted while no worker is there.
func accepts(ctx context.Context, r *round) error {
	return r.onScene(ctx, cast{apis: 1, partitions: plain.partitions}, func(s *scene) error {
		orders := evenOrders(r.seed(), r.count(endToEndJobs), r.count(manyAccounts))
		if err := s.warmAccepts(ctx, orders); err != nil {
			return err
		}
		took, err := s.accept(ctx, orders)
		if err != nil {
			return err
		}
		r.set("accepts", "accepted", perSecond(len(orders), took))
		_, err = s.drain(ctx, plain)
		return err
	})
}

// skew tells how long cold accounts wait behind hot ones. As fast as 64
// connections ask, every load is more than the machine can do: jobs then wait for
// the backlog, however it is spread. So two loads of the same size are offered at
// the same pace, whatever the answers take: one over all accounts evenly, one by
// Zipf's law. The pace is 60 % of the end-to-end rate, measured just before. The
// same accounts, all but the hottest of the latter, count as cold in both.
func skew(ctx context.Context, r *round) error {
	const part = "skew"
	if err := zipfFlood(ctx, r); err != nil {
		return err
	}
	rate, err := endToEndRate(ctx, r)
	if err != nil {
		return err
	}
	pace := paceShare * rate
	r.set(part, "pace", pace)
	jobs, accounts := r.count(skewJobs), r.count(allAccounts)
	loads := []struct {
		name   string
		orders []order
	}{
		{"uniform", evenOrders(r.seed(), jobs, accounts)},
		{"zipf", zipfOrders(r.seed(), jobs, accounts)},
	}
	if r.number%2 == 1 {
		loads[0], loads[1] = loads[1], loads[0]
	}
	for _, load := range loads {
		err := r.onScene(ctx, plain, func(s *scene) error {
			if _, err := s.putPaced(ctx, load.orders, pace); err != nil {
				return err
			}
			cold, err := s.finishes(ctx, r.count(hottest))
			if err != nil {
				return err
			}
			r.set(part, load.name+"-cold-p50", cold.p50)
			r.set(part, load.name+"-cold-p99", cold.p99)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// zipfFlood is the skewed load as fast as 64 connections ask.
func zipfFlood(ctx context.Context, r *round) error {
	return r.onScene(ctx, plain, func(s *scene) error {
		went, err := s.put(ctx, zipfOrders(r.seed(), r.count(skewJobs), r.count(allAccounts)))
		if err != nil {
			return err
		}
		r.set("skew", "zipf-applied", went.applied)
		return nil
	})
}

// light is what a client sees of a quiet bank, and what the bank costs at rest.
func light(ctx context.Context, r *round) error {
	const part = "light"
	return r.onScene(ctx, plain, func(s *scene) error {
		accounts := r.count(manyAccounts)
		if _, err := s.poll(ctx, evenOrders(r.seed(), r.count(lightWarm), accounts)); err != nil {
			return err
		}
		seen, err := s.poll(ctx, evenOrders(r.seed(), r.count(lightJobs), accounts))
		if err != nil {
			return err
		}
		r.set(part, "seen-p50", seen.p50)
		r.set(part, "seen-p99", seen.p99)
		if err := sleep(ctx, r.span(restSettle)); err != nil {
			return err
		}
		spent, span, err := s.cpuDuring(ctx, r.span(restSpan))
		if err != nil {
			return err
		}
		percent := func(d time.Duration) float64 { return 100 * d.Seconds() / span.Seconds() }
		r.set(part, "rest-ours", percent(spent["api"]+spent["worker"]+spent["redis"]))
		r.set(part, "rest-api", percent(spent["api"]))
		r.set(part, "rest-worker", percent(spent["worker"]))
		r.set(part, "rest-redis", percent(spent["redis"]))
		r.set(part, "rest-postgres", percent(spent["postgres"]))
		return nil
	})
}

// cell is one way to scale out.
type cell struct {
	name string
	cast
}

// compared are the cells that a target sets against each other.
var compared = []cell{
	{"plain", plain},
	{"workers-4", cast{apis: 1, workers: 4, partitions: 16}},
}

// cells are all of them, in a round's order: what is compared several times in turn.
var cells = slices.Concat(slices.Repeat(compared, groupTurns), []cell{
	{"workers-2", cast{apis: 1, workers: 2, partitions: 16}},
	{"apis-2", cast{apis: 2, workers: 1, partitions: 16}},
	{"partitions-4", cast{apis: 1, workers: 1, partitions: 4}},
	{"partitions-64", cast{apis: 1, workers: 1, partitions: 64}},
})

// scaleOut is the end-to-end load, half as many jobs, with more of one thing at a
// time. A cell that is measured several times counts with the mean.
func scaleOut(cells []cell) func(context.Context, *round) error {
	return func(ctx context.Context, r *round) error {
		cells := slices.Clone(cells)
		if r.number%2 == 1 {
			slices.Reverse(cells)
		}
		found := map[string][]float64{}
		for _, cell := range cells {
			err := r.onScene(ctx, cell.cast, func(s *scene) error {
				went, err := s.put(ctx, evenOrders(r.seed(), r.count(scaleJobs), r.count(manyAccounts)))
				found[cell.name] = append(found[cell.name], went.applied)
				return err
			})
			if err != nil {
				return err
			}
		}
		for name, rates := range found {
			r.set("scale-out", name, mean(rates))
		}
		return nil
	}
}

// backlog is 100,000 jobs accepted while no worker is there, and then drained, with the
// end-to-end rate just before and just after.
func backlog(ctx context.Context, r *round) error {
	const part = "backlog"
	before, err := endToEndRate(ctx, r)
	if err != nil {
		return err
	}
	err = r.onScene(ctx, cast{apis: 1, partitions: plain.partitions}, func(s *scene) error {
		jobs := r.count(backlogJobs)
		empty, err := s.redisMemory(ctx)
		if err != nil {
			return err
		}
		took, err := s.accept(ctx, evenOrders(r.seed(), jobs, r.count(manyAccounts)))
		if err != nil {
			return err
		}
		r.set(part, "accepted", perSecond(jobs, took))
		full, err := s.redisMemory(ctx)
		if err != nil {
			return err
		}
		r.set(part, "redis-bytes", math.Max(0, float64(full-empty))/float64(jobs))
		took, err = s.drain(ctx, plain)
		if err != nil {
			return err
		}
		r.set(part, "drained", perSecond(jobs, took))
		return nil
	})
	if err != nil {
		return err
	}
	after, err := endToEndRate(ctx, r)
	if err != nil {
		return err
	}
	r.set(part, "end-to-end", mean([]float64{before, after}))
	return nil
}

func microsEach(spent time.Duration, n int) float64 {
	return spent.Seconds() * 1e6 / float64(n)
}

func perSecond(n int, took time.Duration) float64 {
	return float64(n) / took.Seconds()
}

// setFlow notes the figures of a load that went from POST to finished.
func (r *round) setFlow(part string, went flow) {
	r.set(part, "accepted", went.accepted)
	r.set(part, "applied", went.applied)
	r.set(part, "post-p50", went.post.p50)
	r.set(part, "post-p99", went.post.p99)
	r.set(part, "finish-p50", went.finish.p50)
	r.set(part, "finish-p99", went.finish.p99)
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
