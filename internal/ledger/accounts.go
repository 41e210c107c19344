package ledger

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/fnv"
	"math/big"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/test/failpoint"
)

// maxNumberTries bounds how often Open makes another number because one is taken.
const maxNumberTries = 5

// Opening asks for an account.
type Opening struct {
	UserID         uuid.UUID
	Number         string // made by Open where empty
	Currency       string // ISO 4217
	InitialDeposit int64  // minor units; 0 for none
	Key            string // Idempotency-Key; empty for none
}

// Accounts opens accounts and reads them.
type Accounts struct {
	// MaxPerUser is how many accounts a user may open; 0 for no bound. Set it before the first Open.
	MaxPerUser int

	pool  *pgxpool.Pool
	users userLocks            // of a user's openings in this process
	locks postgres.LockRetries // of a user's openings in all processes
}

// NewAccounts keeps accounts in the database behind pool.
func NewAccounts(pool *pgxpool.Pool) *Accounts {
	return &Accounts{pool: pool}
}

// Open opens an account. An initial deposit becomes its transaction 1 in the same database
// transaction. The same opening with the same key returns the account that the key opened, and
// replayed. A new account is durable when Open returns. The caller confirms what a replay shows, as
// after any read. After one of these errors nothing happened:
//   - ErrKeyReused: the key was used for something else.
//   - ErrKeyBusy: another request has the key now. Open does not wait for it.
//   - ErrNumberTaken: another account has the number.
//   - ErrTooManyAccounts: the user has MaxPerUser accounts.
//   - ErrUserNotFound: the user does not exist.
//   - postgres.ErrLocked: the openings of the user that are under way take too long.
//
// A crash before the commit leaves nothing. A crash after it leaves the account; the client has
// no response and sends the same key again.
func (a *Accounts) Open(ctx context.Context, opening Opening) (account Account, replayed bool, err error) {
	if a.MaxPerUser > 0 {
		unlock, err := a.users.lock(ctx, opening.UserID)
		if err != nil {
			return Account{}, false, fmt.Errorf("open account: %w", err)
		}
		defer unlock()
	}
	for range maxNumberTries {
		number := opening.Number
		if number == "" {
			number = makeNumber()
		}
		err = a.locks.Do(ctx, opening.UserID.String(), func() error {
			return postgres.InTx(ctx, a.pool, func(tx pgx.Tx) error {
				account, replayed, err = a.open(ctx, tx, opening, number)
				failpoint.Hit(failpoint.OpenUncommitted)
				return err
			})
		})
		if opening.Number != "" || !errors.Is(err, ErrNumberTaken) {
			break
		}
	}
	if err != nil {
		return Account{}, false, fmt.Errorf("open account: %w", err)
	}
	failpoint.Hit(failpoint.OpenCommitted)
	if !replayed {
		postgres.ShowNone(ctx)
	}
	return account, replayed, nil
}

func (a *Accounts) open(ctx context.Context, tx pgx.Tx, opening Opening, number string) (Account, bool, error) {
	if err := a.lock(ctx, tx, opening); err != nil {
		return Account{}, false, err
	}
	account, err := insertAccount(ctx, tx, opening, number, a.MaxPerUser)
	switch {
	case errors.Is(err, pgx.ErrNoRows): // the key or the number is taken, or the user has all accounts
		return openedBefore(ctx, tx, opening, a.MaxPerUser)
	case err != nil:
		return Account{}, false, err
	case opening.InitialDeposit == 0:
		return account, false, nil
	}
	account, err = depositInitial(ctx, tx, account, opening.InitialDeposit)
	return account, false, err
}

// lock takes two locks until the transaction ends. While it holds the lock of the key, no job is
// accepted with the key. The lock of the user's openings keeps the user's other openings out, so that
// the insert counts every account. The locks have a statement of their own, so that the insert takes
// its snapshot after them. lock does not wait: waiting openings of one user would hold a connection
// each, up to the whole pool.
func (a *Accounts) lock(ctx context.Context, tx pgx.Tx, opening Opening) error {
	if opening.Key == "" && a.MaxPerUser == 0 {
		return nil
	}
	const sql = `SELECT $1 OR pg_try_advisory_xact_lock($2), $3 OR pg_try_advisory_xact_lock($4)`
	var key, user bool
	err := tx.QueryRow(ctx, sql, opening.Key == "", KeyLock(opening.UserID, opening.Key),
		a.MaxPerUser == 0, KeyLock(opening.UserID, openings)).Scan(&key, &user)
	switch {
	case err != nil:
		return fmt.Errorf("lock key and openings: %w", err)
	case !key:
		return ErrKeyBusy
	case !user:
		return postgres.ErrLocked
	}
	return nil
}

// openings stands for a user's openings in KeyLock. No client's key is empty.
const openings = ""

const accountColumns = `accounts.id, number, currency, balance, last_seq, status, accounts.created_at`

// readSQL reads accounts as postgres.Showing wants them.
const readSQL = `SELECT ` + accountColumns + `, accounts.xmin, ` + postgres.ShownSQL + ` FROM accounts`

// insertAccount returns pgx.ErrNoRows if an account has the number, an account or a job has the
// key, or the user has maxPerUser accounts. The caller has the locks of the key and of the user's
// openings, so the statement sees all that the key and the user have made. Any other conflict is
// an error, such as an id that the sequence gives again. If another transaction has inserted the
// number and not committed yet, the statement waits for that commit, which is a few statements away.
func insertAccount(ctx context.Context, tx pgx.Tx, opening Opening, number string, maxPerUser int) (Account, error) {
	const sql = `
		INSERT INTO accounts (user_id, number, currency, open_key, open_request, last_at, created_at)
		SELECT $1, $2, $3, nullif($4, ''), $5, now(), now()
		WHERE NOT EXISTS (SELECT FROM jobs WHERE user_id = $1 AND idempotency_key = $4)
			AND NOT EXISTS (SELECT FROM archived_jobs WHERE user_id = $1 AND idempotency_key = $4)
			AND NOT EXISTS (SELECT FROM accounts WHERE user_id = $1 AND open_key = $4)
			AND ($6::bigint = 0 OR (SELECT count(*) FROM accounts WHERE user_id = $1) < $6)
		ON CONFLICT (number) DO NOTHING
		RETURNING ` + accountColumns
	var request []byte
	if opening.Key != "" {
		request = opening.fingerprint()
	}
	rows, _ := tx.Query(ctx, sql, opening.UserID, number, opening.Currency, opening.Key, request, maxPerUser) // CollectExactlyOneRow returns its error
	account, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Account])
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.ConstraintName == "accounts_user_id_fkey" {
		return Account{}, ErrUserNotFound
	}
	return account, err
}

// openedBefore returns the account that the key has opened, or the error that says why
// insertAccount inserted nothing. Its statements see what the insert waited for.
func openedBefore(ctx context.Context, tx pgx.Tx, opening Opening, maxPerUser int) (Account, bool, error) {
	const keySQL = `
		SELECT open_request FROM accounts WHERE user_id = $1 AND open_key = $2
		UNION ALL
		SELECT ''::bytea FROM jobs WHERE user_id = $1 AND idempotency_key = $2
		UNION ALL
		SELECT ''::bytea FROM archived_jobs WHERE user_id = $1 AND idempotency_key = $2`
	var request []byte
	err := tx.QueryRow(ctx, keySQL, opening.UserID, opening.Key).Scan(&request)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return Account{}, false, refusal(ctx, tx, opening, maxPerUser)
	case err != nil:
		return Account{}, false, fmt.Errorf("read opening key: %w", err)
	case !bytes.Equal(request, opening.fingerprint()):
		return Account{}, false, ErrKeyReused
	}
	const sql = readSQL + ` WHERE user_id = $1 AND open_key = $2`
	account, err := readAccount(ctx, tx, sql, opening.UserID, opening.Key)
	return account, true, err
}

// refusal returns the error of an opening that found its key unused.
func refusal(ctx context.Context, tx pgx.Tx, opening Opening, maxPerUser int) error {
	const sql = `SELECT $2::bigint > 0 AND count(*) >= $2 FROM accounts WHERE user_id = $1`
	var full bool
	if err := tx.QueryRow(ctx, sql, opening.UserID, maxPerUser).Scan(&full); err != nil {
		return fmt.Errorf("count accounts: %w", err)
	}
	if full {
		return ErrTooManyAccounts
	}
	return ErrNumberTaken
}

func depositInitial(ctx context.Context, tx pgx.Tx, account Account, amount int64) (Account, error) {
	if _, err := tx.Exec(ctx, `SELECT deposit_initial($1, $2)`, account.ID, amount); err != nil {
		return Account{}, fmt.Errorf("deposit initially: %w", err)
	}
	account.Balance, account.LastSeq = amount, 1
	return account, nil
}

// Account reads the caller's account; ErrAccountNotFound for an account that does not exist or
// is another user's.
func (a *Accounts) Account(ctx context.Context, userID uuid.UUID, number string) (Account, error) {
	const sql = readSQL + ` WHERE number = $2 AND user_id = $1`
	account, err := readAccount(ctx, a.pool, sql, userID, number)
	if errors.Is(err, pgx.ErrNoRows) {
		return Account{}, ErrAccountNotFound
	}
	if err != nil {
		return Account{}, fmt.Errorf("read account: %w", err)
	}
	return account, nil
}

// List reads up to limit of the caller's accounts, in the order in which they
// were opened, after the one with the id after.
func (a *Accounts) List(ctx context.Context, userID uuid.UUID, after int64, limit int) ([]Account, error) {
	const sql = readSQL + ` WHERE user_id = $1 AND id > $2 ORDER BY id LIMIT $3`
	rows, _ := a.pool.Query(ctx, sql, userID, after, limit) // CollectRows returns its error
	accounts, err := pgx.CollectRows(rows, postgres.Showing(ctx, rows, pgx.RowToStructByPos[Account]))
	if err != nil {
		return nil, fmt.Errorf("list accounts: %w", err)
	}
	return accounts, nil
}

type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

func readAccount(ctx context.Context, q querier, sql string, args ...any) (Account, error) {
	rows, _ := q.Query(ctx, sql, args...) // CollectExactlyOneRow returns its error
	return pgx.CollectExactlyOneRow(rows, postgres.Showing(ctx, rows, pgx.RowToStructByPos[Account]))
}

// KeyLock returns the advisory lock of an idempotency key. Openings and moves to the archive
// take it exclusively, accepts of jobs share it. So a key never makes both an account and a
// job, nor a second job while its first job moves. No request waits for the lock: a request that
// does not get it returns ErrKeyBusy. Two keys with the same hash share a lock.
func KeyLock(userID uuid.UUID, key string) int64 {
	hash := fnv.New64a()
	_, _ = hash.Write(userID[:]) // never fails
	_, _ = hash.Write([]byte(key))
	return int64(hash.Sum64()) //nolint:gosec // the bits
}

// fingerprint hashes the whole opening: a repeated key must come with the same one.
func (o Opening) fingerprint() []byte {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %d", o.Number, o.Currency, o.InitialDeposit))
	return sum[:]
}

// makeNumber makes sixteen random digits, the first not zero. They come from the system's
// random source, so that a client can't guess other numbers from its own.
func makeNumber() string {
	const lowest, span = 1_000_000_000_000_000, 9_000_000_000_000_000
	n, _ := rand.Int(rand.Reader, big.NewInt(span)) // never fails since Go 1.24
	return fmt.Sprint(lowest + n.Int64())
}
