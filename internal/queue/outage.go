package queue

import (
	"context"
	"errors"
	"net"
	"sync/atomic"

	"github.com/redis/go-redis/v9"
)

// refusals are how the errors begin with which Redis refuses commands because of its state: it is full,
// is read-only, is starting, can't write to its disk, or does not accept the password.
var refusals = []string{
	"OOM", "READONLY", "MISCONF", "LOADING", "NOREPLICAS", "CLUSTERDOWN", "MASTERDOWN", "NOAUTH", "WRONGPASS",
}

// Watch calls note after each call to Redis: with the host, and nil or the error of a Redis that does
// not serve. Calls of note may overlap.
func Watch(client redis.UniversalClient, note func(host string, err error)) {
	client.AddHook(&watchHook{note: note})
}

// watchHook is a redis.Hook.
type watchHook struct {
	note func(host string, err error)
	host atomic.Value // string: where the last connection was opened
}

// DialHook implements redis.Hook.
func (h *watchHook) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		h.host.Store(addr)
		return next(ctx, network, addr)
	}
}

// ProcessHook implements redis.Hook.
func (h *watchHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		h.ended(err)
		return err
	}
}

// ProcessPipelineHook implements redis.Hook.
func (h *watchHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := next(ctx, cmds)
		h.ended(err)
		return err
	}
}

// ended passes the result of a call to note. It leaves out calls that the process itself ended: their
// errors are not Redis's.
func (h *watchHook) ended(err error) {
	host, _ := h.host.Load().(string)
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, redis.ErrClosed), errors.Is(err, redis.ErrPoolTimeout):
	case err == nil, IsAnswer(err) && !isRefusal(err):
		h.note(host, nil)
	default:
		h.note(host, err)
	}
}

// isRefusal is true for an error with which Redis refuses more than this one command.
func isRefusal(err error) bool {
	for _, prefix := range refusals {
		if redis.HasErrorPrefix(err, prefix) {
			return true
		}
	}
	return false
}
