package queue

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
)

const (
	// holdFor is how long a hold lasts without a renewal. Then another process may take it.
	holdFor = 30 * time.Second
	// keepFor is how long Redis keeps a shared value that no process writes.
	keepFor = 30 * 24 * time.Hour
)

// Shared is a value in Redis that the processes of an installation share. One process at a time holds
// it, and only the holder writes it. If Redis loses its data, the value is empty, and two processes
// may believe for a while that they hold it.
type Shared struct {
	client redis.UniversalClient
	owner  *Owner
	keys   []string // the hold and the value, in one slot of a cluster
	holder string   // this process
}

// NewShared makes the shared value of that name.
func NewShared(client redis.UniversalClient, queues Queues, name string) *Shared {
	key := fmt.Sprintf("%s:%s:{%[1]s}:", queues.Prefix, name)
	return &Shared{client: client, owner: queues.Owner, keys: []string{key + "holder", key + "value"}, holder: uuid.NewString()}
}

// holdScript takes the hold, or keeps it, and then writes the value.
//
// KEYS[1] the holder, KEYS[2] the value; ARGV[1] the calling process, ARGV[2] holdFor in
// milliseconds, ARGV[3] the new value, empty for no change, ARGV[4] keepFor in seconds. Returns
// whether the calling process is the holder, and the value.
var holdScript = redis.NewScript(`
local holder = redis.call("GET", KEYS[1])
local held = not holder or holder == ARGV[1]
if held then
	redis.call("SET", KEYS[1], ARGV[1], "PX", ARGV[2])
	if ARGV[3] ~= "" then
		redis.call("SET", KEYS[2], ARGV[3], "EX", ARGV[4])
	end
end
return {held and "1" or "0", redis.call("GET", KEYS[2]) or ""}`)

// Hold takes or renews the hold for holdFor, unless another process has it. If this process holds the
// value, Hold writes change, unless that is empty. It returns the value after that.
func (s *Shared) Hold(ctx context.Context, change []byte) (value []byte, held bool, err error) {
	if err := s.owner.Err(); err != nil {
		return nil, false, err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	answer, err := holdScript.Run(ctx, s.client, s.keys, s.holder, holdFor.Milliseconds(), change, int(keepFor.Seconds())).StringSlice()
	if err != nil {
		return nil, false, fmt.Errorf("hold %s: %w", s.keys[1], err)
	}
	return []byte(answer[1]), answer[0] == "1", nil
}

// releaseScript ends the hold KEYS[1] of the process ARGV[1].
var releaseScript = redis.NewScript(`
if redis.call("GET", KEYS[1]) == ARGV[1] then
	redis.call("DEL", KEYS[1])
end
return 0`)

// Release ends the hold, so that another process need not wait for holdFor.
func (s *Shared) Release(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if err := releaseScript.Run(ctx, s.client, s.keys[:1], s.holder).Err(); err != nil {
		return fmt.Errorf("release %s: %w", s.keys[1], err)
	}
	return nil
}
