package ledger

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
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

// applySQL applies the account's oldest queued job, if that is the ticket's or an
// older one: it locks the account, decides, finishes the job, moves the balance and
// writes the history, in one statement. All times come from Postgres's clock;
// created_at never goes back within an account, even where that clock does.
//
// The account's lock holds every other apply of it off until the transaction ends; NO
// KEY, so nothing that only refers to the account has to wait. The statement's one
// snapshot is from before it waited for the lock, so it may be old when it has it:
//
//   - What it reads of the account it reads with the lock: of a row that was changed
//     meanwhile, Postgres locks and answers the newest version.
//   - The job that it found may have been finished meanwhile. An UPDATE asks the newest
//     version once more, here if it is unfinished, and where it is not nothing is taken,
//     and so nothing moved or posted. (Asked if it is queued, a plan made for a new table
//     would look for the job in jobs_queued, and walk through the whole queue.)
//   - A job that it does not see is none that must come before one that it sees: that
//     was committed before the other was sent.
//
// https://www.postgresql.org/docs/current/transaction-iso.html#XACT-READ-COMMITTED
//
// $1 the ticket's job, $2 MaxAmount. One row, the job; none where no job up to the
// ticket's was queued, or somebody else was faster.
const applySQL = `
	WITH locked AS (
		SELECT head.id, head.type, head.amount, head.created_at, account.balance, account.last_seq, account.last_at
		FROM jobs ticket, LATERAL (` + headSQL + `
		) head, accounts account
		WHERE ticket.id = $1 AND account.id = head.account_id
		FOR NO KEY UPDATE OF account
	), taken AS (
		UPDATE jobs SET
			status = (CASE WHEN fault IS NULL THEN 'succeeded' ELSE 'rejected' END)::job_status,
			failure = fault,
			seq = CASE WHEN fault IS NULL THEN verdict.seq END,
			balance_after = CASE WHEN fault IS NULL THEN after END,
			finished_at = at
		FROM (` + verdictSQL + `
		) verdict
		WHERE jobs.id = verdict.id AND jobs.finished_at IS NULL
		RETURNING jobs.id, jobs.account_id, jobs.position, jobs.type, jobs.status, jobs.amount, jobs.description,
			jobs.seq, jobs.balance_after, jobs.created_at, jobs.finished_at
	), moved AS (
		UPDATE accounts SET balance = balance_after, last_seq = seq, last_at = finished_at
		FROM taken WHERE accounts.id = account_id AND status = 'succeeded'
	), posted AS (
		INSERT INTO transactions (account_id, seq, type, amount, balance_after, description, job_id, created_at)
		SELECT account_id, seq, type, amount, balance_after, description, id, finished_at
		FROM taken WHERE status = 'succeeded'
	)
	SELECT id, type, status, created_at, finished_at FROM taken`

// verdictSQL decides on the job that is locked.
const verdictSQL = `
			SELECT *, CASE WHEN after < 0 THEN 'insufficient_funds' WHEN after > $2 THEN 'balance_limit_exceeded' END AS fault
			FROM (
				SELECT id, last_seq + 1 AS seq,
					balance + CASE type WHEN 'deposit' THEN amount::bigint ELSE -amount::bigint END AS after,
					greatest(clock_timestamp(), created_at, last_at + interval '1 microsecond') AS at
				FROM locked
			) sums`

// headSQL is the oldest queued job of ticket's account, if that is the ticket's or an
// older one: one step into jobs_queued.
const headSQL = `
			SELECT * ` + lineSQL + `
			ORDER BY position
			LIMIT 1`

// lineSQL is the account's queued jobs up to ticket's.
const lineSQL = `FROM jobs
			WHERE account_id = ticket.account_id AND status = 'queued' AND position <= ticket.position`

// leftSQL counts the jobs that are still queued of each ticket's account, up to the
// ticket's own.
//
// $1 the tickets' jobs, $2 how far to count. A row for each ticket whose job there is.
const leftSQL = `
	SELECT ticket.id, (
		SELECT count(*) FROM (
			SELECT ` + lineSQL + `
			LIMIT $2
		) line
	)
	FROM jobs ticket WHERE ticket.id = ANY ($1)`

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
	for l, vain := (line{ticket: ticket, n: 1}), 0; l.n > 0; l.n = min(l.left, limit-len(applied)) {
		var batch []Applied
		batch, l, err = a.next(ctx, l)
		applied = append(applied, batch...)
		if vain++; len(batch) > 0 {
			vain = 0
		}
		switch {
		case err != nil:
			return applied, true, err
		case len(applied) >= limit, vain == maxVain:
			return applied, l.left > 0, nil
		}
	}
	return applied, false, nil
}

// maxVain is how often in a row Apply finds that somebody else was faster, before it
// leaves the account to them, and its partition to others.
const maxVain = 3

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
	after = line{ticket: l.ticket, left: 1} // as far as we know
	if len(tried) > 0 && tried[0].JobID == l.ticket {
		after.left = 0
	}
	return append(applied, tried...), after, err
}

// ApplyShared applies the queued jobs of the account of each ticket, up to the ticket's
// own, and has them share flushes: the oldest of each, and then at most limit more, or
// one more of each. rest are the tickets that need another turn; with the troubled ones
// something went wrong: Apply goes on with each, and meets it.
//
// A kill leaves what one in Apply does.
func (a *Applier) ApplyShared(ctx context.Context, tickets []uuid.UUID, limit int) (applied []Applied, rest, troubled []uuid.UUID) {
	var lines []line
	for _, ticket := range tickets {
		lines = append(lines, line{ticket: ticket, n: 1})
	}
	for {
		some, after := a.applyLines(ctx, lines)
		applied, lines, rest = append(applied, some...), nil, nil
		for _, l := range after {
			switch {
			case l.err != nil:
				troubled = append(troubled, l.ticket)
			case l.left > 0:
				lines, rest = append(lines, l), append(rest, l.ticket)
			}
		}
		if len(lines) == 0 || limit <= 0 {
			return applied, rest, troubled
		}
		share := max(limit/len(lines), 1)
		for i := range lines {
			lines[i].n = min(lines[i].left, share)
			limit -= lines[i].n
		}
	}
}

// maxBatch bounds how many transactions share a round trip.
const maxBatch = 32

// maxCounted is how far a line's jobs are counted. A worker's turn is 64: so many and one
// more, and it need not count again.
const maxCounted = 2*maxBatch + 1

// line is an account's queued jobs up to a ticket's.
type line struct {
	ticket uuid.UUID
	n      int   // how many of the oldest to apply
	left   int   // how many there are then, maxCounted at most; not known unless above 0, or ended
	ended  bool  // the ticket's own job has been applied, the last of them
	err    error // what the first of them met that did not work
}

// applyLines applies what is to be applied of each line, one after another, and tells
// what is left. A line that meets trouble goes no further; the others do, but for a
// connection that is lost.
func (a *Applier) applyLines(ctx context.Context, lines []line) (applied []Applied, after []line) {
	var sent []*line // once for each transaction
	after = slices.Clone(lines)
	for i := range after {
		sent = append(sent, slices.Repeat([]*line{&after[i]}, after[i].n)...)
	}
	for len(sent) > 0 {
		some, heard, err := a.applyBatch(ctx, sent[:min(maxBatch, len(sent))])
		applied, sent = append(applied, some...), sent[heard:]
		if err != nil { // nobody is asked any more
			for i := range after {
				if l := &after[i]; l.isUnknown() || slices.Contains(sent, l) {
					l.err = cmp.Or(l.err, err)
				}
			}
			return applied, after
		}
		sent = slices.DeleteFunc(sent, func(l *line) bool { return l.err != nil })
	}
	a.count(ctx, after)
	return applied, after
}

// isUnknown tells a line of which we don't know what is left.
func (l *line) isUnknown() bool { return l.err == nil && !l.ended && l.left <= 0 }

// count counts what is left of the lines of which it is not known. Most are ended: a
// ticket's own job is the only one of its account, or the last.
func (a *Applier) count(ctx context.Context, lines []line) {
	unknown := map[uuid.UUID][]*line{} // two of one ticket, where somebody else has written that
	for i := range lines {
		if l := &lines[i]; l.isUnknown() {
			unknown[l.ticket] = append(unknown[l.ticket], l)
		}
	}
	if len(unknown) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, postgres.RoundTripTimeout)
	defer cancel()
	rows, _ := a.pool.Query(ctx, leftSQL, slices.Collect(maps.Keys(unknown)), maxCounted) // ForEachRow returns its error
	var ticket uuid.UUID
	var left int
	_, err := pgx.ForEachRow(rows, []any{&ticket, &left}, func() error {
		for _, l := range unknown[ticket] {
			l.left = left
		}
		delete(unknown, ticket)
		return nil
	})
	for _, same := range unknown {
		for _, l := range same {
			l.err = cmp.Or(err, ErrJobNotFound)
		}
	}
}

// statement is one that applyBatch sends, prepared once a connection.
type statement struct{ name, sql string }

var (
	apply  = statement{"apply", applySQL}
	begin  = statement{"begin", `BEGIN`}
	commit = statement{"commit", `COMMIT`}
	chain  = statement{"chain", `COMMIT AND CHAIN`} // commits one and begins the next
)

var maxAmount = binary.BigEndian.AppendUint64(nil, uint64(MaxAmount))

// flushEvery is how many transactions Postgres goes through between two answers: each
// wakes this process, and costs both some tenth of an apply.
const flushEvery = 8

// applyBatch sends a transaction for the next job of each line together. Each commits by
// itself, in order. The first that fails ends them, and its line has the error: those
// behind it are not begun. heard is of how many the end was; err is why nothing more can
// be heard. It waits for postgres.RoundTripTimeout for flushEvery of them, or for one that
// fails. Then it leaves the connection, as if Postgres were down, and what was sent may
// still be applied, once: of a disk or a standby that takes half a second for a commit it
// hears little.
//
// A kill once they are sent stops none of them: Postgres holds the lock and
// commits while nobody listens, until it notices that the connection is gone.
// The transactions from there on leave their jobs queued.
func (a *Applier) applyBatch(ctx context.Context, batch []*line) (applied []Applied, heard int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	silence := time.AfterFunc(postgres.RoundTripTimeout, cancel)
	defer silence.Stop()
	err = a.pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		prepared, err := prepare(ctx, conn.Conn())
		if err != nil {
			return err
		}
		pipeline := conn.Conn().PgConn().StartPipeline(ctx)
		sendBatch(pipeline, prepared, batch)
		err = pipeline.Flush()
		if err == nil {
			crash.At(crash.ApplySent)
			applied, heard, err = readApplied(pipeline, batch, func() { silence.Reset(postgres.RoundTripTimeout) })
		}
		err = errors.Join(err, pipeline.Close())
		if err == nil && heard < len(batch) { // one failed, and Postgres waits for the end of it
			_, err = conn.Exec(ctx, "ROLLBACK")
		}
		return err
	})
	if err == nil {
		crash.At(crash.ApplyCommitted)
	}
	return applied, heard, err
}

// prepare asks the server once a connection.
func prepare(ctx context.Context, conn *pgx.Conn) (prepared map[string]*pgconn.StatementDescription, err error) {
	prepared = map[string]*pgconn.StatementDescription{}
	for _, s := range []statement{apply, begin, commit, chain} {
		if prepared[s.name], err = conn.Prepare(ctx, s.name, s.sql); err != nil {
			return nil, err
		}
	}
	return prepared, nil
}

// sendBatch sends the batch's transactions with a single Sync at their end, which Postgres
// answers by itself and commits the last one at, or one alone. The others are in BEGIN
// and COMMIT, so that there is nothing to answer after each.
func sendBatch(pipeline *pgconn.Pipeline, prepared map[string]*pgconn.StatementDescription, batch []*line) {
	send := func(s statement, args ...[]byte) {
		// By a description: by its name each apply would be described anew. pgx 5.12
		// loses count of descriptions when one fails, but not before the Sync.
		pipeline.SendQueryStatement(prepared[s.name], args, inBinary, inBinary)
	}
	if len(batch) > 1 {
		send(begin)
	}
	for i, l := range batch {
		send(apply, l.ticket[:], maxAmount)
		switch behind := len(batch) - 1 - i; behind {
		case 0:
			pipeline.SendPipelineSync()
		case 1:
			send(commit)
		default:
			send(chain)
		}
		if i%flushEvery == flushEvery-1 && i < len(batch)-1 {
			pipeline.SendFlushRequest()
		}
	}
}

// ApplyStatements are what applyBatch sends for a job, in the order in which they share a
// transaction, for the benchmark to give to pgbench. Each takes what its comment says.
func ApplyStatements() []string { return []string{applySQL} }

// readApplied reads what became of each transaction, up to the first that failed, and
// calls each for each answer. A job counts only once the end of its transaction is
// answered, its COMMIT or the Sync: that is when Postgres says that it is committed.
func readApplied(pipeline *pgconn.Pipeline, batch []*line, each func()) (applied []Applied, heard int, err error) {
	if len(batch) > 1 {
		if _, err := pipeline.GetResults(); err != nil { // of BEGIN
			return nil, 0, err
		}
	}
	for i, l := range batch {
		taken, err := hearTaken(pipeline)
		each()
		if err == nil {
			err = hearCommit(pipeline)
			each()
		}
		if _, failed := errors.AsType[*pgconn.PgError](err); failed {
			l.err = err
			return applied, i + 1, nil
		}
		if err != nil {
			return applied, i, err // no connection, no more answers
		}
		applied = append(applied, taken...)
		l.took(taken)
		crash.At(crash.ApplySynced)
	}
	return applied, len(batch), nil
}

// hearCommit hears the end of a transaction.
func hearCommit(pipeline *pgconn.Pipeline) error {
	results, err := pipeline.GetResults()
	if err != nil {
		return err
	}
	switch end := results.(type) {
	case *pgconn.PipelineSync:
		return nil
	case *pgconn.ResultReader:
		if tag, err := end.Close(); err != nil || tag.String() == "COMMIT" {
			return err
		}
	}
	return fmt.Errorf("%T where a commit was to be answered", results)
}

// inBinary is how parameters and answers go over the wire; an enum's label is its text.
var inBinary = []int16{1}

// The columns of an answer.
const (
	idColumn = iota
	typeColumn
	outcomeColumn
	createdColumn
	finishedColumn
)

// took notes what an apply for the line has taken, if anything. Where that was nothing,
// somebody else is at it, or has been, and how many are left is not known.
func (l *line) took(taken []Applied) {
	l.left--
	if len(taken) == 0 {
		l.left = 0
	} else if taken[0].JobID == l.ticket {
		l.left, l.ended = 0, true
	}
}

// hearTaken hears which job an apply has taken, if any. pgx would plan anew for each row
// how to read it, an eighth of what a worker does.
func hearTaken(pipeline *pgconn.Pipeline) (taken []Applied, err error) {
	results, err := pipeline.GetResults()
	if err != nil {
		return nil, err
	}
	answer, ok := results.(*pgconn.ResultReader)
	if !ok {
		return nil, fmt.Errorf("%T where a job was to be answered", results)
	}
	result := answer.Read()
	if result.Err != nil || len(result.Rows) == 0 {
		return nil, result.Err
	}
	row := result.Rows[0]
	id, err := uuid.FromBytes(row[idColumn])
	return []Applied{{
		JobID: id, Type: EntryType(row[typeColumn]), Outcome: Outcome(row[outcomeColumn]),
		CreatedAt: readTime(row[createdColumn]), FinishedAt: readTime(row[finishedColumn]),
	}}, err
}

// readTime reads Postgres's binary form of a time, the microseconds since 2000.
func readTime(value []byte) time.Time {
	since2000 := int64(binary.BigEndian.Uint64(value)) //nolint:gosec // its sign is in the bits
	return time.Date(2000, time.January, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(since2000) * time.Microsecond)
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
func (a *Applier) tryHead(ctx context.Context, ticket uuid.UUID) (tried []Applied, err error) {
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
			tried, err = queryApplied(ctx, savepoint, applySQL, ticket, MaxAmount)
			return err
		})
		crash.At(crash.TryTried)
		if !postgres.IsDataFault(refusal) || attempts < MaxAttempts {
			return notRefusal(refusal)
		}
		tried, err = queryApplied(ctx, tx, failSQL, ticket)
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

// lockSQL holds every other apply of the account off until the transaction ends.
//
// $1 the ticket's job.
const lockSQL = `
	SELECT FROM accounts WHERE id = (SELECT account_id FROM jobs WHERE id = $1) FOR NO KEY UPDATE`

// countSQL counts an attempt of the account's oldest queued job.
//
// $1 the ticket's job. One row, the attempts so far; none where no job up to the
// ticket's is queued.
const countSQL = `
	UPDATE jobs SET attempts = jobs.attempts + 1
	FROM jobs ticket, LATERAL (` + headSQL + `
	) head
	WHERE ticket.id = $1 AND jobs.id = head.id
	RETURNING jobs.attempts`

// failSQL ends the account's oldest queued job failed. Money does not move.
//
// $1 the ticket's job. One row, the job.
const failSQL = `
	UPDATE jobs SET
		status = 'failed',
		failure = 'internal_error',
		finished_at = greatest(clock_timestamp(), head.created_at)
	FROM jobs ticket, LATERAL (` + headSQL + `
	) head
	WHERE ticket.id = $1 AND jobs.id = head.id
	RETURNING jobs.id, jobs.type, jobs.status, jobs.created_at, jobs.finished_at`

func queryApplied(ctx context.Context, tx pgx.Tx, sql string, args ...any) ([]Applied, error) {
	rows, _ := tx.Query(ctx, sql, args...) // CollectRows returns its error
	return pgx.CollectRows(rows, pgx.RowToStructByPos[Applied])
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
