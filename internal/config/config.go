// Package config reads the configuration of the processes from the environment. Its promise:
// an error names every variable that is missing or wrong, and repeats no secret.
package config

import (
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// Process is the configuration of `worker`, and what `api` has in common with it.
type Process struct {
	DatabaseURL   string
	RedisURL      string
	OpsAddr       string
	OpsToken      string // empty for none
	OpsReadToken  string // empty for none
	OpsHosts      []string
	QueuesWrite   bool // the worker's dashboard may change queues
	QueuePrefix   string
	Partitions    int
	ShutdownDelay time.Duration // the worker's is that of its operator's port alone
	Log           Log
	Traces        Traces
}

// API is the configuration of `api`.
type API struct {
	Process
	ReadDatabaseURL     string // of a replica; empty for none
	JWTKeys             []Key  // the first signs, all verify; at least one
	HTTPAddr            string
	MaxQueuedPerAccount int
	Limits              Limits

	MaxConnections           int
	MaxConnectionsPerAddress int // 0 for no bound
}

// Database is the configuration of the subcommands that need only Postgres.
type Database struct {
	DatabaseURL string
	Log         Log
}

// Queues is the configuration of the subcommands that look at the queues too.
type Queues struct {
	Database
	RedisURL    string
	QueuePrefix string
	Partitions  int
}

// Key is a JWT key.
type Key struct {
	ID     string // the kid
	Secret []byte // at least minSecret bytes
}

// Log is the level and the format of the log.
type Log struct {
	Level slog.Level
	JSON  bool
}

// The operator's ports where OPS_ADDR is absent.
const (
	APIOpsAddr    = "127.0.0.1:9090"
	WorkerOpsAddr = "127.0.0.1:9091"
)

// LoadAPI reads the configuration of `api`. An empty variable counts as missing.
func LoadAPI(getenv func(string) string) (API, error) {
	env := environment{getenv: getenv}
	cfg := API{
		Process:             readProcess(&env, APIOpsAddr),
		JWTKeys:             read(&env, jwtKeys, parseKeys),
		HTTPAddr:            read(&env, httpAddr, parseAddr),
		MaxQueuedPerAccount: read(&env, maxQueued, parseMaxQueued),
	}
	cfg.Limits = readLimits(&env)
	cfg.MaxConnections, cfg.MaxConnectionsPerAddress = readConnections(&env)
	if env.isSet(readDatabaseURL) {
		cfg.ReadDatabaseURL = read(&env, readDatabaseURL, parseDatabaseURL)
	}
	if err := env.err(); err != nil {
		return API{}, err
	}
	return cfg, nil
}

// LoadWorker reads the configuration of `worker`. An empty variable counts as missing.
func LoadWorker(getenv func(string) string) (Process, error) {
	env := environment{getenv: getenv}
	cfg := readProcess(&env, WorkerOpsAddr)
	cfg.QueuesWrite = read(&env, opsQueuesWrite, parseSwitch)
	if err := env.err(); err != nil {
		return Process{}, err
	}
	return cfg, nil
}

func readProcess(env *environment, opsAddr string) Process {
	p := Process{
		DatabaseURL:   read(env, databaseURL, parseDatabaseURL),
		RedisURL:      read(env, redisURL, parseRedisURL),
		OpsAddr:       read(env, opsAddrVariable(opsAddr), parseAddr),
		QueuePrefix:   read(env, queuePrefix, parsePrefix),
		Partitions:    read(env, queuePartitions, parsePartitions),
		ShutdownDelay: read(env, shutdownDelay, parseDelay),
		Log:           readLog(env),
		Traces:        readTraces(env),
	}
	p.OpsToken = readOpsToken(env, p.OpsAddr)
	p.OpsReadToken = readOpsReadToken(env, p.OpsToken)
	p.OpsHosts = readOpsHosts(env)
	return p
}

// LoadOpsAddr reads OPS_ADDR alone; standard is its default.
func LoadOpsAddr(getenv func(string) string, standard string) (string, error) {
	env := environment{getenv: getenv}
	addr := read(&env, opsAddrVariable(standard), parseAddr)
	return addr, env.err()
}

// LoadDatabase reads the configuration of the subcommands, such as `api migrate`. An empty
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

// LoadQueues reads the configuration of the subcommands that look at the queues too. An empty
// variable counts as missing.
func LoadQueues(getenv func(string) string) (Queues, error) {
	env := environment{getenv: getenv}
	cfg := Queues{
		Database:    Database{DatabaseURL: read(&env, databaseURL, parseDatabaseURL), Log: readLog(&env)},
		RedisURL:    read(&env, redisURL, parseRedisURL),
		QueuePrefix: read(&env, queuePrefix, parsePrefix),
		Partitions:  read(&env, queuePartitions, parsePartitions),
	}
	if err := env.err(); err != nil {
		return Queues{}, err
	}
	return cfg, nil
}

func readLog(env *environment) Log {
	return Log{
		Level: read(env, logLevel, parseLevel),
		JSON:  read(env, logFormat, parseFormat),
	}
}

// readOpsToken requires a token where addr is reachable from other machines. A faulty addr is
// empty here; it has a fault of its own already.
func readOpsToken(env *environment, addr string) string {
	switch {
	case env.isSet(opsToken):
		return read(env, opsToken, parseToken)
	case addr != "" && !isLoopback(addr):
		env.fault(opsToken, "missing, and OPS_ADDR is not a loopback address")
	}
	return ""
}

// readOpsReadToken reads the token that allows only to read; empty if the variable is absent. It must
// differ from OPS_TOKEN, which allows everything.
func readOpsReadToken(env *environment, token string) string {
	if !env.isSet(opsReadToken) {
		return ""
	}
	return read(env, opsReadToken, func(text string) (string, error) {
		if text == token {
			return "", errors.New("is that of OPS_TOKEN")
		}
		return parseToken(text)
	})
}

// readOpsHosts reads the host names that the operator's port answers to; nil where the
// variable is absent.
func readOpsHosts(env *environment) []string {
	if env.getenv(opsHosts.name) == "" {
		return nil
	}
	return read(env, opsHosts, parseHosts)
}

// variable describes one variable of the environment, in the words that its fault prints.
type variable struct {
	name     string
	standard string // the default; empty for a required variable
	want     string
	example  string
}

// environment collects the faults of all variables.
type environment struct {
	getenv func(string) string
	faults []error
}

// read returns the parsed value of a variable, or records its fault. The error of parse is
// printed, so it must not quote a secret.
func read[T any](env *environment, v variable, parse func(string) (T, error)) T {
	var none T
	v, text, err := env.lookup(v)
	if err == nil && text == "" {
		err = errors.New("missing")
	}
	if err != nil {
		env.fault(v, err.Error())
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

// err returns every fault, one a line, or nil.
func (env *environment) err() error {
	return errors.Join(env.faults...)
}
