// Package ops has what an operator uses of a process: its log, its metrics, and the port that shows
// them. Its promise: where a token is set, a request without the token sees only the health, and the
// health never includes a reason.
package ops

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Bounds on one request to the operator's port. Reading a body has no time-out: in net/http it would
// also end a long profile.
const (
	headerTimeout  = 5 * time.Second
	answerTimeout  = 30 * time.Second // pprof adds the seconds of a profile
	idleTimeout    = time.Minute
	metricsTimeout = 10 * time.Second // no collector asks a store, so only a busy machine is slow
	maxHeader      = 16 << 10         // bytes
	maxBody        = 1 << 20          // bytes
	maxScrapes     = 4                // at once
)

// Config is what the operator's port shows, and which requests may see it.
type Config struct {
	Addr  string // host:port; OPS_ADDR
	Token string // required for everything but health; empty for no token
	// ReadToken allows only to read the metrics and what is under QueuesPath; empty for none. If it is
	// set and Token is empty, all other requests are refused.
	ReadToken string
	Hosts     []string // host names that requests may use beside loopback ones; OPS_HOSTS
	Registry  *prometheus.Registry
	Checks    *Checks         // what /readyz shows; nil for none
	Stopping  <-chan struct{} // closed when the process begins to stop; nil for never
	Log       *slog.Logger

	// Extra handlers by path, such as "/queues": each serves its path and all
	// below it.
	Extra map[string]http.Handler
}

// Server is the operator's port.
type Server struct {
	http     *http.Server
	listener net.Listener
	cfg      Config
	routes   atomic.Pointer[http.Handler] // of the last Show
}

// Listen opens the port; an error where it is taken. Serve or Shutdown must follow.
func Listen(ctx context.Context, cfg Config) (*Server, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("open the operator's port %s (OPS_ADDR chooses another, host:port): %w", cfg.Addr, err)
	}
	s := &Server{listener: listener, cfg: cfg}
	s.http = &http.Server{
		Handler:           http.MaxBytesHandler(http.HandlerFunc(s.answer), maxBody),
		ReadHeaderTimeout: headerTimeout,
		WriteTimeout:      answerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(cfg.Log.Handler(), slog.LevelWarn),
	}
	s.Show(cfg.Checks, cfg.Extra)
	return s, nil
}

// Show replaces the checks and the extra handlers. A process opens the port before it has the
// stores that they ask.
func (s *Server) Show(checks *Checks, extra map[string]http.Handler) {
	cfg := s.cfg
	cfg.Checks, cfg.Extra = checks, extra
	handler := routes(cfg)
	s.routes.Store(&handler)
}

func (s *Server) answer(w http.ResponseWriter, r *http.Request) {
	(*s.routes.Load()).ServeHTTP(w, r)
}

// Addr returns the address, with the port that the system chose for port 0.
func (s *Server) Addr() string {
	return s.listener.Addr().String()
}

// Serve answers until Shutdown; then it returns nil.
func (s *Server) Serve() error {
	if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the operator's port %s: %w", s.Addr(), err)
	}
	return nil
}

// Shutdown closes the port. Answers in progress may finish until ctx ends; then Shutdown closes their
// connections.
func (s *Server) Shutdown(ctx context.Context) error {
	defer s.listener.Close() //nolint:errcheck // Shutdown has closed it, unless Serve never ran
	if err := s.http.Shutdown(ctx); err != nil {
		return errors.Join(fmt.Errorf("shut down the operator's port: %w", err), s.http.Close())
	}
	return nil
}

// Close closes the port and its connections at once.
func (s *Server) Close() {
	_ = s.http.Close()
	_ = s.listener.Close() // http has closed it, unless Serve never ran
}

func routes(cfg Config) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", answerLive)
	mux.Handle("GET /readyz", readyHandler{checks: cfg.Checks, stopping: cfg.Stopping})
	hasToken := cfg.Token != "" || cfg.ReadToken != ""
	mux.Handle("/", requireHost(hasToken, cfg.Hosts, refuseFrames(requireToken(cfg.Token, cfg.ReadToken, protectedRoutes(cfg)))))
	return mux
}

// protectedRoutes also refuses requests that pages of other sites make in the operator's browser: the
// browser adds the password by itself, and asynqmon deletes tasks on request.
func protectedRoutes(cfg Config) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metricsHandler(cfg))
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("POST /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	levelRoutes(mux, cfg.Log)
	for path, handler := range cfg.Extra {
		mux.Handle(path, handler)
		mux.Handle(path+"/", handler)
	}
	return http.NewCrossOriginProtection().Handler(mux)
}

// metricsHandler shows what it could collect, also where a collector failed. It logs the reason.
func metricsHandler(cfg Config) http.Handler {
	return promhttp.HandlerFor(cfg.Registry, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(cfg.Log.Handler(), slog.LevelWarn),
		ErrorHandling:       promhttp.ContinueOnError,
		Registry:            cfg.Registry,
		MaxRequestsInFlight: maxScrapes,
		Timeout:             metricsTimeout,
		EnableOpenMetrics:   true,
	})
}
