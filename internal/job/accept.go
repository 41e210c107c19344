package job

import (
	"cmp"
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/test/failpoint"
)

// Bounds of the collecting loop.
const (
	// maxBatch is how many accepts share an insert.
	maxBatch = 64
	// slowInsert is after how long an insert counts as slow, and the next one begins beside it.
	// Until then the next batch collects: a second insert would make the batches smaller, not
	// faster. A slow insert may be waiting for a lock or a standby.
	slowInsert = 10 * time.Millisecond
	// committers bounds how many inserts run at once.
	committers = 2
	// maxWaiting is how many accepts may wait for a committer; fewer where batches are slow
	// (overload.go).
	maxWaiting = 1024
	// acceptTimeout is how long an accept may take before it returns
	// ErrUnavailable. The job may be committed nevertheless.
	acceptTimeout = 1500 * time.Millisecond
)

// Request asks for a deposit or a withdrawal. The API has checked its form.
type Request struct {
	UserID      uuid.UUID
	Account     string // number
	Type        ledger.EntryType
	Amount      int64 // minor units
	Description *string
	Key         string  // Idempotency-Key
	Origin      *Origin // nil for one that is not traced and gets no log line
}

// Notifier tells the workers that an account has new jobs: how many, and the id and position of
// the last one. It does not block and may lose a notification: the sweep finds those jobs. origins
// has the names of the origins that the worker should know, by the job's id; nil for none.
type Notifier interface {
	Notify(accountID, position int64, jobID uuid.UUID, jobs int, origins map[uuid.UUID]string)
}

// Acceptor commits jobs. Accepts that arrive together share an insert; no accept
// waits for more to come.
type Acceptor struct {
	Timeout time.Duration // acceptTimeout; before the first Accept a test may set another

	pool        *pgxpool.Pool
	notifier    Notifier
	maxQueued   int
	capacities  *capacities
	requests    chan *request
	batches     chan *batchRequest
	userBatches userBatches
	pace        pace
}

// NewAcceptor accepts jobs into the database behind pool and notifies the workers.
// An account takes at most maxQueued queued jobs. Accept waits until Run runs.
func NewAcceptor(pool *pgxpool.Pool, notifier Notifier, maxQueued int) *Acceptor {
	return &Acceptor{
		Timeout:     acceptTimeout,
		pool:        pool,
		notifier:    notifier,
		maxQueued:   maxQueued,
		capacities:  newCapacities(time.Now),
		requests:    make(chan *request, maxWaiting),
		batches:     make(chan *batchRequest, maxWaitingBatches),
		userBatches: userBatches{waiting: map[uuid.UUID]int{}},
	}
}

// request is one Accept on its way through the collecting loop.
type request struct {
	Request
	ctx    context.Context //nolint:containedctx // the caller's deadline travels with the request
	id     uuid.UUID       // of the job
	result chan result     // has a buffer of one, so that a committer never waits
}

type result struct {
	job      Job
	replayed bool
	shown    *postgres.Shown // where replayed
	err      error
}

// Accept commits the job and returns it. For a request that is repeated with its key, it returns
// the job that the key made, and replayed is true. After one of these errors nothing happened:
//   - ErrAccountNotFound: the account is not the caller's.
//   - ErrAccountClosed: the account takes no new job.
//   - ErrKeyReused: the key was used for something else.
//   - ErrKeyBusy: an opening, or a move to the archive, has the key now.
//   - ErrQueueFull: the account has too many queued jobs.
//   - ErrOverloaded: too many accepts wait. Accept returns it at once.
//
// After any other error the job may be committed or not. The same request with the same key shows
// which.
//
// A crash before the insert is sent leaves nothing. A crash while Postgres runs the
// insert leaves the job or nothing; the client has no response and repeats the request.
// A crash after the commit and before the notification leaves a job that the sweep finds.
func (a *Acceptor) Accept(ctx context.Context, req Request) (job Job, replayed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, a.Timeout)
	defer cancel()
	id, err := uuid.NewV7()
	if err != nil {
		return Job{}, false, fmt.Errorf("make job id: %w", err)
	}
	if a.IsOverloaded() {
		return Job{}, false, ErrOverloaded
	}
	accept := &request{Request: req, ctx: ctx, id: id, result: make(chan result, 1)}
	select {
	case a.requests <- accept:
	default:
		return Job{}, false, ErrOverloaded
	}
	select {
	case result := <-accept.result:
		result.show(ctx)
		return result.job, result.replayed, result.err
	case <-ctx.Done():
		return Job{}, false, ErrUnavailable
	}
}

// show adds what the result shows to ctx: nothing, where this accept has committed the job.
func (r result) show(ctx context.Context) {
	switch {
	case r.replayed:
		r.shown.AddTo(ctx)
	case r.err == nil:
		postgres.ShowNone(ctx)
	}
}

// Run commits the requests of Accept until ctx ends. By then the API must have
// answered its last request.
func (a *Acceptor) Run(ctx context.Context) error {
	var group errgroup.Group
	mayCollect := make(chan struct{}, 1) // holds a token: the committer that takes it collects the next batch
	mayCollect <- struct{}{}
	for range committers {
		group.Go(func() error {
			for a.commitNext(ctx, mayCollect) {
			}
			return nil
		})
	}
	return group.Wait()
}

// commitNext takes the token, collects a batch and commits it. It gives the token to the next
// committer when the insert has ended or is slow. It returns false when ctx has ended.
func (a *Acceptor) commitNext(ctx context.Context, mayCollect chan struct{}) (collected bool) {
	<-mayCollect
	release := sync.OnceFunc(func() { mayCollect <- struct{}{} })
	defer release()
	batch, whole := a.collect(ctx)
	if len(batch) == 0 && whole == nil {
		return false
	}
	slow := time.AfterFunc(slowInsert, release)
	defer slow.Stop()
	failpoint.Hit(failpoint.AcceptCollected)
	began := time.Now()
	a.pace.begin(began)
	if whole != nil {
		a.commitBatch(ctx, whole)
	} else {
		a.commit(ctx, batch)
	}
	a.pace.end(began, time.Now())
	return true
}

// collect waits for one request and takes all that wait with it, or takes a client's batch, which
// has an insert of its own. If both wait, chance decides, so neither keeps the other waiting for
// long. collect drops a request that has passed its deadline: its caller has returned, and nothing
// is committed for it.
func (a *Acceptor) collect(ctx context.Context) (batch []*request, whole *batchRequest) {
	for len(batch) == 0 {
		select {
		case <-ctx.Done():
			return nil, nil
		case whole := <-a.batches:
			a.userBatches.remove(whole.requests[0].UserID)
			if whole.ctx.Err() != nil {
				continue
			}
			return nil, whole
		case first := <-a.requests:
			batch = append(batch, first)
		}
		if len(a.requests) < maxBatch-1 {
			runtime.Gosched() // requests that have arrived, and that no processor has handled yet, share the insert
		}
		for len(batch) < maxBatch && len(a.requests) > 0 { // only the holder of the token takes requests
			batch = append(batch, <-a.requests)
		}
		batch = slices.DeleteFunc(batch, func(r *request) bool { return r.ctx.Err() != nil })
	}
	return batch, nil
}

// commit commits the batch and sends every request its result, even if ctx ends meanwhile.
func (a *Acceptor) commit(ctx context.Context, batch []*request) {
	// Two inserts that share keys must insert them in the same order, or they deadlock.
	slices.SortFunc(batch, func(x, y *request) int {
		return cmp.Or(slices.Compare(x.UserID[:], y.UserID[:]), cmp.Compare(x.Key, y.Key))
	})
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.Timeout)
	defer cancel()
	accepted, err := a.insert(ctx, batch)
	switch {
	case postgres.IsDataFault(err) && len(batch) > 1:
		for _, r := range batch { // a request at fault must not undo the others
			a.commit(ctx, []*request{r})
		}
		return
	case err != nil:
		for _, r := range batch {
			r.result <- result{err: fmt.Errorf("accept job: %w", err)}
		}
		return
	}
	if repeated := a.sendAccepted(batch, accepted); len(repeated) > 0 {
		a.sendRepeated(ctx, repeated, accepted)
	}
}

// acceptSQL commits the jobs of a batch: migrations/00003_accept_jobs.sql. When it
// returns, they are durable: a 202 depends on that.
//
// $1 ids, $2 users, $3 account numbers, $4 keys, $5 the keys' locks, $6 types, $7 amounts,
// $8 descriptions, $9 the first requests for the same account, $10 the accounts' queue
// capacities where they are known, as arrays; $11 how many queued jobs an account may have.
// Rows as accept_jobs returns them.
const acceptSQL = `SELECT accepted.* FROM accept_jobs($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::bigint[], $6::entry_type[],
	$7::bigint[], $8::text[], $9::bigint[], $10::bigint[], $11) accepted, ` + postgres.DurableSQL

// AcceptStatement returns the statement that inserts a batch, for the benchmark to give to
// pgbench. It takes the parameters that acceptSQL names.
func AcceptStatement() string { return acceptSQL }

// acceptedRow is a row of accept_jobs.
type acceptedRow struct {
	ID        [16]byte // not a uuid.UUID, which pgx would write and read as text
	AccountID int64
	Currency  string
	Opened    bool   // the key opened an account
	Busy      bool   // an opening or a move to the archive has locked the key
	Closed    bool   // the account
	Capacity  *int   // of the account, before this batch, in the row of its first request
	Position  *int64 // where the job was inserted
	CreatedAt *time.Time
}

// insert commits the new jobs of the batch in one round trip and notifies the workers.
// It returns what Postgres says of each request, by the id of its job.
func (a *Acceptor) insert(ctx context.Context, batch []*request) (map[uuid.UUID]acceptedRow, error) {
	origins := originsOf(batch)
	began := time.Now()
	returned, _ := a.pool.Query(ctx, acceptSQL, a.columns(batch)...) // CollectRows returns its error
	rows, err := pgx.CollectRows(returned, pgx.RowToStructByPos[acceptedRow])
	if err != nil {
		return nil, err
	}
	failpoint.Hit(failpoint.AcceptCommitted)
	origins.inserted(began, time.Now(), len(batch))
	a.notify(rows, origins)
	failpoint.Hit(failpoint.AcceptNotified)
	accepted := make(map[uuid.UUID]acceptedRow, len(batch))
	for _, row := range rows { // the rows with a position come last
		if row.Position != nil {
			first := accepted[row.ID]
			first.Position, first.CreatedAt = row.Position, row.CreatedAt
			row = first
		}
		accepted[row.ID] = row
	}
	return accepted, nil
}

// notify notifies the workers once for each account that has new jobs, with the last of
// them: the others are applied before it.
func (a *Acceptor) notify(rows []acceptedRow, origins origins) {
	last, jobs := make(map[int64]acceptedRow, len(rows)), make(map[int64]int, len(rows))
	for _, row := range rows {
		if row.Position == nil {
			continue
		}
		jobs[row.AccountID]++
		if last[row.AccountID].Position == nil || *row.Position > *last[row.AccountID].Position {
			last[row.AccountID] = row
		}
	}
	names := origins.byAccount(rows)
	for accountID, row := range last {
		a.notifier.Notify(accountID, *row.Position, row.ID, jobs[accountID], names[accountID])
	}
}

// columns returns the parameters of acceptSQL.
func (a *Acceptor) columns(batch []*request) []any {
	var (
		n            = len(batch)
		ids          = make([][16]byte, n) // see acceptedRow
		users        = make([][16]byte, n)
		numbers      = make([]string, n)
		keys         = make([]string, n)
		locks        = make([]int64, n)
		types        = make([]string, n)
		amounts      = make([]int64, n)
		descriptions = make([]*string, n)
		firsts       = make([]int, n) // counted from 1
		capacities   = make([]*int, n)
		first        = make(map[ledger.Owned]int, n)
	)
	for i, r := range batch {
		account := ledger.Owned{UserID: r.UserID, Number: r.Account}
		if first[account] == 0 {
			first[account] = i + 1
			capacities[i] = a.capacities.known(r.Account)
		}
		firsts[i] = first[account]
		ids[i], users[i], numbers[i], keys[i], locks[i] = r.id, r.UserID, r.Account, r.Key, ledger.KeyLock(r.UserID, r.Key)
		types[i], amounts[i], descriptions[i] = string(r.Type), r.Amount, r.Description
	}
	return []any{ids, users, numbers, keys, locks, types, amounts, descriptions, firsts, capacities, a.maxQueued}
}

// sendAccepted sends the results of the requests that need no second look. It returns the other
// ones, for sendRepeated: a job has their key, their account is closed, or its queue is full.
func (a *Acceptor) sendAccepted(batch []*request, accepted map[uuid.UUID]acceptedRow) (repeated []*request) {
	for _, r := range batch {
		if row := accepted[r.id]; row.Capacity != nil {
			a.capacities.counted(r.Account, a.maxQueued-*row.Capacity, *row.Capacity)
		}
	}
	for _, r := range batch {
		row, owned := accepted[r.id]
		switch {
		case !owned:
			r.result <- result{err: ErrAccountNotFound}
		case row.Busy:
			r.result <- result{err: ErrKeyBusy}
		case row.Position != nil:
			a.capacities.use(r.Account, 1)
			r.result <- result{job: r.job(r.id, *row.Position, row.Currency, *row.CreatedAt)}
		default:
			repeated = append(repeated, r)
		}
	}
	return repeated
}

// job returns the job that was inserted for the request.
func (r Request) job(id uuid.UUID, position int64, currency string, created time.Time) Job {
	return Job{
		ID:          id,
		Position:    position,
		Account:     r.Account,
		Type:        r.Type,
		Amount:      r.Amount,
		Currency:    currency,
		Description: r.Description,
		Status:      Queued,
		CreatedAt:   created,
	}
}

// repeatedSQL reads jobs by their keys, from the archive where jobs has none.
//
// $1 users, $2 keys, as arrays.
const repeatedSQL = `SELECT job.user_id, job.idempotency_key, ` + columns + `, job.writer, ` + postgres.ShownSQL + `
	FROM unnest($1::uuid[], $2::text[]) AS request (user_id, key)
	CROSS JOIN LATERAL (
		SELECT ` + stored + `, coalesce(finished_by, accepted_by) AS writer FROM job_states WHERE user_id = request.user_id AND idempotency_key = request.key UNION ALL
		SELECT ` + stored + `, xmin FROM archived_jobs WHERE user_id = request.user_id AND idempotency_key = request.key LIMIT 1
	) job
	JOIN accounts account ON account.id = job.account_id`

// jobKey is what a key is unique by.
type jobKey struct {
	UserID uuid.UUID
	Key    string
}

// sendRepeated sends the results of requests that inserted nothing: a job has their key,
// the account is closed, or its queue is full. It reads after the insert, so it sees the job whose
// commit the insert waited for.
func (a *Acceptor) sendRepeated(ctx context.Context, requests []*request, accepted map[uuid.UUID]acceptedRow) {
	keys := make([]jobKey, len(requests))
	for i, r := range requests {
		keys[i] = jobKey{r.UserID, r.Key}
	}
	jobs, shown, err := a.readRepeated(ctx, keys)
	for i, r := range requests {
		job, used := jobs[keys[i]]
		switch {
		case err != nil:
			r.result <- result{err: err}
		case used && r.made(job):
			r.result <- result{job: job, replayed: true, shown: shown}
		case used || accepted[r.id].Opened:
			r.result <- result{err: ErrKeyReused}
		case accepted[r.id].Closed:
			r.result <- result{err: ErrAccountClosed}
		default:
			r.result <- result{err: ErrQueueFull}
		}
	}
}

// readRepeated reads jobs by their keys, and what the read shows. The API confirms what a replay
// shows, a queued job too: the accept that made the job may have ended before it knew of the commit.
func (a *Acceptor) readRepeated(ctx context.Context, by []jobKey) (map[jobKey]Job, *postgres.Shown, error) {
	var users []uuid.UUID
	var keys []string
	for _, key := range by {
		users, keys = append(users, key.UserID), append(keys, key.Key)
	}
	type keyedJob struct {
		jobKey
		Job
	}
	ctx, shown := postgres.WithShown(ctx)
	rows, _ := a.pool.Query(ctx, repeatedSQL, users, keys) // CollectRows returns its error
	found, err := pgx.CollectRows(rows, postgres.Showing(ctx, rows, pgx.RowToStructByPos[keyedJob]))
	if err != nil {
		return nil, nil, fmt.Errorf("read job by key: %w", err)
	}
	jobs := make(map[jobKey]Job, len(found))
	for _, row := range found {
		jobs[row.jobKey] = row.Job
	}
	return jobs, shown, nil
}

// made reports whether the job is the one that the request asks for.
func (r Request) made(job Job) bool {
	return job.Account == r.Account && job.Type == r.Type && job.Amount == r.Amount && equal(job.Description, r.Description)
}

func equal(x, y *string) bool {
	if x == nil || y == nil {
		return x == y
	}
	return *x == *y
}
