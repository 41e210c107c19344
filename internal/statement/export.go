package statement

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/passbook/passbook/internal/ledger"
)

// exportPage is how many transactions of an export are read at a time: a statement
// that ends soon, also where each row comes from the disk.
const exportPage = 1000

var errTakenBack = errors.New("the history is shorter than when the export began")

// Export is a part of a history that is read page by page. Between two pages it has
// neither a connection nor a snapshot. It is of the moment at which it began all the
// same: history is append-only and numbered without a gap, so that moment is a seq.
type Export struct {
	statements *Statements
	page       Page
	last       int64 // the account's last seq at the beginning
	done       bool
}

// Export begins to read all of a page, whose limit it ignores.
// ledger.ErrAccountNotFound where the account is not there or another's.
func (s *Statements) Export(ctx context.Context, page Page) (*Export, error) {
	last, err := s.lastSeq(ctx, page.Account)
	if err != nil {
		return nil, fmt.Errorf("export transactions: %w", err)
	}
	page.Limit = exportPage
	return &Export{statements: s, page: page, last: last}, nil
}

// Next reads the next transactions, at most exportPage; none at the end.
func (e *Export) Next(ctx context.Context) ([]ledger.Transaction, error) {
	for !e.done { // each page ends further on, and the history ends
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

// finish ends the export, unless a failover or a restore has taken back what was
// there when it began: then a part would look like the whole.
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
