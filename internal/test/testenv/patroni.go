package testenv

import (
	"crypto/rand"
	"fmt"
	"testing"
	"time"

	"github.com/passbook/passbook/internal/test/local"
	"github.com/passbook/passbook/migrations"
)

const (
	etcdMembers = 3
	// patroniWait bounds a step of Patroni's: a node copies the primary's data, or rewinds its own.
	patroniWait = time.Minute
)

// Patroni is two Postgres servers under Patroni, a primary and its synchronous standby. Their
// database has the whole schema.
type Patroni struct {
	t     testing.TB
	etcd  []*local.Etcd
	nodes [2]*local.Patroni
}

// PostgresPatroni starts the servers with a configuration of Patroni's, and stops them when the test
// ends.
func PostgresPatroni(t testing.TB, file string) *Patroni {
	t.Helper()
	p := &Patroni{t: t}
	var err error
	if p.etcd, err = local.StartEtcd(t.Context(), etcdMembers); err != nil {
		t.Fatalf("testenv: %v", err)
	}
	for _, e := range p.etcd {
		removeAfter(t, e.Remove)
	}
	password := rand.Text()
	for n := range p.nodes {
		p.nodes[n], err = local.StartPatroni(t.Context(), local.PatroniConfig{
			Name: fmt.Sprintf("node%d", n+1), File: file, Etcd: p.etcd, Password: password,
		})
		if err != nil {
			t.Fatalf("testenv: %v", err)
		}
		removeAfter(t, p.nodes[n].Remove)
		if n == 0 {
			p.await(n, "primary")
		}
	}
	if _, err := migrations.Up(t.Context(), p.nodes[0].URL()); err != nil {
		t.Fatalf("testenv: %v", err)
	}
	p.AwaitStandby(1)
	return p
}

// URL names both servers, and finds the one that takes writes.
func (p *Patroni) URL() string { return EitherURL(p.t, p.nodes[0].URL(), p.nodes[1].URL()) }

// Primary is the number of the node that is the primary, 0 or 1.
func (p *Patroni) Primary() int {
	p.t.Helper()
	primary := 0
	eventuallyIn(p.t, patroniWait, "a primary", func() bool {
		primary = 0
		if p.nodes[1].Is(p.t.Context(), "primary") {
			primary = 1
		}
		return p.nodes[primary].Is(p.t.Context(), "primary")
	})
	return primary
}

// AwaitPrimary waits until a node is the primary.
func (p *Patroni) AwaitPrimary(n int) { p.t.Helper(); p.await(n, "primary") }

// AwaitStandby waits until a node is the synchronous standby: every commit waits for it, and it may
// be promoted.
func (p *Patroni) AwaitStandby(n int) { p.t.Helper(); p.await(n, "sync") }

func (p *Patroni) await(n int, role string) {
	p.t.Helper()
	eventuallyIn(p.t, patroniWait, fmt.Sprintf("node %d is %s", n+1, role), func() bool { return p.nodes[n].Is(p.t.Context(), role) })
}

// KillPostgres kills a node's Postgres. Patroni lives, and starts it again.
func (p *Patroni) KillPostgres(n int) (back func()) {
	p.t.Helper()
	if err := p.nodes[n].KillPostgres(); err != nil {
		p.t.Fatalf("testenv: %v", err)
	}
	return func() {}
}

// KillHost kills everything of a node, with a member of etcd; back starts them again.
func (p *Patroni) KillHost(n int) (back func()) {
	p.t.Helper()
	for _, kill := range []func() error{p.nodes[n].KillAll, p.etcd[n].Kill} {
		if err := kill(); err != nil {
			p.t.Fatalf("testenv: %v", err)
		}
	}
	return func() {
		p.t.Helper()
		for _, start := range []func() error{
			func() error { return p.etcd[n].Restart(p.t.Context()) },
			func() error { return p.nodes[n].Restart(p.t.Context()) },
		} {
			if err := start(); err != nil {
				p.t.Fatalf("testenv: %v", err)
			}
		}
	}
}
