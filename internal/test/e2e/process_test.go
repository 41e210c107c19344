package e2e_test

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/passbook/passbook/internal/test/local"
	"github.com/passbook/passbook/internal/test/testenv"
)

// patience bounds every wait for a process.
const patience = 30 * time.Second

// variant is one way to build the programs.
type variant struct {
	name   string   // empty is plain's
	source string   // the folder of the sources; empty is this repository
	flags  []string // for go build
}

// plain is the build that users run.
var plain = variant{}

// raced has the race detector, which multiplies what a program costs. The packages' own tests
// have it too, so of the whole system only TestChaos does.
var raced = variant{name: "raced", flags: []string{
	"-race", "-gcflags=golang.org/x/crypto/...=-race=false", // as in the Makefile: the two share what is compiled
}}

// builds has a function for each variant that returns the folder of its programs.
var builds sync.Map

// build builds the variant once and returns the folder of its programs. It waits for no build of
// another variant: without a cache one takes longer than a request waits for its job.
func (v variant) build() (string, error) {
	once, _ := builds.LoadOrStore(fmt.Sprint(v), sync.OnceValues(func() (string, error) {
		return testenv.Programs(repository, cmp.Or(v.name, "plain"), cmp.Or(v.source, repository), slices.Concat(v.flags, []string{"./cmd/api", "./cmd/worker"})...)
	}))
	return once.(func() (string, error))() // nothing else is stored
}

// launcher starts programs from one thread that lives as long as we do: the
// kernel kills them when that thread ends, so none survives the test process,
// whatever ends it.
var launcher = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go launch(work)
	return work
})

func launch(work <-chan func()) {
	runtime.LockOSThread()
	for do := range work {
		do()
	}
}

func startCommand(cmd *exec.Cmd) error { return startCommandOn(nil, cmd) }

// startCommandOn starts a program on a host of the test's network, whose thread is its launcher; nil
// is here.
func startCommandOn(host *local.Host, cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	if host != nil {
		return host.Start(cmd)
	}
	started := make(chan error)
	launcher() <- func() { started <- cmd.Start() }
	return <-started
}

// process is one of our programs, running.
type process struct {
	t     testing.TB
	name  string
	cmd   *exec.Cmd
	ready chan struct{} // closed when it said that it is
	done  chan struct{} // closed when it has ended
	err   error         // how; to be read after done

	mu      sync.Mutex // guards the rest
	addr    string     // of its API
	opsAddr string
	output  bytes.Buffer
}

// start starts a program and waits until it is ready.
func start(t testing.TB, name string, env []string) *process {
	t.Helper()
	return startVariant(t, plain, name, env)
}

// startVariant does the same with a program that was built in another way.
func startVariant(t testing.TB, v variant, name string, env []string) *process {
	t.Helper()
	p := beginVariant(t, v, name, env)
	p.awaitReady()
	return p
}

func (p *process) awaitReady() {
	p.t.Helper()
	select {
	case <-p.ready:
	case <-p.done:
		p.t.Fatalf("%s ended instead of starting: %v\n%s", p.name, p.err, p.log())
	case <-time.After(patience):
		p.t.Fatalf("%s did not get ready\n%s", p.name, p.log())
	}
}

func begin(t testing.TB, name string, env []string, args ...string) *process {
	t.Helper()
	return beginVariant(t, plain, name, env, args...)
}

func beginVariant(t testing.TB, v variant, name string, env []string, args ...string) *process {
	t.Helper()
	return beginVariantOn(t, nil, v, name, env, args...)
}

func beginVariantOn(t testing.TB, host *local.Host, v variant, name string, env []string, args ...string) *process {
	t.Helper()
	dir, err := v.build()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), filepath.Join(dir, name), args...)
	cmd.Env = env
	return beginCommandOn(t, host, name, cmd)
}

func beginCommand(t testing.TB, name string, cmd *exec.Cmd) *process {
	t.Helper()
	return beginCommandOn(t, nil, name, cmd)
}

func beginCommandOn(t testing.TB, host *local.Host, name string, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{t: t, name: name, cmd: cmd, ready: make(chan struct{}), done: make(chan struct{})}
	output, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stderr = p.cmd.Stdout
	if err := startCommandOn(host, p.cmd); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		p.read(bufio.NewScanner(output))
		p.err = p.cmd.Wait()
	}()
	t.Cleanup(p.kill)
	return p
}

// read keeps the program's log and takes from it what the test must know.
func (p *process) read(lines *bufio.Scanner) {
	for lines.Scan() {
		var line struct {
			Msg      string `json:"msg"`
			HTTPAddr string `json:"http_addr"`
			OpsAddr  string `json:"ops_addr"`
		}
		p.mu.Lock()
		fmt.Fprintln(&p.output, lines.Text())
		if json.Unmarshal(lines.Bytes(), &line) == nil {
			if line.OpsAddr != "" && p.opsAddr == "" {
				p.opsAddr = line.OpsAddr
			}
			if line.Msg == p.name+" ready" {
				p.addr = line.HTTPAddr
				close(p.ready)
			}
		}
		p.mu.Unlock()
	}
}

func (p *process) isReady() bool {
	select {
	case <-p.ready:
		return true
	default:
		return false
	}
}

// address is where the API answers; empty before it is ready.
func (p *process) address() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.addr
}

// operator is where the operator's port answers; empty before it is open.
func (p *process) operator() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.opsAddr == "" {
		return ""
	}
	return "http://" + p.opsAddr
}

func (p *process) log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.String()
}

// kill is kill -9.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // an error says that it is gone
	<-p.done
	if strings.Contains(p.log(), "WARNING: DATA RACE") {
		p.t.Errorf("%s has a data race:\n%s", p.name, p.log())
	}
}

// wait waits for the end that the program comes to by itself.
func (p *process) wait() error {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		p.t.Fatalf("%s did not end\n%s", p.name, p.log())
	}
	return p.err
}

// stop signals the process to stop and waits; it must exit with 0.
func (p *process) stop() {
	p.t.Helper()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	if err := p.wait(); err != nil {
		p.t.Errorf("%s stopped with %v\n%s", p.name, err, p.log())
	}
}
