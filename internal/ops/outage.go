package ops

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// outageAfter is how long calls must fail before the log says so. A single failure is no outage.
	outageAfter = 500 * time.Millisecond
	// outageReminder is the pause between two lines about one outage.
	outageReminder = 30 * time.Second
	// outageCalm is after how long without a failure an outage is over. An idle process writes to
	// Redis more often than that. So a Redis that answers reads and refuses writes still counts as away.
	outageCalm = 3 * time.Second
)

// Outage follows the calls to one dependency. It logs the start and the end of an outage, and a
// reminder while it lasts, however many calls fail. A nil Outage does nothing.
type Outage struct {
	log                   *slog.Logger
	dependency, meanwhile string

	failing atomic.Bool // a call has failed, and outageCalm has not passed

	mu          sync.Mutex // guards the fields below
	began, last time.Time  // the first and the last failure
	logged      time.Time  // the last line about this outage; zero for none
	failures    int
	host        string
	settling    bool // a timer runs for settle
}

// NewOutage returns an Outage of a dependency. meanwhile describes what the process does without it.
func NewOutage(log *slog.Logger, dependency, meanwhile string) *Outage {
	return &Outage{log: log, dependency: dependency, meanwhile: meanwhile}
}

// IsFailing returns whether calls fail. Code that uses the dependency then need not log that too.
func (o *Outage) IsFailing() bool { return o != nil && o.failing.Load() }

// Note records the result of a call to host: nil, or the error of a dependency that does not serve.
func (o *Outage) Note(host string, err error) {
	switch {
	case o == nil:
	case err != nil:
		o.failed(host, err)
	case o.failing.Load():
		o.succeeded()
	}
}

func (o *Outage) failed(host string, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	if !o.failing.Swap(true) {
		o.began, o.logged, o.failures = now, time.Time{}, 0
	}
	o.last, o.host = now, host
	o.failures++
	switch {
	case o.logged.IsZero() && now.Sub(o.began) >= outageAfter:
		o.log.Warn("dependency away", "dependency", o.dependency, "host", host, "meanwhile", o.meanwhile, "error", err)
	case !o.logged.IsZero() && now.Sub(o.logged) >= outageReminder:
		o.log.Warn("dependency still away", "dependency", o.dependency, "host", host, "meanwhile", o.meanwhile,
			"since", o.began, "failures", o.failures, "error", err)
	default:
		return
	}
	o.logged = now
}

// succeeded starts a timer that calls settle after outageCalm.
func (o *Outage) succeeded() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.settling && o.failing.Load() {
		o.settling = true
		time.AfterFunc(outageCalm, o.settle)
	}
}

// settle ends the outage, unless a call has failed since the one that succeeded.
func (o *Outage) settle() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.settling = false
	if time.Since(o.last) < outageCalm {
		return
	}
	o.failing.Store(false)
	if !o.logged.IsZero() {
		o.log.Info("dependency back", "dependency", o.dependency, "host", o.host,
			"away_seconds", o.last.Sub(o.began).Seconds(), "failures", o.failures)
	}
}
