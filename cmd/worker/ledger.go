package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
)

type verifyCommand struct{}

// Run checks the ledger against itself, and returns an error for any mismatch.
func (verifyCommand) Run(i *invocation) error {
	pool, err := i.open()
	if err != nil {
		return err
	}
	defer pool.Close()
	progress := newProgress(i.stderr, progressEvery)
	found, err := ledger.Verify(i.ctx, pool, func(mismatch string) {
		progress.clear()
		i.say("%s", mismatch)
	}, progress.show)
	progress.clear()
	if err != nil {
		return err
	}
	i.say("verified %d accounts, %d transactions and %d jobs: %d mismatches", found.Accounts, found.Transactions, found.Jobs, found.Mismatches)
	if found.Mismatches > 0 {
		return fmt.Errorf("the ledger does not hold: %d mismatches", found.Mismatches)
	}
	return nil
}

// archiveProgress is how many jobs are archived between two reports of progress.
const archiveProgress = 100_000

type archiveCommand struct {
	Before string `required:"" placeholder:"DATE" help:"Move jobs that finished before this date or RFC 3339 time, at least 30 days ago."`
}

// Run moves old jobs to the archive. Ctrl-C ends it after the current step.
func (c archiveCommand) Run(i *invocation) error {
	until, err := job.ParseArchiveBefore(c.Before, time.Now())
	if err != nil {
		return err
	}
	pool, err := i.open()
	if err != nil {
		return err
	}
	defer pool.Close()
	reported := int64(0)
	moved, err := job.Archive(i.ctx, pool, until, func(moved int64) {
		if moved-reported >= archiveProgress {
			fmt.Fprintf(i.stderr, "%d jobs archived so far\n", moved)
			reported = moved
		}
	})
	i.say("%d jobs archived", moved)
	if errors.Is(err, context.Canceled) {
		return errors.New("stopped before the end; run it again to archive the remaining jobs")
	}
	return err
}
