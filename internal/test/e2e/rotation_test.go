package e2e_test

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
)

// Two keys as JWT_KEYS has them.
const (
	oldKey = "old:b2xkIGtleSBvZiAzMiBieXRlcyBmb3IgYSB0ZXN0IDE="
	newKey = "new:bmV3IGtleSBvZiAzMiBieXRlcyBmb3IgYSB0ZXN0IDI="
)

// The keys of two APIs are replaced under load, as docs/operations.md says, one API after the other.
// Every token and every cursor goes on being good at both APIs, until its key is removed: no client
// is signed out.
func TestKeyRotation(t *testing.T) {
	t.Parallel()
	r := newRotation(t)
	var w responseCheck
	r.c.watch = w.see
	first := r.logIn(r.c)
	r.wantKey(first, "old")
	cursor := r.cursor(r.c.with(first.Access))
	const clients = 2
	atWork := startLoad(r.c.with(first.Access), clients)
	step := func(keys ...string) {
		t.Helper()
		for n := range r.apis {
			r.replaceAPI(n, keys)
			r.passTokens()
			for _, api := range r.apis {
				r.at(api, first.Access).must(http.StatusOK, http.MethodGet, cursor, nil, nil)
			}
			r.awaitServed(&w)
		}
	}

	step(oldKey, newKey)
	r.wantKey(r.logIn(r.c), "old") // which an API that does not know the new key accepts
	step(newKey, oldKey)

	// By now all tokens of the old key have expired, so each client has another one.
	second := r.refresh(first)
	r.wantKey(second, "new")
	atWork.stop()
	afterwards := startLoad(r.c.with(second.Access), clients)
	for n := range r.apis {
		r.replaceAPI(n, []string{newKey})
		r.awaitServed(&w)
	}
	for _, api := range r.apis {
		r.at(api, first.Access).must(http.StatusUnauthorized, http.MethodGet, "/v1/users/me", nil, nil)
		r.at(api, second.Access).must(http.StatusBadRequest, http.MethodGet, cursor, nil, nil)
		r.at(api, second.Access).must(http.StatusOK, http.MethodGet, r.cursor(r.c.with(second.Access)), nil, nil)
	}
	afterwards.stop()
	r.refresh(second)
	w.check(t, patience)
}

// rotation is two APIs behind a load balancer, in the middle of a rotation of their keys.
type rotation struct {
	*system
	c        *client
	balancer *balancer
}

func newRotation(t *testing.T) *rotation {
	t.Helper()
	r := &rotation{system: newSystem(t, plain, 0, 1), balancer: newBalancer(t)}
	for range 2 {
		api := start(t, "api", r.with(oldKey))
		r.apis = append(r.apis, api)
		r.balancer.add(api.addr)
	}
	r.front = r.balancer.url
	r.c = newClient(t, r.system)
	return r
}

// with is the environment of a process with these keys.
func (r *rotation) with(keys ...string) []string {
	return append(r.env(), "JWT_KEYS="+strings.Join(keys, ","))
}

// replaceAPI does what an operator does: the new process enters the rotation when it is ready, the old
// one leaves it, and is stopped.
func (r *rotation) replaceAPI(n int, keys []string) {
	r.t.Helper()
	old := r.apis[n]
	r.apis[n] = start(r.t, "api", r.with(keys...))
	r.balancer.add(r.apis[n].addr)
	r.balancer.remove(old.addr)
	old.stop()
}

// at is a client of one API, past the balancer, which nothing watches.
func (r *rotation) at(api *process, token string) *client {
	c := *r.c
	c.system, c.token, c.watch = &system{t: r.t, front: "http://" + api.addr}, token, nil
	return &c
}

type tokenPair struct {
	Access  string `json:"access_token"`
	Refresh string `json:"refresh_token"`
}

func (r *rotation) logIn(c *client) (pair tokenPair) {
	r.t.Helper()
	c.must(http.StatusCreated, http.MethodPost, "/v1/sessions", c.user, &pair)
	return pair
}

func (r *rotation) refresh(pair tokenPair) (next tokenPair) {
	r.t.Helper()
	r.c.must(http.StatusCreated, http.MethodPost, "/v1/sessions/refresh", map[string]string{"refresh_token": pair.Refresh}, &next)
	return next
}

// passTokens logs in at each API, and uses and refreshes the tokens at the other.
func (r *rotation) passTokens() {
	r.t.Helper()
	for i, from := range r.apis {
		to := r.apis[(i+1)%len(r.apis)]
		pair := r.logIn(r.at(from, ""))
		r.at(to, pair.Access).must(http.StatusOK, http.MethodGet, "/v1/users/me", nil, nil)
		var next tokenPair
		r.at(to, "").must(http.StatusCreated, http.MethodPost, "/v1/sessions/refresh", map[string]string{"refresh_token": pair.Refresh}, &next)
		r.at(from, next.Access).must(http.StatusOK, http.MethodGet, "/v1/users/me", nil, nil)
	}
}

// cursor returns the path of the second page of a list.
func (r *rotation) cursor(c *client) string {
	r.t.Helper()
	c.open(0)
	c.open(0)
	var first page[account]
	c.must(http.StatusOK, http.MethodGet, "/v1/accounts?limit=1", nil, &first)
	return "/v1/accounts?limit=1&cursor=" + *first.NextCursor
}

// wantKey fails the test unless the key signed the access token.
func (r *rotation) wantKey(pair tokenPair, kid string) {
	r.t.Helper()
	var header struct {
		Kid string `json:"kid"`
	}
	head, _, _ := strings.Cut(pair.Access, ".")
	text, err := base64.RawURLEncoding.DecodeString(head)
	if err != nil || json.Unmarshal(text, &header) != nil || header.Kid != kid {
		r.t.Fatalf("the token is of key %q, want %q (%v)", header.Kid, kid, err)
	}
}

// awaitServed waits until clients have had jobs accepted, by each API some.
func (r *rotation) awaitServed(w *responseCheck) {
	r.t.Helper()
	const some = 20
	r.balancer.resetServed()
	w.awaitAccepted(r.t, some)
	served := r.balancer.resetServed()
	if len(served) != len(r.apis) {
		r.t.Errorf("%d APIs in the rotation, want %d", len(served), len(r.apis))
	}
	for _, api := range r.apis {
		if served[api.addr] == 0 {
			r.t.Errorf("API %s had no request", api.addr)
		}
	}
}
