// Package failpoint names the places between two steps at which tests kill a
// process. Its promise: a build without the tag failpoints carries nothing of
// it, neither in time nor in bytes.
package failpoint

// Variable is the environment variable that arms a build with the tag
// failpoints: a point's name, or NAME#3 for the third passing of it.
const Variable = "FAILPOINT"

// Point is a place between two steps. What a kill there leaves stands beside
// the call of Hit; what must come of it, in internal/test/e2e/crash_test.go.
type Point string

// The points, in the order in which a deposit passes them.
const (
	// OpenUncommitted is between an opening's writes and its commit.
	OpenUncommitted Point = "open-uncommitted"
	// OpenCommitted is between an opening's commit and its answer.
	OpenCommitted Point = "open-committed"

	// AcceptCollected is between collecting a batch of accepts and sending its
	// insert.
	AcceptCollected Point = "accept-collected"
	// AcceptCommitted is between an insert's commit and the rings for its jobs.
	AcceptCommitted Point = "accept-committed"
	// AcceptRung is between the rings, which are in memory alone, and the
	// answers to the accepts.
	AcceptRung Point = "accept-rung"
	// AnswerUnwritten is between the accept of a job and the 202 that tells of it.
	AnswerUnwritten Point = "answer-unwritten"

	// RingTaken is between taking notifications from memory and writing them to Redis.
	RingTaken Point = "ring-taken"
	// RingWritten is between writing notifications, or a task, and taking the next.
	RingWritten Point = "ring-written"

	// NotificationsTaken is between taking a partition's notifications out of Redis and
	// asking Postgres for their jobs.
	NotificationsTaken Point = "notifications-taken"
	// TicketTaken is between taking a ticket and asking Postgres for its job.
	TicketTaken Point = "ticket-taken"
	// ApplySent is between sending a batch of transactions and the first answer.
	ApplySent Point = "apply-sent"
	// ApplySynced is between one transaction's answer and the next one's.
	ApplySynced Point = "apply-synced"
	// ApplyUnflushed is between the end of a batch that flushed nothing and the
	// transaction that flushes for it.
	ApplyUnflushed Point = "apply-unflushed"
	// ApplyCommitted is between a batch's last answer and telling of it.
	ApplyCommitted Point = "apply-committed"

	// TryLocked is between the lock of a refused job's account and the count of
	// the attempt.
	TryLocked Point = "try-locked"
	// TryCounted is between the count of the attempt and the attempt.
	TryCounted Point = "try-counted"
	// TryTried is between the attempt and its consequence: the commit, or the
	// job's end as failed.
	TryTried Point = "try-tried"
	// TryFailed is between the job's end as failed and the commit of that.
	TryFailed Point = "try-failed"
	// TryCommitted is between the commit of the attempt and telling of it.
	TryCommitted Point = "try-committed"

	// TicketWorkedOff is between the end of a ticket's turn and its
	// acknowledgement, or the next ticket.
	TicketWorkedOff Point = "ticket-worked-off"
	// MoreUnwritten is between a turn that was not enough and the ticket for the
	// next one.
	MoreUnwritten Point = "more-unwritten"
	// MoreWritten is between the ticket for the next turn and the
	// acknowledgement of this one's.
	MoreWritten Point = "more-written"

	// SweepUnwritten is between finding an account that stands still and writing
	// its ticket.
	SweepUnwritten Point = "sweep-unwritten"
	// SweepWritten is between writing that ticket and remembering it.
	SweepWritten Point = "sweep-written"
	// DirectUnapplied is between choosing stalled accounts that the sweep applies
	// itself and the first apply.
	DirectUnapplied Point = "direct-unapplied"
	// DirectApplied is between the last of those applies and the next accounts.
	DirectApplied Point = "direct-applied"
)

// Points are all of them. Each has a row in internal/test/e2e/crash_test.go.
var Points = []Point{
	OpenUncommitted, OpenCommitted,
	AcceptCollected, AcceptCommitted, AcceptRung, AnswerUnwritten,
	RingTaken, RingWritten,
	NotificationsTaken, TicketTaken, ApplySent, ApplySynced, ApplyUnflushed, ApplyCommitted,
	TryLocked, TryCounted, TryTried, TryFailed, TryCommitted,
	TicketWorkedOff, MoreUnwritten, MoreWritten,
	SweepUnwritten, SweepWritten,
	DirectUnapplied, DirectApplied,
}

// Epitaph is what a process says on stderr before it dies at the point.
func (p Point) Epitaph() string {
	return "crash: killed at " + string(p)
}
