package main

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"time"
)

// What clients wait for: those that poll, and those of a bank that is busy, but not full.

// submitAndPoll is 64 clients in a closed loop, each of which posts a job and polls until it
// is finished before it posts the next. What a synchronous handler gives the same clients is
// the part peer: its answer is the finished job.
func submitAndPoll(ctx context.Context, r *round) error {
	const part = "submit-and-poll"
	return r.onScene(ctx, plain, func(s *scene) error {
		orders := evenOrders(r.seed(), r.count(pollingJobs), r.count(manyAccounts))
		warm := again(orders[:min(len(orders), r.count(warmJobs))])
		if _, err := s.post(ctx, warm, nil, connections, postAndPoll(doubling)); err != nil {
			return err
		}
		seen, err := s.post(ctx, orders, nil, connections, postAndPoll(doubling))
		if err != nil {
			return err
		}
		finish, err := s.finishes(ctx, 0)
		if err != nil {
			return err
		}
		waits := quantilesOf(seen.waits)
		r.set(part, "finished", perSecond(len(orders), seen.took))
		r.set(part, "seen-p50", waits.p50)
		r.set(part, "seen-p99", waits.p99)
		r.set(part, "finish-p50", finish.p50)
		r.set(part, "finish-p99", finish.p99)
		r.set(part, "looks", float64(seen.looks)/float64(len(orders)))
		return nil
	})
}

// shares of the peak rate, in percent, at which latency is measured.
var shares = []int{20, 40, 60, 80}

// latency is how long jobs take from accepted to finished, by their own times, while they
// come at a share of the end-to-end rate, measured just before. The share of the processors
// that is busy meanwhile, the load's too, says whether a job could have been finished sooner.
func latency(ctx context.Context, r *round) error {
	const part = "latency"
	peak, err := endToEndRate(ctx, r)
	if err != nil {
		return err
	}
	r.set(part, "peak", peak)
	shares := slices.Clone(shares)
	if r.number%2 == 1 {
		slices.Reverse(shares)
	}
	return r.onScene(ctx, plain, func(s *scene) error {
		for _, share := range shares {
			pace := peak * float64(share) / 100
			jobs := max(1, int(pace*r.span(latencySpan).Seconds()))
			went, err := s.putPaced(ctx, evenOrders(r.seed(), jobs, r.count(manyAccounts)), pace)
			if err != nil {
				return err
			}
			name := fmt.Sprintf("%d-", share)
			r.set(part, name+"p50", went.finish.p50)
			r.set(part, name+"p99", went.finish.p99)
			r.set(part, name+"post-p50", went.post.p50)
			r.set(part, name+"post-p99", went.post.p99)
			r.set(part, name+"busy", went.busy(jobs))
		}
		return nil
	})
}

// latencyFigures are those of the part latency.
func latencyFigures() []figure {
	figures := []figure{{"latency", "peak", "peak, end to end", perSec}}
	for _, share := range shares {
		name, at := fmt.Sprintf("%d-", share), fmt.Sprintf(" at %d %% of the peak", share)
		figures = append(figures,
			figure{"latency", name + "p50", "accepted to finished" + at + ", p50", millis},
			figure{"latency", name + "p99", "accepted to finished" + at + ", p99", millis},
			figure{"latency", name + "post-p50", "POST to 202" + at + ", p50", millis},
			figure{"latency", name + "post-p99", "POST to 202" + at + ", p99", millis},
			figure{"latency", name + "busy", "processors busy" + at, "%"})
	}
	return figures
}

// busy is the share of all processors that a load of so many jobs used, in percent.
func (f flow) busy(jobs int) float64 {
	var total time.Duration
	for _, spent := range f.cpu {
		total += spent
	}
	return 100 * total.Seconds() / (float64(jobs) / f.applied) / float64(runtime.NumCPU())
}

// peerLight is what a client of the peer waits while the bank is quiet.
func peerLight(ctx context.Context, r *round) error {
	const part = "peer-light"
	return r.onPeerScene(ctx, func(s *scene) error {
		accounts := r.count(manyAccounts)
		if _, err := s.poll(ctx, evenOrders(r.seed(), r.count(lightWarm), accounts)); err != nil {
			return err
		}
		seen, err := s.poll(ctx, evenOrders(r.seed(), r.count(lightJobs), accounts))
		r.set(part, "post-p50", seen.p50)
		r.set(part, "post-p99", seen.p99)
		return err
	})
}
