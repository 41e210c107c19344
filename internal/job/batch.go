package job

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/test/failpoint"
)

const (
	// MaxBatchJobs is how many jobs a client may send in one batch.
	MaxBatchJobs = 100
	// maxWaitingBatches is how many batches may wait for a committer, and maxWaitingBatchesPerUser how
	// many of one user: else the batches of one user would refuse those of all others.
	maxWaitingBatches        = 64
	maxWaitingBatchesPerUser = 16
)

// Accepted is a job of a batch.
type Accepted struct {
	Job      Job
	Replayed bool // an earlier request with the same key made the job
}

// ReusedKeysError is ErrKeyReused for some of a batch's requests.
type ReusedKeysError struct {
	Requests []int // counted from 0
}

func (e *ReusedKeysError) Error() string {
	return fmt.Sprintf("requests %v of the batch: %v", e.Requests, ErrKeyReused)
}

// Unwrap returns ErrKeyReused.
func (e *ReusedKeysError) Unwrap() error { return ErrKeyReused }

// reusedKeys returns the error for requests that are numbered from 1.
func reusedKeys(numbers []int) *ReusedKeysError {
	e := &ReusedKeysError{}
	for _, n := range numbers {
		e.Requests = append(e.Requests, n-1)
	}
	return e
}

// batchRequest is one AcceptBatch on its way to a committer.
type batchRequest struct {
	requests []Request
	ctx      context.Context //nolint:containedctx // the caller's deadline travels with the request
	ids      [][16]byte      // of the jobs; see acceptedRow
	result   chan batchResult
}

type batchResult struct {
	accepted []Accepted
	shown    *postgres.Shown // where some are replayed
	err      error
}

// AcceptBatch commits the jobs of 1 to MaxBatchJobs requests in one transaction and returns them
// in the order of the requests, which is the order in which they take effect. The requests are
// of one user, for one account, with different keys. For a request whose key has made the same
// job before, it returns that job. The errors are those of Accept, with a *ReusedKeysError in place
// of ErrKeyReused. After one of them this call has accepted no job of the batch.
//
// A crash has the same consequences as for Accept, for the batch as a whole: Postgres commits all of
// its new jobs or none, and the client sends the same batch again.
func (a *Acceptor) AcceptBatch(ctx context.Context, requests []Request) ([]Accepted, error) {
	ctx, cancel := context.WithTimeout(ctx, a.Timeout)
	defer cancel()
	batch := &batchRequest{requests: requests, ctx: ctx, ids: make([][16]byte, len(requests)), result: make(chan batchResult, 1)}
	for i := range batch.ids {
		id, err := uuid.NewV7()
		if err != nil {
			return nil, fmt.Errorf("make job id: %w", err)
		}
		batch.ids[i] = id
	}
	if a.IsOverloaded() || !a.enqueue(batch) {
		return nil, ErrOverloaded
	}
	select {
	case result := <-batch.result:
		result.show(ctx)
		return result.accepted, result.err
	case <-ctx.Done():
		return nil, ErrUnavailable
	}
}

// enqueue adds the batch to those that wait for a committer. It returns false if too many wait, of all
// users or of this one.
func (a *Acceptor) enqueue(batch *batchRequest) bool {
	user := batch.requests[0].UserID
	if !a.userBatches.add(user) {
		return false
	}
	select {
	case a.batches <- batch:
		return true
	default:
		a.userBatches.remove(user)
		return false
	}
}

// userBatches counts the batches of each user that wait for a committer.
type userBatches struct {
	mu      sync.Mutex // guards waiting
	waiting map[uuid.UUID]int
}

func (b *userBatches) add(user uuid.UUID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.waiting[user] == maxWaitingBatchesPerUser {
		return false
	}
	b.waiting[user]++
	return true
}

func (b *userBatches) remove(user uuid.UUID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.waiting[user]--; b.waiting[user] == 0 {
		delete(b.waiting, user)
	}
}

// show adds what the result shows to ctx. The jobs that this batch has committed are durable.
func (r batchResult) show(ctx context.Context) {
	switch {
	case r.shown != nil:
		r.shown.AddTo(ctx)
	case r.err == nil:
		postgres.ShowNone(ctx)
	}
}

// commitBatch commits the batch and sends its result, even if ctx ends meanwhile.
func (a *Acceptor) commitBatch(ctx context.Context, batch *batchRequest) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.Timeout)
	defer cancel()
	row, err := a.insertBatch(ctx, batch)
	if err != nil {
		batch.result <- batchResult{err: err}
		return
	}
	batch.result <- a.acceptedBatch(ctx, batch, row)
}

// acceptBatchSQL commits a batch: migrations/00004_accept_batch.sql. When it returns, the new jobs
// are durable: a 202 depends on that.
//
// $1 the user, $2 the account's number, $3 ids, $4 keys, $5 the keys' locks, $6 types, $7 amounts,
// $8 descriptions, as arrays in the order of the requests; $9 the account's queue capacity where it
// is known; $10 how many queued jobs an account may have. One row as accept_batch returns it, or
// none.
const acceptBatchSQL = `SELECT accepted.* FROM accept_batch($1, $2, $3::uuid[], $4::text[], $5::bigint[], $6::entry_type[],
	$7::bigint[], $8::text[], $9, $10) accepted, ` + postgres.DurableSQL

// batchRow is the row of accept_batch. It numbers the requests from 1.
type batchRow struct {
	AccountID int64
	Currency  string
	Capacity  int // of the account, before this batch
	Busy      bool
	Closed    bool  // the account
	Fresh     []int // the requests whose keys are new
	Reused    []int
	Positions []int64 // of the jobs of Fresh; none where they were not inserted
	CreatedAt *time.Time
}

// insertBatch commits the new jobs of the batch in one round trip and notifies the workers.
func (a *Acceptor) insertBatch(ctx context.Context, batch *batchRequest) (batchRow, error) {
	began := time.Now()
	returned, _ := a.pool.Query(ctx, acceptBatchSQL, a.batchColumns(batch)...) // CollectExactlyOneRow returns its error
	row, err := pgx.CollectExactlyOneRow(returned, pgx.RowToStructByPos[batchRow])
	if errors.Is(err, pgx.ErrNoRows) {
		return row, ErrAccountNotFound
	}
	if err != nil {
		return row, fmt.Errorf("accept batch: %w", err)
	}
	account := batch.requests[0].Account
	a.capacities.counted(account, a.maxQueued-row.Capacity, row.Capacity)
	switch {
	case row.Busy:
		return row, ErrKeyBusy
	case len(row.Reused) > 0:
		return row, reusedKeys(row.Reused)
	case row.Closed && len(row.Fresh) > 0:
		return row, ErrAccountClosed
	case len(row.Positions) < len(row.Fresh):
		return row, ErrQueueFull
	}
	failpoint.Hit(failpoint.AcceptCommitted)
	if jobs := len(row.Fresh); jobs > 0 { // the last: the others are applied before it
		a.capacities.use(account, jobs)
		a.notifier.Notify(row.AccountID, row.Positions[jobs-1], batch.ids[row.Fresh[jobs-1]-1], jobs, batch.origins(row.Fresh, began))
	}
	failpoint.Hit(failpoint.AcceptNotified)
	return row, nil
}

// batchColumns returns the parameters of acceptBatchSQL.
func (a *Acceptor) batchColumns(batch *batchRequest) []any {
	var (
		n            = len(batch.requests)
		keys         = make([]string, n)
		locks        = make([]int64, n)
		types        = make([]string, n)
		amounts      = make([]int64, n)
		descriptions = make([]*string, n)
		first        = batch.requests[0]
	)
	for i, r := range batch.requests {
		keys[i], locks[i] = r.Key, ledger.KeyLock(r.UserID, r.Key)
		types[i], amounts[i], descriptions[i] = string(r.Type), r.Amount, r.Description
	}
	return []any{
		first.UserID, first.Account, batch.ids, keys, locks, types, amounts, descriptions,
		a.capacities.known(first.Account), a.maxQueued,
	}
}

// acceptedBatch returns the jobs of a batch that is committed. If it can't read the repeated jobs,
// the client does not learn of the new ones either, and sends the batch again.
func (a *Acceptor) acceptedBatch(ctx context.Context, batch *batchRequest, row batchRow) batchResult {
	accepted := make([]Accepted, len(batch.requests))
	for k, n := range row.Fresh {
		accepted[n-1].Job = batch.requests[n-1].job(batch.ids[n-1], row.Positions[k], row.Currency, *row.CreatedAt)
	}
	var repeated []jobKey
	for i, r := range batch.requests {
		if accepted[i].Job.ID == uuid.Nil {
			repeated = append(repeated, jobKey{r.UserID, r.Key})
		}
	}
	if len(repeated) == 0 {
		return batchResult{accepted: accepted}
	}
	jobs, shown, err := a.readRepeated(ctx, repeated)
	if err == nil && len(jobs) < len(repeated) { // the database was restored since the insert
		err = ErrUnavailable
	}
	if err != nil {
		return batchResult{err: err}
	}
	for i, r := range batch.requests {
		if job, ok := jobs[jobKey{r.UserID, r.Key}]; ok {
			accepted[i] = Accepted{Job: job, Replayed: true}
		}
	}
	return batchResult{accepted: accepted, shown: shown}
}
