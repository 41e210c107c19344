package ledger

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/crash"
	"github.com/passbook/passbook/internal/postgres"
)

// MaxAttempts is how often a job is tried that Postgres refuses for a reason
// of the job's own, before it ends failed and its account goes on.
const MaxAttempts = 5

// ErrRefused wraps the error of a job that Postgres refused for a reason of the
// job's own; the attempt is counted.
var ErrRefused = errors.New("job refused")

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

// lockSQL holds every other apply of the account off until the transaction ends.
// It is a statement of its own: under READ COMMITTED the next one has a new
// snapshot, taken when the lock is held, so it sees all that was applied before.
// NO KEY: nothing that only refers to the account has to wait.
//
// $1 the ticket's job. No row where there is no such job.
const lockSQL = `
	SELECT FROM accounts WHERE id = (SELECT account_id FROM jobs WHERE id = $1) FOR NO KEY UPDATE`

// headSQL finds the account's oldest queued job, if that is the ticket's or an
// older one. The account and the position are looked up first, as scalars, so
// that the rest is one step into jobs_queued: a join would read and sort the
// whole queue.
//
// $1 the ticket's job.
const headSQL = `
		SELECT * FROM jobs
		WHERE account_id = (SELECT account_id FROM jobs WHERE id = $1)
			AND status = 'queued'
			AND position <= (SELECT position FROM jobs WHERE id = $1)
		ORDER BY position
		LIMIT 1`

// leftSQL counts the jobs up to the ticket's that stay queued when one is
// finished.
//
// $1 the ticket's job, $2 how far to count.
const leftSQL = `
		CASE WHEN jobs.id = $1 THEN 0 ELSE (
			SELECT count(*) FROM (
				SELECT FROM jobs line
				WHERE line.account_id = jobs.account_id AND line.status = 'queued' AND line.position > jobs.position
					AND line.position <= (SELECT position FROM jobs WHERE id = $1)
				LIMIT $2
			) line
		) END`

// applySQL applies the account's oldest queued job, if that is the ticket's or
// an older one: it decides, moves the balance, writes the history and finishes
// the job, in one statement. All times come from Postgres's clock; created_at
// never goes back within an account, even where that clock does.
//
// $1 the ticket's job, $2 how far to count, $3 MaxAmount. One row: the job that
// was finished and leftSQL; none where no job up to the ticket's was queued.
const applySQL = `
	WITH head AS (` + headSQL + `
	), sums AS (
		SELECT head.id, head.account_id, head.type, head.amount, head.description,
			account.last_seq + 1 AS seq,
			account.balance + CASE head.type WHEN 'deposit' THEN head.amount::bigint ELSE -head.amount::bigint END AS after,
			greatest(clock_timestamp(), head.created_at, account.last_at + interval '1 microsecond') AS at
		FROM head JOIN accounts account ON account.id = head.account_id
	), verdict AS (
		SELECT *, CASE WHEN after < 0 THEN 'insufficient_funds' WHEN after > $3 THEN 'balance_limit_exceeded' END AS failure
		FROM sums
	), moved AS (
		UPDATE accounts SET balance = after, last_seq = seq, last_at = at
		FROM verdict WHERE accounts.id = account_id AND failure IS NULL
	), posted AS (
		INSERT INTO transactions (account_id, seq, type, amount, balance_after, description, job_id, created_at)
		SELECT account_id, seq, type, amount, after, description, id, at
		FROM verdict WHERE failure IS NULL
	)
	UPDATE jobs SET
		status = (CASE WHEN verdict.failure IS NULL THEN 'succeeded' ELSE 'rejected' END)::job_status,
		failure = verdict.failure,
		seq = CASE WHEN verdict.failure IS NULL THEN verdict.seq END,
		balance_after = CASE WHEN verdict.failure IS NULL THEN after END,
		finished_at = at
	FROM verdict WHERE jobs.id = verdict.id
	RETURNING jobs.id, jobs.type, jobs.status, jobs.created_at, jobs.finished_at,` + leftSQL

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
	for n := 1; n > 0; n = min(n, limit-len(applied), maxBatch) {
		var batch []Applied
		batch, n, err = a.next(ctx, ticket, n)
		applied = append(applied, batch...)
		switch {
		case err != nil:
			return applied, true, err
		case len(applied) >= limit:
			return applied, n > 0, nil
		}
	}
	return applied, false, nil
}

// next applies the n oldest of the account's queued jobs up to the ticket's and
// tells how many are left, maxBatch standing for that and more.
func (a *Applier) next(ctx context.Context, ticket uuid.UUID, n int) (applied []Applied, left int, err error) {
	batch, err := a.applyBatch(ctx, slices.Repeat([]uuid.UUID{ticket}, n))
	if postgres.IsDataFault(err) {
		left = 1 // unless it turns out to be the last
		var tried []step
		tried, err = a.tryHead(ctx, ticket)
		batch = append(batch, tried...)
		if len(tried) > 0 {
			left = 0
		}
	}
	for _, step := range batch {
		applied, left = append(applied, step.Applied), max(left, step.Left)
	}
	return applied, left, err
}

// ApplyHeads applies, in one flush, the oldest queued job of the account of each
// ticket, each in a transaction of its own, and answers with those that it
// finished. left are the tickets whose own job is not among them: Apply goes on
// with each, and meets what went wrong with it.
//
// A kill leaves what one in Apply does.
func (a *Applier) ApplyHeads(ctx context.Context, tickets []uuid.UUID) (applied []Applied, left []uuid.UUID) {
	finished := map[uuid.UUID]bool{}
	for batch := range slices.Chunk(tickets, maxBatch) {
		steps, _ := a.applyBatch(ctx, batch) // one account's error is its own; Apply meets it
		for _, step := range steps {
			applied, finished[step.JobID] = append(applied, step.Applied), true
		}
	}
	for _, ticket := range tickets {
		if !finished[ticket] {
			left = append(left, ticket)
		}
	}
	return applied, left
}

// maxBatch bounds how many transactions share a round trip, and so how long one
// account's lock, held by somebody else, can hold up the rest of its partition:
// each of them waits for it until Postgres's lock_timeout.
const maxBatch = 32

// step is what one transaction did.
type step struct {
	Applied
	Left int // jobs up to the ticket's that are still queued, as far as they were counted
}

// applyBatch sends a transaction for each ticket in one flush: a Sync ends each,
// so that each commits or fails by itself, in order. It waits for each answer
// for postgres.RoundTripTimeout, not for all of them: so many locks that are not
// granted take Postgres longer. Then it leaves the connection, and what was sent
// may still be applied, once.
//
// A kill once they are sent stops none of them: Postgres holds the lock and
// commits while nobody listens, until it notices that the connection is gone.
// The transactions from there on leave their jobs queued.
func (a *Applier) applyBatch(ctx context.Context, tickets []uuid.UUID) (applied []step, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	silence := time.AfterFunc(postgres.RoundTripTimeout, cancel)
	defer silence.Stop()
	err = a.pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		lock, err := conn.Conn().Prepare(ctx, "apply_lock", lockSQL) // asks the server once a connection
		if err != nil {
			return err
		}
		apply, err := conn.Conn().Prepare(ctx, "apply", applySQL)
		if err != nil {
			return err
		}
		pipeline := conn.Conn().PgConn().StartPipeline(ctx)
		for n, ticket := range tickets {
			count := uncounted
			if n == len(tickets)-1 { // nobody asks how many the others leave
				count = counted
			}
			// By name: pgx 5.12 loses count of statements sent by their
			// description, when one of them fails.
			pipeline.SendQueryPrepared(lock.Name, [][]byte{ticket[:]}, inBinary, nil)
			pipeline.SendQueryPrepared(apply.Name, [][]byte{ticket[:], count, maxAmount}, inBinary, stepFormats)
			pipeline.SendPipelineSync()
		}
		err = pipeline.Flush()
		if err == nil {
			crash.At(crash.ApplySent)
			applied, err = readApplied(conn.Conn().TypeMap(), pipeline, func() { silence.Reset(postgres.RoundTripTimeout) })
		}
		return errors.Join(err, pipeline.Close())
	})
	if err != nil {
		return applied, fmt.Errorf("apply job %s: %w", tickets[0], err)
	}
	crash.At(crash.ApplyCommitted)
	return applied, nil
}

// ApplyStatements are what applyBatch sends for one job, in the order in which
// they share a transaction, for the benchmark to give to pgbench. Each takes what
// its comment says.
func ApplyStatements() []string { return []string{lockSQL, applySQL} }

// How parameters and results go over the wire: enums as text, the rest binary.
var (
	inBinary    = []int16{1}
	stepFormats = []int16{1, 0, 0, 1, 1, 1}
	maxAmount   = binary.BigEndian.AppendUint64(nil, uint64(MaxAmount))
	counted     = binary.BigEndian.AppendUint64(nil, maxBatch)
	uncounted   = binary.BigEndian.AppendUint64(nil, 0)
)

// readApplied reads what applyBatch asked for, and tells heard of each answer. A
// row counts only once its Sync is answered: that is when Postgres says that the
// transaction is committed.
func readApplied(types *pgtype.Map, pipeline *pgconn.Pipeline, heard func()) (applied []step, err error) {
	var uncommitted []step
	for {
		results, resultErr := pipeline.GetResults()
		heard()
		switch r := results.(type) {
		case *pgconn.ResultReader:
			if len(r.FieldDescriptions()) == 0 { // the lock's
				var locked pgconn.CommandTag
				if locked, resultErr = r.Close(); resultErr == nil && locked.RowsAffected() == 0 {
					err = cmp.Or(err, ErrJobNotFound)
				}
				break
			}
			uncommitted, resultErr = pgx.CollectRows(pgx.RowsFromResultReader(types, r), pgx.RowToStructByPos[step])
		case *pgconn.PipelineSync:
			applied, uncommitted = append(applied, uncommitted...), nil
			crash.At(crash.ApplySynced)
		}
		switch {
		case resultErr != nil:
			uncommitted = nil
			err = cmp.Or(err, resultErr)
			if _, refused := errors.AsType[*pgconn.PgError](resultErr); !refused {
				return applied, err // no connection, no more results
			}
		case results == nil:
			return applied, err
		}
	}
}

// tryTimeout bounds a tryHead, which takes several round trips.
const tryTimeout = 2 * postgres.RoundTripTimeout

// tryHead counts an attempt of the account's oldest queued job and applies it
// once more, to learn whether it is that job that Postgres refuses. When it is,
// the last of MaxAttempts ends it failed, and it is answered. The lock is held
// throughout, so the attempt is counted for the job that was tried.
//
// A kill before the commit leaves the attempt uncounted and the job as it was;
// one after it leaves it counted, and the job queued or failed.
func (a *Applier) tryHead(ctx context.Context, ticket uuid.UUID) (tried []step, err error) {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	var refusal error
	err = postgres.InTx(ctx, a.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, lockSQL, ticket); err != nil {
			return err
		}
		crash.At(crash.TryLocked)
		var attempts int
		if err := tx.QueryRow(ctx, countSQL, ticket).Scan(&attempts); err != nil {
			return err
		}
		crash.At(crash.TryCounted)
		refusal = pgx.BeginFunc(ctx, tx, func(savepoint pgx.Tx) (err error) {
			tried, err = queryStep(ctx, savepoint, applySQL, ticket, maxBatch, MaxAmount)
			return err
		})
		crash.At(crash.TryTried)
		if !postgres.IsDataFault(refusal) || attempts < MaxAttempts {
			return notRefusal(refusal)
		}
		tried, err = queryStep(ctx, tx, failSQL, ticket, maxBatch)
		crash.At(crash.TryFailed)
		return err
	})
	switch {
	case errors.Is(err, pgx.ErrNoRows): // somebody else has applied it meanwhile
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("try job %s once more: %w", ticket, err)
	}
	crash.At(crash.TryCommitted)
	if refusal != nil && len(tried) == 0 {
		return nil, fmt.Errorf("apply job %s: %w: %w", ticket, ErrRefused, refusal)
	}
	return tried, nil
}

// notRefusal is the error that undoes the whole transaction: a refusal undoes
// the savepoint alone, and the attempt stays counted.
func notRefusal(err error) error {
	if postgres.IsDataFault(err) {
		return nil
	}
	return err
}

// countSQL counts an attempt of the account's oldest queued job.
//
// $1 the ticket's job. One row, the attempts so far; none where no job up to the
// ticket's is queued.
const countSQL = `
	WITH head AS (` + headSQL + `
	)
	UPDATE jobs SET attempts = jobs.attempts + 1 FROM head WHERE jobs.id = head.id
	RETURNING jobs.attempts`

// failSQL ends the account's oldest queued job failed. Money does not move.
//
// $1 the ticket's job, $2 how far to count. One row, the job and leftSQL.
const failSQL = `
	WITH head AS (` + headSQL + `
	)
	UPDATE jobs SET
		status = 'failed',
		failure = 'internal_error',
		finished_at = greatest(clock_timestamp(), head.created_at)
	FROM head WHERE jobs.id = head.id
	RETURNING jobs.id, jobs.type, jobs.status, jobs.created_at, jobs.finished_at,` + leftSQL

func queryStep(ctx context.Context, tx pgx.Tx, sql string, args ...any) ([]step, error) {
	rows, _ := tx.Query(ctx, sql, args...) // CollectRows returns its error
	return pgx.CollectRows(rows, pgx.RowToStructByPos[step])
}

// ErrNotFailed is returned for a replay of jobs that are not all failed ones.
var ErrNotFailed = errors.New("not a failed job")

// Replay puts failed jobs back in line, at the place they had: an operator's
// decision, once the reason is mended. All of them, or none and ErrNotFailed.
func (a *Applier) Replay(ctx context.Context, ids []uuid.UUID) error {
	const sql = `
		UPDATE jobs SET status = 'queued', failure = NULL, finished_at = NULL, attempts = 0
		WHERE id = $1 AND status = 'failed'`
	return postgres.InTx(ctx, a.pool, func(tx pgx.Tx) error {
		for _, id := range ids {
			tag, err := tx.Exec(ctx, sql, id)
			if err == nil && tag.RowsAffected() == 0 {
				err = ErrNotFailed
			}
			if err != nil {
				return fmt.Errorf("replay job %s: %w", id, err)
			}
		}
		return nil
	})
}
