package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/statement"
	"github.com/passbook/passbook/migrations"
)

// What a bank is made of. Of twenty transactions two are the large account's, seven
// are spread over the middling ones, the largest of which has two and a half times
// as many as the smallest, and eleven over the small ones.
const (
	largeOf20, middlingOf20 = 2, 7
	middlingAccounts        = 1_000 // those that the loads go to, at scale 1
	smallAccountRows        = 55
	leastWeight, mostWeight = 20, 50 // of a middling account
	// rareEvery is how many transactions of the large account lie between two
	// withdrawals; of others' every third is one, where there is money.
	rareEvery = 10_000

	largestAmount = 100_000 // minor units
	// grownMost is how many rows a bank has at most whose indexes grow with it, as
	// they do in life. Those of a larger one are built when all rows are there, which
	// packs them tighter: to grow them would take hours.
	grownMost = 10_000_000
)

// A bank's transactions are from three years, at an even pace.
var (
	bankBegan = time.Date(2023, 1, 1, 0, 0, 0, 0, time.UTC)
	bankEnded = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
)

// Half of the transactions have one.
var descriptions = []string{"Salary", "Rent", "Groceries", "Card 4471", "Refund", "Electricity, March", "Transfer", "Cash"}

// bank is a database with a long history.
type bank struct {
	rows     int64
	middles  int // accounts that are middling
	database string
	user     uuid.UUID
	accounts []bankAccount  // by id, from 1: the large one, the middling ones, the small ones
	places   map[string]int // of the accounts by their numbers
}

type bankAccount struct {
	number  string
	seq     int64 // of the last transaction
	balance int64
	at      time.Time // of the last transaction
}

func newBank(rows int64, middles int) *bank {
	b := &bank{rows: rows, middles: middles, database: fmt.Sprintf("history_%d", rows), accounts: []bankAccount{{number: "LARGE"}}, places: map[string]int{}}
	for n := range middles {
		b.accounts = append(b.accounts, bankAccount{number: accountNumber(n)})
	}
	for n := range rows * (20 - largeOf20 - middlingOf20) / 20 / smallAccountRows {
		b.accounts = append(b.accounts, bankAccount{number: fmt.Sprintf("SMALL-%07d", n)})
	}
	for n, account := range b.accounts {
		b.places[account.number] = n
	}
	return b
}

func (b *bank) name() string  { return thousands(b.rows) + " rows" }
func (b *bank) packed() bool  { return b.rows > grownMost }
func (b *bank) large() int    { return 0 }
func (b *bank) middling() int { return 1 + b.middles }

// account is one of the bank's, as the API knows it.
func (b *bank) account(n int) ledger.Owned {
	return ledger.Owned{UserID: b.user, Number: b.accounts[n].number}
}

// fill makes the bank: the schema, its user, the transactions through COPY, then
// the accounts as these leave them.
func (b *bank) fill(ctx context.Context, r *rig) error {
	if err := r.admin(ctx, "CREATE DATABASE "+b.database); err != nil {
		return err
	}
	if err := migrations.Up(ctx, r.databaseURL(b.database)); err != nil {
		return err
	}
	if err := b.signUp(ctx, r); err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, r.databaseURL(b.database))
	if err != nil {
		return fmt.Errorf("fill %s: %w", b.database, err)
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // all is committed
	for _, step := range []func(context.Context, *rig, *pgx.Conn) error{b.copyTransactions, b.copyAccounts, b.vacuum} {
		if err := step(ctx, r, conn); err != nil {
			return fmt.Errorf("fill %s: %w", b.database, err)
		}
	}
	return nil
}

func (b *bank) signUp(ctx context.Context, r *rig) error {
	pool, err := r.open(ctx, b.database, 1)
	if err != nil {
		return err
	}
	defer pool.Close()
	b.user, err = r.signUp(ctx, pool)
	return err
}

const copySQL = `COPY transactions (account_id, seq, amount, balance_after, created_at, job_id, type, description) FROM STDIN (FORMAT binary)`

func (b *bank) copyTransactions(ctx context.Context, r *rig, conn *pgx.Conn) error {
	var indexes []index
	if b.packed() {
		var err error
		if indexes, err = dropIndexes(ctx, conn); err != nil {
			return err
		}
	}
	rows := newBankRows(b, r.say)
	if _, err := conn.PgConn().CopyFrom(ctx, rows, copySQL); err != nil {
		return err
	}
	return buildIndexes(ctx, r, conn, indexes)
}

func (b *bank) copyAccounts(ctx context.Context, _ *rig, conn *pgx.Conn) error {
	const begin = `ALTER TABLE accounts DISABLE TRIGGER accounts_start_empty`
	const end = `ALTER TABLE accounts ENABLE ALWAYS TRIGGER accounts_start_empty; SELECT setval(pg_get_serial_sequence('accounts', 'id'), (SELECT max(id) FROM accounts))`
	if _, err := conn.Exec(ctx, begin); err != nil {
		return err
	}
	columns := []string{"id", "user_id", "number", "currency", "balance", "last_seq", "last_at", "created_at"}
	rows := pgx.CopyFromSlice(len(b.accounts), func(n int) ([]any, error) {
		a := b.accounts[n]
		return []any{int64(n) + 1, b.user, a.number, "KRW", a.balance, a.seq, a.at, bankBegan}, nil
	})
	if _, err := conn.CopyFrom(ctx, pgx.Identifier{"accounts"}, columns, rows); err != nil {
		return err
	}
	_, err := conn.Exec(ctx, end)
	return err
}

// vacuum is what autovacuum would have done by and by. jobs is left out, as in the
// rig's template.
func (b *bank) vacuum(ctx context.Context, r *rig, conn *pgx.Conn) error {
	r.say("  vacuuming")
	_, err := conn.Exec(ctx, `VACUUM (ANALYZE) transactions, accounts`)
	return err
}

// index is one of transactions', and how to make it again.
type index struct {
	Name, Definition string
	Primary          bool
}

func dropIndexes(ctx context.Context, conn *pgx.Conn) ([]index, error) {
	const sql = `SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid), indisprimary FROM pg_index
		WHERE indrelid = 'transactions'::regclass ORDER BY indexrelid`
	rows, _ := conn.Query(ctx, sql) // CollectRows returns its error
	indexes, err := pgx.CollectRows(rows, pgx.RowToStructByPos[index])
	if err != nil {
		return nil, err
	}
	for _, i := range indexes {
		drop := "DROP INDEX " + i.Name
		if i.Primary {
			drop = "ALTER TABLE transactions DROP CONSTRAINT " + i.Name
		}
		if _, err := conn.Exec(ctx, drop); err != nil {
			return nil, err
		}
	}
	return indexes, nil
}

func buildIndexes(ctx context.Context, r *rig, conn *pgx.Conn, indexes []index) error {
	if _, err := conn.Exec(ctx, `SET maintenance_work_mem = '1GB'`); err != nil {
		return err
	}
	for n, i := range indexes {
		r.say("  building index %d of %d, %s", n+1, len(indexes), i.Name)
		if _, err := conn.Exec(ctx, i.Definition); err != nil {
			return err
		}
		if i.Primary {
			if _, err := conn.Exec(ctx, "ALTER TABLE transactions ADD PRIMARY KEY USING INDEX "+i.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// bankRows is a bank's transactions as a binary COPY, in the order of their time.
// It keeps the bank's accounts up to date with what it has made.
type bankRows struct {
	bank    *bank
	random  *rand.Rand
	wheel   []int // middling accounts, each as often as its weight
	made    int64
	ready   bytes.Buffer
	say     func(format string, args ...any)
	began   time.Time
	sayNext time.Time
}

func newBankRows(b *bank, say func(format string, args ...any)) *bankRows {
	r := &bankRows{
		bank: b, say: say, began: time.Now(),
		random: rand.New(rand.NewPCG(uint64(b.rows), 1)), //nolint:gosec // nothing of it is secret
	}
	for n := range b.middles {
		for range leastWeight + n*(mostWeight-leastWeight)/max(1, b.middles-1) {
			r.wheel = append(r.wheel, 1+n)
		}
	}
	// https://www.postgresql.org/docs/current/sql-copy.html, Binary Format
	r.ready.WriteString("PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	return r
}

const sayEvery = 10 * time.Second

// Read is io.Reader's.
func (r *bankRows) Read(p []byte) (int, error) {
	for r.made < r.bank.rows && r.ready.Len() < len(p) {
		r.next()
	}
	if now := time.Now(); now.After(r.sayNext) {
		if !r.sayNext.IsZero() {
			r.say("  %s of %s rows, %s a second", thousands(r.made), thousands(r.bank.rows), number(perSecond(int(r.made), now.Sub(r.began))))
		}
		r.sayNext = now.Add(sayEvery)
	}
	return r.ready.Read(p)
}

// next makes a transaction: first each account's initial deposit, then whatever
// comes.
func (r *bankRows) next() {
	n := r.which()
	a := &r.bank.accounts[n]
	step := bankEnded.Sub(bankBegan) / time.Duration(r.bank.rows)
	a.at = bankBegan.Add(time.Duration(r.made)*step + time.Duration(r.random.Int64N(int64(step/2)))).Truncate(time.Microsecond)
	a.seq++
	amount, entry := 1+r.random.Int64N(largestAmount), ledger.Deposit
	switch {
	case a.seq == 1:
		amount = initialDeposit
	case r.withdraws(n) && a.balance > amount:
		entry = ledger.Withdrawal
	}
	if entry == ledger.Deposit {
		a.balance += amount
	} else {
		a.balance -= amount
	}
	r.made++
	r.write(int64(n)+1, a, amount, entry)
	if r.made == r.bank.rows {
		r.ready.Write([]byte{0xff, 0xff}) // the end
	}
}

func (r *bankRows) which() int {
	if r.made < int64(len(r.bank.accounts)) {
		return int(r.made)
	}
	switch turn := r.made % 20; {
	case turn < largeOf20:
		return r.bank.large()
	case turn < largeOf20+middlingOf20:
		return r.wheel[r.random.IntN(len(r.wheel))]
	default:
		return r.bank.middling() + r.random.IntN(len(r.bank.accounts)-r.bank.middling())
	}
}

func (r *bankRows) withdraws(n int) bool {
	if n == r.bank.large() {
		return r.bank.accounts[n].seq%rareEvery == 0
	}
	return r.random.IntN(3) == 0
}

func (r *bankRows) write(account int64, a *bankAccount, amount int64, entry ledger.EntryType) {
	row := r.ready.AvailableBuffer()
	row = binary.BigEndian.AppendUint16(row, 8) // fields
	for _, v := range []int64{account, a.seq, amount, a.balance, postgresMicros(a.at)} {
		row = binary.BigEndian.AppendUint32(row, 8)
		row = binary.BigEndian.AppendUint64(row, uint64(v)) //nolint:gosec // the bits
	}
	if a.seq == 1 { // an initial deposit has no job
		row = binary.BigEndian.AppendUint32(row, null)
	} else {
		id := r.jobID(a.at)
		row = binary.BigEndian.AppendUint32(row, uint32(len(id)))
		row = append(row, id[:]...)
	}
	row = appendText(row, string(entry))
	if r.random.IntN(2) == 0 {
		row = binary.BigEndian.AppendUint32(row, null)
	} else {
		row = appendText(row, descriptions[r.random.IntN(len(descriptions))])
	}
	r.ready.Write(row)
}

const null = 0xffffffff // the length of one

func appendText(row []byte, text string) []byte {
	row = binary.BigEndian.AppendUint32(row, uint32(len(text))) //nolint:gosec // a word
	return append(row, text...)
}

// postgresMicros is how Postgres counts time: microseconds since 2000.
func postgresMicros(at time.Time) int64 {
	return at.UnixMicro() - time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()
}

// jobID is a UUIDv7 of that time (RFC 9562, section 5.7), as the API makes them.
func (r *bankRows) jobID(at time.Time) (id uuid.UUID) {
	binary.BigEndian.PutUint64(id[:], uint64(at.UnixMilli())<<16|7<<12|r.random.Uint64N(1<<12))
	binary.BigEndian.PutUint64(id[8:], 2<<62|r.random.Uint64N(1<<62))
	return id
}

// check holds the bank against the rows that it should have, and Passbook's
// statements against the bank: what the large account's last transaction says is
// what the account has.
func (b *bank) check(ctx context.Context, r *rig) error {
	pool, err := r.open(ctx, b.database, 1)
	if err != nil {
		return err
	}
	defer pool.Close()
	const sql = `SELECT count(*), coalesce(sum(last_seq), 0)::bigint FROM accounts`
	var accounts, rows int64
	if err := pool.QueryRow(ctx, sql).Scan(&accounts, &rows); err != nil {
		return err
	}
	if accounts != int64(len(b.accounts)) || rows != b.rows {
		return fmt.Errorf("wrong: %s has %d accounts with %d transactions", b.database, accounts, rows)
	}
	large := b.accounts[b.large()]
	page := statement.Page{Account: b.account(b.large()), Limit: 1}
	last, err := statement.New(pool, nil).List(ctx, page)
	if err != nil {
		return err
	}
	if len(last) != 1 || last[0].Seq != large.seq || last[0].BalanceAfter != large.balance {
		return errors.New("wrong: the large account's history is not what it has")
	}
	return nil
}

// sizes are bytes a transaction, of the table and of each index.
func (b *bank) sizes(ctx context.Context, r *rig) (map[string]float64, error) {
	const sql = `
		SELECT 'table', pg_table_size('transactions')::float8 / $1
		UNION ALL SELECT indexrelid::regclass::text, pg_relation_size(indexrelid)::float8 / $1
		FROM pg_index WHERE indrelid = 'transactions'::regclass`
	pool, err := r.open(ctx, b.database, 1)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	rows, err := pool.Query(ctx, sql, float64(b.rows))
	if err != nil {
		return nil, err
	}
	sizes := map[string]float64{}
	var name string
	var bytes float64
	_, err = pgx.ForEachRow(rows, []any{&name, &bytes}, func() error {
		sizes[strings.TrimPrefix(name, "transactions_")] = bytes
		return nil
	})
	return sizes, err
}
