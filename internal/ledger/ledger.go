// Package ledger holds the accounts, their histories and the rules of money.
// Its promise: a balance always equals its history, and each job moves it once,
// in the order in which the account's jobs were accepted.
package ledger

import (
	"errors"
	"time"

	"github.com/google/uuid"
)

// MaxAmount bounds amounts and balances, in minor units: the largest integer
// that every JSON reader holds exactly (RFC 8259, section 6).
const MaxAmount int64 = 1<<53 - 1

// EntryType says which way an entry moves the balance.
type EntryType string

// The types of entries.
const (
	Deposit    EntryType = "deposit"
	Withdrawal EntryType = "withdrawal"
)

// Outcome is what became of a job, as jobs.status holds it.
type Outcome string

// The outcomes of applying a job. A failed one was none of the bank's rules:
// the job could not be applied.
const (
	Succeeded Outcome = "succeeded"
	Rejected  Outcome = "rejected"
	Failed    Outcome = "failed"
)

// Why a job was rejected or failed, as jobs.failure holds it.
const (
	InsufficientFunds    = "insufficient_funds"
	BalanceLimitExceeded = "balance_limit_exceeded"
	InternalError        = "internal_error"
)

// What callers branch on.
var (
	ErrAccountNotFound = errors.New("account not found")
	ErrNumberTaken     = errors.New("account number taken")
	ErrUserNotFound    = errors.New("user not found")
	ErrKeyReused       = errors.New("idempotency key used for something else")
	ErrKeyBusy         = errors.New("idempotency key is that of a request under way")
	ErrJobNotFound     = errors.New("job not found")
)

// Account is one account as it stands.
type Account struct {
	ID        int64 // ours; clients know the number
	Number    string
	Currency  string // ISO 4217
	Balance   int64  // minor units
	LastSeq   int64  // of its last transaction, 0 before the first
	CreatedAt time.Time
}

// Owned names an account as its owner does. A read of an account's data checks both
// in the statement that reads it: after a failover or a restore another account may
// have the number, or the id, that an account had before.
type Owned struct {
	UserID uuid.UUID
	Number string
}

// Transaction is one entry of an account's history.
type Transaction struct {
	Seq          int64 // from 1, without a gap
	Type         EntryType
	Amount       int64 // minor units, positive
	BalanceAfter int64 // minor units
	Description  *string
	JobID        *uuid.UUID // nil for an initial deposit
	CreatedAt    time.Time  // rises strictly within the account
}
