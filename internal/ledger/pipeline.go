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

// applySQL applies the account's oldest queued job, if that is the named job or an older one,
// and waits for every other apply of the account to end: migrations/00002_apply_job.sql.
//
// $1 the named job, $2 MaxAmount, $3 how far to count the remaining jobs, $4 false where the
// commit need not wait until it is flushed. One row of one column, a record: Postgres would
// store the result of a function in FROM, and read it again.
const applySQL = `SELECT apply_job($1, $2, $3, $4)`

// applyPooledSQL is applySQL behind a pooler, where the commit waits for its flush only if the
// transaction asks for that. apply_job runs after it has asked.
const applyPooledSQL = applySQL + ` FROM ` + postgres.DurableSQL

// ApplyStatements returns the statements that applyBatch sends for a job, in the order in which
// they share a transaction, for the benchmark to give to pgbench. Each takes the parameters
// that its comment names.
func ApplyStatements() []string { return []string{applySQL} }

// statement is one that applyBatch sends. It is prepared once a connection, except behind a pooler:
// there the next transaction may have another session of the server.
type statement struct{ name, sql string }

var (
	apply  = statement{"apply", applySQL}
	pooled = statement{"", applyPooledSQL} // apply, behind a pooler
	begin  = statement{"begin", `BEGIN`}
	commit = statement{"commit", `COMMIT`}
	chain  = statement{"chain", `COMMIT AND CHAIN`} // commits a transaction and begins the next
)

// applyBatch sends the transactions of all steps together. Each transaction commits by itself,
// in order. Only the last commit waits until it is flushed: the log is flushed in order, so
// all commits before it are flushed with it. The first transaction that fails ends the batch,
// and its account gets the error; Postgres does not begin the ones after it. If the last
// transaction failed, or wrote nothing and so flushed nothing, one more transaction flushes the
// commits before it.
//
// heard counts the steps whose result arrived; applied are their jobs, each of them durable.
// err is the connection failure that ended the reading. Then heard is 0, because the commits
// whose results had arrived may not have been flushed. applyBatch waits at most
// postgres.RoundTripTimeout for the next results, which come flushEvery at a time. After that it
// abandons the connection, and Postgres may still apply, once, what was sent.
//
// A kill of the worker after the batch was sent stops no transaction at once: Postgres commits
// them one after another until it notices that the connection is gone. The jobs of the
// transactions that it does not begin stay queued.
//
// A crash of Postgres before the flush undoes the last commits, which it had not flushed. Their
// jobs are queued again. A worker applies them again, those that were accepted at the same time
// perhaps in another order. No client has seen the first outcome: the API confirms what it
// shows, and the worker counts and logs the jobs of a batch after its flush.
func (a *Applier) applyBatch(ctx context.Context, batch []step) (applied []Applied, heard int, err error) {
	isFlushed, trip := false, &Trip{Began: time.Now()}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	silence := time.AfterFunc(postgres.RoundTripTimeout, cancel)
	defer silence.Stop()
	err = a.pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		prepared, err := prepare(ctx, conn.Conn())
		if err != nil {
			return err
		}
		trip.Sent = time.Now()
		pipeline := conn.Conn().PgConn().StartPipeline(ctx)
		sendBatch(pipeline, prepared, batch)
		err = pipeline.Flush()
		if err == nil {
			failpoint.Hit(failpoint.ApplySent)
			var wrote bool
			each := func() { silence.Reset(postgres.RoundTripTimeout) }
			applied, heard, wrote, err = readBatch(conn.Conn().TypeMap(), pipeline, batch, each)
			isFlushed = wrote && heard == len(batch) || len(applied) == 0
		}
		err = errors.Join(err, pipeline.Close())
		if err == nil && heard < len(batch) { // a transaction failed, and Postgres waits for its end
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
	trip.Jobs, trip.Flushed = len(applied), time.Now()
	for i := range applied {
		applied[i].Trip = trip
	}
	return applied, heard, nil
}

// prepare returns the server's descriptions of the statements. It asks for them once a connection.
// It returns nil behind a pooler.
func prepare(ctx context.Context, conn *pgx.Conn) (prepared map[string]*pgconn.StatementDescription, err error) {
	if postgres.IsPooled(conn) {
		return nil, nil
	}
	prepared = map[string]*pgconn.StatementDescription{}
	for _, s := range []statement{apply, begin, commit, chain} {
		if prepared[s.name], err = conn.Prepare(ctx, s.name, s.sql); err != nil {
			return nil, err
		}
	}
	return prepared, nil
}

// inBinary is the format of parameters and results on the wire; an enum's label is its text.
var inBinary = []int16{pgx.BinaryFormatCode}

// The parameters of an apply, as they are on the wire.
var (
	maxBalance = binary.BigEndian.AppendUint64(nil, uint64(MaxAmount))
	countAll   = binary.BigEndian.AppendUint64(nil, maxCounted)
	countNone  = binary.BigEndian.AppendUint64(nil, 0)
	flushed    = []byte{1} // the commit waits until it is flushed
	unflushed  = []byte{0}
)

// flushEvery is after how many transactions Postgres sends their results together: to send and
// to receive each by itself would cost each side about a tenth of an apply.
const flushEvery = 8

// sendBatch sends the batch's transactions with a single Sync at their end. The Sync commits
// the last transaction. The others stand between BEGIN and COMMIT, so they need no Sync, after
// which Postgres would send the results at once.
func sendBatch(pipeline *pgconn.Pipeline, prepared map[string]*pgconn.StatementDescription, batch []step) {
	apply := apply
	if prepared == nil {
		apply = pooled
	}
	send := func(s statement, args ...[]byte) {
		if prepared == nil {
			pipeline.SendQueryParams(s.sql, args, nil, inBinary, inBinary)
			return
		}
		// With a description: with the name alone pgx would ask for the description of each apply.
		// pgx 5.12 miscounts descriptions once a statement has failed, but not before the Sync.
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
		send(apply, step.jobs.upTo[:], maxBalance, count, flush)
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

// readBatch reads the results up to the first transaction that failed, and calls each after every
// result. A job counts as applied only once the result of its COMMIT, or of the Sync, has arrived:
// then Postgres has committed it. wrote says whether the last transaction that was read has
// applied a job.
func readBatch(types *pgtype.Map, pipeline *pgconn.Pipeline, batch []step, each func()) (applied []Applied, heard int, wrote bool, err error) {
	if len(batch) > 1 {
		if _, err := pipeline.GetResults(); err != nil { // of BEGIN
			return nil, 0, false, err
		}
	}
	for i, step := range batch {
		result, err := readResult(types, pipeline)
		each()
		if err == nil {
			err = readCommit(pipeline)
			each()
		}
		if _, failed := errors.AsType[*pgconn.PgError](err); failed {
			step.jobs.err = err
			return applied, i + 1, false, nil
		}
		if err != nil {
			return nil, 0, false, err // the connection is lost, and the other results with it
		}
		applied = append(applied, result.applied...)
		wrote = len(result.applied) > 0
		step.jobs.record(result)
		failpoint.Hit(failpoint.ApplySynced)
	}
	return applied, len(batch), wrote, nil
}

// readCommit reads the result of the end of a transaction.
func readCommit(pipeline *pgconn.Pipeline) error {
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
	return fmt.Errorf("%T instead of the result of a commit", results)
}

// result is what an apply returns.
type result struct {
	applied   []Applied // the job, or no job
	remaining int       // how many due jobs the account still has, if the apply counted them
	unknown   bool      // no job has the id that was named
}

// record records the result of an apply.
func (d *dueJobs) record(r result) {
	d.remaining = r.remaining
	if r.unknown {
		d.err = ErrJobNotFound
	}
}

// readResult reads the result of an apply.
func readResult(types *pgtype.Map, pipeline *pgconn.Pipeline) (result, error) {
	results, err := pipeline.GetResults()
	if err != nil {
		return result{}, err
	}
	reader, ok := results.(*pgconn.ResultReader)
	if !ok {
		return result{}, fmt.Errorf("%T instead of the result of an apply", results)
	}
	read := reader.Read()
	if read.Err != nil {
		return result{}, read.Err
	}
	if len(read.Rows) != 1 {
		return result{}, fmt.Errorf("%d rows instead of the one of an apply", len(read.Rows))
	}
	return parseResult(types, read.Rows[0][0])
}

// parseResult parses the record that apply_job returns. It scans into pgx's own types, which takes
// a quarter of the time that scanning into pointers takes.
func parseResult(types *pgtype.Map, record []byte) (r result, err error) {
	var (
		id                 pgtype.UUID
		account            pgtype.Int8
		kind, outcome      pgtype.Text
		accepted, finished pgtype.Timestamptz
		behind             pgtype.Int8
		number             pgtype.Text
	)
	fields := pgtype.CompositeFields{&id, &account, &kind, &outcome, &accepted, &finished, &behind, &number}
	if err := types.Scan(pgtype.RecordOID, pgx.BinaryFormatCode, record, fields); err != nil {
		return result{}, fmt.Errorf("parse the result of an apply: %w", err)
	}
	r.remaining = int(behind.Int64)
	if !id.Valid {
		r.unknown = !behind.Valid
		return r, nil
	}
	r.applied = []Applied{{
		JobID: id.Bytes, AccountID: account.Int64, Account: number.String, Type: EntryType(kind.String), Outcome: Outcome(outcome.String),
		CreatedAt: accepted.Time, FinishedAt: finished.Time,
	}}
	return r, nil
}
