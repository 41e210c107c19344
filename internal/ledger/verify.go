package ledger

import (
	"context"
	"fmt"
	"math"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Verification counts what was verified.
type Verification struct {
	Accounts     int64
	Transactions int64
	Jobs         int64
	Mismatches   int64
	Rows         int64 // of all tables
	Expected     int64 // how many rows there are, as Postgres estimates; 0 where it does not know
}

// Mismatch is a fault that a verification found.
type Mismatch struct {
	Account string // its number, or "with id N" where its row is missing; empty for a fault of no account
	Finding string
}

// String names the account and the fault.
func (m Mismatch) String() string {
	if m.Account == "" {
		return m.Finding
	}
	return "account " + m.Account + ": " + m.Finding
}

// verifyRows is how many rows Verify reads in one statement.
const verifyRows = 10_000

// Verify verifies the whole ledger in one consistent snapshot: it is a Round without pauses. It
// reads in slices, so its memory is bounded. It calls report for each mismatch, and progress after
// each slice.
func Verify(ctx context.Context, pool *pgxpool.Pool, report func(mismatch string), progress func(Verification)) (Verification, error) {
	var round Round
	var expected int64
	snapshot := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
	err := pgx.BeginTxFunc(ctx, pool, snapshot, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, verifySQL); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, expectedSQL, tables()).Scan(&expected); err != nil {
			return err
		}
		if err := round.begin(ctx, tx); err != nil {
			return err
		}
		round.Bound = math.MaxInt64 // no account grows in a snapshot, and the sequence may be behind the rows
		for {
			slice, err := round.Verify(ctx, tx, verifyRows)
			if err != nil {
				return err
			}
			for _, mismatch := range slice.Mismatches {
				report(mismatch.String())
			}
			if slice.Done {
				return nil
			}
			verified := round.Verified
			verified.Expected = expected
			progress(verified)
		}
	})
	verified := round.Verified
	verified.Expected = expected
	if err != nil {
		return verified, fmt.Errorf("verify: %w", err)
	}
	return verified, nil
}

// verifySQL makes Postgres read each slice by an index, even without statistics of the tables, as
// after a restore. Otherwise it would sort all remaining rows for each slice.
const verifySQL = `SET LOCAL statement_timeout = 0; SET LOCAL jit = off;
	SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_sort = off`

// expectedSQL reads how many rows the tables $1 have, as of their last VACUUM or ANALYZE.
const expectedSQL = `SELECT coalesce(sum(greatest(reltuples, 0)), 0)::bigint FROM pg_class WHERE oid = ANY ($1::text[]::regclass[])`
