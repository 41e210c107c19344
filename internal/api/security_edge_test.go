package api

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/passbook/passbook/internal/ops"
)

// methodsOf returns the methods of each path of the contract, with HEAD where GET is.
func methodsOf(t *testing.T) map[string][]string {
	t.Helper()
	methods := map[string][]string{}
	for _, o := range operations(t) {
		methods[o.path] = append(methods[o.path], o.method)
		if o.method == http.MethodGet {
			methods[o.path] = append(methods[o.path], http.MethodHead)
		}
	}
	return methods
}

// A method that a path does not have is a 405 that names those it has, for every caller. A header or a
// parameter can't make one method of another.
func TestSecurity_OtherMethods(t *testing.T) {
	t.Parallel()
	s := start(t)
	v := newVictim(t, s)
	before, methods := v.state(), methodsOf(t)
	overrides := []string{
		"X-HTTP-Method-Override", http.MethodDelete, "X-HTTP-Method", http.MethodPut, "X-Method-Override", http.MethodPost,
	}
	for path, has := range methods {
		target := operation{path: path}.fill(v.theirs)
		slices.Sort(has)
		for _, method := range []string{
			http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions,
			http.MethodTrace, "PROPFIND", "PURGE", "DEBUG", "BREW", "get", "Post", "GETS",
		} {
			if slices.Contains(has, method) {
				continue
			}
			t.Run(method+" "+path, func(t *testing.T) {
				for _, c := range []client{v.in(t), s.anonymous(t)} {
					a := c.send(method, target, "", append([]string{"X-Secret", "not for the answer"}, overrides...)...).
						problemOf(http.StatusMethodNotAllowed, "method_not_allowed", method)
					allowed := strings.Split(a.header.Get("Allow"), ", ")
					if slices.Sort(allowed); !slices.Equal(allowed, has) {
						t.Errorf("Allow: %q, want %q", allowed, has)
					}
					if strings.Contains(a.String(), "not for the answer") {
						t.Errorf("the answer has a header of the request: %s", a)
					}
				}
			})
		}
	}
	for _, o := range secured(t) {
		if o.method == http.MethodGet && !slices.Contains(o.types, eventStream) {
			plain := o.request(t, v.theirs).withID()
			overridden := plain
			overridden.headers = append(overridden.headers, overrides...)
			if got, want := overridden.send(v.client), plain.send(v.client); got.status != want.status {
				t.Errorf("%s with other methods in its headers: got %s\nwant %s", o, got, want)
			}
		}
	}
	v.wantUnharmed(before)
}

// fill replaces the parameters of the path.
func (o operation) fill(these names) string {
	for name, value := range these {
		o.path = strings.ReplaceAll(o.path, "{"+name+"}", value)
	}
	return o.path
}

// Another spelling of a path leads past no check: without a token it opens nothing, and with
// another user's token nothing of the victim.
func TestSecurity_OtherPaths(t *testing.T) {
	t.Parallel()
	s := start(t)
	v, attacker := newVictim(t, s), s.user(t)
	before := v.state()
	for _, o := range secured(t) {
		if o.method == http.MethodHead {
			continue
		}
		t.Run(o.String(), func(t *testing.T) {
			target := o.fill(v.theirs)
			for _, spelling := range spellings(target) {
				request := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: h\r\nConnection: close\r\n", o.method, spelling)
				for name, token := range map[string]string{"Anonymous": "", "Attacker": attacker.token} {
					if !strings.Contains(o.path, "{") && token != "" {
						continue // it is the attacker's own
					}
					head := request
					if token != "" {
						head += "Authorization: Bearer " + token + "\r\n"
					}
					a := attacker.in(t).sendRaw(head + "\r\n") // fails for an answer that is no problem
					if a.status < http.StatusBadRequest || a.status >= http.StatusInternalServerError {
						t.Errorf("%s %s: got %s", name, spelling, a)
					}
				}
			}
		})
	}
	v.wantUnharmed(before)
}

// spellings are what a proxy, a router or a file system could take for the target.
func spellings(target string) []string {
	all := []string{
		target, target + "/", target + "//", "/" + target, target + "/.", target + "/..", target + "/x/..", target + "%2f", target + "%00",
		target + "%20", target + ";x=y", target + ".json", target + "#x", target + "%23", target + "%3f", target + "?", target + `\`, target + "~", target + "*",
		"/." + target, "/x/.." + target, "/%2e" + target, "/livez/.." + target, "/docs/.." + target, "/docs/..%2f" + target[1:],
		"/livez;" + target, `\` + target[1:], "http://h" + target, "https://evil.example" + target, "*" + target,
		strings.ToUpper(target), strings.Replace(target, "/v1/", "/V1/", 1), strings.Replace(target, "/v1/", "/v1//", 1),
		strings.Replace(target, "/v1/", "/v1/./", 1), strings.Replace(target, "/v1/", "/v1/x/../", 1), strings.Replace(target, "/v1/", "/v1%2f", 1),
		strings.Replace(target, "/v1/", "/v1/%2e%2e/v1/", 1), strings.Replace(target, "/v1/", "/v1/%252e%252e/v1/", 1),
		strings.Replace(target, "/v1/", "/%76%31/", 1), strings.Replace(target, "/v1/", "/v1;/", 1), strings.Replace(target, "/v1/", "/v2/", 1),
		strings.Replace(target, "/v1/", "/v0/", 1), strings.Replace(target, "/v1/", "/", 1), strings.Replace(target, "/v1/", "/api/v1/", 1),
		strings.Replace(target, "/v1/", "/internal/v1/", 1), strings.Replace(target, "/v1/", "/v1/admin/", 1),
	}
	last := strings.LastIndexByte(target, '/')
	return append(all, target[:last]+"%2f"+target[last+1:], target[:last]+"/%00"+target[last+1:], target[:last]+"/%"+fmt.Sprintf("%02x", target[last+1])+target[last+2:])
}

// The API's port has nothing that the contract does not have: nothing of an operator, of a build, of a
// version before, of a framework.
func TestSecurity_Inventory(t *testing.T) {
	t.Parallel()
	c := start(t).user(t)
	for _, target := range []string{
		"/", "/v0/accounts", "/v2/accounts", "/api", "/api/v1/accounts", "/admin", "/v1/admin", "/v1/users/all", "/v1/internal", "/metrics", "/debug/pprof/",
		"/debug/vars", "/queues", "/queues/", "/health", "/healthz", "/status", "/info", "/env", "/actuator", "/actuator/env", "/server-status",
		"/.env", "/.git/config", "/.git/HEAD", "/.well-known/openid-configuration", "/robots.txt", "/favicon.ico", "/swagger", "/swagger.json",
		"/swagger-ui.html", "/openapi", "/openapi.yml", "/docs/", "/docs/index.html", "/docs/swagger-ui/", "/docs/..%2fapi.go",
		"/docs/swagger-ui-bundle.js.map", "/graphql", "/console", "/phpinfo.php", "/wp-login.php", "/v1/jobs/replay", "/v1/accounts/x/freeze",
		"/v1/sessions/all", "/v1/users/me/roles", "/v1/users/me/password/reset",
	} {
		for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodDelete} {
			a := c.send(method, target, "")
			if a.status != http.StatusNotFound && a.status != http.StatusMethodNotAllowed {
				t.Errorf("%s %s: got %s", method, target, a)
			}
		}
	}
}

// No page of another site may read an answer, and no answer says which server or framework made it.
// What a client says of the host goes into no answer.
func TestSecurity_Origin(t *testing.T) {
	t.Parallel()
	const evil = "evil.example"
	s := start(t, func(set *settings) {
		set.checks = []ops.Check{{Name: "postgres", Required: true, Probe: func(context.Context) error { return nil }}}
	})
	v := newVictim(t, s)
	for _, o := range append(operations(t), operation{method: http.MethodGet, path: "/nowhere-at-all"}) {
		if slices.Contains(o.types, eventStream) {
			continue
		}
		t.Run(o.String(), func(t *testing.T) {
			c, p := v.in(t), o.request(t, v.theirs)
			headers := []string{
				"Origin", "https://" + evil, "Referer", "https://" + evil + "/page", "X-Forwarded-Host", evil, "X-Forwarded-Proto", "https",
				"Forwarded", "host=" + evil, "X-Original-URL", "/v1/users/me", "X-Rewrite-URL", "/v1/users/me", "X-Host", evil,
			}
			p.headers = append(p.headers, headers...)
			preflight := append([]string{"Access-Control-Request-Method", o.method, "Access-Control-Request-Headers", "authorization"}, headers...)
			asked, preflighted := p.send(c), c.send(http.MethodOptions, p.target, "", preflight...)
			if preflighted.status < http.StatusBadRequest {
				t.Errorf("a preflight got %s", preflighted)
			}
			hosted := c.sendRaw("GET " + p.target + queryMark(p.target) + "unknown=1 HTTP/1.1\r\nHost: " + evil + "\r\nAuthorization: Bearer " + v.token + "\r\n\r\n")
			for _, a := range []answer{asked, preflighted, hosted} {
				for name := range a.header {
					if strings.HasPrefix(name, "Access-Control-") || slices.Contains([]string{"Server", "Via", "X-Powered-By", "X-Aspnet-Version", "Set-Cookie"}, name) {
						t.Errorf("%s: %q", name, a.header.Values(name))
					}
				}
				if strings.Contains(a.String(), evil) {
					t.Errorf("the answer has the request's host: %s", a)
				}
			}
		})
	}
}
