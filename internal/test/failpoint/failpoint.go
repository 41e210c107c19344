// Package failpoint names the places between two steps at which a test stops
// the process. A build without the tag failpoints contains no trace of them.
package failpoint

// Variable is the environment variable that arms a build with the tag
// failpoints: a point's name, or NAME#3 to stop the third time it is reached.
const Variable = "FAILPOINT"

// Point is a place between two steps. The comment at each call of Hit says what a
// kill there leaves; internal/test/e2e/crash_test.go says what follows from it.
type Point string

// The points, in the order in which a deposit reaches them. Each stands between
// the two steps that its comment names.
const (
	// OpenUncommitted is between the writes that open an account and their commit.
	OpenUncommitted Point = "open-uncommitted"
	// OpenCommitted is between that commit and the response.
	OpenCommitted Point = "open-committed"

	// AcceptCollected is between collecting a batch of requests and sending its insert.
	AcceptCollected Point = "accept-collected"
	// AcceptCommitted is between the commit of the insert and notifying for its jobs.
	AcceptCommitted Point = "accept-committed"
	// AcceptNotified is between notifying, which only writes to memory, and the
	// results of the accepts.
	AcceptNotified Point = "accept-notified"
	// ResponseUnwritten is between the accept of a job and its 202 response.
	ResponseUnwritten Point = "response-unwritten"

	// NotificationsCollected is between taking notifications from memory and
	// writing them to Redis.
	NotificationsCollected Point = "notifications-collected"
	// NotificationsWritten is between that write and collecting the next notifications.
	NotificationsWritten Point = "notifications-written"

	// NotificationsTaken is between taking a partition's notifications out of Redis
	// and applying their jobs.
	NotificationsTaken Point = "notifications-taken"
	// TaskReceived is between receiving a task and asking Postgres for its jobs.
	TaskReceived Point = "task-received"
	// ApplySent is between sending a batch of transactions and reading the first result.
	ApplySent Point = "apply-sent"
	// ApplySynced is between the result of a transaction and the next result.
	ApplySynced Point = "apply-synced"
	// ApplyUnflushed is between the end of a batch that flushed nothing and the
	// extra transaction that flushes for it.
	ApplyUnflushed Point = "apply-unflushed"
	// ApplyCommitted is between the last result of a batch and returning its jobs.
	ApplyCommitted Point = "apply-committed"

	// AttemptLocked is between locking the account of a refused job and counting
	// the attempt.
	AttemptLocked Point = "attempt-locked"
	// AttemptCounted is between counting the attempt and making it.
	AttemptCounted Point = "attempt-counted"
	// AttemptMade is between the attempt and its commit, or the write that fails the job.
	AttemptMade Point = "attempt-made"
	// AttemptFailed is between the write that fails the job and its commit.
	AttemptFailed Point = "attempt-failed"
	// AttemptCommitted is between the commit of the attempt and returning its job.
	AttemptCommitted Point = "attempt-committed"

	// TaskHandled is between applying a task's jobs and acknowledging the task.
	TaskHandled Point = "task-handled"
	// RemainingUnwritten is between applying a part of a task's jobs and enqueueing
	// a task for the remaining jobs.
	RemainingUnwritten Point = "remaining-unwritten"
	// RemainingWritten is between enqueueing that task and acknowledging the first.
	RemainingWritten Point = "remaining-written"

	// SweepTaskUnwritten is between finding a stalled account and enqueueing its task.
	SweepTaskUnwritten Point = "sweep-task-unwritten"
	// SweepTaskWritten is between enqueueing that task and remembering it.
	SweepTaskWritten Point = "sweep-task-written"
	// DirectUnapplied is between choosing the stalled accounts that the sweep
	// applies itself and the first apply.
	DirectUnapplied Point = "direct-unapplied"
	// DirectApplied is between the last of those applies and the next accounts.
	DirectApplied Point = "direct-applied"

	// ActionUncommitted is between an operator's action, which a command of the worker
	// asks for, and its commit.
	ActionUncommitted Point = "action-uncommitted"
	// ActionCommitted is between that commit and the command's output.
	ActionCommitted Point = "action-committed"
)

// Points lists every point. Each has a row in internal/test/e2e/crash_test.go.
var Points = []Point{
	OpenUncommitted, OpenCommitted,
	AcceptCollected, AcceptCommitted, AcceptNotified, ResponseUnwritten,
	NotificationsCollected, NotificationsWritten,
	NotificationsTaken, TaskReceived, ApplySent, ApplySynced, ApplyUnflushed, ApplyCommitted,
	AttemptLocked, AttemptCounted, AttemptMade, AttemptFailed, AttemptCommitted,
	TaskHandled, RemainingUnwritten, RemainingWritten,
	SweepTaskUnwritten, SweepTaskWritten,
	DirectUnapplied, DirectApplied,
	ActionUncommitted, ActionCommitted,
}

// KillMessage is what the process writes to stderr before it kills itself at the point.
func (p Point) KillMessage() string {
	return "failpoint: killed at " + string(p)
}
