package local

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// Etcd is a member of an etcd cluster, where Patroni's nodes agree on the primary.
type Etcd struct {
	instance
	member  string // its name
	peer    int    // the port for the other members
	cluster string // all members, as etcd takes them
}

// StartEtcd starts a cluster of so many members. Each answers when the cluster has a leader.
func StartEtcd(ctx context.Context, members int) ([]*Etcd, error) {
	all := make([]*Etcd, members)
	var cluster []string
	for n := range all {
		e, err := newEtcd(ctx, fmt.Sprintf("etcd%d", n+1))
		if err != nil {
			return nil, errors.Join(err, removeAll(ctx, all[:n]))
		}
		all[n] = e
		cluster = append(cluster, e.member+"="+e.peerURL())
	}
	errs := make([]error, members)
	var starting sync.WaitGroup
	for n, e := range all {
		e.cluster = strings.Join(cluster, ",")
		starting.Go(func() { errs[n] = e.start(ctx) })
	}
	starting.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, errors.Join(err, removeAll(ctx, all))
	}
	return all, nil
}

func removeAll(ctx context.Context, members []*Etcd) (err error) {
	for _, e := range members {
		err = errors.Join(err, e.Remove(ctx))
	}
	return err
}

func newEtcd(ctx context.Context, member string) (*Etcd, error) {
	f, err := openFolder(ctx, "", false, nil)
	if err != nil {
		return nil, fmt.Errorf("start etcd: %w", err)
	}
	e := &Etcd{member: member}
	e.instance = instance{
		name: "etcd", folder: f, pidFile: "pid",
		stopSignal: syscall.SIGTERM,
		killSignal: syscall.SIGKILL,
		prepare:    func(context.Context) error { return nil },
		command:    e.command,
		ping:       func(ctx context.Context, port int) error { return get(ctx, port, "/health") },
	}
	if e.peer, err = freePort(ctx); err == nil {
		e.port, err = freePort(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start etcd: %w", err), f.abandon())
	}
	return e, nil
}

// Address is where clients find the member.
func (e *Etcd) Address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(e.port)) }

func (e *Etcd) peerURL() string { return "http://127.0.0.1:" + strconv.Itoa(e.peer) }

// command has a shell write the process number, which etcd does not.
func (e *Etcd) command(int) ([]string, error) {
	client := "http://" + e.Address()
	return []string{
		"/bin/sh", "-c", `echo $$ >"$0" && exec "$@"`, filepath.Join(e.folder.path, e.pidFile),
		"etcd", "--name=" + e.member, "--data-dir=" + e.folder.dataPath(), "--log-level=warn",
		"--listen-client-urls=" + client, "--advertise-client-urls=" + client,
		"--listen-peer-urls=" + e.peerURL(), "--initial-advertise-peer-urls=" + e.peerURL(), "--initial-cluster=" + e.cluster,
	}, nil
}
