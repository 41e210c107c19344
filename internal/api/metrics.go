package api

import (
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/passbook/passbook/internal/auth"
	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
)

// noRoute is the label of requests that no route of the contract took.
const noRoute = "none"

type metrics struct {
	requests *prometheus.HistogramVec
	accepted *prometheus.CounterVec
	replayed prometheus.Counter
	crowded  *prometheus.CounterVec
	refusals *prometheus.CounterVec
	waiting  prometheus.Gauge

	streams        prometheus.Gauge
	streamsDropped prometheus.Counter
	exports        prometheus.Gauge
	connections    prometheus.Gauge
	logIns         *prometheus.CounterVec
}

// The outcomes of a log-in.
const (
	logInSucceeded = "succeeded"
	logInWrong     = "invalid_credentials"
	logInLimited   = "limited" // a limit of emails or addresses, whatever the password
	logInBusy      = "busy"    // too many passwords are being hashed
	logInFailed    = "error"
)

func newMetrics(registry prometheus.Registerer) *metrics {
	m := &metrics{
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "passbook_http_request_duration_seconds", Help: "HTTP requests by route, method and status, without their waits for jobs; the route is none where no route took the request.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5},
		}, []string{"route", "method", "status"}),
		accepted: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "passbook_jobs_accepted_total", Help: "Jobs that this process committed, by type.",
		}, []string{"type"}),
		replayed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "passbook_keys_repeated_total", Help: "Requests that an idempotency key answered with an earlier job.",
		}),
		crowded: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "passbook_http_connections_crowded_total",
			Help: "Connections that reached a bound, in total or for their address; for each an idle connection was closed, or the new one.",
		}, []string{"bound"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "passbook_http_requests_refused_total", Help: "Requests that a limit refused, by the limit.",
		}, []string{"limit"}),
	}
	for _, reason := range refusals {
		m.refusals.WithLabelValues(reason)
	}
	for _, bound := range []string{boundAddress, boundTotal} {
		m.crowded.WithLabelValues(bound)
	}
	m.waiting = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "passbook_waiting_requests", Help: "Requests that wait for a job to finish.",
	})
	m.streams = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "passbook_event_streams", Help: "Event streams that are open.",
	})
	m.streamsDropped = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "passbook_event_streams_dropped_total", Help: "Event streams that were closed because their clients did not read them in time.",
	})
	m.exports = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "passbook_exports", Help: "Exports of histories as CSV that are being sent.",
	})
	m.connections = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "passbook_http_connections", Help: "Connections of clients that are open.",
	})
	m.logIns = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "passbook_log_ins_total", Help: "Attempts to log in, by outcome.",
	}, []string{"outcome"})
	for _, outcome := range []string{logInSucceeded, logInWrong, logInLimited, logInBusy, logInFailed} {
		m.logIns.WithLabelValues(outcome)
	}
	registry.MustRegister(m.requests, m.accepted, m.replayed, m.crowded, m.refusals, m.waiting, m.streams, m.streamsDropped,
		m.exports, m.connections, m.logIns)
	for _, entry := range []ledger.EntryType{ledger.Deposit, ledger.Withdrawal} {
		m.accepted.WithLabelValues(string(entry)) // counts from 0, so that a rate sees the first
	}
	return m
}

func (m *metrics) request(route, method string, status int, took time.Duration) {
	m.requests.WithLabelValues(route, method, strconv.Itoa(status)).Observe(took.Seconds())
}

// logIn counts an attempt to log in, by the error that it ended with.
func (m *metrics) logIn(err error) {
	outcome := logInFailed
	limited, isProblem := errors.AsType[*problem](err)
	switch {
	case err == nil:
		outcome = logInSucceeded
	case errors.Is(err, auth.ErrInvalidCredentials):
		outcome = logInWrong
	case errors.Is(err, auth.ErrBusy):
		outcome = logInBusy
	case isProblem && limited.Status == http.StatusTooManyRequests:
		outcome = logInLimited
	}
	m.logIns.WithLabelValues(outcome).Inc()
}

// refused counts a request that the server refused before any handler, as one that took no
// time. Its method and path may be unread, or anything.
func (m *metrics) refused(status int) {
	m.request(noRoute, "none", status, 0)
}

func (m *metrics) job(accepted job.Job, replayed bool) {
	if replayed {
		m.replayed.Inc()
		return
	}
	m.accepted.WithLabelValues(string(accepted.Type)).Inc()
}
