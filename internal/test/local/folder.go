package local

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

const (
	fallbackBase = "/var/lib" // kept, and every user reaches it; only root gets here
	memory       = "/dev/shm" // there a Postgres starts, and copies a database, with a third of the CPU time
	tailBytes    = 4096
)

// folder is where one instance keeps everything: data/, its log, its password and the
// lock. It opens every file through root: a server that runs as another user can't lead
// this process, as root, out of the folder by a link.
type folder struct {
	path      string // free of links, as /proc shows it
	link      string // what was asked for, when path had to be elsewhere
	temporary bool
	owner     *owner
	env       []string // what its server's environment has beside the usual
	root      *os.Root
	locked    *os.File
}

// openFolder makes dir, or takes it as it was left. An empty dir is a temporary folder,
// which the supervisor deletes when this process dies. It is in memory if it need not
// last.
func openFolder(ctx context.Context, dir string, lasts bool, say Say) (*folder, error) {
	service, err := serviceUser()
	if err != nil {
		return nil, err
	}
	f := &folder{owner: service}
	if dir == "" {
		err = f.makeTemporary(ctx, lasts)
	} else {
		err = f.place(ctx, dir, say)
	}
	if err != nil {
		return nil, err
	}
	path := f.path
	if f.path, err = filepath.EvalSymlinks(path); err == nil {
		f.root, err = os.OpenRoot(f.path)
	}
	if err != nil {
		err = fmt.Errorf("open the data folder: %w", err)
		if f.temporary {
			err = errors.Join(err, os.RemoveAll(path))
		}
		return nil, err
	}
	if err := f.handOver(); err != nil {
		return nil, errors.Join(err, f.abandon())
	}
	return f, nil
}

func (f *folder) makeTemporary(ctx context.Context, lasts bool) error {
	base := os.TempDir()
	if !lasts && hasMemory() {
		base = memory
	}
	if !f.owner.reaches(ctx, base) {
		base = "/var/tmp" // which every user reaches
	}
	path, err := os.MkdirTemp(base, "passbook-test-")
	if err != nil {
		return fmt.Errorf("make a temporary folder: %w", err)
	}
	f.path, f.temporary = path, true
	return nil
}

// hasMemory reports whether the folder memory is in memory, with space for the servers of
// all tests that run at once. In some containers it has 64 MB.
func hasMemory() bool {
	const tmpfs, enough = 0x01021994, 4 << 30
	var found syscall.Statfs_t
	err := syscall.Statfs(memory, &found)
	return err == nil && found.Type == tmpfs && found.Bavail*uint64(found.Bsize) >= enough //nolint:gosec // a block has no negative size
}

// place decides where dir really is: at dir, where its link points, or, if the servers'
// user doesn't reach dir, under /var/lib.
func (f *folder) place(ctx context.Context, dir string, say Say) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil { //nolint:gosec // the servers' user passes through it
		return fmt.Errorf("data folder: %w", err)
	}
	info, err := os.Stat(dir)
	switch {
	case err == nil:
		return f.takeOver(ctx, dir, info)
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("data folder: %w", err)
	case f.owner.reaches(ctx, filepath.Dir(dir)):
		f.path = dir
		return makeDir(dir)
	default:
		return f.placeElsewhere(dir, say)
	}
}

func makeDir(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	return nil
}

// takeOver goes on with a folder of an earlier run.
func (f *folder) takeOver(ctx context.Context, dir string, info fs.FileInfo) error {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	f.path = real
	if real != dir {
		f.link = dir
	}
	f.owner = ownerOf(info, f.owner)
	if !f.owner.reaches(ctx, filepath.Dir(real)) {
		return fmt.Errorf("data folder %s: user %s, whom the server runs as, doesn't get there", real, f.owner.name)
	}
	return nil
}

// placeElsewhere puts the data under /var/lib, with a link where it was asked
// for. Every user may make a folder of that name there, so placeElsewhere refuses a
// folder that belongs to neither root nor the service user.
func (f *folder) placeElsewhere(dir string, say Say) error {
	f.path, f.link = elsewhere(dir), dir
	err := os.Mkdir(f.path, 0o700)
	if errors.Is(err, fs.ErrExist) {
		err = f.owner.owns(f.path)
	}
	if err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	_ = os.Remove(dir) // a link that points nowhere
	if err := os.Symlink(f.path, dir); err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	say.f("User %s does not reach %s, so the data is in %s.", f.owner.name, dir, f.path)
	return nil
}

func elsewhere(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return filepath.Join(fallbackBase, fmt.Sprintf("passbook-%x", sum[:8]))
}

func (o *owner) owns(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() || (stat.Uid != 0 && stat.Uid != o.uid) {
		return fmt.Errorf("%s belongs to another user", path)
	}
	return nil
}

// handOver gives a folder that belongs to root (new, or copied by root) to the servers'
// user.
func (f *folder) handOver() error {
	info, err := f.root.Stat(".")
	if err != nil {
		return fmt.Errorf("hand over the data folder: %w", err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if f.owner == nil || !ok || stat.Uid == f.owner.uid {
		return nil
	}
	// The folder itself comes last: a folder that was only half handed over still
	// belongs to root, and the next run does it again.
	err = fs.WalkDir(f.root.FS(), ".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || path == "." {
			return err
		}
		return f.give(path)
	})
	if err == nil {
		err = f.give(".")
	}
	if err != nil {
		return fmt.Errorf("hand over the data folder: %w", err)
	}
	return nil
}

func (f *folder) give(name string) error {
	if f.owner == nil {
		return nil
	}
	return f.root.Lchown(name, int(f.owner.uid), int(f.owner.gid))
}

// lock locks the folder for as long as this process lives. The kernel drops the lock
// when the process dies, so a killed run never looks like a live run.
func (f *folder) lock() error {
	file, err := f.root.OpenFile("lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("lock the data folder: %w", err)
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder, _ := io.ReadAll(io.LimitReader(file, 20))
		_ = file.Close()
		return fmt.Errorf("%s is in use by process %s; stop that one first: kill %s", f.path, holder, holder)
	}
	_, err = file.WriteAt([]byte(strconv.Itoa(os.Getpid())), 0)
	if err := errors.Join(file.Truncate(int64(len(strconv.Itoa(os.Getpid())))), err); err != nil {
		return fmt.Errorf("lock the data folder: %w", errors.Join(err, file.Close()))
	}
	f.locked = file
	return nil
}

// unlock unlocks explicitly: closing alone would leave the lock to a child that was
// just forked and still has every file of this process open.
func (f *folder) unlock() {
	if f.locked != nil {
		_ = syscall.Flock(int(f.locked.Fd()), syscall.LOCK_UN)
		_ = f.locked.Close()
		f.locked = nil
	}
}

// remove deletes the folder, and the link to it.
func (f *folder) remove() error {
	err := errors.Join(f.root.Close(), os.RemoveAll(f.path))
	if f.link != "" {
		err = errors.Join(err, os.Remove(f.link))
	}
	if err != nil {
		return fmt.Errorf("remove the data folder: %w", err)
	}
	return nil
}

// abandon closes a folder on which no server has started.
func (f *folder) abandon() error {
	if f.temporary {
		return f.remove()
	}
	return f.root.Close()
}

// write puts a file in place whole or not at all, for the owner's eyes only.
func (f *folder) write(name, content string) error {
	next := name + ".next"
	err := f.root.WriteFile(next, []byte(content), 0o600)
	if err == nil {
		err = f.give(next)
	}
	if err == nil {
		err = f.root.Rename(next, name)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", filepath.Join(f.path, name), err)
	}
	return nil
}

// password is the instance's own, drawn at the first start.
func (f *folder) password() (string, error) {
	kept, err := f.root.ReadFile("password")
	if err == nil {
		return strings.TrimSpace(string(kept)), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read the password: %w", err)
	}
	made := rand.Text()
	return made, f.write("password", made+"\n")
}

// readPID reads the number in the first line of a file that a server wrote.
func (f *folder) readPID(name string) (int, error) {
	content, err := f.root.ReadFile(name)
	if err != nil {
		return 0, fmt.Errorf("read the server's process number: %w", err)
	}
	line, _, _ := strings.Cut(string(content), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		return 0, fmt.Errorf("read the server's process number: %w", err)
	}
	return pid, nil
}

// serves returns whether a process is a server on this folder. The number of the process
// may belong to another process now, but the working directory of Postgres and Redis is their
// data folder. An error means that it is unknown, for want of /proc for example.
func (f *folder) serves(pid int) (bool, error) {
	cwd, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), "cwd"))
	if errors.Is(err, fs.ErrNotExist) {
		_, err = os.Readlink("/proc/self/cwd")
		return false, err
	}
	return cwd == f.dataPath(), err
}

func (f *folder) dataPath() string { return filepath.Join(f.path, "data") }

// makeData makes the folder of the data, where it is missing.
func (f *folder) makeData() error {
	if err := f.root.Mkdir("data", 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make the folder of the data: %w", err)
	}
	return f.give("data")
}

// start starts a server's command as the folder's owner, without this process's
// environment, in a working directory that every user reaches.
func (f *folder) start(ctx context.Context, host *Host, output *os.File, stop syscall.Signal, command []string) (*process, error) {
	s := supervised{
		command: command,
		dir:     "/",
		env:     append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + f.path, "LC_ALL=C.UTF-8"}, f.env...),
		owner:   f.owner,
		host:    host,
		output:  output,
		stop:    stop,
	}
	if f.temporary {
		s.remove = f.path
	}
	return s.start(ctx)
}

// logFile is the server's log, from where it ended when it was opened.
type logFile struct {
	*os.File
	from int64
}

func (f *folder) openLog() (*logFile, error) {
	file, err := f.root.OpenFile("log", os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the server's log: %w", err)
	}
	from, err := file.Seek(0, io.SeekEnd)
	if err == nil {
		err = f.give("log")
	}
	if err != nil {
		return nil, fmt.Errorf("open the server's log: %w", errors.Join(err, file.Close()))
	}
	return &logFile{File: file, from: from}, nil
}

// tail is the last of what the server wrote since the log was opened.
func (l *logFile) tail() string {
	end, err := l.Seek(0, io.SeekEnd)
	if err != nil {
		return err.Error()
	}
	from := max(l.from, end-tailBytes)
	text, err := io.ReadAll(io.NewSectionReader(l.File, from, end-from))
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(text))
}

// rotateLog keeps the log of the start before this one, and no more.
func (f *folder) rotateLog(context.Context) error {
	if err := f.root.Rename("log", "log.previous"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("rotate the server's log: %w", err)
	}
	return nil
}

// Remove deletes what an instance kept in dir, wherever it had to put it. A
// folder that is in use is an error.
func Remove(ctx context.Context, dir string) error {
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	f, err := openFolder(ctx, dir, true, nil)
	if err != nil {
		return err
	}
	if err := f.lock(); err != nil {
		return errors.Join(err, f.root.Close())
	}
	defer f.unlock()
	return f.remove()
}
