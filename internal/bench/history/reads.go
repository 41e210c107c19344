package history

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"time"

	"github.com/passbook/passbook/internal/api"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/statement"
)

const pageLimit = 20 // the API's default

// read is one request for a part of a history, the statement behind it, and a check of
// the response.
type read struct {
	path  string
	sql   string
	args  []any
	check func(body []byte) error
}

// kind is one kind of read, at a random account and position.
type kind struct {
	name string
	page bool // else a single row
	at   func(*reads) read
}

// reads makes the reads of one dataset.
type reads struct {
	*dataset
	random *rand.Rand
	secret []byte // with which the API signs cursors
}

// kinds are all kinds. The kinds for a day and a month leave small accounts out: most
// of these have no transaction in that time.
var kinds = []kind{
	{"first page", true, func(r *reads) read { return r.page(statement.Page{Account: r.any()}) }},
	{"first page, oldest first", true, func(r *reads) read { return r.page(statement.Page{Account: r.any(), Ascending: true}) }},
	{"middle page", true, func(r *reads) read { return r.page(r.middle("")) }},
	{"deepest page", true, func(r *reads) read { return r.page(r.deepest("")) }},
	{"deposits, first page", true, func(r *reads) read { return r.page(statement.Page{Account: r.any(), Type: ledger.Deposit}) }},
	{"deposits, middle page", true, func(r *reads) read { return r.page(r.middle(ledger.Deposit)) }},
	{"deposits, deepest page", true, func(r *reads) read { return r.page(r.deepest(ledger.Deposit)) }},
	{"withdrawals, first page", true, func(r *reads) read { return r.page(statement.Page{Account: r.common(), Type: ledger.Withdrawal}) }},
	{"withdrawals, middle page", true, func(r *reads) read { return r.page(r.middle(ledger.Withdrawal)) }},
	{"withdrawals, deepest page", true, func(r *reads) read { return r.page(r.deepest(ledger.Withdrawal)) }},
	{"rare type, first page", true, func(r *reads) read { return r.page(r.rare()) }},
	{"rare type, oldest first", true, func(r *reads) read {
		page := r.rare()
		page.Ascending = true
		return r.page(page)
	}},
	{"a day", true, func(r *reads) read { return r.page(r.during(r.long(), 0, 0, 1)) }},
	{"a month", true, func(r *reads) read { return r.page(r.during(r.long(), 0, 1, 0)) }},
	{"a year", true, func(r *reads) read { return r.page(r.during(r.any(), 1, 0, 0)) }},
	{"a year, oldest first", true, func(r *reads) read {
		page := r.during(r.any(), 1, 0, 0)
		page.Ascending = true
		return r.page(page)
	}},
	{"deposits of a month", true, func(r *reads) read { return r.page(ofType(ledger.Deposit, r.during(r.long(), 0, 1, 0))) }},
	{"withdrawals of a year", true, func(r *reads) read { return r.page(ofType(ledger.Withdrawal, r.during(r.common(), 1, 0, 0))) }},
	{"rare type in a year", true, func(r *reads) read {
		return r.page(ofType(ledger.Withdrawal, r.during(r.account(r.large()), 1, 0, 0)))
	}},
	{"a year, middle page", true, func(r *reads) read {
		page := r.during(r.any(), 1, 0, 0)
		page.AfterTime = page.From.Add(r.between(page.To.Sub(page.From)/4, 3*page.To.Sub(page.From)/4))
		return r.page(page)
	}},
	{"balance at a time", false, (*reads).balance},
	{"one transaction", false, (*reads).transaction},
}

func ofType(entry ledger.EntryType, page statement.Page) statement.Page {
	page.Type = entry
	return page
}

// any is the large account, a middling account or a small account, each as likely.
func (r *reads) any() ledger.Owned {
	if r.random.IntN(3) == 0 {
		return r.account(r.large())
	}
	return r.common()
}

// common is a middling or a small account.
func (r *reads) common() ledger.Owned {
	if r.random.IntN(2) == 0 {
		return r.aMiddling()
	}
	return r.account(r.middling() + r.random.IntN(len(r.accounts)-r.middling()))
}

// long is the large account or a middling account.
func (r *reads) long() ledger.Owned {
	if r.random.IntN(2) == 0 {
		return r.account(r.large())
	}
	return r.aMiddling()
}

func (r *reads) aMiddling() ledger.Owned { return r.account(1 + r.random.IntN(r.middles)) }

func (r *reads) rare() statement.Page {
	return statement.Page{Account: r.account(r.large()), Type: ledger.Withdrawal}
}

// middle goes on somewhere between a quarter and three quarters of a history.
func (r *reads) middle(entry ledger.EntryType) statement.Page {
	page := statement.Page{Account: r.any(), Type: entry}
	last := r.seq(page.Account)
	return r.after(page, max(1, last/4+r.random.Int64N(last/2+1)))
}

// deepest goes on so near a history's beginning that about one page remains.
func (r *reads) deepest(entry ledger.EntryType) statement.Page {
	page := statement.Page{Account: r.any(), Type: entry}
	left := int64(pageLimit + 1)
	if entry == ledger.Withdrawal {
		left = 3*pageLimit + 1
		if page.Account == r.account(r.large()) {
			left = rareEvery*pageLimit + 1
		}
	}
	return r.after(page, min(left, r.seq(page.Account)))
}

// after is the page that goes on after a transaction of a history. A list by time goes
// on after about the transaction's time: once all accounts are open, the transactions of
// an account come at an even pace.
func (r *reads) after(page statement.Page, seq int64) statement.Page {
	if page.ByTime() {
		all := float64(periodEnded.Sub(periodBegan))
		open := float64(len(r.accounts)) / float64(r.rows)
		share := open + (1-open)*float64(seq)/float64(r.seq(page.Account))
		page.AfterTime = periodBegan.Add(time.Duration(share * all)).Truncate(time.Microsecond)
		return page
	}
	page.After = seq
	return page
}

func (r *reads) between(least, most time.Duration) time.Duration {
	return (least + time.Duration(r.random.Int64N(int64(most-least)))).Truncate(time.Microsecond)
}

// during is a span that begins on a random day and ends within the period.
func (r *reads) during(account ledger.Owned, years, months, days int) statement.Page {
	most := int(periodEnded.Sub(periodBegan.AddDate(years, months, days)) / (24 * time.Hour))
	from := periodBegan.AddDate(0, 0, r.random.IntN(most+1))
	return statement.Page{Account: account, From: from, To: from.AddDate(years, months, days)}
}

func (r *reads) seq(account ledger.Owned) int64 { return r.accounts[r.indexes[account.Number]].seq }

func (r *reads) page(p statement.Page) read {
	q := url.Values{}
	set := func(name, value string, wanted bool) {
		if wanted {
			q.Set(name, value)
		}
	}
	set("type", string(p.Type), p.Type != "")
	set("from", p.From.Format(time.RFC3339), !p.From.IsZero())
	set("to", p.To.Format(time.RFC3339), !p.To.IsZero())
	set("order", "asc", p.Ascending)
	if p.After != 0 || !p.AfterTime.IsZero() {
		q.Set("cursor", api.HistoryCursor(r.secret, p, ledger.Transaction{Seq: p.After, CreatedAt: p.AfterTime}))
	}
	path := "/v1/accounts/" + p.Account.Number + "/transactions"
	if len(q) > 0 {
		path += "?" + q.Encode()
	}
	p.Limit = pageLimit + 1 // the API reads one more, to know if there is a next page
	sql, args := p.Statement()
	most := r.seq(p.Account)
	return read{path: path, sql: sql, args: args, check: func(body []byte) error { return checkPage(body, p, most) }}
}

func (r *reads) balance() read {
	account := r.any()
	at := periodBegan.Add(time.Duration(r.random.Int64N(int64(periodEnded.Sub(periodBegan))))).Truncate(time.Second)
	return read{
		path: "/v1/accounts/" + account.Number + "/balance?at=" + url.QueryEscape(at.Format(time.RFC3339)),
		sql:  statement.BalanceSQL, args: []any{account.UserID, account.Number, at},
		check: func(body []byte) error {
			var answer struct{ Balance *int64 }
			if err := json.Unmarshal(body, &answer); err != nil || answer.Balance == nil {
				return fmt.Errorf("no balance in %s: %w", body, err)
			}
			return nil
		},
	}
}

func (r *reads) transaction() read {
	account := r.any()
	seq := 1 + r.random.Int64N(r.seq(account))
	return read{
		path: fmt.Sprintf("/v1/accounts/%s/transactions/%d", account.Number, seq),
		sql:  statement.TransactionSQL, args: []any{account.UserID, account.Number, seq},
		check: func(body []byte) error {
			var answer struct{ Seq int64 }
			if err := json.Unmarshal(body, &answer); err != nil || answer.Seq != seq {
				return fmt.Errorf("not transaction %d: %s: %w", seq, body, err)
			}
			return nil
		},
	}
}

// checkPage checks that every transaction of a page belongs to it, that they are in
// order, and that a page without a filter is complete.
func checkPage(body []byte, p statement.Page, last int64) error {
	var answer struct {
		Data []struct {
			Seq       int64
			Type      ledger.EntryType
			CreatedAt time.Time `json:"created_at"`
		}
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return err
	}
	if !p.ByTime() {
		whole := last
		if p.After != 0 {
			whole = p.After - 1
		}
		if want := min(whole, pageLimit); int64(len(answer.Data)) != want {
			return fmt.Errorf("a page of %d, want %d", len(answer.Data), want)
		}
	}
	before := p.After
	for i, t := range answer.Data {
		follows := before == 0 && i == 0 || p.Ascending == (t.Seq > before)
		typed := p.Type == "" || t.Type == p.Type
		timely := (p.From.IsZero() || !t.CreatedAt.Before(p.From) && t.CreatedAt.Before(p.To)) &&
			(p.AfterTime.IsZero() || t.CreatedAt.Before(p.AfterTime))
		if !follows || !typed || !timely {
			return errors.New("a page with what does not belong to it")
		}
		before = t.Seq
	}
	return nil
}
