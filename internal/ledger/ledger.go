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

// EntryType says which way a transaction moves the balance.
type EntryType string

// The types of transactions, and of the jobs that become them.
const (
	Deposit    EntryType = "deposit"
	Withdrawal EntryType = "withdrawal"
)

// Outcome is how a job ended, as job_states.status shows it.
type Outcome string

// The outcomes of a job. A rule of the bank rejects a job; a failed job could not be applied
// for another reason.
const (
	Succeeded Outcome = "succeeded"
	Rejected  Outcome = "rejected"
	Failed    Outcome = "failed"
)

// Why a job was rejected or failed, as job_states.failure shows it.
const (
	InsufficientFunds    = "insufficient_funds"
	BalanceLimitExceeded = "balance_limit_exceeded"
	AccountIsFrozen      = "account_frozen"
	AccountIsClosed      = "account_closed"
	InternalError        = "internal_error"
)

// AccountStatus says whether jobs move the account's balance.
type AccountStatus string

// The statuses of an account. An operator sets them; closed is final. Jobs of a frozen or closed
// account are rejected when they are applied, and a closed account takes no new jobs.
const (
	Open   AccountStatus = "open"
	Frozen AccountStatus = "frozen"
	Closed AccountStatus = "closed"
)

// What callers branch on.
var (
	ErrAccountNotFound = errors.New("account not found")
	ErrAccountClosed   = errors.New("account closed")
	ErrNumberTaken     = errors.New("account number taken")
	ErrTooManyAccounts = errors.New("user has as many accounts as allowed")
	ErrUserNotFound    = errors.New("user not found")
	ErrKeyReused       = errors.New("idempotency key used for something else")
	ErrKeyBusy         = errors.New("idempotency key is that of a request under way")
	ErrJobNotFound     = errors.New("job not found")
)

// Account is an account with its current balance.
type Account struct {
	ID        int64 // internal; clients know the number
	Number    string
	Currency  string // ISO 4217
	Balance   int64  // minor units
	LastSeq   int64  // of its last transaction, 0 before the first
	Status    AccountStatus
	CreatedAt time.Time
}

// Owned names an account as its owner does. A read of an account's data checks both
// in the statement that reads it: after a failover or a restore another account may
// have the number, or the id, that an account had before.
type Owned struct {
	UserID uuid.UUID
	Number string
}

// Transaction is one change of an account's balance, and a row of its history.
type Transaction struct {
	Seq          int64 // from 1, without a gap
	Type         EntryType
	Amount       int64 // minor units, positive
	BalanceAfter int64 // minor units
	Description  *string
	JobID        *uuid.UUID // nil for an initial deposit
	CreatedAt    time.Time  // strictly increasing within the account
}
