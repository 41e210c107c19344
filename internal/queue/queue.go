// Package queue is the only place that knows Asynq. A ticket says that an
// account has a job to do; it names the job and carries nothing else, so that
// whoever writes to Redis can't mint money. Its promise: tickets may be lost,
// doubled or late, and then only time is lost, because the worker's sweep finds
// in Postgres what nobody rings for.
package queue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"

	"github.com/google/uuid"
)

// taskType is what the dashboard shows tickets as.
const taskType = "job:apply"

// ErrBadTicket is returned for a ticket that nobody of ours has written.
var ErrBadTicket = errors.New("bad ticket")

// Name is the Asynq queue of a partition.
func Name(partition int) string {
	return fmt.Sprintf("tx:%d", partition)
}

// Partition is the partition of an account among n. It is the same in every
// process, or an account's jobs would meet in two queues: slower, though still
// in order.
func Partition(accountID int64, n int) int {
	hash := fnv.New64a()
	_, _ = hash.Write(binary.BigEndian.AppendUint64(nil, uint64(accountID))) //nolint:gosec // the bits; Write never fails
	return int(hash.Sum64() % uint64(n))                                     //nolint:gosec // a count of partitions
}

// A Ticket asks a worker to apply an account's jobs up to one of them.
type Ticket struct {
	AccountID int64 // says which partition; not in the payload
	JobID     uuid.UUID
	// Again tells the tickets of one job apart: 0 for the first, that of the
	// accept. A dead worker holds the earlier one's name until its lease ends.
	Again int
}

// id is the ticket's name in Redis: enqueueing it twice is the same as once.
func (t Ticket) id() string {
	if t.Again == 0 {
		return t.JobID.String()
	}
	return fmt.Sprintf("%s.%d", t.JobID, t.Again)
}

// nextID names the ticket that goes on where the one called id stopped.
func nextID(id string) string {
	job, again, _ := strings.Cut(id, ".")
	n, _ := strconv.Atoi(again) // 0 for the first, and for a name that is not ours
	return fmt.Sprintf("%s.%d", job, n+1)
}

// parse reads the job's id from a ticket's payload.
func parse(payload []byte) (uuid.UUID, error) {
	const length = 36 // Parse takes other forms too; ours is this one
	if len(payload) != length {
		return uuid.UUID{}, fmt.Errorf("%w: %d bytes", ErrBadTicket, len(payload))
	}
	id, err := uuid.ParseBytes(payload)
	if err != nil {
		return uuid.UUID{}, fmt.Errorf("%w: %w", ErrBadTicket, err)
	}
	return id, nil
}
