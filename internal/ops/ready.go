package ops

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"sync"
	"time"
)

// How long each check may take: whoever asks wants an answer, not the truth a
// minute later; and what the process can do without must not make it seem slow.
const (
	checkTimeout    = 2 * time.Second
	optionalTimeout = 500 * time.Millisecond
)

// Check asks after one dependency.
type Check struct {
	Name     string
	Required bool // without it the process is not ready

	// Probe is nil where the dependency serves. It must return soon after its
	// context ends, its timeout from its start at the latest. Several calls may
	// run at once.
	Probe func(context.Context) error
}

// Readiness is what /readyz answers.
type Readiness struct {
	Status       string       `json:"status"` // "ok", "unavailable" or ShuttingDown
	Dependencies []Dependency `json:"dependencies"`
}

// ShuttingDown is the status of a process that was told to stop: it still answers, so
// that load balancers have time to look away.
const ShuttingDown = "shutting_down"

// Dependency is the state of one dependency. Why it is down goes to the log.
type Dependency struct {
	Name     string `json:"name"`
	Status   string `json:"status"` // "up" or "down"
	Required bool   `json:"required"`
}

// Ready runs all checks at once and waits for them. What is wrong with those
// that fail is logged.
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
	patience := optionalTimeout
	if c.Required {
		patience = checkTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	dependency := Dependency{Name: c.Name, Status: "up", Required: c.Required}
	if err := c.Probe(ctx); err != nil {
		log.WarnContext(ctx, "dependency down", "dependency", c.Name, "error", err)
		dependency.Status = "down"
	}
	return dependency
}

// HTTPStatus is 200 where the process is ready, else 503.
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
	_ = json.NewEncoder(w).Encode(body) // a client that went away needs no answer
}
