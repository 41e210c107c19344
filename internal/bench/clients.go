package main

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"time"

	"github.com/passbook/passbook/internal/bench/environment"
	"github.com/passbook/passbook/internal/bench/load"
	"github.com/passbook/passbook/internal/bench/report"
)

// submitAndPoll is 64 clients in a closed loop. Each client posts a job and polls it until
// it is finished, and then posts the next. The part peer is what a synchronous handler
// gives the same clients: its response is the finished job.
func submitAndPoll(ctx context.Context, p *pass) error {
	return submit(ctx, p, "submit-and-poll", load.PostAndPoll(load.Doubling))
}

// submitAndWait is the same clients, each with Prefer: wait in place of polls.
func submitAndWait(ctx context.Context, p *pass) error {
	return submit(ctx, p, "submit-and-wait", (*load.Connection).PostAndWait)
}

func submit(ctx context.Context, p *pass, part string, visit func(*load.Connection, load.Order) error) error {
	return p.in(ctx, environment.Default, func(e *environment.Environment) error {
		orders := load.EvenOrders(load.Random(p.round), p.Count(pollingJobs), p.Count(manyAccounts))
		warm := load.WithNewKeys(orders[:min(len(orders), p.Count(environment.WarmJobs))])
		if _, err := e.Send(ctx, warm, nil, environment.Connections, visit); err != nil {
			return err
		}
		var seen load.Sent
		spent, err := e.CPUOf(func() (err error) {
			seen, err = e.Send(ctx, orders, nil, environment.Connections, visit)
			return err
		})
		if err != nil {
			return err
		}
		p.setCPU(part, spent, len(orders))
		finish, err := e.Finishes(ctx, 0)
		if err != nil {
			return err
		}
		waits := report.QuantilesOf(seen.Waits)
		p.set(part, "finished", report.PerSecond(len(orders), seen.Took))
		p.set(part, "seen-p50", waits.P50)
		p.set(part, "seen-p99", waits.P99)
		p.set(part, "finish-p50", finish.P50)
		p.set(part, "finish-p99", finish.P99)
		p.set(part, "looks", float64(seen.Polls)/float64(len(orders)))
		return nil
	})
}

// latency is how long jobs take from accepted to finished, by the times in their rows, at a
// share of the end-to-end rate, measured just before. How busy the processors are
// meanwhile, the load included, says whether a job could have been finished sooner.
func latency(ctx context.Context, p *pass) error {
	const part = "latency"
	peak, err := endToEndRate(ctx, p)
	if err != nil {
		return err
	}
	p.set(part, "peak", peak)
	shares := slices.Clone(report.Shares)
	if p.round%2 == 1 {
		slices.Reverse(shares)
	}
	return p.in(ctx, environment.Default, func(e *environment.Environment) error {
		for _, share := range shares {
			pace := peak * float64(share) / 100
			jobs := max(1, int(pace*p.Span(latencySpan).Seconds()))
			went, err := e.PutPaced(ctx, load.EvenOrders(load.Random(p.round), jobs, p.Count(manyAccounts)), pace)
			if err != nil {
				return err
			}
			name := fmt.Sprintf("%d-", share)
			p.set(part, name+"p50", went.Finish.P50)
			p.set(part, name+"p99", went.Finish.P99)
			p.set(part, name+"post-p50", went.Post.P50)
			p.set(part, name+"post-p99", went.Post.P99)
			p.set(part, name+"busy", busy(went, jobs))
			together, err := e.SlowestTogether(ctx)
			if err != nil {
				return err
			}
			p.set(part, name+"together", together)
		}
		return nil
	})
}

// busy is the share of all processors that a load used, in percent.
func busy(o environment.Outcome, jobs int) float64 {
	var total time.Duration
	for _, spent := range o.CPU {
		total += spent
	}
	return 100 * total.Seconds() / (float64(jobs) / o.Applied) / float64(runtime.NumCPU())
}

// peerLight is how long a client of the peer waits at light load.
func peerLight(ctx context.Context, p *pass) error {
	const part = "peer-light"
	return p.in(ctx, environment.Topology{Peer: true}, func(e *environment.Environment) error {
		accounts := p.Count(manyAccounts)
		if _, err := e.Poll(ctx, load.EvenOrders(load.Random(p.round), p.Count(lightWarm), accounts), lightRate); err != nil {
			return err
		}
		seen, err := e.Poll(ctx, load.EvenOrders(load.Random(p.round), p.Count(lightJobs), accounts), lightRate)
		p.set(part, "post-p50", seen.P50)
		p.set(part, "post-p99", seen.P99)
		return err
	})
}
