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

// queueOf is the queue of a pending list.
func queueOf(list string) string {
	return strings.TrimSuffix(strings.TrimPrefix(list, "asynq:{"), "}:pending")
}

// line is Asynq's list of a partition's tickets that wait for a worker.
func (q Queues) line(partition int) string {
	return keysOf(q.Name(partition)) + "pending"
}

// notified is the list of a partition's notifications that wait for a task to take them.
func (q Queues) notified(partition int) string {
	return notifiedOf(q.Name(partition))
}

// notifiedOf is that of a queue.
func notifiedOf(queue string) string { return keyOf(queue, "notified") }

// awakeOf is there while a worker takes a queue's notifications.
func awakeOf(queue string) string { return keyOf(queue, "awake") }

// keyOf is a key of a queue that is not Asynq's, in the slot of the others.
func keyOf(queue, what string) string {
	prefix, _, _ := strings.Cut(queue, nameInfix)
	return prefix + ":" + what + ":{" + queue + "}"
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

// maxShared is how many accounts share a task.
const maxShared = 32

// newTask is a task for jobs of a partition. Its payload is a line for each, for operators
// to read: JOB ACCOUNT POSITION JOBS.
func newTask(notifications []Notification) *asynq.Task {
	lines := make([]string, len(notifications))
	for i, n := range notifications {
		lines[i] = n.String()
	}
	return asynq.NewTask(taskType, []byte(strings.Join(lines, "\n")))
}

// parse reads what newTask wrote.
func parse(payload []byte) (notifications []Notification, err error) {
	if len(payload) > maxShared*maxLine {
		return nil, fmt.Errorf("%w: %d bytes", ErrBadTicket, len(payload))
	}
	for line := range strings.SplitSeq(string(payload), "\n") {
		n, err := parseNotification(line)
		if err != nil {
			return nil, err
		}
		notifications = append(notifications, n)
	}
	if len(notifications) > maxShared {
		return nil, fmt.Errorf("%w: %d jobs", ErrBadTicket, len(notifications))
	}
	return notifications, nil
}

// maxLine bounds a notification's line: a job's id, three numbers, and what stands between.
const maxLine = 36 + 3*20 + 4

// String is the notification as it stands in Redis.
func (n Notification) String() string {
	line := append(make([]byte, 0, maxLine), n.JobID.String()...)
	for _, number := range []int64{n.AccountID, n.Position, int64(n.Jobs)} {
		line = strconv.AppendInt(append(line, ' '), number, 10)
	}
	return string(line)
}

// parseNotification reads what String wrote.
func parseNotification(line string) (n Notification, err error) {
	fields := strings.Split(line, " ")
	if len(fields) != 4 || len(fields[0]) != len(uuid.Nil.String()) {
		return Notification{}, fmt.Errorf("%w: %.100q", ErrBadTicket, line)
	}
	var errs [4]error
	n.JobID, errs[0] = uuid.Parse(fields[0])
	n.AccountID, errs[1] = strconv.ParseInt(fields[1], 10, 64)
	n.Position, errs[2] = strconv.ParseInt(fields[2], 10, 64)
	n.Jobs, errs[3] = strconv.Atoi(fields[3])
	if err := errors.Join(errs[:]...); err != nil {
		return Notification{}, fmt.Errorf("%w: %.100q", ErrBadTicket, line)
	}
	return n, nil
}
