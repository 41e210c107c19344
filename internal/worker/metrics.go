package worker

import (
	"cmp"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ops"
	"github.com/passbook/passbook/internal/postgres"
)

const (
	// sweepLasts is how long the gauges of a sweep are shown. A sweep that applies accounts itself takes
	// some 12 s with its pause.
	sweepLasts = 30 * time.Second
	// housekeepLasts is how long the gauges of the housekeeping are shown.
	housekeepLasts = 30 * time.Second
	// pausedLasts is the same for the paused partitions, which the queue server counts.
	pausedLasts = 30 * time.Second
)

// durationBuckets are the bounds of the classic histogram, in seconds.
var durationBuckets = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}

// In the native histogram of the durations each bucket is a tenth wider than the one before. Beyond
// maxNative buckets it becomes coarser; after nativeReset it starts again with fine buckets.
const (
	nativeFactor = 1.1
	maxNative    = 160
	nativeReset  = time.Hour
)

// Metrics are a worker's metrics for Prometheus.
type Metrics struct {
	jobs         *prometheus.CounterVec
	seconds      prometheus.Histogram
	errors       *prometheus.CounterVec
	swept        prometheus.Gauge
	oldest       *ops.Gauge
	accounts     *ops.Gauge
	enqueues     prometheus.Counter
	applies      prometheus.Counter
	unknown      prometheus.Counter
	postgresDown prometheus.Counter
	unpublished  prometheus.Counter
	failed       *ops.Gauge
	paused       *ops.Gauge
}

// NewMetrics registers a worker's metrics.
func NewMetrics(registry prometheus.Registerer) *Metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &Metrics{
		jobs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "passbook_jobs_finished_total", Help: "Jobs that this worker finished, by type and status.",
		}, []string{"type", "status"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "passbook_job_duration_seconds", Help: "Time from the accept of a job to its end.", Buckets: durationBuckets,
			NativeHistogramBucketFactor: nativeFactor, NativeHistogramMaxBucketNumber: maxNative, NativeHistogramMinResetDuration: nativeReset,
		}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "passbook_apply_errors_total", Help: "Attempts to apply an account's jobs that ended with an error, by its reason. All but constraint concern Postgres rather than the job, and cost the job no attempt.",
		}, []string{"reason"}),
		swept: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "passbook_last_sweep_timestamp_seconds", Help: "When a sweep last read the queue, by this worker's clock; 0 before the first.",
		}),
		oldest:   ops.NewGauge("passbook_oldest_queued_job_age_seconds", "Age of the oldest queued job at the last sweep, 0 when none is queued; absent while sweeps fail.", sweepLasts),
		accounts: ops.NewGauge("passbook_accounts_with_queued_jobs", "Accounts with queued jobs at the last sweep; absent while sweeps fail.", sweepLasts),
		failed:   ops.NewGauge("passbook_failed_jobs", "Failed jobs in Postgres that wait for an operator, up to 1000; every worker shows the same number. Absent while it can't be read.", housekeepLasts),
		paused:   ops.NewGauge("passbook_paused_partitions", "Partitions that an operator has paused: their jobs wait. Absent while Redis can't be read.", pausedLasts),

		enqueues:     counter("passbook_sweep_enqueues_total", "Tasks that the sweep enqueued for stalled accounts."),
		applies:      counter("passbook_sweep_applies_total", "Times the sweep began to apply a stalled account itself, because Redis refused its task, no worker took tasks from its partition, or the task did not help."),
		unknown:      counter("passbook_tasks_of_unknown_jobs_total", "Times a task was given back because it names a job that this database does not know."),
		postgresDown: counter("passbook_postgres_down_waits_total", "Times an apply waited, and was tried again, because Postgres was down."),
		unpublished:  counter("passbook_finished_jobs_unpublished_total", "Finished jobs that this worker could not report to the APIs, because Redis refused or was slow. Waiting clients get them about a second later."),
	}
	registry.MustRegister(m.jobs, m.seconds, m.errors, m.swept, m.oldest, m.accounts, m.failed, m.paused,
		m.enqueues, m.applies, m.unknown, m.postgresDown, m.unpublished)
	for _, entry := range []ledger.EntryType{ledger.Deposit, ledger.Withdrawal} {
		for _, outcome := range []ledger.Outcome{ledger.Succeeded, ledger.Rejected, ledger.Failed} {
			m.jobs.WithLabelValues(string(entry), string(outcome)) // present from the start, so that a rate includes the first job
		}
	}
	for _, reason := range postgres.Reasons {
		m.errors.WithLabelValues(string(reason))
	}
	return m
}

// finished counts the jobs of a batch. The slowest job is an exemplar of the histogram: an operator
// finds its lines in the log, and its trace if traceOf knows one.
func (m *Metrics) finished(jobs []ledger.Applied, traceOf func(uuid.UUID) string) {
	duration := func(job ledger.Applied) time.Duration { return job.FinishedAt.Sub(job.CreatedAt) }
	slowest := slices.MaxFunc(jobs, func(x, y ledger.Applied) int { return cmp.Compare(duration(x), duration(y)) })
	for _, job := range jobs {
		m.jobs.WithLabelValues(string(job.Type), string(job.Outcome)).Inc()
		if job.JobID != slowest.JobID {
			m.seconds.Observe(duration(job).Seconds())
		}
	}
	example := prometheus.Labels{"job_id": slowest.JobID.String()}
	if traceOf != nil {
		if trace := traceOf(slowest.JobID); trace != "" {
			example["trace_id"] = trace
		}
	}
	m.seconds.(prometheus.ExemplarObserver).ObserveWithExemplar(duration(slowest).Seconds(), example)
}

// Paused sets how many partitions are paused.
func (m *Metrics) Paused(partitions int) { m.paused.Set(float64(partitions)) }

// Unpublished counts finished jobs that were not published.
func (m *Metrics) Unpublished(jobs int) { m.unpublished.Add(float64(jobs)) }

// backlog records the oldest queued jobs of all accounts, which a sweep has read.
func (m *Metrics) backlog(queued []job.OldestQueued) {
	var age time.Duration
	for _, oldest := range queued {
		age = max(age, oldest.Age)
	}
	m.swept.SetToCurrentTime()
	m.oldest.Set(age.Seconds())
	m.accounts.Set(float64(len(queued)))
}
