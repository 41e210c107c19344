package ledger

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/postgres"
)

// Applied is one job that Apply finished.
type Applied struct {
	JobID      uuid.UUID
	Type       EntryType
	Outcome    Outcome
	CreatedAt  time.Time // when the job was accepted
	FinishedAt time.Time
}

// Applier applies jobs.
type Applier struct {
	pool *pgxpool.Pool
}

// NewApplier applies the jobs in the database behind pool.
func NewApplier(pool *pgxpool.Pool) *Applier {
	return &Applier{pool: pool}
}

// applySQL applies the account's oldest queued job, if that is the ticket's or an
// older one, and waits for every other apply of it to end: migrations/00002_apply_job.sql.
//
// $1 the ticket's job, $2 MaxAmount, $3 how far to count what is left, $4 false where the
// commit need not wait until it is flushed. One row of one column, the answer: a function
// that stands in FROM has its answer stored, and read again.
const applySQL = `SELECT apply_job($1, $2, $3, $4)`

// Apply applies the queued jobs of the ticket's account in order of position,
// up to the ticket's own job and at most limit of them, each in a transaction of
// its own. It answers with those that it finished, and with more where the
// ticket's job is not among them and may still be queued.
//
// A kill before a job's commit leaves it queued, one after it leaves it
// finished; nothing lies between, and a job that is not queued is not taken
// again. An error may come with jobs that were finished before it. ErrRefused
// means that the first job in line is at fault (and counted, so that it ends
// failed at last); ErrJobNotFound, that the ticket names no job; any other error
// is Postgres's trouble and counts for nobody.
func (a *Applier) Apply(ctx context.Context, ticket uuid.UUID, limit int) (applied []Applied, more bool, err error) {
	// Most tickets find just their own job in line: one transaction, one round
	// trip. Only when an older job was first do the others share the next.
	for l := (line{ticket: ticket, n: 1}); l.n > 0; l.n = min(l.left, limit-len(applied)) {
		var batch []Applied
		batch, l, err = a.next(ctx, l)
		applied = append(applied, batch...)
		if more = l.left > 0; err != nil {
			return applied, true, err
		}
	}
	return applied, more, nil
}

// next applies what is to be applied of the line, and tells how it is after that.
func (a *Applier) next(ctx context.Context, l line) (applied []Applied, after line, err error) {
	applied, lines := a.applyLines(ctx, []line{l})
	after = lines[0]
	switch {
	case after.err == nil:
		return applied, after, nil
	case !postgres.IsDataFault(after.err):
		return applied, after, fmt.Errorf("apply job %s: %w", l.ticket, after.err)
	}
	tried, err := a.tryHead(ctx, l.ticket)
	after = line{ticket: l.ticket}
	if len(tried) > 0 && tried[0].JobID != l.ticket {
		after.left = 1 // as far as we know
	}
	return append(applied, tried...), after, err
}

// Due names the queued jobs of an account up to one of them.
type Due struct {
	JobID uuid.UUID
	Jobs  int // how many are expected, 1 at least; a wrong number costs time alone
}

// ApplyShared applies the queued jobs that are due, about limit of them, and one of each
// account at least. They share round trips and flushes. remaining are those that need
// another turn, with the number of their jobs; with the troubled ones something went
// wrong: Apply goes on with each, and meets it.
//
// A kill leaves what one in Apply does.
func (a *Applier) ApplyShared(ctx context.Context, due []Due, limit int) (applied []Applied, remaining, troubled []Due) {
	remaining = due
	for len(remaining) > 0 && limit > 0 {
		share := max(limit/len(remaining), 1)
		lines := make([]line, len(remaining))
		for i, d := range remaining {
			lines[i] = line{ticket: d.JobID, n: max(min(d.Jobs, share), 1)}
			limit -= lines[i].n
		}
		some, after := a.applyLines(ctx, lines)
		applied, remaining = append(applied, some...), nil
		for _, l := range after {
			switch {
			case l.err != nil:
				troubled = append(troubled, Due{l.ticket, l.n})
			case l.left > 0:
				remaining = append(remaining, Due{l.ticket, l.left})
			}
		}
	}
	return applied, remaining, troubled
}

// maxBatch bounds how many transactions share a round trip: a worker's turn.
const maxBatch = 64

// maxCounted is how far a line's jobs are counted: one more than a turn takes.
const maxCounted = maxBatch + 1

// line is an account's queued jobs up to a ticket's.
type line struct {
	ticket uuid.UUID
	n      int   // how many of the oldest to apply
	left   int   // how many there are then, maxCounted at most
	err    error // what the first of them met that did not work
}

// step is one transaction of a line, for the oldest of its jobs.
type step struct {
	line *line
	last bool // of those for the line: it counts what is left
}

// applyLines applies what is to be applied of each line, one after another, and tells
// what is left. A line that meets trouble goes no further; the others do, but for a
// connection that is lost.
func (a *Applier) applyLines(ctx context.Context, lines []line) (applied []Applied, after []line) {
	var steps []step
	after = slices.Clone(lines)
	for i := range after {
		for n := range after[i].n {
			steps = append(steps, step{&after[i], n == after[i].n-1})
		}
	}
	for len(steps) > 0 {
		some, heard, err := a.applyBatch(ctx, steps[:min(maxBatch, len(steps))])
		applied, steps = append(applied, some...), steps[heard:]
		if err != nil { // nobody is asked any more
			for _, s := range steps {
				s.line.err = cmp.Or(s.line.err, err)
			}
			return applied, after
		}
		steps = slices.DeleteFunc(steps, func(s step) bool { return s.line.err != nil })
	}
	return applied, after
}
