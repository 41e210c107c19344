package main

import (
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/ledger"
)

type jobsCommands struct {
	Failed failedCommand `cmd:"" help:"List the failed jobs with account, reason and attempts, the oldest first."`
	Replay replayCommand `cmd:"" help:"Queue failed jobs again, at their old positions. Says for each whether it could. Exits 1 where one could not."`
}

type failedCommand struct{}

// Run lists the failed jobs, a line each.
func (failedCommand) Run(i *invocation) error {
	pool, err := i.open()
	if err != nil {
		return err
	}
	defer pool.Close()
	table := i.table("JOB\tACCOUNT\tTYPE\tAMOUNT\tATTEMPTS\tFAILED\tREASON")
	err = ledger.NewOperator(pool, "").FailedJobs(i.ctx, func(f ledger.FailedJob) {
		table.row("%s\t%s\t%s\t%d\t%d\t%s\t%s\n", f.ID, account(f), f.Type, f.Amount, f.Attempts, f.FailedAt.UTC().Format(time.RFC3339), reason(f))
	})
	if err := errors.Join(err, table.end()); err != nil {
		return err
	}
	i.say("%d jobs are failed", table.rows)
	return nil
}

// account names the account of a failed job, with its status where jobs would be rejected.
func account(f ledger.FailedJob) string {
	switch {
	case f.Account == nil:
		return "(lost)"
	case *f.AccountIs != ledger.Open:
		return fmt.Sprintf("%s (%s)", *f.Account, *f.AccountIs)
	}
	return *f.Account
}

// reason is the code that the client sees, and Postgres's error where the job has kept it.
func reason(f ledger.FailedJob) string {
	if f.Detail == nil {
		return f.Failure
	}
	return fmt.Sprintf("%s: %q", f.Failure, *f.Detail)
}

type replayCommand struct {
	IDs    []uuid.UUID `arg:"" name:"id" help:"The jobs' ids."`
	By     string      `placeholder:"NAME" help:"Who does this, for the record; the operating system's user where absent."`
	Reason string      `default:"its reason is fixed" placeholder:"TEXT" help:"Why, for the record."`
}

// Run replays each job in a transaction of its own, and says of each what happened. After a kill,
// the jobs that it has replayed stay replayed: the same command says that they are no longer failed.
// The sweep finds the replayed jobs and enqueues tasks for them.
func (c replayCommand) Run(i *invocation) error {
	pool, err := i.open()
	if err != nil {
		return err
	}
	defer pool.Close()
	operator, failed := ledger.NewOperator(pool, person(c.By)), 0
	for _, id := range c.IDs {
		err := operator.Replay(i.ctx, id, c.Reason)
		switch {
		case err == nil:
			i.say("%s is queued again", id)
			continue
		case errors.Is(err, ledger.ErrNotFailed), errors.Is(err, ledger.ErrJobNotFound):
			i.say("%s is not replayed: %v", id, err)
			failed++
		default:
			return err
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d jobs could not be replayed", failed, len(c.IDs))
	}
	return nil
}

// maxAligned is how many rows of a table are aligned with each other, and so are in memory.
const maxAligned = 1000

// table is a table on stdout.
type table struct {
	aligned *tabwriter.Writer
	rows    int
	err     error // of the first write that failed
}

// table begins a table with its head.
func (i *invocation) table(head string) *table {
	const space = 2
	t := &table{aligned: tabwriter.NewWriter(i.stdout, 0, 0, space, ' ', 0)}
	_, t.err = fmt.Fprintln(t.aligned, head)
	return t
}

func (t *table) row(format string, cells ...any) {
	t.rows++
	if t.err != nil {
		return
	}
	if _, t.err = fmt.Fprintf(t.aligned, format, cells...); t.err == nil && t.rows%maxAligned == 0 {
		t.err = t.aligned.Flush()
	}
}

// end writes what is in memory.
func (t *table) end() error {
	if t.err != nil {
		return t.err
	}
	return t.aligned.Flush()
}
