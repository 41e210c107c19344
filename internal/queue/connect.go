package queue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// dialTimeout bounds a dial, which is not repeated: go-redis's five dials would take 5 s at each
	// node that is cut off. A cluster's client asks nodes at random for the new master, one after
	// another, and calls nothing there before one answers.
	dialTimeout = time.Second
	callTimeout = 3 * time.Second
	// connections bounds the connections of one process to one server, unless the URL sets
	// pool_size; pipelines have pipelineConnections more. All partitions share them, because
	// calls are short and a Redis of many workers bounds its clients.
	connections         = 16
	pipelineConnections = 4
)

// ErrURL is returned for a URL that Connect can't read. It does not wrap the parser's error,
// which quotes the URL with its password.
var ErrURL = errors.New("can't be read: its scheme, its form, its database number or a parameter")

// ErrReplica is returned for a URL that asks for reads from replicas, which lag behind.
var ErrReplica = errors.New("asks for reads from replicas: only masters serve the queues")

// CheckURL returns the error that Connect would.
func CheckURL(text string) error {
	_, err := parseURL(text)
	return err
}

// Connect makes a client for a URL. It does not wait for the server: Redis may be down when a
// process starts. The forms are:
//
//	redis://user:password@host:port/database          one server
//	redis+cluster://user:password@h1:p1,h2:p2         a cluster; it names some of its nodes
//	redis+sentinel://user:password@h1:p1,h2:p2/NAME   the master called NAME of these Sentinels
//
// rediss://, rediss+cluster:// and rediss+sentinel:// use TLS. Parameters follow as go-redis
// reads them. The user and the password are those of Redis. The parameters sentinel_username and
// sentinel_password are those of Sentinels that ask for them.
func Connect(text string) (redis.UniversalClient, error) {
	open, err := parseURL(text)
	if err != nil {
		return nil, err
	}
	return open(), nil
}

// opener makes the client of a URL.
type opener func() redis.UniversalClient

func parseURL(text string) (opener, error) {
	scheme, _, _ := strings.Cut(text, "://")
	switch base, kind, _ := strings.Cut(scheme, "+"); {
	case base != "redis" && base != "rediss":
		return nil, ErrURL
	case kind == "":
		return parseServer(text)
	case kind == "cluster":
		return parseCluster(base, text)
	case kind == "sentinel":
		return parseSentinel(base, text)
	}
	return nil, ErrURL
}

func parseServer(text string) (opener, error) {
	opt, err := redis.ParseURL(text)
	if err != nil {
		return nil, ErrURL
	}
	setBounds(&opt.DialTimeout, &opt.ReadTimeout, &opt.WriteTimeout, &opt.DialerRetries, &opt.ContextTimeoutEnabled, &opt.PoolSize, &opt.PipelinePoolSize)
	return func() redis.UniversalClient { return redis.NewClient(opt) }, nil
}

func parseCluster(base, text string) (opener, error) {
	nodes, err := parseNodes(base, text)
	if err != nil {
		return nil, err
	}
	opt, err := redis.ParseClusterURL(nodes.String())
	if err != nil || !slices.Contains([]string{"", "/", "/0"}, nodes.Path) { // a cluster has only database 0
		return nil, ErrURL
	}
	if opt.ReadOnly || opt.RouteByLatency || opt.RouteRandomly {
		return nil, ErrReplica
	}
	setBounds(&opt.DialTimeout, &opt.ReadTimeout, &opt.WriteTimeout, &opt.DialerRetries, &opt.ContextTimeoutEnabled, &opt.PoolSize, &opt.PipelinePoolSize)
	return func() redis.UniversalClient { return redis.NewClusterClient(opt) }, nil
}

func parseSentinel(base, text string) (opener, error) {
	nodes, err := parseNodes(base, text)
	if err != nil {
		return nil, err
	}
	name, params := strings.Trim(nodes.Path, "/"), nodes.Query()
	user, sentinel := nodes.User, url.UserPassword(params.Get("sentinel_username"), params.Get("sentinel_password"))
	params.Set("master_name", name)
	params.Del("sentinel_username")
	params.Del("sentinel_password")
	nodes.Path, nodes.RawQuery = "", params.Encode()
	nodes.User = sentinel // go-redis gives the Sentinels what stands in the URL
	opt, err := redis.ParseFailoverURL(nodes.String())
	if err != nil || name == "" || strings.Contains(name, "/") {
		return nil, ErrURL
	}
	if opt.ReplicaOnly || opt.RouteByLatency || opt.RouteRandomly {
		return nil, ErrReplica
	}
	if user != nil {
		opt.Username = user.Username()
		opt.Password, _ = user.Password()
	}
	setBounds(&opt.DialTimeout, &opt.ReadTimeout, &opt.WriteTimeout, &opt.DialerRetries, &opt.ContextTimeoutEnabled, &opt.PoolSize, &opt.PipelinePoolSize)
	return func() redis.UniversalClient { return redis.NewFailoverClient(opt) }, nil
}

// setBounds sets the bounds of a client's options, which have a type for each kind of client.
func setBounds(dial, read, write *time.Duration, dials *int, endsWithContext *bool, pool, pipelines *int) {
	*dial, *read, *write = dialTimeout, callTimeout, callTimeout
	*dials = 1
	*endsWithContext = true
	*pool = cmp.Or(*pool, connections)
	*pipelines = cmp.Or(*pipelines, pipelineConnections)
}

// parseNodes reads a URL of several nodes. The result is the same URL as go-redis reads it: its
// scheme is base, its host the first node, and each other node a parameter addr.
func parseNodes(base, text string) (*url.URL, error) {
	_, rest, _ := strings.Cut(text, "://")
	authority, tail := rest, ""
	if end := strings.IndexAny(rest, "/?"); end >= 0 {
		authority, tail = rest[:end], rest[end:]
	}
	user, hosts := "", authority
	if at := strings.LastIndexByte(authority, '@'); at >= 0 {
		user, hosts = authority[:at+1], authority[at+1:]
	}
	nodes := strings.Split(hosts, ",")
	parsed, err := url.Parse(base + "://" + user + nodes[0] + tail)
	if err != nil || parsed.Hostname() == "" {
		return nil, ErrURL
	}
	params := parsed.Query()
	for _, node := range nodes[1:] {
		other, err := url.Parse(base + "://" + node)
		if err != nil || other.Hostname() == "" {
			return nil, ErrURL
		}
		params.Add("addr", net.JoinHostPort(other.Hostname(), cmp.Or(other.Port(), "6379")))
	}
	parsed.RawQuery = params.Encode()
	return parsed, nil
}

// LogTo sends go-redis's messages to log, for the whole process. Call it before the first
// Connect.
func LogTo(log *slog.Logger) {
	redis.SetLogger(redisLogger{log})
}

// redisLogger logs the messages of go-redis. It sends one for each failed dial.
type redisLogger struct{ log *slog.Logger }

// Printf logs a message.
func (l redisLogger) Printf(ctx context.Context, format string, args ...any) {
	if l.log.Enabled(ctx, slog.LevelDebug) {
		l.log.DebugContext(ctx, "go-redis message", "text", fmt.Sprintf(format, args...))
	}
}
