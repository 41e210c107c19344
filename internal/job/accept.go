package job

import (
	"cmp"
	"context"
	"fmt"
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
	// slowInsert is how long an insert may take before the next one begins: while
	// it is under way the next batch collects, and more at once would make batches
	// smaller, not faster. One that is slow may wait for a lock, which the others
	// need not, or for a standby. committers bounds how many are then under way.
	slowInsert = 10 * time.Millisecond
	committers = 2
	// maxWaiting is how many accepts wait for a committer before the next one
	// waits at the door.
	maxWaiting = 1024
	// acceptTimeout is how long an accept may take before its caller hears
	// ErrUnavailable; it may be committed all the same.
	acceptTimeout = 1500 * time.Millisecond
)

// Request asks for a deposit or a withdrawal. The edge has checked its form.
type Request struct {
	UserID      uuid.UUID
	Account     string // number
	Type        ledger.EntryType
	Amount      int64 // minor units
	Description *string
	Key         string // Idempotency-Key
}

// Notifier tells the workers that an account has so many new jobs, up to the one at a
// position. It does not block and may lose a notification: the sweep finds those jobs.
type Notifier interface {
	Notify(accountID, position int64, jobID uuid.UUID, jobs int)
}

// Acceptor commits jobs. Accepts that arrive together share an insert; none
// waits for more to come.
type Acceptor struct {
	pool      *pgxpool.Pool
	notifier  Notifier
	maxQueued int
	rooms     rooms
	asks      chan *ask
}

// NewAcceptor accepts jobs into the database behind pool and notifies the workers.
// An account takes at most maxQueued queued ones. Run must run for it to work.
func NewAcceptor(pool *pgxpool.Pool, notifier Notifier, maxQueued int) *Acceptor {
	return &Acceptor{
		pool:      pool,
		notifier:  notifier,
		maxQueued: maxQueued,
		rooms:     rooms{now: time.Now, known: map[string]room{}},
		asks:      make(chan *ask, maxWaiting),
	}
}

// ask is one Accept on its way through the collecting loop.
type ask struct {
	ctx    context.Context //nolint:containedctx // the caller's patience travels with the ask
	id     uuid.UUID
	req    Request
	answer chan answer // holds one, so that a committer never waits
}

type answer struct {
	job      Job
	replayed bool
	shown    *postgres.Shown // where replayed
	err      error
}

// Accept commits the job and answers with it. The same request with the same
// key answers with the job that the key made, and replayed. ErrAccountNotFound
// for an account that is not the caller's, ErrKeyReused for a key that was used
// for something else, ErrKeyBusy while an opening or a move to the archive has the
// key, ErrQueueFull past the account's bound: then nothing happened. After any other
// error the job may be committed or not; the same request with the same key tells.
//
// A kill before the insert is sent leaves nothing, and the caller has no answer.
// One while Postgres has it leaves what Postgres makes of it. One after its
// commit, and before the ring is written, leaves a job that the sweep finds.
func (a *Acceptor) Accept(ctx context.Context, req Request) (job Job, replayed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, acceptTimeout)
	defer cancel()
	id, err := uuid.NewV7()
	if err != nil {
		return Job{}, false, fmt.Errorf("make job id: %w", err)
	}
	asked := &ask{ctx: ctx, id: id, req: req, answer: make(chan answer, 1)}
	select {
	case a.asks <- asked:
	case <-ctx.Done():
		return Job{}, false, ErrUnavailable
	}
	select {
	case answer := <-asked.answer:
		answer.show(ctx)
		return answer.job, answer.replayed, answer.err
	case <-ctx.Done():
		return Job{}, false, ErrUnavailable
	}
}

// show tells what the answer shows: nothing, where this accept has committed the job.
func (a answer) show(ctx context.Context) {
	switch {
	case a.replayed:
		a.shown.AddTo(ctx)
	case a.err == nil:
		postgres.ShowNone(ctx)
	}
}

// Run commits what Accept asks for until ctx ends. The edge must have answered
// its last request by then.
func (a *Acceptor) Run(ctx context.Context) error {
	var group errgroup.Group
	turn := make(chan struct{}, 1) // to collect
	turn <- struct{}{}
	for range committers {
		group.Go(func() error {
			for a.commitNext(ctx, turn) {
			}
			return nil
		})
	}
	return group.Wait()
}

// commitNext waits for its turn, collects a batch and commits it. The turn is the next
// one's when that is done, or takes long. False when ctx has ended.
func (a *Acceptor) commitNext(ctx context.Context, turn chan struct{}) (collected bool) {
	<-turn
	over := sync.OnceFunc(func() { turn <- struct{}{} })
	defer over()
	batch := a.collect(ctx)
	if len(batch) == 0 {
		return false
	}
	slow := time.AfterFunc(slowInsert, over)
	defer slow.Stop()
	failpoint.Hit(failpoint.AcceptCollected)
	a.commit(ctx, batch)
	return true
}

// collect waits for one ask and takes those that are there with it. Nobody
// waits any more for an ask whose time is up: it is not committed.
func (a *Acceptor) collect(ctx context.Context) (batch []*ask) {
	for len(batch) == 0 {
		select {
		case <-ctx.Done():
			return nil
		case first := <-a.asks:
			batch = append(batch, first)
		}
		for len(batch) < maxBatch && len(a.asks) > 0 { // and nobody else takes them
			batch = append(batch, <-a.asks)
		}
		batch = slices.DeleteFunc(batch, func(asked *ask) bool { return asked.ctx.Err() != nil })
	}
	return batch
}

// commit answers every ask of the batch, also when the loop is told to end.
func (a *Acceptor) commit(ctx context.Context, batch []*ask) {
	// Two inserts that share keys must meet them in the same order, or they
	// wait for each other for ever.
	slices.SortFunc(batch, func(x, y *ask) int {
		return cmp.Or(slices.Compare(x.req.UserID[:], y.req.UserID[:]), cmp.Compare(x.req.Key, y.req.Key))
	})
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), acceptTimeout)
	defer cancel()
	inserted, err := a.insert(ctx, batch)
	switch {
	case postgres.IsDataFault(err) && len(batch) > 1:
		for _, asked := range batch { // one at fault must not undo the others
			a.commit(ctx, []*ask{asked})
		}
		return
	case err != nil:
		for _, asked := range batch {
			asked.answer <- answer{err: fmt.Errorf("accept job: %w", err)}
		}
		return
	}
	if repeated := a.answerAccepted(batch, inserted); len(repeated) > 0 {
		a.answerRepeated(ctx, repeated, inserted)
	}
}

// acceptSQL commits the jobs of a batch: migrations/00003_accept_jobs.sql. When it
// answers, they are committed: that is what a 202 stands on.
//
// $1 ids, $2 users, $3 account numbers, $4 keys, $5 the keys' locks, $6 types, $7 amounts,
// $8 descriptions, $9 the first asks of the same account, $10 the accounts' room where it is
// known, as arrays; $11 how many queued jobs an account may have. A row without a position
// for each ask whose account is the caller's, and one with it for each that was inserted.
const acceptSQL = `SELECT * FROM accept_jobs($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::bigint[], $6::entry_type[],
	$7::bigint[], $8::text[], $9::bigint[], $10::bigint[], $11)`

// AcceptStatement is what insert sends for a batch, for the benchmark to give to pgbench. It
// takes what its comment says.
func AcceptStatement() string { return acceptSQL }

type insertedRow struct {
	ID        [16]byte // a uuid.UUID: pgx would write it as text, and read that
	AccountID int64
	Currency  string
	Opened    bool // the key opened an account
	Busy      bool // the key is locked by an opening or a move to the archive
	Room      *int // of the account, before this batch, in the row of its first ask
	Position  *int64
	CreatedAt *time.Time
}

// insert commits what is new in the batch, in one transaction of one round trip,
// notifies the workers, and answers by the asks' ids.
func (a *Acceptor) insert(ctx context.Context, batch []*ask) (map[uuid.UUID]insertedRow, error) {
	result, _ := a.pool.Query(ctx, acceptSQL, a.columns(batch)...) // CollectRows returns its error
	rows, err := pgx.CollectRows(result, pgx.RowToStructByPos[insertedRow])
	if err != nil {
		return nil, err
	}
	failpoint.Hit(failpoint.AcceptCommitted)
	a.notify(rows)
	failpoint.Hit(failpoint.AcceptNotified)
	inserted := make(map[uuid.UUID]insertedRow, len(batch))
	for _, row := range rows { // those with a position come last
		if row.Position != nil {
			asked := inserted[row.ID]
			asked.Position, asked.CreatedAt = row.Position, row.CreatedAt
			row = asked
		}
		inserted[row.ID] = row
	}
	return inserted, nil
}

// notify notifies the workers once for each account that has new jobs, with the last of
// them: the others are applied before it.
func (a *Acceptor) notify(rows []insertedRow) {
	last, jobs := make(map[int64]insertedRow, len(rows)), make(map[int64]int, len(rows))
	for _, row := range rows {
		if row.Position == nil {
			continue
		}
		jobs[row.AccountID]++
		if last[row.AccountID].Position == nil || *row.Position > *last[row.AccountID].Position {
			last[row.AccountID] = row
		}
	}
	for accountID, row := range last {
		a.notifier.Notify(accountID, *row.Position, row.ID, jobs[accountID])
	}
}

func (a *Acceptor) columns(batch []*ask) []any {
	var (
		n            = len(batch)
		ids          = make([][16]byte, n) // pgx writes a uuid.UUID as text, and reads that
		users        = make([][16]byte, n)
		numbers      = make([]string, n)
		keys         = make([]string, n)
		types        = make([]string, n)
		amounts      = make([]int64, n)
		descriptions = make([]*string, n)
		locks        = make([]int64, n)
		firsts       = make([]int, n) // the first ask of the same account, counted from 1
		rooms        = make([]*int, n)
		seen         = make(map[ledger.Owned]int, n)
	)
	for i, asked := range batch {
		account := ledger.Owned{UserID: asked.req.UserID, Number: asked.req.Account}
		if seen[account] == 0 {
			seen[account] = i + 1
		}
		firsts[i] = seen[account]
		locks[i] = ledger.KeyLock(asked.req.UserID, asked.req.Key)
		ids[i], users[i], numbers[i], keys[i] = asked.id, asked.req.UserID, asked.req.Account, asked.req.Key
		types[i], amounts[i], descriptions[i] = string(asked.req.Type), asked.req.Amount, asked.req.Description
		rooms[i] = a.rooms.left(asked.req.Account)
	}
	return []any{ids, users, numbers, keys, locks, types, amounts, descriptions, firsts, rooms, a.maxQueued}
}

// answerAccepted answers every ask but those that met something that is there,
// which it leaves to answerRepeated.
func (a *Acceptor) answerAccepted(batch []*ask, inserted map[uuid.UUID]insertedRow) (repeated []*ask) {
	for _, asked := range batch {
		if row := inserted[asked.id]; row.Room != nil {
			a.rooms.counted(asked.req.Account, a.maxQueued-*row.Room, *row.Room)
		}
	}
	for _, asked := range batch {
		row, owned := inserted[asked.id]
		switch {
		case !owned:
			asked.answer <- answer{err: ErrAccountNotFound}
		case row.Busy:
			asked.answer <- answer{err: ErrKeyBusy}
		case row.Position != nil:
			a.rooms.take(asked.req.Account)
			asked.answer <- answer{job: asked.accepted(row)}
		default:
			repeated = append(repeated, asked)
		}
	}
	return repeated
}

func (asked *ask) accepted(row insertedRow) Job {
	return Job{
		ID:          asked.id,
		Position:    *row.Position,
		Account:     asked.req.Account,
		Type:        asked.req.Type,
		Amount:      asked.req.Amount,
		Currency:    row.Currency,
		Description: asked.req.Description,
		Status:      Queued,
		CreatedAt:   *row.CreatedAt,
	}
}

// repeatedSQL reads jobs by their keys, from the archive where jobs has none.
//
// $1 users, $2 keys, as arrays.
const repeatedSQL = `SELECT job.user_id, job.idempotency_key, ` + columns + `, job.writer, ` + postgres.ShownSQL + `
	FROM unnest($1::uuid[], $2::text[]) AS ask (user_id, key)
	CROSS JOIN LATERAL (
		SELECT ` + stored + `, xmin AS writer FROM jobs WHERE user_id = ask.user_id AND idempotency_key = ask.key UNION ALL
		SELECT ` + stored + `, xmin FROM archived_jobs WHERE user_id = ask.user_id AND idempotency_key = ask.key LIMIT 1
	) job
	JOIN accounts account ON account.id = job.account_id`

// jobKey is what a key is unique by.
type jobKey struct {
	UserID uuid.UUID
	Key    string
}

// answerRepeated answers asks that inserted nothing: the key is there already,
// or the account has no room. It reads after the insert, so it sees the job
// whose commit the insert waited for. What it answers with has to be confirmed, a queued
// job too: the job's own accept may have ended without knowing.
func (a *Acceptor) answerRepeated(ctx context.Context, asks []*ask, inserted map[uuid.UUID]insertedRow) {
	var users []uuid.UUID
	var keys []string
	for _, asked := range asks {
		users, keys = append(users, asked.req.UserID), append(keys, asked.req.Key)
	}
	type keyedJob struct {
		jobKey
		Job
	}
	ctx, shown := postgres.WithShown(ctx)
	rows, _ := a.pool.Query(ctx, repeatedSQL, users, keys) // CollectRows returns its error
	found, err := pgx.CollectRows(rows, postgres.Showing(ctx, rows, pgx.RowToStructByPos[keyedJob]))
	jobs := make(map[jobKey]Job, len(found))
	for _, row := range found {
		jobs[row.jobKey] = row.Job
	}
	for _, asked := range asks {
		job, used := jobs[jobKey{asked.req.UserID, asked.req.Key}]
		switch {
		case err != nil:
			asked.answer <- answer{err: fmt.Errorf("read job by key: %w", err)}
		case used && asked.req.made(job):
			asked.answer <- answer{job: job, replayed: true, shown: shown}
		case used || inserted[asked.id].Opened:
			asked.answer <- answer{err: ErrKeyReused}
		default:
			asked.answer <- answer{err: ErrQueueFull}
		}
	}
}

// made tells whether the job is what was asked.
func (r Request) made(job Job) bool {
	return job.Account == r.Account && job.Type == r.Type && job.Amount == r.Amount && equal(job.Description, r.Description)
}

func equal(x, y *string) bool {
	if x == nil || y == nil {
		return x == y
	}
	return *x == *y
}
