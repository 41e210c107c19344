package e2e_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// link is the network between one process and one store: a proxy that can be
// made to delay, cut, swallow and refuse.
type link struct {
	proxy *toxiproxy.Proxy // the fault that holds busy may change it
	busy  sync.Mutex       // held by the fault that uses the link
	url   string           // the store's, through here
}

// newLink starts a proxy before the store at target, a URL.
func newLink(t testing.TB, name, target string) *link {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	l := &link{proxy: newProxy(name, lastingAddress(t), u.Host)}
	if err := l.listen(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.proxy.Stop() })
	u.Host = l.proxy.Listen
	l.url = u.String()
	return l
}

// lastingAddress is one that a proxy can leave and come back to: no connection
// gets its port meanwhile, as it may one that the kernel gives out.
func lastingAddress(t testing.TB) string {
	t.Helper()
	const tries, below = 100, 10000
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		t.Fatal(err)
	}
	var first, last int // of those that it gives out
	if _, err := fmt.Sscan(string(text), &first, &last); err != nil {
		t.Fatal(err)
	}
	var lc net.ListenConfig
	for range tries {
		address := fmt.Sprintf("127.0.0.1:%d", first-1-rand.IntN(min(below, first/2)))
		l, err := lc.Listen(t.Context(), "tcp4", address)
		if err == nil {
			_ = l.Close() // it was opened to find a free port
			return address
		}
	}
	t.Fatalf("none of %d ports below %d is free", tries, first)
	return ""
}

func newProxy(name, listen, store string) *toxiproxy.Proxy {
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(prometheus.NewRegistry()), zerolog.Nop())
	return toxiproxy.NewProxy(server, name, listen, store)
}

// toxic is one way in which a link goes bad. Its stream is upstream, to the
// store, or downstream, from it.
type toxic struct {
	kind, stream string
	attributes   string // JSON
}

// Ways in which a link goes bad.
var (
	slow = []toxic{
		{"latency", "upstream", `{"latency": 40, "jitter": 40}`},
		{"latency", "downstream", `{"latency": 40, "jitter": 40}`},
	}
	reset = []toxic{{"reset_peer", "upstream", `{"timeout": 0}`}}
	// Half-open: what we send arrives, no answer does.
	halfOpen = []toxic{{"timeout", "downstream", `{"timeout": 0}`}}
	// The store acts on what it was sent, then the connection is cut: COMMIT is
	// sent and never answered.
	cutBeforeAnswer = []toxic{{"timeout", "downstream", `{"timeout": 50}`}}
	blackhole       = []toxic{{"timeout", "upstream", `{"timeout": 0}`}, {"timeout", "downstream", `{"timeout": 0}`}}
)

// spoil adds faults to the link; repair ends them all. If a fault has swallowed bytes of
// a connection, repair closes the connection.
func (l *link) spoil(toxics []toxic) error {
	for _, toxic := range toxics {
		_, err := l.proxy.Toxics.AddToxicJson(strings.NewReader(fmt.Sprintf(`{"type": %q, "stream": %q, "attributes": %s}`,
			toxic.kind, toxic.stream, toxic.attributes)))
		if err != nil {
			return fmt.Errorf("spoil %s: %w", l.proxy.Name, err)
		}
	}
	return nil
}

// repair replaces the proxy: Toxiproxy takes seconds to remove a toxic from each
// connection from which no client reads any more.
func (l *link) repair() error {
	l.proxy.Stop()
	l.proxy = newProxy(l.proxy.Name, l.proxy.Listen, l.proxy.Upstream)
	if err := l.listen(); err != nil {
		return fmt.Errorf("repair %s: %w", l.proxy.Name, err)
	}
	return nil
}

// listen starts the proxy. Its address may still be in use, by a listener of our
// own that was closed: a program that is just being started has it too, from the
// fork to the exec.
func (l *link) listen() error {
	const patience, pause = 5 * time.Second, 10 * time.Millisecond
	for started := time.Now(); ; <-time.After(pause) {
		err := l.proxy.Start()
		if !errors.Is(err, syscall.EADDRINUSE) || time.Since(started) > patience {
			return err
		}
	}
}

// refuse takes no connections any more and cuts those that are there.
func (l *link) refuse() { l.proxy.Stop() }
