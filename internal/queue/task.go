package queue

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"
)

// taskType is the type of all tasks, as the dashboard shows it.
const taskType = "job:apply"

// ErrMalformedTask is returned for a task whose payload newTask did not write.
var ErrMalformedTask = errors.New("malformed task")

// ErrUnknownJob is returned for a task of a job that this installation's Postgres does not
// have: another installation on the same Redis wrote the task, or it is older than a restore.
var ErrUnknownJob = errors.New("the task names a job that this database does not know")

// Task asks a worker to apply an account's queued jobs up to one of them.
type Task struct {
	AccountID int64 // selects the partition
	JobID     uuid.UUID
	// Attempt numbers the tasks of a job; the accept's task is 0. The number makes a new
	// name, because a dead worker's task keeps its name until its lease ends.
	Attempt int
}

// id is the task's name in Redis: to enqueue a task twice is the same as once. A task of
// several accounts has the name of its first job.
func (t Task) id() string {
	if t.Attempt == 0 {
		return t.JobID.String()
	}
	return fmt.Sprintf("%s.%d", t.JobID, t.Attempt)
}

// nextID is the name of the job's task that follows the task called id.
func nextID(job uuid.UUID, id string) string {
	_, attempt, _ := strings.Cut(id, ".")
	n, _ := strconv.Atoi(attempt) // 0 for the first, and for a name that id did not make
	return Task{JobID: job, Attempt: max(n, 0) + 1}.id()
}

// TaskInfo says where a task is in Redis.
type TaskInfo struct {
	State TaskState
	// RetryAt is the time of the next attempt of a task in TaskRetry, in whole seconds. The
	// worker that wrote it used its own clock, which can be an hour wrong: the time only
	// distinguishes one attempt from the next.
	RetryAt time.Time
}

// TaskState is where a task is in Redis.
type TaskState int

// The states of a task.
const (
	TaskMissing TaskState = iota // not in Redis, or archived
	TaskPending                  // in its partition's pending list
	TaskActive                   // a worker handles it, or died while it did
	TaskRetry                    // waits for its next attempt
)

// maxTaskJobs bounds the accounts of a task, and so the jobs that it names.
const maxTaskJobs = 32

// newTask is a task for jobs of a partition. Its payload has a line for each job, which an
// operator can read: JOB ACCOUNT POSITION JOBS. Its headers have the origins of the jobs.
func newTask(notifications []Notification) *asynq.Task {
	lines := make([]string, len(notifications))
	for i, n := range notifications {
		lines[i] = n.String()
	}
	return asynq.NewTaskWithHeaders(taskType, []byte(strings.Join(lines, "\n")), headersOf(notifications))
}

// parse reads the payload of a task. It returns ErrMalformedTask for one that newTask did
// not write.
func parse(payload []byte) (notifications []Notification, err error) {
	if len(payload) > maxTaskJobs*maxNotificationBytes {
		return nil, fmt.Errorf("%w: %d bytes", ErrMalformedTask, len(payload))
	}
	for line := range strings.SplitSeq(string(payload), "\n") {
		n, err := parseNotification(line)
		if err != nil {
			return nil, err
		}
		notifications = append(notifications, n)
	}
	if len(notifications) > maxTaskJobs {
		return nil, fmt.Errorf("%w: %d jobs", ErrMalformedTask, len(notifications))
	}
	return notifications, nil
}
