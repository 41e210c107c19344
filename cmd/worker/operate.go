package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/boot"
	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
)

// verify checks the ledger against itself, and returns an error for any mismatch.
func verify(ctx context.Context, databaseURL string, stdout, stderr io.Writer) error {
	pool, err := boot.OpenForOperator(ctx, databaseURL)
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

// replay queues failed jobs again: all of them, or none where an id is not that of a failed
// job. The sweep notifies the workers.
func replay(ctx context.Context, databaseURL string, args []string, stdout io.Writer) error {
	ids := make([]uuid.UUID, len(args))
	for i, arg := range args {
		id, err := uuid.Parse(arg)
		if err != nil {
			return fmt.Errorf("%q is not a job's id: %w", arg, err)
		}
		ids[i] = id
	}
	pool, err := boot.OpenForOperator(ctx, databaseURL)
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

// archiveProgress is how many jobs are archived between two reports of progress.
const archiveProgress = 100_000

// archive moves old jobs to the archive. Ctrl-C ends it after the current step.
func archive(ctx context.Context, databaseURL, before string, stdout, stderr io.Writer) error {
	until, err := job.ParseArchiveBefore(before, time.Now())
	if err != nil {
		return err
	}
	pool, err := boot.OpenForOperator(ctx, databaseURL)
	if err != nil {
		return err
	}
	defer pool.Close()
	reported := int64(0)
	moved, err := job.Archive(ctx, pool, until, func(moved int64) {
		if moved-reported >= archiveProgress {
			fmt.Fprintf(stderr, "%d jobs archived so far\n", moved)
			reported = moved
		}
	})
	fmt.Fprintf(stdout, "%d jobs archived\n", moved)
	if errors.Is(err, context.Canceled) {
		return errors.New("stopped before the end; run it again to archive the remaining jobs")
	}
	return err
}
