package worker_test

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/queue"
	"github.com/passbook/passbook/internal/test/testenv"
	"github.com/passbook/passbook/internal/worker"
)

// observed is a worker whose log and metrics the test reads. It tries an apply once.
type observed struct {
	*worker.Worker
	t        *testing.T
	log      strings.Builder
	registry *prometheus.Registry
}

func (s *system) observed(t *testing.T) *observed {
	t.Helper()
	o := &observed{t: t, registry: prometheus.NewPedanticRegistry()}
	log := slog.New(slog.NewTextHandler(&o.log, nil))
	stopping := make(chan struct{})
	close(stopping)
	o.Worker = worker.New(worker.Config{
		Applier: ledger.NewApplier(s.pool), Backlog: job.NewBacklog(s.pool), Queue: s.client, Metrics: worker.NewMetrics(o.registry), Log: log,
		Publisher: queue.NewPublisher(s.redis, s.queues, log, func(int) {}),
	}, stopping)
	return o
}

// apply applies the account up to the job, as a task for it would.
func (o *observed) apply(account ledger.Account, id uuid.UUID) error {
	_, _, err := o.Apply(o.t.Context(), []queue.Notification{{
		JobID: id, AccountID: account.ID, Jobs: 1, Origins: id.String() + "=a-request/00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01",
	}})
	return err
}

// family returns a metric of the worker, nil if it is absent.
func (o *observed) family(name string) []*dto.Metric {
	o.t.Helper()
	families, err := o.registry.Gather()
	if err != nil {
		o.t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == name {
			return family.GetMetric()
		}
	}
	return nil
}

// errors returns the counts of the reasons that are not 0.
func (o *observed) errors() map[string]float64 {
	o.t.Helper()
	counts := map[string]float64{}
	for _, metric := range o.family("passbook_apply_errors_total") {
		if n := metric.GetCounter().GetValue(); n > 0 {
			counts[metric.GetLabel()[0].GetValue()] = n
		}
	}
	return counts
}

// lines returns the log's lines with a message, without the rest.
func (o *observed) lines(message string) (found []string) {
	for line := range strings.Lines(o.log.String()) {
		if strings.Contains(line, fmt.Sprintf("msg=%q", message)) {
			found = append(found, line)
		}
	}
	return found
}

// wantIn checks that a line says all of it.
func wantIn(t *testing.T, line string, attrs ...string) {
	t.Helper()
	for _, attr := range attrs {
		if !strings.Contains(line, attr) {
			t.Errorf("the line lacks %s: %s", attr, line)
		}
	}
}

// An error of an apply is counted by its reason, and logged with the job, the account and Postgres's
// code. While it concerns every account, the worker says that it can't apply; after that it can.
func TestApplyErrors(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, code, reason string
		concernsAll        bool
	}{
		{"NoRight", "42501", "privilege", true},
		{"ReadOnly", "25006", "read_only", true},
		{"ShutDown", "57P01", "connection", true},
		{"DiskFull", "53100", "resources", true},
		{"NoLibrary", "58P01", "function", true},
		{"Locked", "55P03", "lock", false},
		{"Serialization", "40001", "serialization", false},
		{"Damaged", "XX001", "other", false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
			ledgertest.Exec(t, s.pool, fmt.Sprintf(`
				CREATE FUNCTION trouble() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trouble' USING ERRCODE = '%s'; END $$;
				CREATE TRIGGER trouble BEFORE INSERT ON transactions FOR EACH ROW EXECUTE FUNCTION trouble()`, test.code))
			account := ledgertest.Account(t, s.pool, s.user, 0)
			id := ledgertest.Job(t, s.pool, account, ledger.Deposit, 1)
			o := s.observed(t)
			if err := o.apply(account, id); err == nil || worker.IsFailure(err) {
				t.Errorf("%v, want an error that is not the job's own", err)
			}
			if got := o.errors(); len(got) != 1 || got[test.reason] != 1 {
				t.Errorf("counted %v, want one %s", got, test.reason)
			}
			lines := o.lines("apply failed; it is tried again")
			if len(lines) != 1 {
				t.Fatalf("%d lines, want 1:\n%s", len(lines), o.log.String())
			}
			wantIn(t, lines[0], "job_id="+id.String(), fmt.Sprintf("account_id=%d", account.ID), "reason="+test.reason, "sqlstate="+test.code, "trouble")
			if err := o.CheckApplies(t.Context()); (err != nil) != test.concernsAll {
				t.Errorf("the check says %v", err)
			}
			ledgertest.Exec(t, s.pool, `DROP TRIGGER trouble ON transactions`)
			if err := o.apply(account, id); err != nil {
				t.Fatal(err)
			}
			if err := o.CheckApplies(t.Context()); err != nil {
				t.Errorf("after an apply the check says %v", err)
			}
			if got := o.errors(); len(got) != 1 || got[test.reason] != 1 {
				t.Errorf("counted %v after an apply", got)
			}
		})
	}
}

// "job refused" and "job failed" name the job at fault, which is older than the one of the task, and
// Postgres's error.
func TestRefusedJobIsNamed(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	ledgertest.Exec(t, s.pool, `ALTER TABLE transactions ADD CONSTRAINT unlucky CHECK (amount <> 13)`)
	account := ledgertest.Account(t, s.pool, s.user, 0)
	unlucky := ledgertest.Job(t, s.pool, account, ledger.Deposit, 13)
	after := ledgertest.Job(t, s.pool, account, ledger.Deposit, 1)
	o := s.observed(t)
	for range ledger.MaxAttempts {
		_ = o.apply(account, after) // the last one gets through
	}
	if got := o.errors(); len(got) != 1 || got["constraint"] != ledger.MaxAttempts {
		t.Errorf("counted %v, want %d constraint", got, ledger.MaxAttempts)
	}
	refused, failed, finished := o.lines("job refused"), o.lines("job failed"), o.lines("job finished")
	if len(refused) != ledger.MaxAttempts-1 || len(failed) != 1 || len(finished) != 2 || strings.Count(o.log.String(), "\n") != ledger.MaxAttempts+len(finished) {
		t.Fatalf("%d refused and %d failed, want %d and 1:\n%s", len(refused), len(failed), ledger.MaxAttempts-1, o.log.String())
	}
	for i, line := range append(refused, failed...) {
		wantIn(t, line, "job_id="+unlucky.String(), "account="+account.Number, fmt.Sprintf("account_id=%d", account.ID),
			fmt.Sprintf("attempt=%d", i+1), "reason=constraint", "sqlstate=23514", "unlucky")
	}
	if err := o.CheckApplies(t.Context()); err != nil {
		t.Errorf("a job's own trouble is the worker's: %v", err)
	}
}

// The durations are a classic and a native histogram, and an exemplar leads to the job and its trace.
func TestJobDuration(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	account := ledgertest.Account(t, s.pool, s.user, 0)
	o := s.observed(t)
	id := ledgertest.Job(t, s.pool, account, ledger.Deposit, 1)
	if err := o.apply(account, id); err != nil {
		t.Fatal(err)
	}
	histogram := o.family("passbook_job_duration_seconds")[0].GetHistogram()
	if histogram.GetSampleCount() != 1 || len(histogram.GetBucket()) == 0 || len(histogram.GetPositiveSpan()) == 0 {
		t.Errorf("not one job in both forms: %v", histogram)
	}
	for _, want := range []string{id.String(), "0af7651916cd43dd8448eb211c80319c"} {
		if !strings.Contains(histogram.String(), want) {
			t.Errorf("no exemplar has %s: %v", want, histogram)
		}
	}
}

// What was not read is absent: the numbers of a sweep and of the housekeeping before the first.
func TestGaugesAreNotStale(t *testing.T) {
	t.Parallel()
	s := newSystem(t, testenv.Pool(t), testenv.Redis(t))
	ledgertest.Job(t, s.pool, ledgertest.Account(t, s.pool, s.user, 0), ledger.Deposit, 1)
	gauges := []string{"passbook_oldest_queued_job_age_seconds", "passbook_accounts_with_queued_jobs", "passbook_failed_jobs"}
	o := s.observed(t)
	for _, name := range gauges {
		if o.family(name) != nil {
			t.Errorf("%s is there before anything was read", name)
		}
	}
	o.Sweep(t.Context())
	o.Housekeep(t.Context())
	for _, name := range append(gauges, "passbook_last_sweep_timestamp_seconds") {
		if o.family(name) == nil {
			t.Errorf("%s is absent", name)
		}
	}
}

// A worker whose sweeps don't get through says so after a minute, on synctest's clock.
func TestSweepIsLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := worker.New(worker.Config{Metrics: worker.NewMetrics(prometheus.NewRegistry()), Log: slog.New(slog.DiscardHandler)}, nil)
		if err := w.CheckSweep(); err != nil {
			t.Errorf("at the start: %v", err)
		}
		<-time.After(time.Minute + time.Second)
		if err := w.CheckSweep(); err == nil {
			t.Error("no error a minute later")
		}
	})
}
