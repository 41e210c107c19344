//go:build deploy

package e2e_test

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"debug/elf"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// dockerfile is what a test needs of deploy/Dockerfile: the commands of its build stage, and what
// its image has.
type dockerfile struct {
	env    []string // of the build stage
	runs   []string // its commands
	copies []string // from the context
	image  []string // what the image copies from the build stage
	user   string
}

// out is the folder of the programs in the build stage, and source that of the sources.
const (
	out    = "/out/"
	source = "/src"
)

// readDockerfile knows the instructions that the file has, and no other.
func readDockerfile(t *testing.T) (d dockerfile) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(repository, "deploy", "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	stages := 0
	for line := range strings.Lines(strings.ReplaceAll(string(text), "\\\n", " ")) {
		instruction, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch {
		case instruction == "" || strings.HasPrefix(instruction, "#"):
		case instruction == "FROM":
			stages++
		case instruction == "ARG" || instruction == "EXPOSE" || instruction == "CMD":
		case instruction == "ENV" && stages == 1:
			d.env = append(d.env, strings.Fields(rest)...)
		case instruction == "WORKDIR" && rest == source:
		case instruction == "RUN" && stages == 1:
			d.runs = append(d.runs, rest)
		case instruction == "COPY" && stages == 1:
			d.copies = append(d.copies, rest)
		case instruction == "COPY" && strings.HasPrefix(rest, "--from=build "):
			d.image = append(d.image, strings.TrimPrefix(rest, "--from=build "))
		case instruction == "USER":
			d.user = rest
		default:
			t.Fatalf("the test does not know %q", line)
		}
	}
	if stages != 2 || len(d.runs) == 0 || d.copies[len(d.copies)-1] != ". ." {
		t.Fatalf("the Dockerfile has another form: %+v", d)
	}
	return d
}

// build runs the commands of the build stage on a clone of the commit, with a cache of the
// compiler, and returns the folder of the programs.
func (d dockerfile) build(t *testing.T, cache string, clone ...string) string {
	t.Helper()
	top, err := filepath.Abs(repository)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	programs := filepath.Join(dir, "out") + "/"
	environment := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "GOCACHE=" + cache, "GOMODCACHE=" + goEnv(t, "GOMODCACHE"), "GOPROXY=" + goEnv(t, "GOPROXY")}
	run := func(name string, args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Dir, cmd.Env = dir, environment
		if _, err := os.Stat(dir + source); err == nil {
			cmd.Dir = dir + source
		}
		if said, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, said)
		}
	}
	run("git", append(append([]string{"-c", "safe.directory=*", "clone", "-q"}, clone...), "file://"+top, dir+source)...)
	environment = append(environment, d.env...)
	for _, command := range d.runs {
		run("sh", "-ec", strings.ReplaceAll(command, out, programs))
	}
	return programs
}

func goEnv(t *testing.T, name string) string {
	t.Helper()
	value, err := exec.CommandContext(t.Context(), "go", "env", name).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(value))
}

// cold compiles everything anew for the second build, which takes minutes.
var cold = flag.Bool("deploy.cold", false, "build the second time without the compiler's cache")

// buildTwice builds the programs twice, in other folders, from a whole clone and from its last
// commit alone: the bytes must be the same.
func (d dockerfile) buildTwice(t *testing.T) string {
	t.Helper()
	cache := goEnv(t, "GOCACHE")
	first := d.build(t, cache)
	if *cold {
		cache = filepath.Join(t.TempDir(), "cache")
	}
	second := d.build(t, cache, "--depth=1")
	for _, name := range []string{"api", "worker"} {
		a, b := readFile(t, first+name), readFile(t, second+name)
		if !bytes.Equal(a, b) {
			t.Errorf("%s has other bytes in another folder: %x, %x", name, sha256.Sum256(a), sha256.Sum256(b))
		}
		checkProgram(t, first+name)
	}
	return first
}

// checkProgram checks that a program needs no library, and that it names its commit.
func checkProgram(t *testing.T, path string) {
	t.Helper()
	program, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close() //nolint:errcheck // it was only read
	for _, segment := range program.Progs {
		if segment.Type == elf.PT_INTERP || segment.Type == elf.PT_DYNAMIC {
			t.Errorf("%s is not static", path)
		}
	}
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	named := map[string]string{}
	for _, setting := range info.Settings {
		named[setting.Key] = setting.Value
	}
	head, err := exec.CommandContext(t.Context(), "git", "-c", "safe.directory=*", "-C", repository, "rev-parse", "HEAD").Output()
	if err != nil {
		t.Fatal(err)
	}
	if named["vcs.revision"] != strings.TrimSpace(string(head)) || named["vcs.modified"] != "false" {
		t.Errorf("%s names the commit %s, modified %s", path, named["vcs.revision"], named["vcs.modified"])
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// container is a root file system that processes can't write to, with what the image has.
type container struct {
	root string
	user syscall.Credential
}

// newContainer lays out the image's files and the secrets, and mounts them read-only. It needs root.
func newContainer(t *testing.T, d dockerfile, programs, secrets string) container {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("only root can mount the image's file system and become its user")
	}
	c := container{root: filepath.Join(t.TempDir(), "root")}
	for _, files := range d.image {
		from, to, _ := strings.Cut(files, " ")
		if from == out {
			from = programs
		}
		copyInto(t, from, filepath.Join(c.root, to))
	}
	copyInto(t, secrets+"/", filepath.Join(c.root, "run", "secrets"))
	if d.user != "65532:65532" {
		t.Fatalf("the image runs as %q", d.user)
	}
	c.user = syscall.Credential{Uid: 65532, Gid: 65532}
	command(t, "mkdir", "-p", c.root+"/proc")
	command(t, "mount", "--bind", c.root, c.root)
	t.Cleanup(func() { command(t, "umount", "--recursive", c.root) }) // before the test's folder is deleted, with all that is mounted in it
	command(t, "mount", "--bind", "/proc", c.root+"/proc")
	command(t, "mount", "-o", "remount,bind,ro", c.root)
	return c
}

// copyInto copies a file into a folder, or what a folder has where from ends in a slash.
func copyInto(t *testing.T, from, folder string) {
	t.Helper()
	command(t, "mkdir", "-p", folder)
	if strings.HasSuffix(from, "/") {
		from += "."
	}
	command(t, "cp", "-r", from, folder)
}

// command runs a command to its end.
func command(t *testing.T, words ...string) {
	t.Helper()
	cmd := exec.Command(words[0], words[1:]...) //nolint:noctx // also after the test, to unmount
	said, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", words, err, said)
	}
}

// begin starts a command of the image as the image's user.
func (c container) begin(t *testing.T, env []string, words ...string) *process {
	t.Helper()
	cmd := exec.Command(words[0], words[1:]...) //nolint:noctx // the test's end kills it
	cmd.Dir, cmd.Env = "/", env
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: c.root, Credential: &c.user}
	return beginCommand(t, strings.TrimPrefix(words[0], "/"), cmd)
}
