package worker

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
)

// Metrics are a worker's metrics for Prometheus.
type Metrics struct {
	jobs         *prometheus.CounterVec
	seconds      prometheus.Histogram
	oldest       prometheus.Gauge
	accounts     prometheus.Gauge
	enqueues     prometheus.Counter
	applies      prometheus.Counter
	unknown      prometheus.Counter
	postgresDown prometheus.Counter
	unpublished  prometheus.Counter
	failed       prometheus.Gauge
}

// NewMetrics registers a worker's metrics.
func NewMetrics(registry prometheus.Registerer) *Metrics {
	m := &Metrics{
		jobs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "passbook_jobs_finished_total", Help: "Jobs that this worker finished, by type and status.",
		}, []string{"type", "status"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "passbook_job_duration_seconds", Help: "Time from the accept of a job to its end.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300},
		}),
		oldest: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "passbook_oldest_queued_job_age_seconds", Help: "Age of the oldest queued job at the last sweep; 0 when none is queued.",
		}),
		accounts: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "passbook_accounts_with_queued_jobs", Help: "Accounts with queued jobs at the last sweep.",
		}),
		enqueues: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "passbook_sweep_enqueues_total", Help: "Times the sweep enqueued a stalled account again.",
		}),
		applies: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "passbook_sweep_applies_total", Help: "Times the sweep began to apply a stalled account itself, because Redis refused its task or the task did not help.",
		}),
		unknown: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "passbook_tasks_of_unknown_jobs_total", Help: "Times a task was given back because it names a job that this database does not know.",
		}),
		postgresDown: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "passbook_postgres_down_waits_total", Help: "Times an apply waited, and was tried again, because Postgres was down.",
		}),
	}
	m.unpublished = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "passbook_finished_jobs_unpublished_total", Help: "Finished jobs of which this worker could not tell the APIs, because Redis refused or was slow. Waiting clients get them about a second later.",
	})
	m.failed = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "passbook_failed_jobs", Help: "Failed jobs in Postgres that wait for an operator, up to 1000; every worker shows the same number.",
	})
	registry.MustRegister(m.jobs, m.seconds, m.oldest, m.accounts, m.enqueues, m.applies, m.unknown, m.postgresDown, m.unpublished, m.failed)
	for _, entry := range []ledger.EntryType{ledger.Deposit, ledger.Withdrawal} {
		for _, outcome := range []ledger.Outcome{ledger.Succeeded, ledger.Rejected, ledger.Failed} {
			m.jobs.WithLabelValues(string(entry), string(outcome)) // present from the start, so that a rate includes the first job
		}
	}
	return m
}

func (m *Metrics) finished(job ledger.Applied) {
	m.jobs.WithLabelValues(string(job.Type), string(job.Outcome)).Inc()
	m.seconds.Observe(job.FinishedAt.Sub(job.CreatedAt).Seconds())
}

// Unpublished counts finished jobs that were not published.
func (m *Metrics) Unpublished(jobs int) { m.unpublished.Add(float64(jobs)) }

// backlog records the oldest queued jobs of all accounts.
func (m *Metrics) backlog(queued []job.OldestQueued) {
	var age time.Duration
	for _, oldest := range queued {
		age = max(age, oldest.Age)
	}
	m.oldest.Set(age.Seconds())
	m.accounts.Set(float64(len(queued)))
}
