package ledger

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/test/failpoint"
)

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
			applied, heard, wrote, err = readApplied(conn.Conn().TypeMap(), pipeline, batch, func() { silence.Reset(postgres.RoundTripTimeout) })
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
func readApplied(types *pgtype.Map, pipeline *pgconn.Pipeline, batch []step, each func()) (applied []Applied, heard int, wrote bool, err error) {
	if len(batch) > 1 {
		if _, err := pipeline.GetResults(); err != nil { // of BEGIN
			return nil, 0, false, err
		}
	}
	for i, step := range batch {
		answer, err := hearAnswer(types, pipeline)
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

// hearAnswer hears what an apply answers.
func hearAnswer(types *pgtype.Map, pipeline *pgconn.Pipeline) (a answer, err error) {
	results, err := pipeline.GetResults()
	if err != nil {
		return answer{}, err
	}
	reader, ok := results.(*pgconn.ResultReader)
	if !ok {
		return answer{}, fmt.Errorf("%T where a job was to be answered", results)
	}
	read := reader.Read()
	if read.Err != nil {
		return answer{}, read.Err
	}
	if len(read.Rows) != 1 {
		return answer{}, fmt.Errorf("%d rows where a job was to be answered", len(read.Rows))
	}
	return readAnswer(types, read.Rows[0][0])
}

// readAnswer reads the record that apply_job returns.
func readAnswer(types *pgtype.Map, record []byte) (a answer, err error) {
	var (
		id                 *[16]byte // not a uuid.UUID, which pgx would read as text
		kind               *EntryType
		outcome            *Outcome
		accepted, finished *time.Time
		behind             *int
	)
	fields := pgtype.CompositeFields{&id, &kind, &outcome, &accepted, &finished, &behind}
	if err := types.Scan(pgtype.RecordOID, pgx.BinaryFormatCode, record, fields); err != nil {
		return answer{}, fmt.Errorf("read the answer of apply_job: %w", err)
	}
	if behind != nil {
		a.left = *behind
	}
	if id == nil {
		a.unknown = behind == nil
		return a, nil
	}
	a.taken = []Applied{{JobID: *id, Type: *kind, Outcome: *outcome, CreatedAt: *accepted, FinishedAt: *finished}}
	return a, nil
}
