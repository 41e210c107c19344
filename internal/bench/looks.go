package main

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

// look is something that a client reads in a bank: the request, the statement
// behind it, and what its answer must be.
type look struct {
	path  string
	sql   string
	args  []any
	right func(body []byte) error
}

// kind is one sort of look, each at a random account and place.
type kind struct {
	name string
	page bool // else a single row
	at   func(*looker) look
}

// looker makes the looks of one bank.
type looker struct {
	*bank
	random *rand.Rand
	secret []byte // that the API signs cursors with
}

// kinds are all sorts. Those for a day and a month leave small accounts out: most
// have nothing in them.
var kinds = []kind{
	{"first page", true, func(l *looker) look { return l.page(statement.Page{Account: l.any()}) }},
	{"first page, oldest first", true, func(l *looker) look { return l.page(statement.Page{Account: l.any(), Ascending: true}) }},
	{"middle page", true, func(l *looker) look { return l.page(l.middle("")) }},
	{"deepest page", true, func(l *looker) look { return l.page(l.deepest("")) }},
	{"deposits, first page", true, func(l *looker) look { return l.page(statement.Page{Account: l.any(), Type: ledger.Deposit}) }},
	{"deposits, middle page", true, func(l *looker) look { return l.page(l.middle(ledger.Deposit)) }},
	{"deposits, deepest page", true, func(l *looker) look { return l.page(l.deepest(ledger.Deposit)) }},
	{"withdrawals, first page", true, func(l *looker) look { return l.page(statement.Page{Account: l.common(), Type: ledger.Withdrawal}) }},
	{"withdrawals, middle page", true, func(l *looker) look { return l.page(l.middle(ledger.Withdrawal)) }},
	{"withdrawals, deepest page", true, func(l *looker) look { return l.page(l.deepest(ledger.Withdrawal)) }},
	{"rare type, first page", true, func(l *looker) look { return l.page(l.rare()) }},
	{"rare type, oldest first", true, func(l *looker) look {
		page := l.rare()
		page.Ascending = true
		return l.page(page)
	}},
	{"a day", true, func(l *looker) look { return l.page(l.during(l.long(), 0, 0, 1)) }},
	{"a month", true, func(l *looker) look { return l.page(l.during(l.long(), 0, 1, 0)) }},
	{"a year", true, func(l *looker) look { return l.page(l.during(l.any(), 1, 0, 0)) }},
	{"a year, oldest first", true, func(l *looker) look {
		page := l.during(l.any(), 1, 0, 0)
		page.Ascending = true
		return l.page(page)
	}},
	{"deposits of a month", true, func(l *looker) look { return l.page(ofType(ledger.Deposit, l.during(l.long(), 0, 1, 0))) }},
	{"withdrawals of a year", true, func(l *looker) look { return l.page(ofType(ledger.Withdrawal, l.during(l.common(), 1, 0, 0))) }},
	{"rare type in a year", true, func(l *looker) look {
		return l.page(ofType(ledger.Withdrawal, l.during(l.account(l.large()), 1, 0, 0)))
	}},
	{"a year, middle page", true, func(l *looker) look {
		page := l.during(l.any(), 1, 0, 0)
		page.AfterTime = page.From.Add(l.between(page.To.Sub(page.From)/4, 3*page.To.Sub(page.From)/4))
		return l.page(page)
	}},
	{"balance at a time", false, (*looker).balance},
	{"one transaction", false, (*looker).transaction},
}

func ofType(entry ledger.EntryType, page statement.Page) statement.Page {
	page.Type = entry
	return page
}

// any is the large account, a middling one or a small one, each as often.
func (l *looker) any() ledger.Owned {
	if l.random.IntN(3) == 0 {
		return l.account(l.large())
	}
	return l.common()
}

// common is any account but the large one.
func (l *looker) common() ledger.Owned {
	if l.random.IntN(2) == 0 {
		return l.aMiddling()
	}
	return l.account(l.middling() + l.random.IntN(len(l.accounts)-l.middling()))
}

// long is any account but a small one.
func (l *looker) long() ledger.Owned {
	if l.random.IntN(2) == 0 {
		return l.account(l.large())
	}
	return l.aMiddling()
}

func (l *looker) aMiddling() ledger.Owned { return l.account(1 + l.random.IntN(l.middles)) }

func (l *looker) rare() statement.Page {
	return statement.Page{Account: l.account(l.large()), Type: ledger.Withdrawal}
}

// middle goes on somewhere between a quarter and three quarters of a history.
func (l *looker) middle(entry ledger.EntryType) statement.Page {
	page := statement.Page{Account: l.any(), Type: entry}
	last := l.seq(page.Account)
	return l.after(page, max(1, last/4+l.random.Int64N(last/2+1)))
}

// deepest goes on so near a history's beginning that about a page is left, and no
// more.
func (l *looker) deepest(entry ledger.EntryType) statement.Page {
	page := statement.Page{Account: l.any(), Type: entry}
	left := int64(pageLimit + 1)
	if entry == ledger.Withdrawal {
		left = 3*pageLimit + 1
		if page.Account == l.account(l.large()) {
			left = rareEvery*pageLimit + 1
		}
	}
	return l.after(page, min(left, l.seq(page.Account)))
}

// after is the page that goes on after one of a history's transactions: in a list by
// time, after about when that was, for once all accounts are open they come at an
// even pace.
func (l *looker) after(page statement.Page, seq int64) statement.Page {
	if page.ByTime() {
		all := float64(bankEnded.Sub(bankBegan))
		open := float64(len(l.accounts)) / float64(l.rows)
		share := open + (1-open)*float64(seq)/float64(l.seq(page.Account))
		page.AfterTime = bankBegan.Add(time.Duration(share * all)).Truncate(time.Microsecond)
		return page
	}
	page.After = seq
	return page
}

func (l *looker) between(least, most time.Duration) time.Duration {
	return (least + time.Duration(l.random.Int64N(int64(most-least)))).Truncate(time.Microsecond)
}

// during is a span that begins on a random day of those in which it fits.
func (l *looker) during(account ledger.Owned, years, months, days int) statement.Page {
	most := int(bankEnded.Sub(bankBegan.AddDate(years, months, days)) / (24 * time.Hour))
	from := bankBegan.AddDate(0, 0, l.random.IntN(most+1))
	return statement.Page{Account: account, From: from, To: from.AddDate(years, months, days)}
}

func (l *looker) seq(account ledger.Owned) int64 { return l.accounts[l.places[account.Number]].seq }

func (l *looker) page(p statement.Page) look {
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
		q.Set("cursor", api.HistoryCursor(l.secret, p, ledger.Transaction{Seq: p.After, CreatedAt: p.AfterTime}))
	}
	path := "/v1/accounts/" + p.Account.Number + "/transactions"
	if len(q) > 0 {
		path += "?" + q.Encode()
	}
	p.Limit = pageLimit + 1 // the API looks whether there is more
	sql, args := p.Statement()
	most := l.seq(p.Account)
	return look{path: path, sql: sql, args: args, right: func(body []byte) error { return rightPage(body, p, most) }}
}

func (l *looker) balance() look {
	account := l.any()
	at := bankBegan.Add(time.Duration(l.random.Int64N(int64(bankEnded.Sub(bankBegan))))).Truncate(time.Second)
	return look{
		path: "/v1/accounts/" + account.Number + "/balance?at=" + url.QueryEscape(at.Format(time.RFC3339)),
		sql:  statement.BalanceSQL, args: []any{account.UserID, account.Number, at},
		right: func(body []byte) error {
			var answer struct{ Balance *int64 }
			if err := json.Unmarshal(body, &answer); err != nil || answer.Balance == nil {
				return fmt.Errorf("no balance in %s: %w", body, err)
			}
			return nil
		},
	}
}

func (l *looker) transaction() look {
	account := l.any()
	seq := 1 + l.random.Int64N(l.seq(account))
	return look{
		path: fmt.Sprintf("/v1/accounts/%s/transactions/%d", account.Number, seq),
		sql:  statement.TransactionSQL, args: []any{account.UserID, account.Number, seq},
		right: func(body []byte) error {
			var answer struct{ Seq int64 }
			if err := json.Unmarshal(body, &answer); err != nil || answer.Seq != seq {
				return fmt.Errorf("not transaction %d: %s: %w", seq, body, err)
			}
			return nil
		},
	}
}

// rightPage checks that all of a page belongs to it, in its order, and that one
// without a filter is complete.
func rightPage(body []byte, p statement.Page, last int64) error {
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
