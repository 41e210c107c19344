//go:build mutants

package mutants_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// goTree is the repository as the go command sees it.
type goTree struct {
	folder     string
	temp       string  // where its processes leave what they leave
	programs   string  // where the programs of its tests are
	migrations string  // where these programs read the migrations
	plain      *goTree // which has the same programs; nil if they differ

	building sync.Mutex // lets the checkers of a package share a program
}

// openTemp makes a temporary folder that the servers' user can enter. t.TempDir's are closed to others.
func openTemp(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "passbook-mutants-") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Programs of tests read the migrations from the folder that migrationsVariable names. So a mutated migration
// needs no build: its tests run the programs of the baseline.
const (
	migrationsVariable = "PASSBOOK_MUTATED_MIGRATIONS"
	migrationsFile     = "migrations/migrations.go"
)

var readsMigrations = strings.NewReplacer(
	"//go:embed 0*.sql\nvar files embed.FS", "var files = os.DirFS(os.Getenv(\""+migrationsVariable+"\"))",
	"\t\"embed\"\n", "\t\"os\"\n",
)

// newTree makes a tree of the repository with some files replaced.
func newTree(t *testing.T, texts map[string]string) *goTree {
	t.Helper()
	folder, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	g := &goTree{folder: folder, programs: t.TempDir(), migrations: t.TempDir()}
	replace := map[string]string{}
	for file, text := range texts {
		replaced := filepath.Join(g.programs, strings.ReplaceAll(file, "/", "-"))
		write(t, replaced, text)
		replace[filepath.Join(folder, file)] = replaced
	}
	g.writeOverlay(t, system, replace)
	replaced := filepath.Join(g.programs, "migrations.go")
	write(t, replaced, readsMigrations.Replace(read(t, migrationsFile)))
	replace[filepath.Join(folder, migrationsFile)] = replaced
	g.writeOverlay(t, "", replace)
	migrations, err := filepath.Glob(filepath.Join(folder, "migrations", "0*.sql"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range migrations {
		file := "migrations/" + filepath.Base(path)
		text, ok := texts[file]
		if !ok {
			text = read(t, file)
		}
		write(t, filepath.Join(g.migrations, filepath.Base(path)), text)
	}
	return g
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, file))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// writeOverlay writes which files a build of that package replaces.
func (g *goTree) writeOverlay(t *testing.T, folder string, replace map[string]string) {
	t.Helper()
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	write(t, g.overlay(folder), string(overlay))
}

// overlay differs for the tests of the whole system: they build programs, which embed the migrations.
func (g *goTree) overlay(folder string) string {
	if folder == system {
		return filepath.Join(g.programs, "system.json")
	}
	return filepath.Join(g.programs, "overlay.json")
}

// plant writes the mutant beside the repository.
func (m mutation) plant(t *testing.T, plain *goTree) *goTree {
	t.Helper()
	texts, err := m.mutate()
	if err != nil {
		t.Fatal(err)
	}
	mutant := newTree(t, texts)
	mutant.plain, mutant.temp = plain, plain.temp
	for file := range texts {
		if strings.HasPrefix(file, "migrations/") {
			mutant.temp = openTemp(t) // a server with its schema is the template of others, and large
		} else {
			mutant.plain = nil
		}
	}
	return mutant
}

// command returns a go command that builds the mutant, as do the tests of that package when the command
// runs them. The end of ctx ends them too.
func (g *goTree) command(ctx context.Context, folder string, args ...string) *exec.Cmd {
	const grace = 10 * time.Second
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = filepath.Join(g.folder, folder)
	flags := os.Getenv("GOFLAGS") + " -buildvcs=false -overlay=" + g.overlay(folder)
	cmd.Env = append(cmd.Environ(), "GOFLAGS="+flags, "TMPDIR="+g.temp, "GORACE=atexit_sleep_ms=0", migrationsVariable+"="+g.migrations)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = grace
	return cmd
}

// parsed is a checker.
type parsed struct {
	folder string // of the package
	raced  bool   // -race: only the race detector notices
	flags  []string
}

func parse(checker string) parsed {
	var p parsed
	for argument := range strings.FieldsSeq(checker) {
		switch {
		case strings.HasPrefix(argument, "./"):
			p.folder = argument
		case argument == "-race":
			p.raced = true
		default:
			p.flags = append(p.flags, strings.Replace(argument, "-run=", "-test.run=", 1))
		}
	}
	return p
}

// check runs a checker, which has that long.
func (g *goTree) check(ctx context.Context, checker string, within time.Duration) outcome {
	p := parse(checker)
	program, err := g.build(ctx, p)
	if err != nil {
		return outcome{verdict: unbuilt, said: err.Error()}
	}
	const end = time.Minute // for what the tests do after their own time
	ctx, cancel := context.WithTimeout(ctx, within+end)
	defer cancel()
	args := []string{"tool", "test2json", program, "-test.v=test2json", "-test.paniconexit0", fmt.Sprintf("-test.timeout=%v", within)}
	cmd := g.command(ctx, p.folder, append(args, p.flags...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	began := time.Now()
	stdout, err := cmd.Output()
	o := judge(bytes.NewReader(stdout))
	if _, ended := errors.AsType[*exec.ExitError](err); err != nil && !ended || ctx.Err() != nil {
		o = outcome{verdict: unstable, said: fmt.Sprint(err, ctx.Err())}
	}
	o.took = time.Since(began)
	o.said += stderr.String()
	return o
}

// build returns the program of a package's tests, which its checkers share. Without debug
// information it links in half the time. Without the race detector it compiles and runs in a third
// of the time, and its tests assert the same.
func (g *goTree) build(ctx context.Context, p parsed) (program string, err error) {
	if g.plain != nil && p.folder != system {
		return g.plain.build(ctx, p)
	}
	const bound = 15 * time.Minute
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	g.building.Lock()
	defer g.building.Unlock()
	program = filepath.Join(g.programs, fmt.Sprintf("%s-%v.test", strings.ReplaceAll(p.folder, "/", "-"), p.raced))
	if _, err := os.Stat(program); err == nil {
		return program, nil
	}
	builds := [][]string{{"test", "-c", "-vet=off", "-ldflags=-w", fmt.Sprintf("-race=%v", p.raced), "-o", program, "."}}
	if p.folder == system { // its tests link the programs in their own time; this compiles what these consist of
		builds = append(builds, []string{"list", "-deps", "-export", "github.com/passbook/passbook/cmd/..."})
	}
	for _, args := range builds {
		if out, err := g.command(ctx, p.folder, args...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("%w\n%s", err, out)
		}
	}
	return program, nil
}

// baseline is the repository without a mutation, where each checker runs once.
type baseline struct {
	tree *goTree

	mu       sync.Mutex // guards outcomes
	outcomes map[string]func() outcome
}

func (b *baseline) check(ctx context.Context, checker string) outcome {
	b.mu.Lock()
	once, known := b.outcomes[checker]
	if !known {
		once = sync.OnceValue(func() outcome { return b.tree.check(ctx, checker, passBound) })
		b.outcomes[checker] = once
	}
	b.mu.Unlock()
	return once()
}
