// Package network gives a test hosts: network namespaces with an address each, and a switch between
// them that can drop packets one way or both, lose some, and delay them.
//
// A host's only link is a TUN device, whose other end is in this process: the switch. So the faults
// need nothing of the kernel but TUN, and are silent, as a broken network is. The kernel removes
// namespaces and devices when their last process has ended, however that comes about.
package network

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Delay and Loss are what the network does to a host that is far away.
const (
	Delay = 100 * time.Millisecond // each way
	Loss  = 2                      // of a hundred packets
)

const (
	mtu        = 9000
	maxDelayed = 1 << 14 // packets; further ones are dropped, as a full queue drops them
	maxHosts   = 100
)

var subnet = netip.MustParsePrefix("10.77.0.0/24")

// Network is the switch and its hosts.
type Network struct {
	// Self is this process, from where the test reaches all hosts.
	Self *Host
	// What the faults have done to packets so far.
	Dropped, Lost, Delayed atomic.Int64

	t         testing.TB
	late      chan packet
	switching sync.WaitGroup

	mu     sync.Mutex           // guards the rest
	hosts  map[netip.Addr]*Host // by address
	parted map[way]int          // how many faults drop what goes that way
	far    map[*Host]int        // how many faults have the host far away
	random *rand.Rand
}

// way is from one host to another one.
type way struct{ from, to *Host }

// packet is on its way for longer than others.
type packet struct {
	to   *Host
	data []byte
	due  time.Time
}

// New makes a network without hosts. It fails the test where this process isn't root, or is in the
// same network namespace as its parent: addresses of the machine itself might be those of the test.
// The seed draws the packets that are lost.
func New(t testing.TB, seed uint64) *Network {
	t.Helper()
	if err := refuse(); err != nil {
		t.Fatalf("network: %v: run make hosts as root", err)
	}
	n := &Network{
		t: t, late: make(chan packet, maxDelayed),
		hosts: map[netip.Addr]*Host{}, parted: map[way]int{}, far: map[*Host]int{},
		random: rand.New(rand.NewPCG(seed, 2)), //nolint:gosec // a schedule of faults is no secret
	}
	var late sync.WaitGroup
	late.Go(n.deliverLate)
	t.Cleanup(func() {
		for _, h := range n.all() {
			_ = h.tun.Close() // ends its forward
		}
		n.switching.Wait()
		close(n.late)
		late.Wait()
	})
	n.Self = n.attach(&Host{Name: "the test", run: func(do func()) { do() }})
	return n
}

// refuse says why this process can't have hosts.
func refuse() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("network namespaces need root")
	}
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return err
	}
	parents, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", os.Getppid()))
	if err != nil {
		return err
	}
	if own == parents {
		return fmt.Errorf("this process is in the network of the machine")
	}
	return nil
}

// Host adds a host.
func (n *Network) Host(name string) *Host {
	n.t.Helper()
	h, err := newHost(name)
	if err != nil {
		n.t.Fatalf("network: host %s: %v", name, err)
	}
	n.t.Cleanup(h.end) // before the switch ends
	return n.attach(h)
}

// attach gives a host its address and its link to the switch.
func (n *Network) attach(h *Host) *Host {
	n.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.hosts) == maxHosts {
		n.t.Fatalf("network: more than %d hosts", maxHosts)
	}
	address := subnet.Addr()
	for range len(n.hosts) + 1 {
		address = address.Next()
	}
	if err := h.connect(context.WithoutCancel(n.t.Context()), netip.PrefixFrom(address, subnet.Bits())); err != nil {
		n.t.Fatalf("network: host %s: %v", h.Name, err)
	}
	n.hosts[address] = h
	n.switching.Go(func() { n.forward(h) })
	return h
}

func (n *Network) all() (all []*Host) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, h := range n.hosts {
		all = append(all, h)
	}
	return all
}

// Drop drops all that goes from one of the hosts to one of the others, until heal. Faults overlap:
// a way is open when all that dropped its packets have healed.
func (n *Network) Drop(from, to []*Host) (heal func()) {
	var ways []way
	for _, f := range from {
		for _, t := range to {
			if f != t {
				ways = append(ways, way{f, t})
			}
		}
	}
	n.change(ways, 1)
	return sync.OnceFunc(func() { n.change(ways, -1) })
}

// Part drops what goes between the hosts and the others, both ways.
func (n *Network) Part(some, others []*Host) (heal func()) {
	there, back := n.Drop(some, others), n.Drop(others, some)
	return func() {
		there()
		back()
	}
}

func (n *Network) change(ways []way, by int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, w := range ways {
		n.parted[w] += by
	}
}

// Far has the hosts far away from all others until near: Delay each way, and Loss.
func (n *Network) Far(hosts ...*Host) (near func()) {
	move := func(by int) {
		n.mu.Lock()
		defer n.mu.Unlock()
		for _, h := range hosts {
			n.far[h] += by
		}
	}
	move(1)
	return sync.OnceFunc(func() { move(-1) })
}

// forward is the switch for what a host sends.
func (n *Network) forward(from *Host) {
	buffer := make([]byte, mtu)
	for {
		size, err := from.tun.Read(buffer)
		if err != nil {
			return // closed: the test is over
		}
		switch to, late := n.route(from, buffer[:size]); {
		case to == nil:
		case late:
			n.Delayed.Add(1)
			select {
			case n.late <- packet{to, slices.Clone(buffer[:size]), time.Now().Add(Delay)}:
			default: // too many
			}
		default:
			to.receive(buffer[:size])
		}
	}
}

// route returns where a packet goes, which is nowhere if a fault takes it or there is no such host,
// and whether it comes there late.
func (n *Network) route(from *Host, data []byte) (to *Host, late bool) {
	const headerSize, destination = 20, 16 // of IPv4
	if len(data) < headerSize || data[0]>>4 != 4 {
		return nil, false
	}
	address, _ := netip.AddrFromSlice(data[destination : destination+4])
	n.mu.Lock()
	defer n.mu.Unlock()
	to = n.hosts[address]
	switch {
	case to == nil:
		return nil, false
	case n.parted[way{from, to}] > 0:
		n.Dropped.Add(1)
		return nil, false
	case n.far[from] == 0 && n.far[to] == 0:
		return to, false
	case n.random.IntN(100) < Loss:
		n.Lost.Add(1)
		return nil, false
	}
	return to, true
}

// deliverLate delivers the delayed packets in their order, which is that of their times: all have
// the same delay.
func (n *Network) deliverLate() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for p := range n.late {
		timer.Reset(time.Until(p.due))
		<-timer.C
		p.to.receive(p.data)
	}
}
