package main

import (
	"context"
	"time"

	"github.com/passbook/passbook/internal/bench/environment"
	"github.com/passbook/passbook/internal/bench/load"
	"github.com/passbook/passbook/internal/bench/report"
)

const (
	// overloadTimes is how many times the peak rate the part overload offers.
	overloadTimes = 3
	overloadSpan  = 8 * time.Second
)

// overload offers three times the end-to-end rate, measured just before and just after, however long
// the responses take: the clients of a load that is too large don't wait for each other. A refused
// request is not sent again. Throughput is that of the jobs that were accepted, from the first
// request until the last of them is finished.
func overload(ctx context.Context, p *pass) error {
	const part = "overload"
	before, err := endToEndRate(ctx, p)
	if err != nil {
		return err
	}
	err = p.in(ctx, environment.Default, func(e *environment.Environment) error {
		jobs := max(1, int(overloadTimes*before*p.Span(overloadSpan).Seconds()))
		went, err := e.Flood(ctx, load.EvenOrders(load.Random(p.round), jobs, p.Count(manyAccounts)), overloadTimes*before)
		if err != nil {
			return err
		}
		p.set(part, "offered", went.Offered)
		p.set(part, "accepted", went.Accepted)
		p.set(part, "applied", went.Applied)
		p.set(part, "refused", went.Refused)
		p.set(part, "post-p50", went.Post.P50)
		p.set(part, "post-p99", went.Post.P99)
		p.set(part, "refusal-p99", went.Refusal.P99)
		p.setCPU(part, went.CPU, jobs)
		return nil
	})
	if err != nil {
		return err
	}
	after, err := endToEndRate(ctx, p)
	if err != nil {
		return err
	}
	p.set(part, "peak", report.Mean([]float64{before, after}))
	return nil
}
