package dashboard_test

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/passbook/passbook/internal/queue"
	"github.com/passbook/passbook/internal/queue/dashboard"
	"github.com/passbook/passbook/internal/test/testenv"
)

func TestMain(m *testing.M) {
	testenv.Main(m)
}

const root = "/queues"

// open makes a dashboard of all queues of a server.
func open(t *testing.T, client redis.UniversalClient, write bool, log *slog.Logger) http.Handler {
	t.Helper()
	handler, err := dashboard.New(dashboard.Config{
		Path: root, Redis: client, Own: client, Write: write, Log: log,
		MayOnlyLook: func(r *http.Request) bool { return r.Header.Get("X-Looks") != "" },
	})
	if err != nil {
		t.Fatal(err)
	}
	return handler
}

func connect(t *testing.T, url string) redis.UniversalClient {
	t.Helper()
	client, err := queue.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func ask(t *testing.T, handler http.Handler, method, path string, edits ...func(*http.Request)) *httptest.ResponseRecorder {
	t.Helper()
	request := httptest.NewRequestWithContext(t.Context(), method, root+path, http.NoBody)
	for _, edit := range edits {
		edit(request)
	}
	answer := httptest.NewRecorder()
	handler.ServeHTTP(answer, request)
	return answer
}

func enqueue(t *testing.T, client redis.UniversalClient, name string) {
	t.Helper()
	if _, err := asynq.NewClientFromRedisClient(client).Enqueue(asynq.NewTask("test", nil), asynq.Queue(name)); err != nil {
		t.Fatal(err)
	}
}

// The dashboard shows the database that the worker works with, whichever form of URL
// names it: an ACL user, a database in the query, defaults left out.
func TestDashboardSharesTheClient(t *testing.T) {
	t.Parallel()
	server, err := url.Parse(testenv.Redis(t))
	if err != nil {
		t.Fatal(err)
	}
	admin := connect(t, server.String())
	if err := admin.Do(t.Context(), "ACL", "SETUSER", "passbook", "on", ">acl-password", "~*", "&*", "+@all").Err(); err != nil {
		t.Fatal(err)
	}
	for name, address := range map[string]string{
		"ACLUser":         fmt.Sprintf("redis://passbook:acl-password@%s/1", server.Host),
		"DatabaseInQuery": fmt.Sprintf("redis://%s@%s?db=2", server.User, server.Host),
		"Parameters":      fmt.Sprintf("redis://%s@%s/3?protocol=2&pool_size=5", server.User, server.Host),
	} {
		t.Run(name, func(t *testing.T) {
			client := connect(t, address)
			own := strings.ToLower(name)
			enqueue(t, client, own)
			handler := open(t, client, false, slog.New(slog.DiscardHandler))
			answer := ask(t, handler, http.MethodGet, "/api/queues")
			if answer.Code != http.StatusOK || strings.Count(answer.Body.String(), `"queue":`) != 1 ||
				!strings.Contains(answer.Body.String(), `"queue":"`+own+`"`) {
				t.Errorf("%d %s", answer.Code, answer.Body)
			}
			if answer := ask(t, handler, http.MethodGet, "/api/redis_info"); answer.Code != http.StatusOK || !strings.Contains(answer.Body.String(), "redis_version") {
				t.Errorf("Redis's own figures: %d %s", answer.Code, answer.Body)
			}
		})
	}
}

// Without Write no request changes a queue. With it, one that may only look does not either. Each
// action is logged.
func TestWrite(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	enqueue(t, client, "q")
	looks := func(r *http.Request) { r.Header.Set("X-Looks", "1") }
	paused := func() bool {
		info, err := asynq.NewInspectorFromRedisClient(client).GetQueueInfo("q")
		if err != nil {
			t.Fatal(err)
		}
		return info.Paused
	}
	var log strings.Builder
	logger := slog.New(slog.NewTextHandler(&log, nil))
	readOnly, writable := open(t, client, false, logger), open(t, client, true, logger)
	const pause = "/api/queues/q:pause"
	for name, refused := range map[string]*httptest.ResponseRecorder{
		"Pause":      ask(t, readOnly, http.MethodPost, pause),
		"Delete":     ask(t, readOnly, http.MethodDelete, "/api/queues/q"),
		"DeleteAll":  ask(t, readOnly, http.MethodDelete, "/api/queues/q/pending_tasks:delete_all"),
		"Other":      ask(t, readOnly, "PURGE", pause),
		"PauseLooks": ask(t, writable, http.MethodPost, pause, looks),
	} {
		if refused.Code != http.StatusMethodNotAllowed || paused() {
			t.Errorf("%s: %d %s", name, refused.Code, refused.Body)
		}
	}
	if page := ask(t, readOnly, http.MethodGet, "/").Body.String(); !strings.Contains(page, `window.FLAG_READ_ONLY="true"`) {
		t.Errorf("the page offers actions: %s", page)
	}
	if page := ask(t, writable, http.MethodGet, "/", looks).Body.String(); !strings.Contains(page, `window.FLAG_READ_ONLY="true"`) {
		t.Errorf("the page offers actions to one that looks: %s", page)
	}
	if page := ask(t, writable, http.MethodGet, "/").Body.String(); !strings.Contains(page, `window.FLAG_READ_ONLY="false"`) {
		t.Errorf("the page offers no action: %s", page)
	}
	if answer := ask(t, writable, http.MethodPost, pause); answer.Code != http.StatusNoContent || !paused() {
		t.Errorf("pause: %d %s", answer.Code, answer.Body)
	}
	if !strings.Contains(log.String(), "method=POST path=/queues/api/queues/q:pause status=204") {
		t.Errorf("logged %s", log.String())
	}
}

// The page and its files name nothing elsewhere that a browser would load, and the page's policy
// forbids it. The scripts of two answers have different nonces.
func TestNothingFromElsewhere(t *testing.T) {
	t.Parallel()
	handler := open(t, connect(t, "redis://127.0.0.1:1"), false, slog.New(slog.DiscardHandler))
	nonces := map[string]bool{}
	nonce := regexp.MustCompile(`'nonce-([A-Z2-7]{26})'`)
	for _, path := range []string{"", "/", "/queues/a.png.b:tx:1", "/queues/test:tx:1", "/servers", "/queues/test:tx:1/tasks/0197c1f2-6d3a-7b41-9c55-2f8e4d10a6b3.1"} {
		answer := ask(t, handler, http.MethodGet, path)
		policy, page := answer.Header().Get("Content-Security-Policy"), answer.Body.String()
		found := nonce.FindStringSubmatch(policy)
		if len(found) == 0 || nonces[found[1]] || strings.Contains(policy, "unsafe") || strings.Contains(policy, "http") ||
			!strings.Contains(policy, "default-src 'none'") || !strings.Contains(policy, "frame-ancestors 'none'") {
			t.Fatalf("%q: policy %q", path, policy)
		}
		nonces[found[1]] = true
		if strings.Contains(page, "://") || strings.Count(page, "<script") != strings.Count(page, `<script nonce="`+found[1]+`"`) || !strings.Contains(page, `content="`+found[1]+`"`) {
			t.Errorf("%q: the page is\n%s", path, page)
		}
		if got := answer.Header().Get("Content-Type"); got != "text/html; charset=utf-8" || answer.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%q: %v", path, answer.Header())
		}
	}
	page := ask(t, handler, http.MethodGet, "/").Body.String()
	files := regexp.MustCompile(`(?:src|href)="`+root+`([^"]*)"`).FindAllStringSubmatch(page, -1)
	if len(files) < 6 {
		t.Fatalf("the page loads %v", files)
	}
	for _, file := range append(files, []string{"", "/fonts/roboto-latin-400-normal.woff2"}, []string{"", "/fonts/LICENSE"}, []string{"", "/static/media/logo-color.c2b0c1f3.svg"}) {
		answer := ask(t, handler, http.MethodGet, file[1])
		if answer.Code != http.StatusOK || answer.Body.Len() == 0 || strings.HasPrefix(answer.Header().Get("Content-Type"), "text/html") ||
			answer.Header().Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: %d %v", file[1], answer.Code, answer.Header())
		}
	}
	for path, contentType := range map[string]string{
		"/fonts/roboto.css": "text/css; charset=utf-8", "/fonts/roboto-latin-700-normal.woff2": "font/woff2",
		"/static/media/logo-color.c2b0c1f3.svg": "image/svg+xml",
	} {
		if got := ask(t, handler, http.MethodGet, path).Header().Get("Content-Type"); got != contentType {
			t.Errorf("%s: %q, want %q", path, got, contentType)
		}
	}
	for _, path := range []string{"/fonts/", "/fonts/../fonts.go", "/fonts/nothing.woff2"} {
		if answer := ask(t, handler, http.MethodGet, path); answer.Code != http.StatusNotFound {
			t.Errorf("%s: %d", path, answer.Code)
		}
	}
	// A name that Asynq does not know gets its own page, which then may load nothing at all.
	answer := ask(t, handler, http.MethodGet, "/nothing.png")
	if policy := answer.Header().Get("Content-Security-Policy"); policy != "default-src 'none'; frame-ancestors 'none'" {
		t.Errorf("policy %q", policy)
	}
}
