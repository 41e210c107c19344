// Package config reads the processes' settings from the environment. Its
// promise: a fault names every variable that is missing or wrong, all at once,
// and never repeats a secret.
package config

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// API is what `api` serves with.
type API struct {
	DatabaseURL         string
	ReadDatabaseURL     string // of a replica; empty for none
	RedisURL            string
	JWTKeys             []Key // the first signs, all verify; at least one
	HTTPAddr            string
	OpsAddr             string
	OpsToken            string // empty for none
	OpsHosts            []string
	QueuePrefix         string
	Partitions          int
	MaxQueuedPerAccount int
	ShutdownDelay       time.Duration
	Log                 Log

	MaxConnections           int
	MaxConnectionsPerAddress int // 0 for no bound
}

// Worker is what `worker` works with.
type Worker struct {
	DatabaseURL string
	RedisURL    string
	OpsAddr     string
	OpsToken    string // empty for none
	OpsHosts    []string
	QueuePrefix string
	Partitions  int

	ShutdownDelay time.Duration // of the operator's port alone

	Log Log
}

// Database is what the subcommands use that need nothing but Postgres.
type Database struct {
	DatabaseURL string
	Log         Log
}

// Key is a JWT key.
type Key struct {
	ID     string // the kid
	Secret []byte // at least minSecret bytes
}

// Log says what is logged and how.
type Log struct {
	Level slog.Level
	JSON  bool
}

// LoadAPI reads what `api` needs. An empty variable counts as missing.
func LoadAPI(getenv func(string) string) (API, error) {
	env := environment{getenv: getenv}
	cfg := API{
		DatabaseURL:         read(&env, databaseURL, parseDatabaseURL),
		RedisURL:            read(&env, redisURL, parseRedisURL),
		JWTKeys:             read(&env, jwtKeys, parseKeys),
		HTTPAddr:            read(&env, httpAddr, parseAddr),
		OpsAddr:             read(&env, opsAddrVariable("127.0.0.1:9090"), parseAddr),
		QueuePrefix:         read(&env, queuePrefix, parsePrefix),
		Partitions:          read(&env, queuePartitions, parsePartitions),
		MaxQueuedPerAccount: read(&env, maxQueued, parseMaxQueued),
		ShutdownDelay:       read(&env, shutdownDelay, parseDelay),
		Log:                 readLog(&env),
	}
	cfg.OpsToken = readOpsToken(&env, cfg.OpsAddr)
	cfg.OpsHosts = readOpsHosts(&env)
	cfg.MaxConnections, cfg.MaxConnectionsPerAddress = readConnections(&env)
	if getenv(readDatabaseURL.name) != "" {
		cfg.ReadDatabaseURL = read(&env, readDatabaseURL, parseDatabaseURL)
	}
	if err := env.err(); err != nil {
		return API{}, err
	}
	return cfg, nil
}

// LoadWorker reads what `worker` needs. An empty variable counts as missing.
func LoadWorker(getenv func(string) string) (Worker, error) {
	env := environment{getenv: getenv}
	cfg := Worker{
		DatabaseURL: read(&env, databaseURL, parseDatabaseURL),
		RedisURL:    read(&env, redisURL, parseRedisURL),
		OpsAddr:     read(&env, opsAddrVariable("127.0.0.1:9091"), parseAddr),
		QueuePrefix: read(&env, queuePrefix, parsePrefix),
		Partitions:  read(&env, queuePartitions, parsePartitions),

		ShutdownDelay: read(&env, shutdownDelay, parseDelay),

		Log: readLog(&env),
	}
	cfg.OpsToken = readOpsToken(&env, cfg.OpsAddr)
	cfg.OpsHosts = readOpsHosts(&env)
	if err := env.err(); err != nil {
		return Worker{}, err
	}
	return cfg, nil
}

// LoadDatabase reads what `api migrate` and `worker verify` need. An empty
// variable counts as missing.
func LoadDatabase(getenv func(string) string) (Database, error) {
	env := environment{getenv: getenv}
	cfg := Database{
		DatabaseURL: read(&env, databaseURL, parseDatabaseURL),
		Log:         readLog(&env),
	}
	if err := env.err(); err != nil {
		return Database{}, err
	}
	return cfg, nil
}

func readLog(env *environment) Log {
	return Log{
		Level: read(env, logLevel, parseLevel),
		JSON:  read(env, logFormat, parseFormat),
	}
}

// readOpsToken demands a token where addr can be reached from elsewhere. A
// faulty addr (empty here) has its own line and demands nothing.
func readOpsToken(env *environment, addr string) string {
	text := env.getenv(opsToken.name)
	switch {
	case text != "":
		return read(env, opsToken, parseToken)
	case addr != "" && !isLoopback(addr):
		env.fault(opsToken, "missing, and OPS_ADDR is not a loopback address")
	}
	return ""
}

// readOpsHosts reads the names that the operator's port answers to; none where the
// variable is absent.
func readOpsHosts(env *environment) []string {
	if env.getenv(opsHosts.name) == "" {
		return nil
	}
	return read(env, opsHosts, parseHosts)
}

// variable is one variable of the environment, in the words of its fault.
type variable struct {
	name     string
	standard string // the value where it is absent; empty where it must be there
	want     string
	example  string
}

// environment collects the faults of all variables.
type environment struct {
	getenv func(string) string
	faults []error
}

// read answers with the parsed value of a variable, or notes its fault. What
// parse says is printed, so it may quote the value only where that is no secret.
func read[T any](env *environment, v variable, parse func(string) (T, error)) T {
	var none T
	text := cmp.Or(env.getenv(v.name), v.standard)
	if text == "" {
		env.fault(v, "missing")
		return none
	}
	value, err := parse(text)
	if err != nil {
		env.fault(v, err.Error())
		return none
	}
	return value
}

func (env *environment) fault(v variable, wrong string) {
	env.faults = append(env.faults, fmt.Errorf("%s: %s; want %s (%s)", v.name, wrong, v.want, v.example))
}

// err is nil or every fault, one a line.
func (env *environment) err() error {
	return errors.Join(env.faults...)
}
