package ops_test

import (
	"net/http"
	"testing"

	"github.com/passbook/passbook/internal/ops"
)

// A page whose name was made to resolve to this machine reads nothing here.
func TestHosts(t *testing.T) {
	const refused = http.StatusMisdirectedRequest
	extra := map[string]http.Handler{"/queues": http.HandlerFunc(answerPath)}
	open := serve(t, ops.Config{Hosts: []string{"ops.example"}, Extra: extra})
	guarded := serve(t, ops.Config{Hosts: []string{"ops.example"}, Token: token, Extra: extra})
	for host, want := range map[string]struct{ open, guarded int }{
		"localhost:9091":       {200, 200},
		"LOCALHOST":            {200, 200},
		"localhost.":           {200, 200},
		"a.localhost":          {200, 200},
		"127.0.0.1:9091":       {200, 200},
		"127.8.8.8":            {200, 200},
		"[::1]:9091":           {200, 200},
		"[::1]":                {200, 200},
		"ops.example:9091":     {200, 200},
		"OPS.example.":         {200, 200},
		"192.168.1.1:9091":     {refused, 200},
		"[2001:db8::1]:9091":   {refused, 200},
		"evil.example":         {refused, refused},
		"evil.example:9091":    {refused, refused},
		"localhost.evil":       {refused, refused},
		"127.0.0.1.evil.com":   {refused, refused},
		"evil-ops.example":     {refused, refused},
		"ops.example.evil.com": {refused, refused},
	} {
		t.Run(host, func(t *testing.T) {
			as := func(r *http.Request) { r.Host = host }
			for _, path := range []string{"/metrics", "/debug/pprof/cmdline", "/queues/api/queues"} {
				if answer := get(t, open+path, as); answer.status != want.open {
					t.Errorf("%s without a token: %d, want %d", path, answer.status, want.open)
				}
				if answer := get(t, guarded+path, as, authorization("Bearer "+token)); answer.status != want.guarded {
					t.Errorf("%s with the token: %d, want %d", path, answer.status, want.guarded)
				}
			}
			if answer := get(t, open+"/livez", as); answer.status != http.StatusOK { // a probe asks by any name
				t.Errorf("/livez: %d", answer.status)
			}
		})
	}
}

func TestFramesAreRefused(t *testing.T) {
	url := serve(t, ops.Config{Extra: map[string]http.Handler{"/queues": http.HandlerFunc(answerPath)}})
	for _, path := range []string{"/queues", "/queues/", "/debug/pprof/"} {
		header := get(t, url+path).header
		if header.Get("X-Frame-Options") != "DENY" || header.Get("Content-Security-Policy") != "frame-ancestors 'none'" {
			t.Errorf("%s may be framed: %v", path, header)
		}
	}
}
