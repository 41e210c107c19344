// Package ops is the operator's side of a process: its log, its metrics, and
// the port that shows them. Its promise: where a token is set, nothing but
// health is shown without it, and health never tells why.
package ops

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Bounds on what one caller of the operator's port may take. There is none on
// reading a body: net/http would end a long profile with it.
const (
	headerTimeout  = 5 * time.Second
	answerTimeout  = 30 * time.Second // pprof adds the seconds that it was asked for
	idleTimeout    = time.Minute
	metricsTimeout = 10 * time.Second // some collectors ask Postgres or Redis
	maxHeader      = 16 << 10         // bytes
	maxBody        = 1 << 20          // bytes
	maxScrapes     = 4                // at once
)

// Config says what the operator's port shows, and to whom.
type Config struct {
	Addr     string   // host:port; OPS_ADDR
	Token    string   // asked for on everything but health; nobody is asked where it is empty
	Hosts    []string // host names that are answered beside loopback ones; OPS_HOSTS
	Registry *prometheus.Registry
	Checks   []Check         // what /readyz asks
	Stopping <-chan struct{} // closed when the process was told to stop; nil for never
	Log      *slog.Logger

	// Extra handlers by path, such as "/queues": each serves its path and all
	// below it.
	Extra map[string]http.Handler
}

// Server is the operator's port.
type Server struct {
	http     *http.Server
	listener net.Listener
}

// Listen opens the port, so that one that can't be had is an error now. Serve
// must follow, or Shutdown.
func Listen(ctx context.Context, cfg Config) (*Server, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("open the operator's port %s (OPS_ADDR chooses another, host:port): %w", cfg.Addr, err)
	}
	return &Server{
		http: &http.Server{
			Handler:           http.MaxBytesHandler(routes(cfg), maxBody),
			ReadHeaderTimeout: headerTimeout,
			WriteTimeout:      answerTimeout,
			IdleTimeout:       idleTimeout,
			MaxHeaderBytes:    maxHeader,
			ErrorLog:          slog.NewLogLogger(cfg.Log.Handler(), slog.LevelWarn),
		},
		listener: listener,
	}, nil
}

// Addr is where the port is, with the port that the system chose for port 0.
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

// Shutdown closes the port, lets answers under way finish until ctx ends, and
// cuts off the rest.
func (s *Server) Shutdown(ctx context.Context) error {
	defer s.listener.Close() //nolint:errcheck // Shutdown has closed it, unless Serve never ran
	if err := s.http.Shutdown(ctx); err != nil {
		return errors.Join(fmt.Errorf("shut down the operator's port: %w", err), s.http.Close())
	}
	return nil
}

func routes(cfg Config) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", answerLive)
	mux.Handle("GET /readyz", readyHandler{checks: cfg.Checks, stopping: cfg.Stopping, log: cfg.Log})
	mux.Handle("/", guardHost(cfg.Token != "", cfg.Hosts, refuseFrames(guard(cfg.Token, guardedRoutes(cfg)))))
	return mux
}

// guardedRoutes also keep out what other sites' pages send from the operator's
// browser: it adds the password by itself, and asynqmon deletes on request.
func guardedRoutes(cfg Config) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metricsHandler(cfg))
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("POST /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	for path, handler := range cfg.Extra {
		mux.Handle(path, handler)
		mux.Handle(path+"/", handler)
	}
	return http.NewCrossOriginProtection().Handler(mux)
}

// metricsHandler shows what could be collected, also where a collector failed;
// why it failed goes to the log.
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
