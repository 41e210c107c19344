package queue

import (
	"context"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"
)

// allQueues is Asynq's set of the names of all queues, of every program on this Redis.
const allQueues = "asynq:queues"

// Only returns a client with which Asynq's inspector lists only this installation's queues.
// The metrics then have no figures of other installations, and don't fail because of them.
//
// It relies on how Asynq 0.26 lists queues, by SMEMBERS. TestInspectorListsItsOwn fails
// where a new Asynq changes that; then the inspector lists all.
func (q Queues) Only(client redis.UniversalClient) redis.UniversalClient {
	return ownQueues{client, q}
}

type ownQueues struct {
	redis.UniversalClient
	queues Queues
}

// SMembers removes the queues of other installations from Asynq's list.
func (o ownQueues) SMembers(ctx context.Context, key string) *redis.StringSliceCmd {
	cmd := o.UniversalClient.SMembers(ctx, key)
	if key == allQueues {
		cmd.SetVal(slices.DeleteFunc(cmd.Val(), func(name string) bool {
			return !strings.HasPrefix(name, o.queues.Prefix+nameInfix)
		}))
	}
	return cmd
}
