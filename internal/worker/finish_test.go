package worker_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/ops"
	"github.com/passbook/passbook/internal/queue"
	"github.com/passbook/passbook/internal/test/testenv"
	"github.com/passbook/passbook/internal/worker"
)

// logged is what a worker logged.
type logged struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (l *logged) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(line)
}

func (l *logged) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), text)
}

// The log shows no outcome that a crash of Postgres could still undo: a job whose commit others see
// already has no line while its batch waits for the standby.
func TestFinishedJobIsLoggedOnceDurable(t *testing.T) {
	t.Parallel()
	server := testenv.PostgresServer(t)
	pool, err := pgxpool.New(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	s := newSystem(t, pool, testenv.Redis(t))
	account := ledgertest.Account(t, pool, s.user, 0)
	first, second := ledgertest.Job(t, pool, account, ledger.Deposit, 1), ledgertest.Job(t, pool, account, ledger.Deposit, 2)
	log := &logged{}
	w := worker.New(worker.Config{
		Applier: ledger.NewApplier(pool), Backlog: job.NewBacklog(pool), Queue: s.client, Metrics: worker.NewMetrics(prometheus.NewRegistry()),
		Log: ops.NewLogger(log, slog.LevelDebug, true), Publisher: queue.NewPublisher(s.redis, s.queues, slog.New(slog.DiscardHandler), func(int) {}),
	}, nil)
	back := testenv.AwayStandby(t, server.URL())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _, _ = w.Apply(ctx, []queue.Notification{{JobID: second, AccountID: account.ID, Position: 2, Jobs: 2}}) // the log tells
	}()
	testenv.Eventually(t, "the first commit", func() bool { return s.count(job.Succeeded) > 0 })
	if n := log.count(first.String()) + log.count(second.String()); n > 0 {
		t.Errorf("%d lines before the flush", n)
	}
	back()
	<-ended
	s.drained()
}

// Under load a job whose request is known has its line, though many other jobs finish before it.
func TestFinishedLine_UnderLoad(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // where all happens in one second
		var log bytes.Buffer
		w := worker.New(worker.Config{Log: ops.NewLogger(&log, slog.LevelInfo, true)}, nil)
		named := uuid.New()
		w.Remember([]queue.Notification{{JobID: named, Origins: named.String() + "=a-request/"}})
		jobs := make([]ledger.Applied, 1000)
		for i := range jobs {
			jobs[i].JobID = uuid.New()
		}
		w.ReportFinished(append(jobs, ledger.Applied{JobID: named}))
		if lines := strings.Count(log.String(), "\n"); lines != 101 {
			t.Errorf("%d lines, want the bound of 100 and one more", lines)
		}
		if !strings.Contains(log.String(), `"request_id":"a-request"`) {
			t.Error("the job whose request is known has no line")
		}
	})
}
