package ops

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// probeEvery is the pause between two probes of a dependency.
	probeEvery = 2 * time.Second
	// probeTimeout bounds a probe. With probeEvery it bounds how long a fault stays unseen: 4 s.
	probeTimeout = 2 * time.Second
	// resultLasts is how long a result counts if no newer one follows, because the probe hangs or the
	// process was suspended.
	resultLasts = 30 * time.Second
	// logDownEvery is the pause between two log lines about a dependency that stays down.
	logDownEvery = time.Minute
)

// Check is the check of one dependency.
type Check struct {
	Name     string
	Required bool // without it the process is not ready
	Store    bool // passbook_store_up shows it
	// Outage follows the calls to the dependency. While they fail, the Outage logs that, and the check
	// does not. Nil for none.
	Outage *Outage

	// Probe returns nil where the dependency can do what the process needs of it. It must return soon
	// after its context ends.
	Probe func(context.Context) error
}

// Readiness is what /readyz answers.
type Readiness struct {
	Status       string       `json:"status"` // "ok", "unavailable" or ShuttingDown
	Dependencies []Dependency `json:"dependencies"`
}

// ShuttingDown is the status of a process that stops: it still answers requests, so that load
// balancers have time to remove it.
const ShuttingDown = "shutting_down"

// Dependency is the state of one dependency. The log has the reason why it is down.
type Dependency struct {
	Name     string `json:"name"`
	Status   string `json:"status"` // "up" or "down"
	Required bool   `json:"required"`
}

// Checks probes the dependencies of a process in the background. So /readyz and /metrics answer at
// once even if a dependency hangs, and requests to them cost the dependencies nothing.
//
// It is a prometheus.Collector: passbook_check_up of each check, and passbook_store_up of the stores.
type Checks struct {
	all []*probed
}

// NewChecks makes Checks. Each dependency counts as down until Probe or Run has probed it.
func NewChecks(log *slog.Logger, checks ...Check) *Checks {
	c := new(Checks)
	for _, check := range checks {
		c.all = append(c.all, &probed{Check: check, log: log})
	}
	return c
}

// Probe probes each dependency once, all at the same time. It returns within probeTimeout.
func (c *Checks) Probe(ctx context.Context) {
	c.each(func(p *probed) { p.probe(ctx) })
}

// Run probes each dependency every probeEvery until ctx ends. One that hangs delays no other.
func (c *Checks) Run(ctx context.Context) error {
	c.each(func(p *probed) { p.run(ctx) })
	return nil
}

func (c *Checks) each(do func(*probed)) {
	var group sync.WaitGroup
	for _, p := range c.all {
		group.Go(func() { do(p) })
	}
	group.Wait()
}

// Readiness returns what the last probes found. It does not wait. Without checks everything is up.
func (c *Checks) Readiness() Readiness {
	readiness := Readiness{Status: "ok", Dependencies: []Dependency{}}
	if c == nil {
		return readiness
	}
	for _, p := range c.all {
		dependency := Dependency{Name: p.Name, Status: "up", Required: p.Required}
		if p.err() != nil {
			dependency.Status = "down"
			if p.Required {
				readiness.Status = "unavailable"
			}
		}
		readiness.Dependencies = append(readiness.Dependencies, dependency)
	}
	return readiness
}

var (
	checkUp = prometheus.NewDesc("passbook_check_up", "1 while a check of /readyz succeeds, else 0; by the check.", []string{"check"}, nil)
	storeUp = prometheus.NewDesc("passbook_store_up", "1 while the process can write to the store, else 0; by the store.", []string{"store"}, nil)
)

// Describe implements prometheus.Collector.
func (c *Checks) Describe(descs chan<- *prometheus.Desc) {
	descs <- checkUp
	descs <- storeUp
}

// Collect implements prometheus.Collector.
func (c *Checks) Collect(metrics chan<- prometheus.Metric) {
	for _, p := range c.all {
		err := p.err()
		if errors.Is(err, errUnprobed) {
			continue
		}
		metrics <- prometheus.MustNewConstMetric(checkUp, prometheus.GaugeValue, oneIf(err == nil), p.Name)
		if p.Store {
			metrics <- prometheus.MustNewConstMetric(storeUp, prometheus.GaugeValue, oneIf(err == nil), p.Name)
		}
	}
}

// errUnprobed is the result of a check whose dependency was not probed lately.
var errUnprobed = errors.New("not probed lately")

// probed is a check with its last result.
type probed struct {
	Check
	log *slog.Logger

	mu        sync.Mutex // guards the fields below
	last      error
	at        time.Time // of the last result; zero before the first
	downSince time.Time // zero while it is up
	loggedAt  time.Time // of the last line about it being down; zero if none since it was up
}

func (p *probed) run(ctx context.Context) {
	for {
		select {
		case <-time.After(probeEvery):
		case <-ctx.Done():
			return
		}
		p.probe(ctx)
	}
}

func (p *probed) probe(ctx context.Context) {
	limited, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	if err := p.Probe(limited); ctx.Err() == nil { // otherwise the process stops, and err is not the dependency's
		p.record(err)
	}
}

// record keeps a result. It logs when the dependency goes down, every logDownEvery while it stays down,
// and when it is up again. It logs nothing while the Outage reports that.
func (p *probed) record(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	p.last, p.at = err, now
	if err == nil {
		if !p.loggedAt.IsZero() {
			p.log.Info("dependency up again", "dependency", p.Name, "down_for", now.Sub(p.downSince).Round(time.Millisecond).String())
		}
		p.downSince, p.loggedAt = time.Time{}, time.Time{}
		return
	}
	if p.downSince.IsZero() {
		p.downSince = now
	}
	if !p.Outage.IsFailing() && now.Sub(p.loggedAt) >= logDownEvery {
		p.log.Warn("dependency down", "dependency", p.Name, "required", p.Required, "error", err)
		p.loggedAt = now
	}
}

// err returns the last result, or errUnprobed.
func (p *probed) err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at.IsZero() || time.Since(p.at) > resultLasts {
		return errUnprobed
	}
	return p.last
}

// HTTPStatus returns 200 where the process is ready, else 503.
func (r Readiness) HTTPStatus() int {
	if r.Status == "ok" {
		return http.StatusOK
	}
	return http.StatusServiceUnavailable
}

type readyHandler struct {
	checks   *Checks
	stopping <-chan struct{}
}

func (h readyHandler) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	readiness := h.checks.Readiness()
	select {
	case <-h.stopping:
		readiness.Status = ShuttingDown
	default:
	}
	answerJSON(w, readiness.HTTPStatus(), readiness)
}

func answerLive(w http.ResponseWriter, _ *http.Request) {
	answerJSON(w, http.StatusOK, map[string]string{"status": "ok"})
}

func answerJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // fails where the client went away
}
