package local

import (
	"os/exec"
)

// Host is where a test's server runs when that is not this process's network: a network namespace
// with one address. Nil is this process's own network, at 127.0.0.1.
type Host struct {
	Address string
	// Run calls a function on a thread that is in the namespace, and returns after it. The
	// processes that the function starts are in the namespace too.
	Run func(func())
}

func (h *Host) address() string {
	if h == nil {
		return "127.0.0.1"
	}
	return h.Address
}

// Start starts a command on the host.
func (h *Host) Start(cmd *exec.Cmd) (err error) {
	if h == nil {
		return cmd.Start()
	}
	h.Run(func() { err = cmd.Start() })
	return err
}
