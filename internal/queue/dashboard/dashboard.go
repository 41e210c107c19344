// Package dashboard serves Asynq's dashboard of the queues. Its promise: the browser loads nothing
// from other hosts, and without Write no request changes anything.
//
// An action of an operator costs jobs only time. A task says that an account has jobs, and nothing
// else, and the sweep finds the jobs of a task that is deleted, archived or run twice.
package dashboard

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"mime"
	"net/http"
	"path"
	"regexp"
	"strings"

	"github.com/hibiken/asynqmon"
	"github.com/redis/go-redis/v9"
)

// Config says what the dashboard shows, and to whom.
type Config struct {
	Path string // where it is served, such as "/queues"
	// Redis is the worker's own client. A client that Asynq makes from a URL ignores the ACL user, the
	// parameters and the default port. Own is the same client, but lists only this installation's queues.
	Redis, Own redis.UniversalClient
	// Write allows to pause queues, and to delete, archive and run tasks.
	Write bool
	// MayOnlyLook is true for a request that may change nothing in spite of Write; nil for none.
	MayOnlyLook func(*http.Request) bool
	Log         *slog.Logger
}

// New makes the dashboard. The operator's port checks the token, not the dashboard. New returns an
// error if Asynq's page has another form than this package expects.
func New(cfg Config) (http.Handler, error) {
	looking, err := newSite(cfg, true)
	if err != nil || !cfg.Write {
		return looking, err
	}
	writing, err := newSite(cfg, false)
	if err != nil {
		return nil, err
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if cfg.MayOnlyLook != nil && cfg.MayOnlyLook(r) {
			looking.ServeHTTP(w, r)
			return
		}
		writing.ServeHTTP(w, r)
	}), nil
}

// site serves Asynq's dashboard, and this package's version of its page.
type site struct {
	path  string
	asynq http.Handler
	page  []byte // with nonceMark
	log   *slog.Logger
}

func newSite(cfg Config, readOnly bool) (http.Handler, error) {
	s := &site{path: cfg.Path, log: cfg.Log, asynq: asynqmon.New(asynqmon.Options{
		RootPath: cfg.Path, RedisConnOpt: &clients{next: []redis.UniversalClient{cfg.Redis, cfg.Own}}, ReadOnly: readOnly,
	})}
	request, err := http.NewRequest(http.MethodGet, cfg.Path+"/", http.NoBody) //nolint:noctx // it goes nowhere
	if err != nil {
		return nil, err
	}
	var answer recorder
	s.asynq.ServeHTTP(&answer, request)
	if s.page, err = rewrite(answer.body.String(), cfg.Path); err != nil {
		return nil, fmt.Errorf("asynqmon's page: %w", err)
	}
	return s, nil
}

// clients gives asynqmon its two clients. It shows Redis's own figures with the first, which must have a
// type of go-redis, and reads the queues with the second.
type clients struct{ next []redis.UniversalClient }

// MakeRedisClient returns the next client.
func (c *clients) MakeRedisClient() any {
	client := c.next[0]
	if len(c.next) > 1 {
		c.next = c.next[1:]
	}
	return client
}

// ServeHTTP answers with Asynq's data and files, and otherwise with the page.
func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Referrer-Policy", "no-referrer")
	name := strings.TrimPrefix(r.URL.Path, s.path)
	switch {
	case strings.HasPrefix(name, "/api/"):
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		s.answer(w, r)
	case strings.HasPrefix(name, "/fonts/"):
		serveFont(w, r, strings.TrimPrefix(name, "/fonts/"))
	case isFile[path.Ext(name)]: // queues and tasks have dots in their names too
		w.Header().Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		s.asynq.ServeHTTP(&typed{ResponseWriter: w, contentType: mime.TypeByExtension(path.Ext(name))}, r)
	default:
		s.servePage(w)
	}
}

// isFile has the extensions of Asynq's files.
var isFile = map[string]bool{".js": true, ".map": true, ".svg": true, ".png": true, ".ico": true, ".json": true, ".txt": true}

// answer answers a request for data, or for an action, which it logs.
func (s *site) answer(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		s.asynq.ServeHTTP(w, r)
		return
	}
	answered := &counted{ResponseWriter: w, status: http.StatusOK}
	s.asynq.ServeHTTP(answered, r)
	s.log.Warn("action on the dashboard", "method", r.Method, "path", r.URL.Path, "status", answered.status, "remote_addr", r.RemoteAddr)
}

// policy lets the page load this port's files alone, and run the scripts and styles that have the
// page's nonce. %[1]s is the nonce.
const policy = "default-src 'none'; script-src 'nonce-%[1]s'; style-src 'self' 'nonce-%[1]s'; img-src 'self' data:; font-src 'self'; " +
	"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

func (s *site) servePage(w http.ResponseWriter) {
	nonce := rand.Text()
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Security-Policy", fmt.Sprintf(policy, nonce))
	_, _ = w.Write(bytes.ReplaceAll(s.page, []byte(nonceMark), []byte(nonce))) //nolint:gosec // the page is the binary's own; it fails where the client went away
}

// nonceMark stands in the page where each answer puts its own nonce.
const nonceMark = "PASSBOOK-NONCE"

var (
	foreign  = regexp.MustCompile(`<link rel="stylesheet" href="https://[^"]*"/>`)
	manifest = regexp.MustCompile(`<link rel="manifest"[^>]*>`) // a browser fetches it without the password
)

// rewrite replaces what the page loads from other hosts, and adds nonces to its scripts. The page's
// style library reads the nonce from the meta element.
func rewrite(page, root string) ([]byte, error) {
	const head, script = "<head>", "<script"
	if !strings.Contains(page, head) || !strings.Contains(page, script) || !foreign.MatchString(page) {
		return nil, errors.New("has another form")
	}
	page = foreign.ReplaceAllString(page, "")
	page = manifest.ReplaceAllString(page, "")
	page = strings.ReplaceAll(page, script, script+` nonce="`+nonceMark+`"`)
	page = strings.Replace(page, head, head+`<meta property="csp-nonce" content="`+nonceMark+`"/>`+
		`<link rel="stylesheet" href="`+root+`/fonts/roboto.css"/>`, 1)
	if strings.Contains(page, "://") {
		return nil, errors.New("loads something from elsewhere")
	}
	return []byte(page), nil
}

// recorder keeps an answer.
type recorder struct {
	header http.Header
	body   bytes.Buffer
}

// Header returns the answer's header.
func (r *recorder) Header() http.Header {
	if r.header == nil {
		r.header = http.Header{}
	}
	return r.header
}

// Write keeps a part of the answer.
func (r *recorder) Write(part []byte) (int, error) { return r.body.Write(part) }

// WriteHeader does nothing.
func (r *recorder) WriteHeader(int) {}

// typed sets a file's Content-Type. Asynq's guess declares pictures as text.
type typed struct {
	http.ResponseWriter
	contentType string
}

// Write writes a part of the file.
func (t *typed) Write(part []byte) (int, error) {
	if t.contentType != "" {
		t.Header().Set("Content-Type", t.contentType)
		t.contentType = ""
	}
	return t.ResponseWriter.Write(part)
}

// counted keeps the status of an answer.
type counted struct {
	http.ResponseWriter
	status int
}

// WriteHeader writes the status.
func (c *counted) WriteHeader(status int) {
	c.status = status
	c.ResponseWriter.WriteHeader(status)
}
