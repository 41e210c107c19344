package local

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// templateOptions are the options of initdb for servers of tests. SCRAM takes 15 ms of CPU a connection
// under the race detector, which is a third of what some packages' tests take. With segments of 1 MB
// in the place of 16 MB, copying a template takes half as long.
var templateOptions = []string{"--auth=md5", "--wal-segsize=1"}

// Template is the folder of a stopped server, for PostgresConfig.Template: copying it
// takes a tenth of the time of initdb and of the fill.
//
// The first process that asks for a template makes it and calls fill on the running
// server; later processes take it as it is, whatever fill they give. So key must name
// all that fill writes. The folder stays among the machine's temporary files.
func Template(ctx context.Context, key string, fill func(ctx context.Context, pg *Postgres) error) (dir string, err error) {
	pg, err := newPostgres(ctx, PostgresConfig{Durable: true}) // a later crash of the machine must not damage it
	if err != nil {
		return "", fmt.Errorf("make a template: %w", err)
	}
	pg.initdbOptions = templateOptions
	if pg.bin, err = findPostgres(ctx, pg.folder); err != nil {
		return "", errors.Join(fmt.Errorf("make a template: %w", err), pg.folder.abandon())
	}
	dir, err = templatePath(pg, key)
	if err != nil || isTemplate(dir, pg.folder.owner) == nil {
		return dir, errors.Join(err, pg.folder.abandon())
	}
	pg.fill = pg.initdb
	if err := pg.start(ctx); err != nil {
		return "", errors.Join(fmt.Errorf("make a template: %w", err), pg.folder.abandon())
	}
	if err := errors.Join(fill(ctx, pg), pg.Stop(ctx)); err != nil {
		return "", errors.Join(fmt.Errorf("make a template: %w", err), pg.Remove(ctx))
	}
	err = os.Rename(pg.folder.path, dir)
	if errors.Is(err, fs.ErrExist) || errors.Is(err, syscall.ENOTEMPTY) { // another process has made it meanwhile
		return dir, errors.Join(isTemplate(dir, pg.folder.owner), pg.Remove(ctx))
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("make a template: %w", err), pg.Remove(ctx))
	}
	return dir, pg.folder.root.Close()
}

// templatePath is beside the temporary folders. It depends on the user, the binary and
// on how initdb is called.
func templatePath(pg *Postgres, key string) (string, error) {
	binary, err := os.Stat(filepath.Join(pg.bin, "postgres"))
	if err != nil {
		return "", err
	}
	parts := []string{key, pg.bin, binary.ModTime().UTC().Format(time.RFC3339Nano), strings.Join(pg.initdbCommand(""), " ")}
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return filepath.Join(filepath.Dir(pg.folder.path), fmt.Sprintf("passbook-template-%d-%x", pg.folder.owner.id(), sum[:8])), nil
}

// isTemplate refuses a folder of another user: every user may make one of that name.
func isTemplate(dir string, o *owner) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); !ok || !info.IsDir() || stat.Uid != o.id() {
		return fmt.Errorf("%s belongs to another user", dir)
	}
	return nil
}

// copyTemplate copies the template's data to dir, and its password, which is in the data.
func (pg *Postgres) copyTemplate(ctx context.Context, dir string) error {
	password, err := os.ReadFile(filepath.Join(pg.cfg.Template, "password"))
	if err != nil {
		return fmt.Errorf("copy the template: %w", err)
	}
	pg.password = strings.TrimSpace(string(password))
	if err := pg.folder.write("password", pg.password+"\n"); err != nil {
		return err
	}
	return pg.run(ctx, []string{"cp", "-R", filepath.Join(pg.cfg.Template, "data"), dir})
}
