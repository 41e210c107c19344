package ledger

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/test/failpoint"
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

// statement is one that applyBatch sends, prepared once a connection.
type statement struct{ name, sql string }

var (
	apply  = statement{"apply", applySQL}
	begin  = statement{"begin", `BEGIN`}
	commit = statement{"commit", `COMMIT`}
	chain  = statement{"chain", `COMMIT AND CHAIN`} // commits one and begins the next
)

// The parameters of an apply, as they go over the wire.
var (
	maxBalance = binary.BigEndian.AppendUint64(nil, uint64(MaxAmount))
	countAll   = binary.BigEndian.AppendUint64(nil, maxCounted)
	countNone  = binary.BigEndian.AppendUint64(nil, 0)
)

// flushEvery is how many transactions Postgres goes through between two answers: each
// wakes this process, and costs both some tenth of an apply.
const flushEvery = 8

// The parameter that says whether a commit waits until it is flushed.
var (
	flushed   = []byte{1}
	unflushed = []byte{0}
)

// applyBatch sends a transaction for each step together. Each commits by itself, in
// order; only the last one waits until it is flushed, and all before it with it, because
// the log is flushed in order. The first that fails ends the batch, and its line has the
// error: those behind it are not begun. Where the last transaction failed, or wrote
// nothing and so flushed nothing, a transaction of its own flushes what went before.
//
// heard counts the steps whose end is known; applied are their jobs, each of them durable.
// err is why the connection failed: then heard is 0, because what was heard before may be
// lost with it. applyBatch waits for postgres.RoundTripTimeout for flushEvery of them,
// or for one that fails. Then it leaves the connection, as if Postgres were down, and
// what was sent may still be applied, once.
//
// A kill of the worker once they are sent stops none of them: Postgres holds the lock and
// commits while nobody listens, until it notices that the connection is gone.
// The transactions from there on leave their jobs queued.
//
// A crash of Postgres before the flush gives those jobs back to the queue whose commits
// it had not flushed, the last ones; they are applied again, and jobs that were accepted
// at the same time perhaps in another order. No client was told of the first one: the API
// confirms what it tells, and nothing of the batch is counted or logged before the flush.
func (a *Applier) applyBatch(ctx context.Context, batch []step) (applied []Applied, heard int, err error) {
	isFlushed := false
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
			failpoint.Hit(failpoint.ApplySent)
			var wrote bool
			applied, heard, wrote, err = readApplied(pipeline, batch, func() { silence.Reset(postgres.RoundTripTimeout) })
			isFlushed = wrote && heard == len(batch) || len(applied) == 0
		}
		err = errors.Join(err, pipeline.Close())
		if err == nil && heard < len(batch) { // one failed, and Postgres waits for the end of it
			_, err = conn.Exec(ctx, "ROLLBACK")
		}
		if err == nil && !isFlushed {
			failpoint.Hit(failpoint.ApplyUnflushed)
			silence.Reset(postgres.RoundTripTimeout)
			_, err = conn.Exec(ctx, postgres.ConfirmSQL)
		}
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	failpoint.Hit(failpoint.ApplyCommitted)
	return applied, heard, nil
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
func sendBatch(pipeline *pgconn.Pipeline, prepared map[string]*pgconn.StatementDescription, batch []step) {
	send := func(s statement, args ...[]byte) {
		// By a description: by its name each apply would be described anew. pgx 5.12
		// loses count of descriptions when one fails, but not before the Sync.
		pipeline.SendQueryStatement(prepared[s.name], args, inBinary, inBinary)
	}
	if len(batch) > 1 {
		send(begin)
	}
	for i, step := range batch {
		count := countNone
		if step.last {
			count = countAll
		}
		flush := unflushed
		if i == len(batch)-1 {
			flush = flushed
		}
		send(apply, step.line.ticket[:], maxBalance, count, flush)
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
// answered, its COMMIT or the Sync: that is when Postgres says that it is committed. wrote
// is whether the last one that was read has applied a job.
func readApplied(pipeline *pgconn.Pipeline, batch []step, each func()) (applied []Applied, heard int, wrote bool, err error) {
	if len(batch) > 1 {
		if _, err := pipeline.GetResults(); err != nil { // of BEGIN
			return nil, 0, false, err
		}
	}
	for i, step := range batch {
		answer, err := hearAnswer(pipeline)
		each()
		if err == nil {
			err = hearCommit(pipeline)
			each()
		}
		if _, failed := errors.AsType[*pgconn.PgError](err); failed {
			step.line.err = err
			return applied, i + 1, false, nil
		}
		if err != nil {
			return nil, 0, false, err // no connection, no more answers
		}
		applied = append(applied, answer.taken...)
		wrote = len(answer.taken) > 0
		step.line.hear(answer)
		failpoint.Hit(failpoint.ApplySynced)
	}
	return applied, len(batch), wrote, nil
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

// answer is what an apply answers.
type answer struct {
	taken   []Applied // the job, or none
	left    int       // how many there are behind it in its line, if they were counted
	unknown bool      // no such ticket's job
}

// hear notes what an apply has answered.
func (l *line) hear(a answer) {
	l.left = a.left
	if a.unknown {
		l.err = ErrJobNotFound
	}
}

// The fields of an answer.
const (
	jobField = iota
	kindField
	outcomeField
	acceptedField
	finishedField
	behindField
	answerFields
)

// hearAnswer hears what an apply answers. pgx would plan anew for each row how to read
// it, an eighth of what a worker does.
func hearAnswer(pipeline *pgconn.Pipeline) (a answer, err error) {
	results, err := pipeline.GetResults()
	if err != nil {
		return answer{}, err
	}
	reader, ok := results.(*pgconn.ResultReader)
	if !ok {
		return answer{}, fmt.Errorf("%T where a job was to be answered", results)
	}
	result := reader.Read()
	if result.Err != nil {
		return answer{}, result.Err
	}
	if len(result.Rows) != 1 {
		return answer{}, fmt.Errorf("%d rows where a job was to be answered", len(result.Rows))
	}
	return readAnswer(result.Rows[0][0])
}

func readAnswer(record []byte) (a answer, err error) {
	fields, err := readRecord(record)
	if err != nil {
		return answer{}, err
	}
	if behind := fields[behindField]; behind != nil {
		a.left = int(binary.BigEndian.Uint64(behind)) //nolint:gosec // maxCounted at most
	}
	if fields[jobField] == nil {
		a.unknown = fields[behindField] == nil
		return a, nil
	}
	id, err := uuid.FromBytes(fields[jobField])
	a.taken = []Applied{{
		JobID: id, Type: EntryType(fields[kindField]), Outcome: Outcome(fields[outcomeField]),
		CreatedAt: readTime(fields[acceptedField]), FinishedAt: readTime(fields[finishedField]),
	}}
	return a, err
}

// readRecord reads Postgres's binary form of a record: how many fields, and the type,
// the length and the bytes of each, nil for null.
// https://github.com/postgres/postgres/blob/REL_15_STABLE/src/backend/utils/adt/rowtypes.c (record_send)
func readRecord(record []byte) (fields [answerFields][]byte, err error) {
	scanner := pgtype.NewCompositeBinaryScanner(nil, record)
	for i := range fields {
		if !scanner.Next() {
			return fields, fmt.Errorf("%d fields where %d were to be answered: %w", i, answerFields, cmp.Or(scanner.Err(), io.ErrUnexpectedEOF))
		}
		fields[i] = scanner.Bytes()
	}
	return fields, nil
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
// the last of MaxAttempts ends it failed, and it is answered. (An account that has
// lost its row has no lock: of two at once the rules refuse one.)
//
// The lock holds off every other apply, and an operator's Replay, but not an accept that
// drew an older position and is committed late: that puts its job in front at any moment.
// So the transaction is REPEATABLE READ: the count, the try and the end see the queue as it
// was when the transaction began. Where another apply has changed it since, Postgres
// reports a serialization failure and InTx begins again.
//
// A kill before the commit leaves the attempt uncounted and the job as it was;
// one after it leaves it counted, and the job queued or failed.
func (a *Applier) tryHead(ctx context.Context, ticket uuid.UUID) (tried []Applied, err error) {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	var refusal error
	err = postgres.InTx(ctx, a.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, lockSQL, ticket); err != nil {
			return err
		}
		failpoint.Hit(failpoint.AttemptLocked)
		var job uuid.UUID // that is tried
		var attempts int
		if err := tx.QueryRow(ctx, countSQL, ticket).Scan(&job, &attempts); err != nil {
			return err
		}
		failpoint.Hit(failpoint.AttemptCounted)
		refusal = pgx.BeginFunc(ctx, tx, func(savepoint pgx.Tx) (err error) {
			tried, err = queryApplied(ctx, savepoint, retrySQL, ticket, MaxAmount)
			return err
		})
		failpoint.Hit(failpoint.AttemptMade)
		if !postgres.IsDataFault(refusal) || attempts < MaxAttempts {
			return notRefusal(refusal)
		}
		tried, err = queryApplied(ctx, tx, failSQL, job)
		failpoint.Hit(failpoint.AttemptFailed)
		return err
	})
	switch {
	case errors.Is(err, pgx.ErrNoRows): // somebody else has applied it meanwhile
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("try job %s once more: %w", ticket, err)
	}
	failpoint.Hit(failpoint.AttemptCommitted)
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

// retrySQL is applySQL, without counting. One row, the job; none where no job up to the
// ticket's was queued.
const retrySQL = `
	SELECT job, kind, outcome, accepted, finished FROM apply_job($1, $2, 0) WHERE job IS NOT NULL`

// countSQL counts an attempt of the account's oldest queued job, if that is the ticket's or
// an older one: one step into the queue.
//
// $1 the ticket's job. One row, the counted job and its attempts so far; none where no job
// up to the ticket's is queued.
const countSQL = `
	UPDATE queue SET attempts = queue.attempts + 1
	FROM jobs ticket LEFT JOIN accounts account ON account.id = ticket.account_id, LATERAL (
			SELECT account_id, position FROM queue
			WHERE account_id = ticket.account_id AND position <= ticket.position
				AND position > CASE WHEN ticket.position > account.done_to THEN account.done_to ELSE 0 END
			ORDER BY position
			LIMIT 1
	) oldest
	WHERE ticket.id = $1 AND queue.account_id = oldest.account_id AND queue.position = oldest.position
	RETURNING queue.job_id, queue.attempts`

// failSQL ends a queued job failed. Money does not move.
//
// $1 the job. One row, the job.
const failSQL = `
	WITH failed AS (
		INSERT INTO failures (account_id, position, job_id, attempts, finished_at, failure)
		SELECT account_id, position, job_id, attempts, greatest(clock_timestamp(), created_at), 'internal_error'
		FROM jobs JOIN queue USING (account_id, position)
		WHERE id = $1
		RETURNING job_id, finished_at
	)
	SELECT id, type, 'failed', created_at, failed.finished_at FROM failed JOIN jobs ON id = job_id WHERE id = $1`

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
		DELETE FROM failures USING jobs job
		WHERE job.id = $1 AND failures.account_id = job.account_id AND failures.position = job.position`
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
