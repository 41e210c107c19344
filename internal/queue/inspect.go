package queue

import (
	"context"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"
)

// allQueues is Asynq's set of the names of all queues, of every program on this Redis.
const allQueues = "asynq:queues"

// Only returns a client under which Asynq's inspector lists this installation's queues
// alone. The metrics then have no figures of others, and don't fail because of them.
//
// It leans on how Asynq 0.26 lists queues, by SMEMBERS. TestInspectorListsItsOwn fails
// where that changes; then it lists all.
func (q Queues) Only(client redis.UniversalClient) redis.UniversalClient {
	return ownQueues{client, q}
}

type ownQueues struct {
	redis.UniversalClient
	queues Queues
}

// SMembers leaves other installations' queues out of Asynq's list.
func (o ownQueues) SMembers(ctx context.Context, key string) *redis.StringSliceCmd {
	cmd := o.UniversalClient.SMembers(ctx, key)
	if key == allQueues {
		cmd.SetVal(slices.DeleteFunc(cmd.Val(), func(name string) bool {
			return !strings.HasPrefix(name, o.queues.Prefix+nameInfix)
		}))
	}
	return cmd
}
