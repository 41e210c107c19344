// Package event reads what happens in accounts, for streams that follow it. Its promise: a reader that
// goes on from a cursor misses no event, and gets none twice.
package event

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/postgres"
)

// PageSize bounds the events that a read returns for each stream.
const PageSize = 100

var (
	// ErrUnknownSeq is returned for a transaction that the account does not have.
	ErrUnknownSeq = errors.New("the account has no transaction with this seq")

	// ErrOver ends a stream: its session is revoked, or the database no longer has its account or
	// the events that it has shown, as after a restore.
	ErrOver = errors.New("nothing more to follow")

	// ErrDamaged ends a stream if a rejected or failed job of its next page has no row in jobs, as
	// after a restore that went wrong.
	ErrDamaged = errors.New("the request of a finished job is missing")
)

// Event is a transaction or, where that is nil, a job that was rejected or failed.
type Event struct {
	Transaction *ledger.Transaction
	Job         *job.Job
}

// Cursor is a place in the events of an account. The times of an account's outcomes rise strictly,
// in the order in which they took effect, under the account's lock (migrations/00001_schema.sql).
// So no event with an earlier time can become visible after one with a later time.
type Cursor struct {
	Seq int64     // of the last transaction up to here; 0 for none
	At  time.Time // of the last event up to here, or later where nothing follows yet
}

// Stream is a stream and how far it got.
type Stream struct {
	Account ledger.Owned
	Session uuid.UUID // of the stream's access token; of no other user
	After   Cursor
}

// Page is the next events of a stream, at most PageSize, in the order in which they took effect.
type Page struct {
	Events []Event
	Next   Cursor // after them
	Err    error  // ErrOver, ErrDamaged, or nil
}

// Reader reads events.
type Reader struct {
	pool *pgxpool.Pool
}

// NewReader reads events from the database behind pool.
func NewReader(pool *pgxpool.Pool) *Reader { return &Reader{pool: pool} }

// beginSQL reads the account's id, its last seq, a time that no later outcome gets, and the time
// of transaction $3, null where there is none.
//
// $1 the user, $2 the account's number, $3 a seq or null.
const beginSQL = `
	SELECT id, last_seq, greatest(last_at, answered_until),
		(SELECT created_at FROM transactions WHERE account_id = accounts.id AND seq = $3), xmin, ` + postgres.ShownSQL + `
	FROM accounts WHERE user_id = $1 AND number = $2`

// Begin returns the account's id, and the cursor from which a stream goes on: after the transaction
// with the seq after, before the first one if after is 0, or after all events so far if after is nil.
// It returns ErrUnknownSeq where the account has no such transaction, and ledger.ErrAccountNotFound
// where the user has no such account.
func (r *Reader) Begin(ctx context.Context, account ledger.Owned, after *int64) (id int64, cursor Cursor, err error) {
	var at *time.Time
	rows, _ := r.pool.Query(ctx, beginSQL, account.UserID, account.Number, after) // CollectExactlyOneRow returns its error
	cursor, err = pgx.CollectExactlyOneRow(rows, postgres.Showing(ctx, rows, func(row pgx.CollectableRow) (now Cursor, err error) {
		err = row.Scan(&id, &now.Seq, &now.At, &at)
		return now, err
	}))
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return 0, Cursor{}, ledger.ErrAccountNotFound
	case err != nil:
		return 0, Cursor{}, fmt.Errorf("begin a stream: %w", err)
	case after == nil:
		return id, cursor, nil
	case *after == 0:
		return id, Cursor{}, nil
	case at == nil:
		return 0, Cursor{}, ErrUnknownSeq
	}
	return id, Cursor{Seq: *after, At: *at}, nil
}

// readSQL reads the next events of many streams in one statement. It checks each stream's session
// and the owner of its account. An account without news costs it two searches.
//
// Postgres may keep the plan that it makes while the tables are small. With = for the owners it would
// read all of a user's accounts, and with EXISTS for the sessions all sessions.
//
// $1 the sessions, $2 the users, $3 the accounts' numbers, $4 the cursors' seqs, $5 their times:
// arrays, with an element for each stream. For each stream that goes on, a row for each event, or one
// row without an event.
var readSQL = `
	SELECT stream.n, account.last_seq, greatest(account.last_at, account.answered_until), account.currency,
		event.at, event.seq, event.status, coalesce(event.type, request.type), coalesce(event.amount, request.amount), event.balance_after,
		coalesce(event.description, request.description), event.job_id, event.position, event.failure, request.created_at,
		event.shown_by, ` + postgres.ShownSQL + `
	FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::bigint[], $5::timestamptz[])
			WITH ORDINALITY stream (session_id, user_id, number, seq, at, n)
		JOIN accounts account ON account.number = stream.number AND account.user_id IS NOT DISTINCT FROM stream.user_id
		LEFT JOIN LATERAL (
			SELECT * FROM (
				(SELECT created_at AS at, seq, 'succeeded'::job_status AS status, type, amount::bigint, balance_after::bigint, description,
						job_id, position, NULL::text AS failure, xmin AS shown_by
					FROM transactions WHERE account_id = account.id AND seq > stream.seq AND ` + hasNews + ` ORDER BY seq` + limit + `)
				UNION ALL
				(SELECT finished_at, NULL, 'rejected', NULL, NULL, NULL, NULL, job_id, position, failure, xmin FROM rejections` + isNew + byTime + `)
				UNION ALL
				(SELECT finished_at, NULL, 'rejected', NULL, NULL, NULL, NULL, id, position, failure, xmin FROM archived_jobs` + isNew + ` AND status = 'rejected'` + byTime + `)
				UNION ALL
				(SELECT finished_at, NULL, 'failed', NULL, NULL, NULL, NULL, job_id, position, failure, xmin FROM failures` + isNew + byTime + `)
			) outcomes ORDER BY at` + limit + `
		) event ON true
		LEFT JOIN LATERAL (
			SELECT type, amount, description, created_at FROM jobs WHERE id = event.job_id AND event.seq IS NULL UNION ALL
			SELECT type, amount, description, created_at FROM archived_jobs WHERE id = event.job_id AND event.seq IS NULL LIMIT 1
		) request ON true
	WHERE (SELECT revoked_at IS NULL FROM sessions WHERE id = stream.session_id AND user_id IS NOT DISTINCT FROM stream.user_id)
	ORDER BY stream.n, event.at`

const (
	hasNews = `stream.at < greatest(account.last_at, account.answered_until)`
	isNew   = ` WHERE account_id = account.id AND finished_at > stream.at AND ` + hasNews
)

var (
	limit  = ` LIMIT ` + strconv.Itoa(PageSize) // not a parameter, so that the planner sees it
	byTime = ` ORDER BY finished_at` + limit
)

// row is a row of readSQL. The fields after Currency are nil without an event.
type row struct {
	N            int64
	LastSeq      int64
	Until        time.Time // no later outcome gets this time
	Currency     string
	At           *time.Time
	Seq          *int64 // nil for a job that was rejected or failed
	Status       *job.Status
	Type         *ledger.EntryType
	Amount       *int64
	BalanceAfter *int64
	Description  *string
	JobID        *uuid.UUID
	Position     *int64
	Failure      *string
	AcceptedAt   *time.Time
}

// Read returns the next page of each stream.
func (r *Reader) Read(ctx context.Context, streams []Stream) ([]Page, error) {
	var sessions, users []uuid.UUID
	var numbers []string
	var seqs []int64
	var times []time.Time
	pages := make([]Page, len(streams))
	for i, stream := range streams {
		sessions, users = append(sessions, stream.Session), append(users, stream.Account.UserID)
		numbers = append(numbers, stream.Account.Number)
		seqs, times = append(seqs, stream.After.Seq), append(times, stream.After.At)
		pages[i] = Page{Next: stream.After, Err: ErrOver} // unless it has a row
	}
	rows, _ := r.pool.Query(ctx, readSQL, sessions, users, numbers, seqs, times) // CollectRows returns its error
	found, err := pgx.CollectRows(rows, postgres.Showing(ctx, rows, pgx.RowToStructByPos[row]))
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	for _, row := range found {
		stream, page := &streams[row.N-1], &pages[row.N-1]
		if row.LastSeq < stream.After.Seq || row.Until.Before(stream.After.At) {
			continue // what the stream has shown is lost
		}
		switch {
		case row.isDamaged(): // ends no other stream
			page.damage(*row.JobID)
		case errors.Is(page.Err, ErrDamaged):
		default:
			page.Err = nil
			if row.At != nil {
				page.add(row.event(stream.Account.Number), *row.At)
			}
		}
	}
	return pages, nil
}

func (p *Page) add(e Event, at time.Time) {
	p.Events = append(p.Events, e)
	p.Next.At = at
	if e.Transaction != nil {
		p.Next.Seq = e.Transaction.Seq
	}
}

// damage drops the page's events: its stream ends.
func (p *Page) damage(jobID uuid.UUID) {
	p.Events, p.Err = nil, fmt.Errorf("%w: job %s", ErrDamaged, jobID)
}

// isDamaged reports whether the row is of a job without a request.
func (r row) isDamaged() bool { return r.At != nil && r.Seq == nil && r.AcceptedAt == nil }

func (r row) event(number string) Event {
	if r.Seq != nil {
		return Event{Transaction: &ledger.Transaction{
			Seq: *r.Seq, Type: *r.Type, Amount: *r.Amount, BalanceAfter: *r.BalanceAfter,
			Description: r.Description, JobID: r.JobID, CreatedAt: *r.At,
		}}
	}
	return Event{Job: &job.Job{
		ID: *r.JobID, Position: *r.Position, Account: number, Type: *r.Type, Amount: *r.Amount, Currency: r.Currency,
		Description: r.Description, Status: *r.Status, Failure: r.Failure, CreatedAt: *r.AcceptedAt, FinishedAt: r.At,
	}}
}
