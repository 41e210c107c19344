package limit

import "context"

// Settle is what Run does at each tick.
func (l *Limiter) Settle(ctx context.Context) {
	l.settle(ctx)
}
