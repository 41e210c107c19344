package job_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/testenv"
)

// BenchmarkAccept has many callers at once, so that accepts share inserts. Postgres's fsync is
// off, so it measures what the code costs, not the disk.
func BenchmarkAccept(b *testing.B) {
	const callers = 32 // for each core
	pool := testenv.Pool(b)
	user := ledgertest.User(b, pool)
	account := ledgertest.Account(b, pool, user, 0)
	acceptor := job.NewAcceptor(pool, silence{}, 1<<30)
	ctx, stop := context.WithCancel(b.Context())
	var running errgroup.Group
	running.Go(func() error { return acceptor.Run(ctx) })
	b.Cleanup(func() {
		stop()
		_ = running.Wait() // its loops return no error
	})
	var keys atomic.Int64
	b.SetParallelism(callers)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			key := fmt.Sprint(keys.Add(1))
			if _, _, err := acceptor.Accept(b.Context(), deposit(user, account, key)); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// silence notifies no worker.
type silence struct{}

func (silence) Notify(int64, int64, uuid.UUID, int, map[uuid.UUID]string) {}
