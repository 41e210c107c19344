// Package queue is the only place that knows Asynq. A ticket says that an
// account has a job to do, or several of a partition have; it names the jobs and
// carries nothing else, so that whoever writes to Redis can't mint money. Its
// promise: tickets may be lost, doubled or late, and then only time is lost,
// because the worker's sweep finds in Postgres what nobody rings for.
package queue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"
)

// taskType is what the dashboard shows tickets as.
const taskType = "job:apply"

// ErrBadTicket is returned for a ticket that nobody of ours has written.
var ErrBadTicket = errors.New("bad ticket")

// ErrUnknownJob is returned for a task of a job that this installation's Postgres does
// not know: another installation's on the same Redis, or one from before a restore.
var ErrUnknownJob = errors.New("the task names a job that this database does not know")

// Queues are an installation's queues, one for each partition.
type Queues struct {
	// Prefix begins the names of the queues, and of every other key and channel in Redis
	// that is not Asynq's, so that installations can share a Redis.
	Prefix     string
	Partitions int
	Owner      *Owner // nil: it is not checked whose the queues are
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

// keysOf is what Asynq's keys of a queue begin with.
func keysOf(queue string) string {
	return "asynq:{" + queue + "}:"
}

// line is Asynq's list of a partition's tickets that wait for a worker.
func (q Queues) line(partition int) string {
	return keysOf(q.Name(partition)) + "pending"
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

// id is the ticket's name in Redis: enqueueing it twice is the same as once. That
// of several accounts has the name of its first job's.
func (t Ticket) id() string {
	if t.Again == 0 {
		return t.JobID.String()
	}
	return fmt.Sprintf("%s.%d", t.JobID, t.Again)
}

// nextID names the job's ticket that goes on where the one called id stopped.
func nextID(job uuid.UUID, id string) string {
	_, again, _ := strings.Cut(id, ".")
	n, _ := strconv.Atoi(again) // 0 for the first, and for a name that is not ours
	return Ticket{JobID: job, Again: max(n, 0) + 1}.id()
}

const (
	// maxShared is how many accounts share a ticket. It bounds how long their
	// partition waits for the next one.
	maxShared = 32
	// alsoHeader names the jobs that a ticket is for beside its payload's, which
	// is all that builds before it know of.
	alsoHeader = "also"
	idLength   = 36
)

// newTask is a ticket for one job each of several accounts.
func newTask(jobs []uuid.UUID) *asynq.Task {
	payload := []byte(jobs[0].String())
	if len(jobs) == 1 {
		return asynq.NewTask(taskType, payload)
	}
	var also strings.Builder
	for _, id := range jobs[1:] {
		also.WriteString(id.String())
	}
	return asynq.NewTaskWithHeaders(taskType, payload, map[string]string{alsoHeader: also.String()})
}

// parse reads what newTask wrote.
func parse(task *asynq.Task) (jobs []uuid.UUID, err error) {
	ids := string(task.Payload()) + task.Headers()[alsoHeader]
	if len(task.Payload()) != idLength || len(ids)%idLength != 0 || len(ids) > maxShared*idLength {
		return nil, fmt.Errorf("%w: %d bytes", ErrBadTicket, len(ids))
	}
	for ; ids != ""; ids = ids[idLength:] {
		id, err := uuid.Parse(ids[:idLength])
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrBadTicket, err)
		}
		jobs = append(jobs, id)
	}
	return jobs, nil
}
