package environment

import (
	"context"
	"time"

	"github.com/passbook/passbook/internal/bench/load"
	"github.com/passbook/passbook/internal/bench/report"
)

// FloodConnections are enough for a load that does not wait for responses: fewer than an API
// holds from one address.
const FloodConnections = 768

// floodSlice is how often orders of such a load become due: a handful at a time, of thousands a second.
const floodSlice = time.Millisecond

// FloodOutcome is what a load measured of which a part was refused.
type FloodOutcome struct {
	Offered  float64          // requests a second
	Accepted float64          // jobs a second, from the first POST to the last response
	Applied  float64          // jobs a second that were accepted, from the first POST to the last of them finished
	Refused  float64          // percent of the requests
	Post     report.Quantiles // from when an accepted request was due to its response
	Refusal  report.Quantiles // the same of a refused one
	CPU      CPU              // of all processes, until every job was finished
}

// Flood sends orders at a rate, in jobs a second, however long the responses take, and waits until
// all that were accepted are applied.
func (e *Environment) Flood(ctx context.Context, orders []load.Order, rate float64) (FloodOutcome, error) {
	if err := e.warm(ctx, orders); err != nil {
		return FloodOutcome{}, err
	}
	before, err := e.cpu()
	if err != nil {
		return FloodOutcome{}, err
	}
	sent, err := e.sendLoad(ctx, load.Load{
		Connections: FloodConnections, Orders: orders, Due: load.InSlices(load.Evenly(len(orders), rate), floodSlice), Together: true,
		Visit: (*load.Connection).PostOnce,
	})
	if err != nil {
		return FloodOutcome{}, err
	}
	var accepted, refusals []time.Duration
	for i, wait := range sent.Waits {
		if sent.Refused[i] {
			refusals = append(refusals, wait)
		} else {
			accepted = append(accepted, wait)
		}
	}
	e.jobs -= len(refusals) // check fails if a refused order is there as a job
	if err := e.awaitFinished(ctx, finishedTick); err != nil {
		return FloodOutcome{}, err
	}
	finished := time.Since(sent.Began)
	after, err := e.cpu()
	return FloodOutcome{
		Offered:  report.PerSecond(len(orders), sent.Took),
		Accepted: report.PerSecond(len(accepted), sent.Took),
		Applied:  report.PerSecond(len(accepted), finished),
		Refused:  100 * float64(len(refusals)) / float64(len(orders)),
		Post:     report.QuantilesOf(accepted),
		Refusal:  report.QuantilesOf(refusals),
		CPU:      after.since(before),
	}, err
}
