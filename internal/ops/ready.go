package ops

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"sync"
	"time"
)

// How long a check may take. A load balancer needs an early answer. A dependency that the process can
// do without must not delay it.
const (
	checkTimeout    = 2 * time.Second
	optionalTimeout = 500 * time.Millisecond
)

// Check is the check of one dependency.
type Check struct {
	Name     string
	Required bool // without it the process is not ready

	// Probe returns nil where the dependency serves. It must return soon after its context ends.
	// Several calls may run at once.
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

// Ready runs all checks at once and waits for them. It logs the errors of failed checks.
func Ready(ctx context.Context, log *slog.Logger, checks []Check) Readiness {
	readiness := Readiness{Status: "ok", Dependencies: make([]Dependency, len(checks))}
	var group sync.WaitGroup
	for i, check := range checks {
		group.Go(func() { readiness.Dependencies[i] = check.run(ctx, log) })
	}
	group.Wait()
	for _, dependency := range readiness.Dependencies {
		if dependency.Required && dependency.Status == "down" {
			readiness.Status = "unavailable"
		}
	}
	return readiness
}

func (c Check) run(ctx context.Context, log *slog.Logger) Dependency {
	timeout := optionalTimeout
	if c.Required {
		timeout = checkTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	dependency := Dependency{Name: c.Name, Status: "up", Required: c.Required}
	if err := c.Probe(ctx); err != nil {
		log.WarnContext(ctx, "dependency down", "dependency", c.Name, "error", err)
		dependency.Status = "down"
	}
	return dependency
}

// HTTPStatus returns 200 where the process is ready, else 503.
func (r Readiness) HTTPStatus() int {
	if r.Status == "ok" {
		return http.StatusOK
	}
	return http.StatusServiceUnavailable
}

type readyHandler struct {
	checks   []Check
	stopping <-chan struct{}
	log      *slog.Logger
}

func (h readyHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	readiness := Ready(r.Context(), h.log, h.checks)
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
