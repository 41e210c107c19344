package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/migrations"
)

// verify checks the ledger against itself; an error where it does not hold.
func verify(ctx context.Context, databaseURL string, stdout, stderr io.Writer) error {
	pool, err := openForOperator(ctx, databaseURL)
	if err != nil {
		return err
	}
	defer pool.Close()
	found, err := ledger.Verify(ctx, pool,
		func(mismatch string) { fmt.Fprintln(stdout, mismatch) },
		func(v ledger.Verification) {
			fmt.Fprintf(stderr, "%d accounts and %d transactions so far, %d mismatches\n", v.Accounts, v.Transactions, v.Mismatches)
		})
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "verified %d accounts, %d transactions and %d jobs: %d mismatches\n",
		found.Accounts, found.Transactions, found.Jobs, found.Mismatches)
	if found.Mismatches > 0 {
		return fmt.Errorf("the ledger does not hold: %d mismatches", found.Mismatches)
	}
	return nil
}

// replay puts failed jobs back in line. All ids must be those of failed jobs,
// or none is replayed. The sweep rings for them.
func replay(ctx context.Context, databaseURL string, args []string, stdout io.Writer) error {
	ids := make([]uuid.UUID, len(args))
	for i, arg := range args {
		id, err := uuid.Parse(arg)
		if err != nil {
			return fmt.Errorf("%q is not a job's id: %w", arg, err)
		}
		ids[i] = id
	}
	pool, err := openForOperator(ctx, databaseURL)
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := ledger.NewApplier(pool).Replay(ctx, ids); err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%d jobs are queued again\n", len(ids))
	return nil
}

// archiveProgress is how many jobs pass between two lines of progress.
const archiveProgress = 100_000

// archive moves old jobs out of the way. Ctrl-C ends it after the step in hand.
func archive(ctx context.Context, databaseURL, before string, stdout, stderr io.Writer) error {
	until, err := job.ParseArchiveBefore(before, time.Now())
	if err != nil {
		return err
	}
	pool, err := openForOperator(ctx, databaseURL)
	if err != nil {
		return err
	}
	defer pool.Close()
	told := int64(0)
	moved, err := job.Archive(ctx, pool, until, func(moved int64) {
		if moved-told >= archiveProgress {
			fmt.Fprintf(stderr, "%d jobs archived so far\n", moved)
			told = moved
		}
	})
	fmt.Fprintf(stdout, "%d jobs archived\n", moved)
	if errors.Is(err, context.Canceled) {
		return errors.New("stopped before the end; run it again to go on")
	}
	return err
}

func openForOperator(ctx context.Context, databaseURL string) (*pgxpool.Pool, error) {
	pool, err := postgres.Open(ctx, postgres.Config{URL: databaseURL, Application: "passbook-operator"})
	if err != nil {
		return nil, err
	}
	schema, err := migrations.Version()
	if err == nil {
		err = postgres.CheckSchema(ctx, pool, schema)
	}
	if err != nil {
		pool.Close()
		return nil, postgres.Explain(err)
	}
	return pool, nil
}
