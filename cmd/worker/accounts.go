package main

import (
	"fmt"
	"os"
	"os/user"
	"time"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/queue"
)

type accountsCommands struct {
	Show     showCommand     `cmd:"" help:"Show an account, what it waits for and what operators did to it."`
	Freeze   freezeCommand   `cmd:"" help:"Freeze an account: its jobs are accepted and end rejected."`
	Unfreeze unfreezeCommand `cmd:"" help:"Open a frozen account again."`
	Close    closeCommand    `cmd:"" help:"Close an account for good: it takes no more jobs, and those queued end rejected. Its history stays readable."`
}

// person names who acts: as the command line says, or the operating system's user.
func person(by string) string {
	if by != "" {
		return by
	}
	if current, err := user.Current(); err == nil && current.Username != "" {
		return current.Username
	}
	return fmt.Sprintf("user %d", os.Getuid()) // as in a container without a passwd file
}

type statusCommand struct {
	Number string `arg:"" help:"The account's number."`
	By     string `placeholder:"NAME" help:"Who does this, for the record; the operating system's user where absent."`
	Reason string `required:"" placeholder:"TEXT" help:"Why, for the record."`
}

type (
	freezeCommand   struct{ statusCommand }
	unfreezeCommand struct{ statusCommand }
	closeCommand    struct{ statusCommand }
)

// Run freezes the account.
func (c freezeCommand) Run(i *invocation) error { return c.set(i, ledger.Frozen) }

// Run opens the account again.
func (c unfreezeCommand) Run(i *invocation) error { return c.set(i, ledger.Open) }

// Run closes the account.
func (c closeCommand) Run(i *invocation) error { return c.set(i, ledger.Closed) }

// set sets the account's status. A kill before the commit leaves nothing. If the kill comes after
// the commit, the same command says that the account has that status.
func (c statusCommand) set(i *invocation, status ledger.AccountStatus) error {
	pool, err := i.open()
	if err != nil {
		return err
	}
	defer pool.Close()
	operator := ledger.NewOperator(pool, person(c.By))
	changed, err := operator.SetStatus(i.ctx, c.Number, status, c.Reason)
	if err != nil {
		return err
	}
	view, err := operator.Account(i.ctx, c.Number)
	if err != nil {
		return err
	}
	now := "is " + string(view.Status)
	if !changed {
		now = "was " + string(view.Status) + " already, and nothing changed"
	}
	i.say("account %s %s; its balance is %s, and %d jobs are queued", c.Number, now, balance(view.Account), view.Queued)
	return nil
}

func balance(a ledger.Account) string {
	return fmt.Sprintf("%d in minor units of %s", a.Balance, a.Currency)
}

type showCommand struct {
	Number string `arg:"" help:"The account's number."`
}

// Run shows the account. Without Redis it shows what Postgres knows.
func (c showCommand) Run(i *invocation) error {
	pool, queues, client, err := i.openQueues()
	if err != nil {
		return err
	}
	defer pool.Close()
	defer client.Close() //nolint:errcheck // nothing is pending on it
	view, err := ledger.NewOperator(pool, "").Account(i.ctx, c.Number)
	if err != nil {
		return err
	}
	states, redisErr := queue.States(i.ctx, client, queues)
	var state queue.State
	if redisErr == nil {
		state = states[queue.Partition(view.ID, queues.Partitions)]
	}
	i.say("account    %s, %s, opened %s", view.Number, view.Status, view.CreatedAt.UTC().Format(time.RFC3339))
	i.say("balance    %s, after transaction %d", balance(view.Account), view.LastSeq)
	i.say("queued     %d jobs%s", view.Queued, oldest(view.Oldest))
	i.say("failed     %d jobs", view.Failed)
	i.say("queue      %s", queues.Of(view.ID))
	i.say("waits for  %s", waitsFor(view, state, redisErr))
	for _, a := range view.Actions {
		job := ""
		if a.JobID != nil {
			job = " of job " + a.JobID.String()
		}
		i.say("action     %s %s%s by %q (role %s): %q", a.At.UTC().Format(time.RFC3339), a.Action, job, a.Person, a.Role, a.Reason)
	}
	return nil
}

func oldest(job *ledger.OverviewJob) string {
	if job == nil {
		return ""
	}
	return fmt.Sprintf(", the oldest %s, a %s of %d, for %s", job.ID, job.Type, job.Amount, job.Age.Round(time.Millisecond))
}

// waitsFor says what keeps an account's oldest queued job from being applied, the likeliest cause
// first.
func waitsFor(view ledger.Overview, state queue.State, redisErr error) string {
	switch {
	case view.Oldest == nil:
		return "nothing: no job is queued"
	case view.Lock != nil:
		return fmt.Sprintf("the lock of its account, which Postgres process %d has held for %s (%s, %s)",
			view.Lock.PID, view.Lock.Age.Round(time.Millisecond), view.Lock.Application, view.Lock.State)
	case view.Oldest.Attempts > 0:
		return fmt.Sprintf("attempt %d of %d: Postgres refused its oldest job; the worker's log says why", view.Oldest.Attempts+1, ledger.MaxAttempts)
	case redisErr != nil:
		return fmt.Sprintf("the sweep of a worker: Redis does not answer (%v)", redisErr)
	case state.Worker == "":
		return "a worker: none is running, or none that uses this Redis and prefix"
	case state.Paused:
		return "its queue, which is paused; resume it in the worker's dashboard"
	case state.Lost > 0:
		return fmt.Sprintf("the sweep of worker %s: the worker that had its task is gone", state.Worker)
	case state.Pending+state.Active+state.Retry+state.Notified > 0:
		return fmt.Sprintf("its turn in its queue: worker %s handles %d tasks, and %d are pending; %d more wait to be tried again, and %d notifications to be taken",
			state.Worker, state.Active, state.Pending, state.Retry, state.Notified)
	}
	return fmt.Sprintf("the sweep of worker %s: its task is lost", state.Worker)
}
