package api

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/gofiber/fiber/v2"

	"github.com/passbook/passbook/internal/ledger"
)

type accountBody struct {
	Number    string    `json:"number"`
	Currency  string    `json:"currency"`
	Balance   int64     `json:"balance"`
	LastSeq   int64     `json:"last_seq"`
	Status    string    `json:"status"`
	CreatedAt timestamp `json:"created_at"`
}

func toAccountBody(account ledger.Account) accountBody {
	return accountBody{
		Number:    account.Number,
		Currency:  account.Currency,
		Balance:   account.Balance,
		LastSeq:   account.LastSeq,
		Status:    string(account.Status),
		CreatedAt: timestamp(account.CreatedAt),
	}
}

var numberPattern = regexp.MustCompile(`^[A-Za-z0-9-]{4,34}$`)

const defaultCurrency = "KRW"

func (a *API) openAccount(c *fiber.Ctx, _ *query) error {
	key, err := idempotencyKey(c)
	if err != nil {
		return err
	}
	b, err := readBody(c)
	if err != nil {
		return err
	}
	opening := ledger.Opening{UserID: caller(c), Currency: defaultCurrency, Key: key}
	if number := b.optionalText("number"); number != nil {
		opening.Number = *number
		if !numberPattern.MatchString(opening.Number) {
			b.fault("number", "invalid_format", "must be 4 to 34 characters of A-Z, a-z, 0-9 and -")
		}
	}
	if currency := b.optionalText("currency"); currency != nil {
		opening.Currency = *currency
		if !isCurrency(opening.Currency) {
			b.fault("currency", "invalid_value", "must be an ISO 4217 code such as KRW or EUR")
		}
	}
	opening.InitialDeposit = b.optionalAmount("initial_deposit")
	if err := b.err(); err != nil {
		return err
	}
	account, replayed, err := a.cfg.Accounts.Open(c.UserContext(), opening)
	if err != nil {
		return err
	}
	if replayed {
		c.Set(headerReplay, "true")
	}
	c.Location("/v1/accounts/" + account.Number)
	return c.Status(http.StatusCreated).JSON(toAccountBody(account))
}

func (a *API) readAccount(c *fiber.Ctx, _ *query) error {
	owned, err := ownedAccount(c)
	if err != nil {
		return err
	}
	account, err := a.cfg.Accounts.Account(c.UserContext(), owned.UserID, owned.Number)
	if err != nil {
		return err
	}
	return c.JSON(toAccountBody(account))
}

type balanceBody struct {
	Number   string    `json:"number"`
	Currency string    `json:"currency"`
	Balance  int64     `json:"balance"`
	Seq      int64     `json:"seq"`
	At       timestamp `json:"at"`
}

func (a *API) readBalance(c *fiber.Ctx, q *query) error {
	at := q.time("at").Truncate(time.Microsecond) // the precision of Postgres
	if err := q.err(); err != nil {
		return err
	}
	account, err := ownedAccount(c)
	if err != nil {
		return err
	}
	balance, err := a.cfg.Statements.Balance(c.UserContext(), account, at)
	if err != nil {
		return err
	}
	return c.JSON(balanceBody{
		Number: account.Number, Currency: balance.Currency,
		Balance: balance.Balance, Seq: balance.Seq, At: timestamp(balance.At),
	})
}

// ownedAccount returns the caller and the number in the path. Each statement checks that the
// account is the caller's.
func ownedAccount(c *fiber.Ctx) (ledger.Owned, error) {
	number := accountNumber(c)
	if err := checkNumber(number); err != nil {
		return ledger.Owned{}, err
	}
	return ledger.Owned{UserID: caller(c), Number: number}, nil
}

// checkNumber returns ledger.ErrAccountNotFound for a number that no account can have.
func checkNumber(number string) error {
	if !numberPattern.MatchString(number) {
		return fmt.Errorf("%w: %w", ledger.ErrAccountNotFound, errMalformed)
	}
	return nil
}

// accountNumber copies the number out of Fiber's buffer.
func accountNumber(c *fiber.Ctx) string {
	return strings.Clone(c.Params("number"))
}

func (a *API) listAccounts(c *fiber.Ctx, q *query) error {
	list := "accounts of " + caller(c).String()
	limit := q.limit()
	if err := q.err(); err != nil {
		return err
	}
	after, err := q.after(a.cursors, list)
	if err != nil {
		return err
	}
	accounts, err := a.cfg.Accounts.List(c.UserContext(), caller(c), after, limit+1)
	if err != nil {
		return err
	}
	return sendPage(c, a.cursors, list, limit, accounts, toAccountBody, func(account ledger.Account) int64 { return account.ID })
}
