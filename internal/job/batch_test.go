package job_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/testenv"
)

// batch returns requests of one account, one for each key.
func batch(user uuid.UUID, account ledger.Account, keys ...string) (requests []job.Request) {
	for _, key := range keys {
		requests = append(requests, deposit(user, account, key))
	}
	return requests
}

// numbered returns n keys.
func numbered(prefix string, n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprint(prefix, i)
	}
	return keys
}

// The jobs of a batch have ascending positions in the order given, whatever their keys, and are
// what was asked for. One notification names the last of them, and their number.
func TestAcceptBatch(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	account := ledgertest.Account(t, pool, user, 0)
	a, notified := acceptor(t, pool, job.MaxBatchJobs)
	keys := numbered("k", job.MaxBatchJobs)
	rand.Shuffle(len(keys), func(i, k int) { keys[i], keys[k] = keys[k], keys[i] })
	requests := batch(user, account, keys...)
	for i := range requests {
		requests[i].Amount = int64(1 + i)
		if i%3 == 0 {
			requests[i].Type = ledger.Withdrawal
		}
		if i%2 == 0 {
			text := fmt.Sprint("the job ", i)
			requests[i].Description = &text
		}
	}
	accepted, err := a.AcceptBatch(t.Context(), requests)
	if err != nil || len(accepted) != len(requests) {
		t.Fatalf("accepted %d jobs, %v", len(accepted), err)
	}
	reader := job.NewReader(pool)
	var last int64
	for i, one := range accepted {
		read, err := reader.Job(t.Context(), user, one.Job.ID)
		if err != nil || one.Replayed || inFull(t, read) != inFull(t, one.Job) {
			t.Errorf("job %d reads as %s, accepted as %s, replayed %t, %v", i, inFull(t, read), inFull(t, one.Job), one.Replayed, err)
		}
		found, err := reader.ByKey(t.Context(), user, keys[i])
		if err != nil || found.ID != one.Job.ID || found.Amount != int64(1+i) || found.Position <= last {
			t.Errorf("key %s of job %d has %+v after position %d, %v", keys[i], i, found, last, err)
		}
		last = found.Position
	}
	final := accepted[len(accepted)-1].Job
	if want := (notification{account.ID, final.Position, final.ID, len(accepted)}); notified.last != want || len(notified.jobs) != 1 {
		t.Errorf("%d notifications, the last is %+v; want one, %+v", len(notified.jobs), notified.last, want)
	}
	if found := ledgertest.Check(t, pool); found.Jobs != job.MaxBatchJobs {
		t.Errorf("%d jobs in all, want %d", found.Jobs, job.MaxBatchJobs)
	}
}

// A batch whose keys are partly used gets the earlier jobs and makes the others, or does nothing.
func TestAcceptBatch_UsedKeys(t *testing.T) {
	t.Parallel()
	c := newArchiveClient(t)
	other := ledgertest.Account(t, c.pool, c.user, 0)
	if _, _, err := ledger.NewAccounts(c.pool).Open(t.Context(), ledger.Opening{UserID: c.user, Currency: "KRW", Key: "opening"}); err != nil {
		t.Fatal(err)
	}
	early, err := c.acceptor.AcceptBatch(t.Context(), batch(c.user, c.account, "archived", "done", "waits"))
	if err != nil {
		t.Fatal(err)
	}
	c.finish(t, early[0].Job.ID)
	archive(t, c.pool, soon(), 1)
	c.finish(t, early[1].Job.ID)
	change := func(key string, edit func(*job.Request)) []job.Request {
		requests := batch(c.user, c.account, "fresh", "waits", key, "fresher")
		edit(&requests[2])
		return requests
	}
	reused := map[string][]job.Request{
		"Amount":      change("archived", func(r *job.Request) { r.Amount++ }),
		"Type":        change("done", func(r *job.Request) { r.Type = ledger.Withdrawal }),
		"Description": change("archived", func(r *job.Request) { r.Description = new(string) }),
		"Opening":     change("opening", func(*job.Request) {}),
		"Account":     batch(c.user, other, "fresh", "fresher", "done"),
	}
	for name, requests := range reused {
		t.Run("ErrKeyReused/"+name, func(t *testing.T) {
			accepted, err := c.acceptor.AcceptBatch(t.Context(), requests)
			var keys *job.ReusedKeysError
			if !errors.As(err, &keys) || !errors.Is(err, job.ErrKeyReused) || !slices.Equal(keys.Requests, []int{2}) {
				t.Errorf("accepted %+v, %v; want ErrKeyReused for request 2", accepted, err)
			}
			for _, key := range []string{"fresh", "fresher"} {
				if made, err := job.NewReader(c.pool).ByKey(t.Context(), c.user, key); !errors.Is(err, job.ErrNotFound) {
					t.Errorf("key %s has made %+v, %v", key, made, err)
				}
			}
		})
	}
	t.Run("PartlyReplayed", func(t *testing.T) {
		requests := batch(c.user, c.account, "new2", "waits", "new1", "archived", "done")
		accepted, err := c.acceptor.AcceptBatch(t.Context(), requests)
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range map[int]int{1: 2, 3: 0, 4: 1} {
			if !accepted[i].Replayed || accepted[i].Job.ID != early[want].Job.ID {
				t.Errorf("request %d got %+v, want job %s", i, accepted[i], early[want].Job.ID)
			}
		}
		if accepted[3].Job.Status != job.Succeeded || accepted[4].Job.Status != job.Succeeded || accepted[1].Job.Status != job.Queued {
			t.Errorf("the earlier jobs are %+v", accepted)
		}
		first, second := accepted[0], accepted[2]
		if first.Replayed || second.Replayed || first.Job.Position <= early[2].Job.Position || second.Job.Position <= first.Job.Position {
			t.Errorf("the new jobs are %+v and %+v", first, second)
		}
		again, err := c.acceptor.AcceptBatch(t.Context(), requests)
		if err != nil {
			t.Fatal(err)
		}
		for i, one := range again {
			if !one.Replayed || one.Job.ID != accepted[i].Job.ID {
				t.Errorf("request %d again got %+v, want job %s", i, one, accepted[i].Job.ID)
			}
		}
	})
	if found := ledgertest.Check(t, c.pool); found.Jobs != 5 {
		t.Errorf("%d jobs, want 5", found.Jobs)
	}
}

// A batch that can't be accepted as a whole makes no job.
func TestAcceptBatch_Refused(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user, stranger := ledgertest.User(t, pool), ledgertest.User(t, pool)
	account := ledgertest.Account(t, pool, user, 0)
	ledgertest.Exec(t, pool, `ALTER TABLE jobs ADD CONSTRAINT unlucky CHECK (amount <> 13)`)
	const capacity = 4
	a, notified := acceptor(t, pool, capacity)
	lock, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Rollback(context.WithoutCancel(t.Context())) //nolint:errcheck // nothing is to be kept
	if _, err := lock.Exec(t.Context(), `SELECT pg_advisory_xact_lock($1)`, ledger.KeyLock(user, "locked")); err != nil {
		t.Fatal(err)
	}
	atFault := batch(user, account, "a", "b", "c")
	atFault[1].Amount = 13
	tests := []struct {
		name     string
		requests []job.Request
		want     error // nil for any
	}{
		{"ErrAccountNotFound/NoSuch", batch(user, ledger.Account{Number: "none"}, "a", "b"), job.ErrAccountNotFound},
		{"ErrAccountNotFound/Strangers", batch(stranger, account, "a", "b"), job.ErrAccountNotFound},
		{"ErrQueueFull", batch(user, account, numbered("k", capacity+1)...), job.ErrQueueFull},
		{"ErrKeyBusy", batch(user, account, "a", "locked", "b"), job.ErrKeyBusy},
		{"OneAtFault", atFault, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			accepted, err := a.AcceptBatch(t.Context(), test.requests)
			if err == nil || test.want != nil && !errors.Is(err, test.want) {
				t.Errorf("accepted %+v, %v; want %v", accepted, err, test.want)
			}
			if found := ledgertest.Check(t, pool); found.Jobs != 0 || len(notified.jobs) != 0 {
				t.Errorf("%d jobs, %d notifications, want none", found.Jobs, len(notified.jobs))
			}
		})
	}
	t.Run("ReplayNeedsNoCapacity", func(t *testing.T) {
		full := batch(user, account, numbered("k", capacity)...)
		if _, err := a.AcceptBatch(t.Context(), full); err != nil {
			t.Fatal(err)
		}
		if again, err := a.AcceptBatch(t.Context(), full); err != nil || !again[capacity-1].Replayed {
			t.Errorf("a full queue's batch again: %+v, %v", again, err)
		}
		if _, err := a.AcceptBatch(t.Context(), batch(user, account, "k0", "k1", "one-more")); !errors.Is(err, job.ErrQueueFull) {
			t.Errorf("one more: %v, want ErrQueueFull", err)
		}
	})
	if found := ledgertest.Check(t, pool); found.Jobs != capacity {
		t.Errorf("%d jobs, want %d", found.Jobs, capacity)
	}
}

// Batches with the same keys in different orders, some with other amounts, run in two processes at
// once, together with single accepts and openings. Each key makes one thing, and no batch is
// accepted in part.
func TestAcceptBatch_AtOnce(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	account := ledgertest.Account(t, pool, user, 0)
	one, _ := acceptor(t, pool, manyQueued)
	two, _ := acceptor(t, pool, manyQueued)
	const rounds, rivals = 30, 8
	wins := 0
	for round := range rounds {
		shared := numbered(fmt.Sprint("shared-", round, "-"), 6)
		var group errgroup.Group
		won := make([]bool, rivals)
		for rival := range rivals {
			a := []*job.Acceptor{one, two}[rival%2]
			own := numbered(fmt.Sprintf("own-%d-%d-", round, rival), 3)
			keys := append(slices.Clone(shared), own...)
			rand.Shuffle(len(keys), func(i, k int) { keys[i], keys[k] = keys[k], keys[i] })
			requests := batch(user, account, keys...)
			for i := range requests {
				requests[i].Amount += int64(rival / 2) // of each pair both say the same
			}
			group.Go(func() (err error) {
				won[rival], err = settleBatch(t.Context(), a, requests)
				return err
			})
		}
		group.Go(func() error { return settle(t.Context(), one, deposit(user, account, shared[round%6])) })
		group.Go(func() error { return settleOpening(t.Context(), pool, user, shared[(round+3)%6]) })
		if err := group.Wait(); err != nil {
			t.Fatal(err)
		}
		for rival := range rivals {
			const sql = `SELECT count(*) FROM jobs WHERE idempotency_key LIKE $1`
			var made int
			if err := pool.QueryRow(t.Context(), sql, fmt.Sprintf("own-%d-%d-%%", round, rival)).Scan(&made); err != nil {
				t.Fatal(err)
			}
			if won[rival] != (made == 3) || made != 0 && made != 3 {
				t.Fatalf("round %d: batch %d was accepted: %t, and made %d of its own 3 jobs", round, rival, won[rival], made)
			}
			wins += made / 3
		}
	}
	if wins == 0 {
		t.Error("no batch was ever accepted")
	}
	ledgertest.Check(t, pool)
}

// settleBatch sends a batch until it is accepted or a key is reused.
func settleBatch(ctx context.Context, a *job.Acceptor, requests []job.Request) (won bool, err error) {
	for {
		accepted, err := a.AcceptBatch(ctx, requests)
		switch {
		case errors.Is(err, job.ErrKeyBusy):
		case errors.Is(err, job.ErrKeyReused):
			return false, nil
		case err != nil:
			return false, err
		default:
			for i, one := range accepted {
				if one.Job.Amount != requests[i].Amount || one.Job.Account != requests[i].Account {
					return false, fmt.Errorf("key %s: got %+v", requests[i].Key, one)
				}
			}
			return true, nil
		}
	}
}

// settle sends a request until it is accepted or its key is reused.
func settle(ctx context.Context, a *job.Acceptor, req job.Request) error {
	for {
		if _, _, err := a.Accept(ctx, req); !errors.Is(err, job.ErrKeyBusy) {
			if errors.Is(err, job.ErrKeyReused) {
				return nil
			}
			return err
		}
	}
}

// settleOpening opens an account with a key, unless the key is reused.
func settleOpening(ctx context.Context, pool *pgxpool.Pool, user uuid.UUID, key string) error {
	for {
		_, _, err := ledger.NewAccounts(pool).Open(ctx, ledger.Opening{UserID: user, Currency: "KRW", Key: key})
		if !errors.Is(err, ledger.ErrKeyBusy) {
			if errors.Is(err, ledger.ErrKeyReused) {
				return nil
			}
			return err
		}
	}
}

// A batch returns no job before its commit.
func TestAcceptBatch_ReturnsAfterTheCommit(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	account := ledgertest.Account(t, pool, user, 0)
	ledgertest.Exec(t, pool, `CREATE FUNCTION at_commit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'refused at the commit'; END $$`)
	ledgertest.Exec(t, pool, `CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON jobs
		DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.amount = 13) EXECUTE FUNCTION at_commit()`)
	a, notified := acceptor(t, pool, manyQueued)
	requests := batch(user, account, "a", "b", "c")
	requests[2].Amount = 13
	if got, err := a.AcceptBatch(t.Context(), requests); err == nil {
		t.Errorf("returned %+v before the commit", got)
	}
	if found := ledgertest.Check(t, pool); found.Jobs != 0 || len(notified.jobs) != 0 {
		t.Errorf("%d jobs, %d notifications, want none", found.Jobs, len(notified.jobs))
	}
}

// Where a row of a batch is dropped in the database, the whole batch is refused.
func TestAcceptBatch_DroppedRow(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	account := ledgertest.Account(t, pool, user, 0)
	ledgertest.Exec(t, pool, `CREATE FUNCTION drop_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$`)
	ledgertest.Exec(t, pool, `CREATE TRIGGER drop_row BEFORE INSERT ON jobs FOR EACH ROW WHEN (NEW.amount = 13) EXECUTE FUNCTION drop_row()`)
	a, _ := acceptor(t, pool, manyQueued)
	requests := batch(user, account, "a", "b", "c")
	requests[1].Amount = 13
	if got, err := a.AcceptBatch(t.Context(), requests); err == nil {
		t.Errorf("accepted %+v", got)
	}
	if found := ledgertest.Check(t, pool); found.Jobs != 0 {
		t.Errorf("%d jobs, want none", found.Jobs)
	}
}

// A key finds its job, in every state, for its caller alone.
func TestByKey(t *testing.T) {
	t.Parallel()
	c := newArchiveClient(t)
	stranger := ledgertest.User(t, c.pool)
	reader := job.NewReader(c.pool)
	accepted, err := c.acceptor.AcceptBatch(t.Context(), batch(c.user, c.account, "archived", "done", "waits"))
	if err != nil {
		t.Fatal(err)
	}
	c.finish(t, accepted[0].Job.ID)
	archive(t, c.pool, soon(), 1)
	c.finish(t, accepted[1].Job.ID)
	for i, key := range []string{"archived", "done", "waits"} {
		byKey, err := reader.ByKey(t.Context(), c.user, key)
		byID, idErr := reader.Job(t.Context(), c.user, accepted[i].Job.ID)
		if err != nil || idErr != nil || inFull(t, byKey) != inFull(t, byID) {
			t.Errorf("key %s: %s, %v; the job's id has %s, %v", key, inFull(t, byKey), err, inFull(t, byID), idErr)
		}
		if theirs, err := reader.ByKey(t.Context(), stranger, key); !errors.Is(err, job.ErrNotFound) {
			t.Errorf("a stranger's key %s finds %+v, %v", key, theirs, err)
		}
	}
	if found, err := reader.ByKey(t.Context(), c.user, "unused"); !errors.Is(err, job.ErrNotFound) {
		t.Errorf("an unused key finds %+v, %v", found, err)
	}
}
