package statement

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/passbook/passbook/internal/ledger"
)

// exportPage is how many transactions an export reads with one statement: a statement that ends soon,
// also where each row is read from disk.
const exportPage = 1000

var errTakenBack = errors.New("the history is shorter than when the export began")

// Export reads a part of a history page by page. Between two pages it holds neither a connection nor
// a snapshot. It still shows the history as of its beginning: history is append-only and numbered
// without a gap, so the last seq at the beginning is its end.
type Export struct {
	statements *Statements
	page       Page
	last       int64 // the account's last seq at the beginning
	done       bool
}

// Export begins to read all of a page. It ignores the page's limit.
// ledger.ErrAccountNotFound where the user has no such account.
func (s *Statements) Export(ctx context.Context, page Page) (*Export, error) {
	last, err := s.lastSeq(ctx, page.Account)
	if err != nil {
		return nil, fmt.Errorf("export transactions: %w", err)
	}
	page.Limit = exportPage
	return &Export{statements: s, page: page, last: last}, nil
}

// Next reads the next transactions, at most exportPage; it returns none at the end.
func (e *Export) Next(ctx context.Context) ([]ledger.Transaction, error) {
	for !e.done { // each page begins later, and the history is finite
		transactions, err := e.statements.List(ctx, e.page)
		if err != nil {
			return nil, err
		}
		if len(transactions) < e.page.Limit {
			if err := e.finish(ctx); err != nil {
				return nil, err
			}
		}
		if len(transactions) > 0 {
			end := transactions[len(transactions)-1]
			e.page.After, e.page.AfterTime = end.Seq, end.CreatedAt
		}
		transactions = slices.DeleteFunc(transactions, func(t ledger.Transaction) bool { return t.Seq > e.last })
		e.done = e.done || e.page.Ascending && e.page.After > e.last
		if len(transactions) > 0 {
			return transactions, nil
		}
	}
	return nil, nil
}

// finish ends the export. It returns errTakenBack where a failover or a restore has lost transactions
// that were there when the export began: otherwise a part would look like the whole.
func (e *Export) finish(ctx context.Context) error {
	last, err := e.statements.lastSeq(ctx, e.page.Account)
	if err == nil && last < e.last {
		err = errTakenBack
	}
	if err != nil {
		return fmt.Errorf("export transactions: %w", err)
	}
	e.done = true
	return nil
}
