package ops

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// outageAfter is for how long calls fail until a line says so: one that fails by itself is none.
	outageAfter = 500 * time.Millisecond
	// outageReminder is the pause between two lines about one outage.
	outageReminder = 30 * time.Second
	// outageCalm is for how long no call has failed when an outage is over. It is longer than the
	// pause between the calls that each process makes at rest, so that a Redis which answers reads
	// and refuses writes does not come and go.
	outageCalm = 3 * time.Second
)

// Outage follows the calls to one dependency. It logs when the dependency goes away, reminds of it,
// and logs when it is back, however many calls fail meanwhile. A nil Outage does nothing.
type Outage struct {
	log                   *slog.Logger
	dependency, meanwhile string

	failing atomic.Bool // a call has failed, and outageCalm has not passed

	mu          sync.Mutex // guards the fields below
	began, last time.Time  // the first and the last failure
	told        time.Time  // the last line; zero for none
	failures    int
	host        string
	settling    bool // a timer runs for settle
}

// NewOutage returns an Outage of a dependency; meanwhile says what the process does without it.
func NewOutage(log *slog.Logger, dependency, meanwhile string) *Outage {
	return &Outage{log: log, dependency: dependency, meanwhile: meanwhile}
}

// IsFailing reports whether calls fail, so that what depends on them need not say so too.
func (o *Outage) IsFailing() bool { return o != nil && o.failing.Load() }

// Note notes the result of a call to host: the error of a dependency that does not serve, or nil.
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
		o.began, o.told, o.failures = now, time.Time{}, 0
	}
	o.last, o.host = now, host
	o.failures++
	switch {
	case o.told.IsZero() && now.Sub(o.began) >= outageAfter:
		o.log.Warn("dependency away", "dependency", o.dependency, "host", host, "meanwhile", o.meanwhile, "error", err)
	case !o.told.IsZero() && now.Sub(o.told) >= outageReminder:
		o.log.Warn("dependency still away", "dependency", o.dependency, "host", host, "meanwhile", o.meanwhile,
			"since", o.began, "failures", o.failures, "error", err)
	default:
		return
	}
	o.told = now
}

// succeeded has settle called once outageCalm has passed.
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
	if !o.told.IsZero() {
		o.log.Info("dependency back", "dependency", o.dependency, "host", o.host,
			"away_seconds", o.last.Sub(o.began).Seconds(), "failures", o.failures)
	}
}
