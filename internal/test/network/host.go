package network

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/passbook/passbook/internal/test/local"
)

// Host is a network namespace with one address.
type Host struct {
	Name string
	At   *local.Host // for what runs on it

	run func(func()) // calls a function on a thread that is in the namespace
	end func()       // ends that thread; the kernel then ends what it started
	tun *os.File     // what the host sends and receives
}

func (h *Host) String() string { return h.Name }

// newHost makes a namespace, which one thread enters for good.
func newHost(name string) (*Host, error) {
	work, made := make(chan func()), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, so the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		made <- err
		if err != nil {
			return
		}
		for do := range work {
			do()
		}
	}()
	run := func(do func()) {
		done := make(chan struct{})
		work <- func() {
			defer close(done)
			do()
		}
		<-done
	}
	return &Host{Name: name, run: run, end: func() { close(work) }}, <-made
}

const device = "net0"

// connect makes the host's link, and gives it the address.
func (h *Host) connect(ctx context.Context, address netip.Prefix) (err error) {
	h.At = &local.Host{Address: address.Addr().String(), Run: h.run}
	h.run(func() { h.tun, err = openTUN() })
	if err != nil {
		return err
	}
	return h.ip(ctx, "link set lo up", fmt.Sprintf("link set %s up mtu %d", device, mtu), fmt.Sprintf("addr add %s dev %s", address, device))
}

// ip has iproute2 do something on the host.
func (h *Host) ip(ctx context.Context, lines ...string) error {
	cmd := exec.CommandContext(ctx, "ip", "-batch", "-")
	var output bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(strings.Join(lines, "\n")+"\n"), &output, &output
	if err := h.At.Start(cmd); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("ip: %w: %s", err, output.String())
	}
	return nil
}

// openTUN makes a TUN device in the thread's namespace. It goes when the file is closed.
func openTUN() (*os.File, error) {
	const path = "/dev/net/tun"
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s, which the kernel's TUN driver serves: %w", path, err)
	}
	request, err := unix.NewIfreq(device)
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err == nil {
		err = unix.SetNonblock(fd, true) // so that Close ends a Read
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("make a TUN device: %w", err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// receive gives the host a packet. One that its kernel does not take is lost.
func (h *Host) receive(data []byte) { _, _ = h.tun.Write(data) }
