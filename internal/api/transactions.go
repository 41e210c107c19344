package api

import (
	"fmt"
	"strconv"
	"time"

	"github.com/gofiber/fiber/v2"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/statement"
)

type transactionBody struct {
	Seq          int64     `json:"seq"`
	Type         string    `json:"type"`
	Amount       int64     `json:"amount"`
	BalanceAfter int64     `json:"balance_after"`
	Description  *string   `json:"description"`
	JobID        *string   `json:"job_id"`
	CreatedAt    timestamp `json:"created_at"`
}

func toTransactionBody(t ledger.Transaction) transactionBody {
	body := transactionBody{
		Seq:          t.Seq,
		Type:         string(t.Type),
		Amount:       t.Amount,
		BalanceAfter: t.BalanceAfter,
		Description:  t.Description,
		CreatedAt:    timestamp(t.CreatedAt),
	}
	if t.JobID != nil {
		id := t.JobID.String()
		body.JobID = &id
	}
	return body
}

const allTypes = "all"

func (a *API) listTransactions(c *fiber.Ctx, q *query) error {
	page := statement.Page{
		Type:      ledger.EntryType(q.oneOf("type", string(ledger.Deposit), string(ledger.Withdrawal), allTypes)),
		From:      roundUp(q.time("from")),
		To:        roundUp(q.time("to")),
		Ascending: q.ascending(),
	}
	limit := q.limit()
	isCSV, bom := wantsCSV(c), q.oneOf("bom", "true", "false") == "true"
	if isCSV {
		q.without("text/csv has every match in it", "limit", "cursor")
	} else {
		q.without("is for text/csv", "bom")
	}
	if err := q.err(); err != nil {
		return err
	}
	if page.Type == allTypes {
		page.Type = ""
	}
	account, err := ownedAccount(c)
	if err != nil {
		return err
	}
	page.Account = account
	if isCSV {
		return a.exportTransactions(c, page, bom)
	}
	if err := a.readCursor(q, &page); err != nil {
		return err
	}
	page.Limit = limit + 1
	transactions, err := a.cfg.Statements.List(c.UserContext(), page)
	if err != nil {
		return err
	}
	c.Vary(fiber.HeaderAccept)
	list, position := historyPositions(page)
	return sendPage(c, a.cursors, list, limit, transactions, toTransactionBody, position)
}

// readCursor reads where in its list the page begins. Cursors of the build before this one hold a
// seq also in a list by time.
func (a *API) readCursor(q *query, page *statement.Page) (err error) {
	if page.ByTime() {
		if micros, err := q.after(a.cursors, historyList(*page)+byTime); err == nil && micros != 0 {
			page.AfterTime = time.UnixMicro(micros)
			return nil
		}
	}
	page.After, err = q.after(a.cursors, historyList(*page))
	return err
}

// historyPositions names a page's list for its cursors, and returns a transaction's position in
// it: its seq or, in a list by time, its time in microseconds since 1970.
func historyPositions(page statement.Page) (list string, position func(ledger.Transaction) int64) {
	if page.ByTime() {
		return historyList(page) + byTime, func(t ledger.Transaction) int64 { return t.CreatedAt.UnixMicro() }
	}
	return historyList(page), func(t ledger.Transaction) int64 { return t.Seq }
}

const byTime = ", places by time"

func historyList(page statement.Page) string {
	return fmt.Sprintf("transactions of %s's %s, type %q, from %d, to %d, ascending %t",
		page.Account.UserID, page.Account.Number, page.Type, page.From.UnixMicro(), page.To.UnixMicro(), page.Ascending)
}

// HistoryCursor returns the cursor of the page after last, for a benchmark that can't read all the
// pages before it. secret is the API's first.
func HistoryCursor(secret []byte, page statement.Page, last ledger.Transaction) string {
	list, position := historyPositions(page)
	return newCursors([][]byte{secret}).encode(list, position(last))
}

// roundUp rounds a bound up to the microsecond, the precision of Postgres: from stays inclusive
// and to exclusive for every stored time.
func roundUp(t time.Time) time.Time {
	if rounded := t.Truncate(time.Microsecond); !rounded.Equal(t) {
		return rounded.Add(time.Microsecond)
	}
	return t
}

func (a *API) readTransaction(c *fiber.Ctx, _ *query) error {
	account, err := ownedAccount(c)
	if err != nil {
		return err
	}
	seq, err := strconv.ParseInt(c.Params("seq"), 10, 64)
	if err != nil || strconv.FormatInt(seq, 10) != c.Params("seq") {
		return fmt.Errorf("%w: %w", statement.ErrNotFound, errMalformed)
	}
	transaction, err := a.cfg.Statements.Transaction(c.UserContext(), account, seq)
	if err != nil {
		return err
	}
	return c.JSON(toTransactionBody(transaction))
}
