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
	AccountID  int64
	Account    string // its number
	Type       EntryType
	Outcome    Outcome
	CreatedAt  time.Time // when the job was accepted
	FinishedAt time.Time

	Refusal *Refusal `db:"-"` // why a failed job failed; nil for any other
	Trip    *Trip    `db:"-"` // the round trip that finished it; nil for an attempt without other jobs
}

// Trip is a round trip to Postgres with the transactions of several jobs and one flush.
type Trip struct {
	Jobs    int       // how many jobs it finished
	Began   time.Time // before it had a connection
	Sent    time.Time
	Flushed time.Time
}

// Applier applies jobs.
type Applier struct {
	pool *pgxpool.Pool
}

// NewApplier applies the jobs in the database behind pool.
func NewApplier(pool *pgxpool.Pool) *Applier {
	return &Applier{pool: pool}
}

// Apply applies the queued jobs of upTo's account in order of position, up to upTo itself and
// at most limit of them. Each job has a transaction of its own. Apply returns the jobs that it
// finished. more says that upTo is not among them and may still be queued.
//
// A kill before a job's commit leaves the job queued, a kill after it leaves the job finished.
// There is no state between, and a job that is not queued is not applied again.
//
// An error may come with jobs that were finished before it. ErrRefused means that Postgres
// refused the oldest queued job: the attempt is counted, and the last of MaxAttempts ends the
// job failed. ErrJobNotFound means that no job has the id upTo. Any other error is a fault of
// Postgres or of the connection, and no attempt is counted.
func (a *Applier) Apply(ctx context.Context, upTo uuid.UUID, limit int) (applied []Applied, more bool, err error) {
	// Most accounts have only upTo queued, so the first round trip has one transaction. If that
	// applied an older job, the others share the next round trip.
	for jobs := (dueJobs{upTo: upTo, n: 1}); jobs.n > 0; jobs.n = min(jobs.remaining, limit-len(applied)) {
		var batch []Applied
		batch, jobs, err = a.applyNext(ctx, jobs)
		applied = append(applied, batch...)
		if more = jobs.remaining > 0; err != nil {
			return applied, true, err
		}
	}
	return applied, more, nil
}

// applyNext applies the oldest jobs.n of the due jobs. If Postgres refuses one of them,
// attemptOldest tries that job again. after are the jobs that remain.
func (a *Applier) applyNext(ctx context.Context, jobs dueJobs) (applied []Applied, after dueJobs, err error) {
	applied, all := a.applyAll(ctx, []dueJobs{jobs})
	after = all[0]
	switch {
	case after.err == nil:
		return applied, after, nil
	case !postgres.IsDataFault(after.err):
		return applied, after, fmt.Errorf("apply job %s: %w", jobs.upTo, after.err)
	}
	attempted, err := a.attemptOldest(ctx, jobs.upTo)
	after = dueJobs{upTo: jobs.upTo}
	if len(attempted) > 0 && attempted[0].JobID != jobs.upTo {
		after.remaining = 1 // or more, or none: the next transaction counts them
	}
	return append(applied, attempted...), after, err
}

// Due names the queued jobs of an account up to one of them.
type Due struct {
	JobID uuid.UUID
	Jobs  int // how many are expected, 1 at least; a wrong number costs only time
}

// Troubled is an account whose work an error ended.
type Troubled struct {
	Due
	Err error
}

// ApplyShared applies due jobs of several accounts: about limit of them, and at least one of
// each account. The jobs share round trips and flushes. remaining are the accounts that have
// more due jobs, with the number of these. troubled are the accounts whose work an error ended.
// The caller passes each of those to Apply, which meets the error again and returns it.
//
// A kill leaves each job as a kill of Apply does.
func (a *Applier) ApplyShared(ctx context.Context, due []Due, limit int) (applied []Applied, remaining []Due, troubled []Troubled) {
	remaining = due
	for len(remaining) > 0 && limit > 0 {
		share := max(limit/len(remaining), 1)
		accounts := make([]dueJobs, len(remaining))
		for i, d := range remaining {
			accounts[i] = dueJobs{upTo: d.JobID, n: max(min(d.Jobs, share), 1)}
			limit -= accounts[i].n
		}
		some, after := a.applyAll(ctx, accounts)
		applied, remaining = append(applied, some...), nil
		for _, jobs := range after {
			switch {
			case jobs.err != nil:
				troubled = append(troubled, Troubled{Due{jobs.upTo, jobs.n}, jobs.err})
			case jobs.remaining > 0:
				remaining = append(remaining, Due{jobs.upTo, jobs.remaining})
			}
		}
	}
	return applied, remaining, troubled
}

// maxSteps bounds how many transactions share a round trip.
const maxSteps = 64

// maxCounted bounds how far the remaining jobs of an account are counted: one more than a round
// trip can apply.
const maxCounted = maxSteps + 1

// dueJobs are an account's queued jobs up to one of them.
type dueJobs struct {
	upTo      uuid.UUID
	n         int   // how many of the oldest to apply
	remaining int   // how many are queued after that, maxCounted at most
	err       error // of the first transaction that failed
}

// step is one transaction: it applies the oldest of an account's due jobs.
type step struct {
	jobs *dueJobs
	last bool // of the account: it counts the remaining jobs
}

// applyAll applies the first n due jobs of each account, one account after another, and
// returns the accounts with their remaining jobs. An error of a job ends the work for its
// account only. A lost connection ends it for all.
func (a *Applier) applyAll(ctx context.Context, accounts []dueJobs) (applied []Applied, after []dueJobs) {
	var steps []step
	after = slices.Clone(accounts)
	for i := range after {
		for n := range after[i].n {
			steps = append(steps, step{&after[i], n == after[i].n-1})
		}
	}
	for len(steps) > 0 {
		some, heard, err := a.applyBatch(ctx, steps[:min(maxSteps, len(steps))])
		applied, steps = append(applied, some...), steps[heard:]
		if err != nil { // no further batch is sent
			for _, s := range steps {
				s.jobs.err = cmp.Or(s.jobs.err, err)
			}
			return applied, after
		}
		steps = slices.DeleteFunc(steps, func(s step) bool { return s.jobs.err != nil })
	}
	return applied, after
}
