package e2e_test

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// link is the network between one process and one store: a proxy that can be
// made to delay, cut, swallow and refuse.
type link struct {
	proxy *toxiproxy.Proxy
	busy  sync.Mutex // held by the fault that has the link in hand
	url   string     // the store's, through here
}

// newLink starts a proxy before the store at target, a URL.
func newLink(t testing.TB, name, target string) *link {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(prometheus.NewRegistry()), zerolog.Nop())
	proxy := toxiproxy.NewProxy(server, name, "127.0.0.1:0", u.Host)
	if err := proxy.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Stop)
	u.Host = proxy.Listen
	return &link{proxy: proxy, url: u.String()}
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

// spoil makes the link go bad in some ways; mend ends them all. Connections
// that a spoilt link has swallowed something of are cut when it is mended.
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

const mendWait = 20 * time.Second

// mend restarts the proxy, so that no connection keeps a toxic of before.
func (l *link) mend() error {
	l.proxy.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), mendWait)
	defer cancel()
	l.proxy.Toxics.ResetToxics(ctx)
	return l.proxy.Start()
}

// refuse takes no connections any more and cuts those that are there.
func (l *link) refuse() { l.proxy.Stop() }
