package ledger

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Round is a verification of the whole ledger, and its progress. It reads each table in the order of
// the primary key, and compares each row with the rows that must agree with it. The first Verify of
// the zero Round starts it.
//
// A process may store a round as JSON, and another one may continue it. To verify a slice twice does
// no harm.
type Round struct {
	Begun time.Time // its start, by Postgres's clock
	Table string    // the table of the next slice
	After []string  // key of the last verified row; nil: no row of the table was verified
	Last  string    // the table's highest key at the start of its walk; empty if Bound ends the walk
	// Bound is the highest position drawn before the round. An account's rows with higher positions
	// belong to the next round. Otherwise a busy account could make the round endless.
	Bound    int64
	Position int64 // the highest position of a job that the sequence would draw again; 0 for none
	Verified Verification
}

// Slice is the result of one Verify of a round.
type Slice struct {
	Rows       int // of all tables
	Accounts   int
	Mismatches []Mismatch
	Done       bool      // the round is over
	Ended      time.Time // if Done: when, by Postgres's clock
}

// Verify verifies the next rows, limit at most. One statement reads them and all rows that must agree
// with them. It has one snapshot, which shows an apply in flight as a whole or not at all, and which
// lasts for one slice only. An error leaves the round as it was.
func (r *Round) Verify(ctx context.Context, q querier, limit int) (Slice, error) {
	next := *r
	slice, err := next.verify(ctx, q, limit)
	if err != nil {
		return Slice{}, fmt.Errorf("verify %s: %w", next.Table, err)
	}
	next.Verified.Rows += int64(slice.Rows)
	next.Verified.Mismatches += int64(len(slice.Mismatches))
	*r = next
	return slice, nil
}

// verifyRules is the name of the last part of a round: the sequences and the triggers.
const verifyRules = "rules"

func (r *Round) verify(ctx context.Context, q querier, limit int) (slice Slice, err error) {
	if r.Table == verifyRules {
		slice.Done = true
		if slice.Mismatches, err = r.rules(ctx, q, limit); err == nil {
			err = q.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&slice.Ended)
		}
		return slice, err
	}
	at := slices.IndexFunc(walks, func(w walk) bool { return w.table == r.Table })
	if at < 0 || r.After != nil && len(r.After) != len(walks[at].key) { // a new round, or a stored one of another build
		if err := r.begin(ctx, q); err != nil {
			return slice, err
		}
		at = 0
	}
	walk := walks[at]
	if r.After == nil {
		if err := r.enter(ctx, q, walk); err != nil {
			return slice, err
		}
	}
	rows, err := r.read(ctx, q, walk, limit)
	if limit == 1 && isDamage(err) {
		rows, err = r.skip(ctx, q, walk, err, &slice)
	}
	if err != nil {
		return slice, err
	}
	r.count(walk, rows, &slice)
	r.advance(at, rows, limit)
	return slice, nil
}

// advance moves the round behind the rows of a slice. After the last rows it moves to the next walk.
func (r *Round) advance(at int, rows []walked, limit int) {
	if len(rows) < limit {
		r.Table, r.After, r.Last = verifyRules, nil, ""
		if at+1 < len(walks) {
			r.Table = walks[at+1].table
		}
		return
	}
	last := rows[limit-1]
	r.After = last.Key
	if walks[at].last == "" && last.Position > r.Bound {
		r.After = []string{last.Key[0], strconv.FormatInt(math.MaxInt64, 10)} // the next account
	}
}

// isDamage is true for an error of the data that a statement reads: it says nothing of other rows.
// Class 58 is a file that can't be read: of a table, or of the transaction that a damaged row names.
// https://www.postgresql.org/docs/current/errcodes-appendix.html
func isDamage(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && slices.Contains([]string{"22", "58", "XX"}, pgErr.Code[:2])
}

// skip reports that the next row can't be verified, and lets the round continue behind it. If even
// the row's key can't be read, the walk of this table ends.
func (r *Round) skip(ctx context.Context, q querier, w walk, damage error, slice *Slice) ([]walked, error) {
	var args []any
	for _, part := range r.After {
		args = append(args, part)
	}
	row := walked{Faults: []string{fmt.Sprintf("the next row of %s after %v can't be verified: %v", w.table, r.After, damage)}}
	switch err := q.QueryRow(ctx, w.keySQL(), args...).Scan(&row.Key); {
	case err != nil && isDamage(err):
		slice.Mismatches = append(slice.Mismatches, Mismatch{Finding: row.Faults[0]})
		return nil, nil
	case errors.Is(err, pgx.ErrNoRows): // Postgres plans no statement with a table whose file is lost, also where no row remains
		return nil, nil
	case err != nil:
		return nil, err
	case w.key[0] == byAccount:
		row.Account = "with id " + row.Key[0]
	}
	return []walked{row}, nil
}

// begin starts a round. Positions that are drawn later are higher than its bound.
func (r *Round) begin(ctx context.Context, q querier) error {
	fresh := Round{Table: walks[0].table}
	err := q.QueryRow(ctx, `SELECT clock_timestamp(), last_value FROM job_positions`).Scan(&fresh.Begun, &fresh.Bound)
	*r = fresh
	return err
}

// enter begins the walk through a table. Where its last row is damaged, the walk has no other end than
// that of the table, and reports the row once it comes there.
func (r *Round) enter(ctx context.Context, q querier, w walk) error {
	r.After = w.first()
	if w.last == "" {
		return nil
	}
	err := q.QueryRow(ctx, `SELECT coalesce((`+w.last+`)::text, $1)`, r.After[0]).Scan(&r.Last)
	if isDamage(err) {
		r.Last, err = w.key[0].last(), nil
	}
	return err
}

// walked is the result of one verified row.
type walked struct {
	Key      []string
	Account  string
	Position int64 // of its job; 0 for none
	Faults   []string
	Next     int64 // of a job: the next position that the sequence draws
}

func (r *Round) read(ctx context.Context, q querier, w walk, limit int) ([]walked, error) {
	var args []any
	for _, part := range r.After {
		args = append(args, part)
	}
	if w.last != "" {
		args = append(args, r.Last)
	}
	rows, _ := q.Query(ctx, w.sql, append(args, limit)...) // CollectRows returns its error
	return pgx.CollectRows(rows, pgx.RowToStructByPos[walked])
}

func (r *Round) count(w walk, rows []walked, slice *Slice) {
	slice.Rows = len(rows)
	for _, row := range rows {
		for _, fault := range row.Faults {
			slice.Mismatches = append(slice.Mismatches, Mismatch{Account: row.Account, Finding: fault})
		}
		if w.counts == countsJobs && row.Position >= row.Next {
			r.Position = max(r.Position, row.Position)
		}
	}
	switch w.counts {
	case countsAccounts:
		slice.Accounts = len(rows)
		r.Verified.Accounts += int64(len(rows))
	case countsTransactions:
		r.Verified.Transactions += int64(len(rows))
	case countsJobs:
		r.Verified.Jobs += int64(len(rows))
	case countsRows:
	}
}

// rules checks the sequences and the triggers.
func (r *Round) rules(ctx context.Context, q querier, limit int) (found []Mismatch, err error) {
	mismatch := func(format string, args ...any) {
		found = append(found, Mismatch{Finding: fmt.Sprintf(format, args...)})
	}
	behind, err := sequencesBehind(ctx, q, accountIDsSQL+` UNION ALL
		SELECT 'job_positions', last_value + is_called::int, $1::bigint FROM job_positions`, r.Position)
	switch {
	case limit == 1 && isDamage(err): // of a row that a sequence is compared with
		mismatch("the sequences can't be verified: %v", err)
	case err != nil:
		return nil, err
	}
	for _, s := range behind {
		mismatch("%s", s)
	}
	err = verifyGuards(ctx, q, mismatch)
	return found, err
}
