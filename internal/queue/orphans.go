package queue

import (
	"context"
	"strings"

	"github.com/redis/go-redis/v9"
)

const (
	// maxOrphans is how many orphans one script removes. It takes Redis about a millisecond.
	maxOrphans = 200
	// maxDequeues bounds how often one dequeue asks Redis again after it removed orphans.
	maxDequeues = 50
)

// orphansScript removes orphans. An orphan is the name of a task that does not exist, in a
// pending list or in the list of active tasks: Redis evicted the task, an operator deleted it,
// or its key has a wrong type. Asynq's dequeue moves an orphan to the active tasks, where it
// stays for ever. No task that is being written looks like an orphan: Asynq writes a task and
// its name together.
//
// KEYS[1] the pending list; ARGV[1] the beginning of the partition's keys, ARGV[2] the bound
// of each list. Returns how many it removed.
var orphansScript = redis.NewScript(`
local function orphan(id)
	local key = ARGV[1] .. "t:" .. id
	if redis.call("TYPE", key).ok == "hash" and redis.call("HEXISTS", key, "msg") == 1 then
		return false
	end
	redis.call("DEL", key)
	redis.pcall("ZREM", ARGV[1] .. "lease", id)
	return true
end
local removed = 0
if redis.call("EXISTS", ARGV[1] .. "paused") == 1 then
	return removed
end
for _, id in ipairs(redis.call("LRANGE", ARGV[1] .. "active", 0, ARGV[2] - 1)) do
	if orphan(id) then
		redis.call("LREM", ARGV[1] .. "active", 1, id)
		removed = removed + 1
	end
end
for _, id in ipairs(redis.call("LRANGE", KEYS[1], -ARGV[2], -1)) do
	if orphan(id) then
		redis.call("LREM", KEYS[1], -1, id)
		removed = removed + 1
	end
end
return removed`)

// removeOrphans removes up to maxOrphans of each list of a partition. It returns whether
// it removed any. The sweep finds their jobs.
func (w *waitingClient) removeOrphans(ctx context.Context, list string) bool {
	removed, err := orphansScript.Run(ctx, w.UniversalClient, []string{list}, strings.TrimSuffix(list, "pending"), maxOrphans).Int()
	if err != nil {
		w.log.Debug("could not look for orphaned tasks", "error", err)
	}
	if removed > 0 {
		w.log.Warn("removed the names of tasks that Redis has lost", "list", list, "names", removed)
	}
	return removed > 0
}
