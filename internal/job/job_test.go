package job_test

import (
	"context"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/testenv"
)

// afterQuery is a tracer that calls do after each query.
type afterQuery struct{ do func() }

func (afterQuery) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}

func (a afterQuery) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) { a.do() }

// A read finds a job that is archived between the read's two statements.
func TestReadWhileArchived(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	rejected(t, pool, ledgertest.Account(t, pool, user, 0), 1)
	cfg := pool.Config()
	cfg.ConnConfig.Tracer = afterQuery{sync.OnceFunc(func() { archive(t, pool, soon(), 1) })}
	reading, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer reading.Close()
	id := uuid.MustParse("00000000-0000-7000-8000-000000000001")
	for _, when := range []string{"meanwhile", "archived"} {
		if got, err := job.NewReader(reading).Job(t.Context(), user, id); err != nil || got.Status != job.Rejected {
			t.Errorf("%s: read %+v, %v; want a rejected job", when, got, err)
		}
	}
	if n := count(t, pool, "archived_jobs"); n != 1 {
		t.Errorf("%d jobs are archived, want 1", n)
	}
}
