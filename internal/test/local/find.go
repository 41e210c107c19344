package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

const (
	oldestPostgres = 15
	debianBin      = "/usr/lib/postgresql/*/bin" // one for each version, none in the PATH
)

// PostgresBin is a variable. Where it is set, servers are started from the binaries in that folder
// and from no others. So tests run on another version; the servers' user must reach the folder.
const PostgresBin = "POSTGRES_BIN"

// findPostgres returns the folder of the newest binaries of the machine, or of the version that
// made the data, since no other version opens it.
func findPostgres(ctx context.Context, f *folder) (string, error) {
	found := installedPostgres(ctx)
	if err := ctx.Err(); err != nil { // then no binary has reported its version
		return "", err
	}
	wanted, err := f.root.ReadFile("data/PG_VERSION")
	if err == nil {
		version, err := strconv.Atoi(strings.TrimSpace(string(wanted)))
		if dir, ok := found[version]; err == nil && ok {
			return dir, nil
		}
		return "", fmt.Errorf("the data in %s was made by Postgres %s, which is not installed", f.dataPath(), strings.TrimSpace(string(wanted)))
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read the data's version: %w", err)
	}
	newest := 0
	for version := range found {
		newest = max(newest, version)
	}
	if dir := os.Getenv(PostgresBin); dir != "" && newest < oldestPostgres {
		return "", fmt.Errorf("no Postgres %d or newer in %s, which %s names", oldestPostgres, dir, PostgresBin)
	}
	if newest < oldestPostgres {
		return "", fmt.Errorf("no Postgres %d or newer; install one: apt-get install postgresql", oldestPostgres)
	}
	return found[newest], nil
}

// installedPostgres is every version's folder of binaries.
func installedPostgres(ctx context.Context) map[int]string {
	found := map[int]string{}
	for _, dir := range postgresDirs() {
		version, ok := postgresVersion(ctx, dir)
		if _, known := found[version]; ok && !known {
			found[version] = dir
		}
	}
	return found
}

// postgresDirs is the folder that the variable names, or else Debian's and the PATH's.
func postgresDirs() []string {
	if dir := os.Getenv(PostgresBin); dir != "" {
		return []string{dir}
	}
	dirs, _ := filepath.Glob(debianBin) // fails on a bad pattern only
	if path, err := exec.LookPath("postgres"); err == nil {
		dirs = append(dirs, filepath.Dir(path))
	}
	return dirs
}

// postgresVersions holds the versions that postgresVersion has found, by folder. Each question starts a
// process, whose loading takes 15 ms of CPU, and tests start hundreds of servers.
var postgresVersions sync.Map

// postgresVersion is the major version of a folder that has all we start:
// "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)" is 15.
func postgresVersion(ctx context.Context, dir string) (int, bool) {
	if known, ok := postgresVersions.Load(dir); ok {
		return known.(int), true // nothing else is stored
	}
	if _, err := exec.LookPath(filepath.Join(dir, "initdb")); err != nil {
		return 0, false
	}
	out, err := exec.CommandContext(ctx, filepath.Join(dir, "postgres"), "--version").Output() //nolint:gosec // asks a binary of the PATH for its version
	if err != nil {
		return 0, false
	}
	_, after, _ := strings.Cut(string(out), ") ")
	digits := after[:len(after)-len(strings.TrimLeft(after, "0123456789"))]
	version, err := strconv.Atoi(digits)
	if err != nil {
		return 0, false
	}
	postgresVersions.Store(dir, version)
	return version, true
}

// RedisServer is a variable. Where it is set, servers are started from that program, Valkey's for
// example; the servers' user must reach it.
const RedisServer = "REDIS_SERVER"

func findRedis() (string, error) {
	if path := os.Getenv(RedisServer); path != "" {
		return path, nil
	}
	path, err := exec.LookPath("redis-server")
	if err != nil {
		return "", fmt.Errorf("no redis-server; install one: apt-get install redis-server (%w)", err)
	}
	return path, nil
}
