package e2e_test

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"sync"
	"testing"
)

// balancer is a load balancer: it spreads requests over the APIs in its
// rotation. It hides nothing: where an API does not answer, the client sees 502.
type balancer struct {
	url       string
	transport *http.Transport

	mu       sync.Mutex // guards the rest
	rotation []*backend
	next     int
}

type backend struct {
	addr     string
	inFlight sync.WaitGroup
	served   int // guarded by the balancer's mu
}

func newBalancer(t *testing.T) *balancer {
	t.Helper()
	const connections = 64
	b := &balancer{transport: &http.Transport{MaxIdleConnsPerHost: connections}}
	server := httptest.NewServer(b)
	t.Cleanup(func() {
		server.Close()
		b.transport.CloseIdleConnections()
	})
	b.url = server.URL
	return b
}

func (b *balancer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	api := b.choose()
	defer api.inFlight.Done()
	proxy := httputil.ReverseProxy{
		Transport: b.transport,
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: api.addr}) },
	}
	proxy.ServeHTTP(w, r)
}

func (b *balancer) choose() *backend {
	b.mu.Lock()
	defer b.mu.Unlock()
	api := b.rotation[b.next%len(b.rotation)]
	b.next++
	api.served++
	api.inFlight.Add(1)
	return api
}

func (b *balancer) add(addr string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rotation = append(b.rotation, &backend{addr: addr})
}

// remove takes an API out of the rotation, and returns when it has answered all
// that it was sent.
func (b *balancer) remove(addr string) {
	b.mu.Lock()
	n := slices.IndexFunc(b.rotation, func(api *backend) bool { return api.addr == addr })
	api := b.rotation[n]
	b.rotation = slices.Delete(b.rotation, n, n+1)
	b.mu.Unlock()
	api.inFlight.Wait()
}

// resetServed returns how many requests each API had since the last call.
func (b *balancer) resetServed() map[string]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	served := map[string]int{}
	for _, api := range b.rotation {
		served[api.addr], api.served = api.served, 0
	}
	return served
}
