// Package queue tells the workers which accounts have queued jobs. Apart from cmd/worker, which
// registers Asynq's metrics, it is the only package that knows Asynq. A task names jobs and carries nothing else, so a process that can write
// to Redis cannot create money. Its promise: a task may be lost, doubled or late, and this
// costs only time, because the worker's sweep finds the queued jobs in Postgres.
package queue

import (
	"encoding/binary"
	"hash/fnv"
	"strconv"
	"strings"
)

// Queues are an installation's queues, one for each partition.
type Queues struct {
	// Prefix begins the names of the queues, and of every other key and channel in Redis
	// that is not Asynq's, so that installations can share a Redis.
	Prefix     string
	Partitions int
	Owner      *Owner // nil: no check whether another installation owns the queues
}

// Name is the Asynq queue of a partition.
func (q Queues) Name(partition int) string {
	return q.Prefix + nameInfix + strconv.Itoa(partition)
}

// nameInfix stands between the prefix and the partition.
const nameInfix = ":tx:"

// Of is the Asynq queue of an account.
func (q Queues) Of(accountID int64) string {
	return q.Name(Partition(accountID, q.Partitions))
}

// Partition is the partition of an account among n. Every process must compute the same
// one. Otherwise an account's jobs are spread over two queues, which is slower but keeps
// their order.
func Partition(accountID int64, n int) int {
	hash := fnv.New64a()
	_, _ = hash.Write(binary.BigEndian.AppendUint64(nil, uint64(accountID))) //nolint:gosec // the bits; Write never fails
	return int(hash.Sum64() % uint64(n))                                     //nolint:gosec // a count of partitions
}

// keysOf begins Asynq's keys of a queue.
func keysOf(queue string) string {
	return "asynq:{" + queue + "}:"
}

// pending is the key of a partition's pending list: Asynq's list of the tasks that wait
// for a worker.
func (q Queues) pending(partition int) string {
	return keysOf(q.Name(partition)) + "pending"
}

// notified is the key of the list of a partition's notifications that wait for a task.
func (q Queues) notified(partition int) string {
	return notifiedOf(q.Name(partition))
}

// notifiedOf is the same key, of a queue.
func notifiedOf(queue string) string { return keyOf(queue, "notified") }

// awakeOf is the key that exists while a worker takes a queue's notifications.
func awakeOf(queue string) string { return keyOf(queue, "awake") }

// keyOf is a key of a queue that is not Asynq's. Its hash tag puts it into the same slot of
// a Redis cluster as Asynq's keys.
func keyOf(queue, what string) string {
	prefix, _, _ := strings.Cut(queue, nameInfix)
	return prefix + ":" + what + ":{" + queue + "}"
}
