package local

import (
	"context"
	"fmt"
	"os"
	"syscall"
)

// ProgramConfig is a program to run beside the servers.
type ProgramConfig struct {
	Name    string // for messages
	Command []string
	Env     []string
	Output  *os.File
}

// Program is a program that runs under a supervisor, as the servers do: it ends with
// this process, and Ctrl-C in the terminal does not reach it.
type Program struct {
	name    string
	process *process
}

// StartProgram starts a program and does not wait for it. The program runs until Stop,
// also after ctx has ended.
func StartProgram(ctx context.Context, cfg ProgramConfig) (*Program, error) {
	s := supervised{command: cfg.Command, env: cfg.Env, output: cfg.Output, stop: syscall.SIGTERM}
	p, err := s.start(ctx)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", cfg.Name, err)
	}
	return &Program{name: cfg.Name, process: p}, nil
}

// Stop asks the program to end in order and waits for it. When ctx ends first
// the program is killed, and that is an error.
func (p *Program) Stop(ctx context.Context) error {
	if err := p.process.end(ctx, syscall.SIGTERM, syscall.SIGKILL); err != nil {
		return fmt.Errorf("stop %s: %w", p.name, err)
	}
	return nil
}

// Done is closed when the program has ended.
func (p *Program) Done() <-chan struct{} { return p.process.done }

// Wait waits for the program to end by itself. An exit status other than 0 is
// an error; so is the end of ctx, which stops the program.
func (p *Program) Wait(ctx context.Context) error {
	select {
	case <-p.process.done:
	case <-ctx.Done():
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), killWait)
		defer cancel()
		_ = p.Stop(stop)
		return ctx.Err()
	}
	if p.process.err != nil {
		return fmt.Errorf("%s: %w", p.name, p.process.err)
	}
	return nil
}
