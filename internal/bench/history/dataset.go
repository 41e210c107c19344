package history

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

	"github.com/passbook/passbook/internal/bench/environment"
	"github.com/passbook/passbook/internal/bench/load"
	"github.com/passbook/passbook/internal/bench/report"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/statement"
	"github.com/passbook/passbook/migrations"
)

// What a dataset consists of. Of twenty transactions the large account has two, the
// middling accounts seven and the small accounts eleven. The largest middling account
// has two and a half times as many as the smallest.
const (
	largeOf20, middlingOf20 = 2, 7
	middlingAccounts        = 1_000 // at scale 1; the loads go to them
	smallAccountRows        = 55
	leastWeight, mostWeight = 20, 50 // of a middling account
	// rareEvery is how many transactions of the large account lie between two
	// withdrawals. Of the other accounts every third is a withdrawal, if the balance allows.
	rareEvery = 10_000

	largestAmount = 100_000 // minor units
	// maxGrown is the largest dataset whose indexes grow with its rows, as in production.
	// A larger dataset gets its indexes at the end, which packs them tighter: growing
	// them would take hours.
	maxGrown = 10_000_000
)

// The transactions of a dataset are from three years, at an even pace.
var (
	periodBegan = time.Date(2023, 1, 1, 0, 0, 0, 0, time.UTC)
	periodEnded = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
)

// Half of the transactions have a description.
var descriptions = []string{"Salary", "Rent", "Groceries", "Card 4471", "Refund", "Electricity, March", "Transfer", "Cash"}

// dataset is a database with a long history.
type dataset struct {
	rows     int64
	middles  int // middling accounts
	database string
	user     uuid.UUID
	accounts []datasetAccount // by id, from 1: the large one, the middling ones, the small ones
	indexes  map[string]int   // into accounts, by the accounts' numbers
}

type datasetAccount struct {
	number  string
	seq     int64 // of the last transaction
	balance int64
	at      time.Time // of the last transaction
}

func newDataset(rows int64, middles int) *dataset {
	b := &dataset{rows: rows, middles: middles, database: fmt.Sprintf("history_%d", rows), accounts: []datasetAccount{{number: "LARGE"}}, indexes: map[string]int{}}
	for n := range middles {
		b.accounts = append(b.accounts, datasetAccount{number: load.AccountNumber(n)})
	}
	for n := range rows * (20 - largeOf20 - middlingOf20) / 20 / smallAccountRows {
		b.accounts = append(b.accounts, datasetAccount{number: fmt.Sprintf("SMALL-%07d", n)})
	}
	for n, account := range b.accounts {
		b.indexes[account.number] = n
	}
	return b
}

func (b *dataset) name() string  { return report.Thousands(b.rows) + " rows" }
func (b *dataset) packed() bool  { return b.rows > maxGrown }
func (b *dataset) large() int    { return 0 }
func (b *dataset) middling() int { return 1 + b.middles }

// account is the n-th account, as the API knows it.
func (b *dataset) account(n int) ledger.Owned {
	return ledger.Owned{UserID: b.user, Number: b.accounts[n].number}
}

// fill makes the schema, the user, the transactions through COPY, and then the accounts
// with the balances that the transactions give.
func (b *dataset) fill(ctx context.Context, base *environment.Base) error {
	if err := base.Admin(ctx, "CREATE DATABASE "+b.database); err != nil {
		return err
	}
	if _, err := migrations.Up(ctx, base.DatabaseURL(b.database)); err != nil {
		return err
	}
	if err := b.signUp(ctx, base); err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, base.DatabaseURL(b.database))
	if err != nil {
		return fmt.Errorf("fill %s: %w", b.database, err)
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // all is committed
	for _, step := range []func(context.Context, *environment.Base, *pgx.Conn) error{b.copyTransactions, b.copyAccounts, b.vacuum} {
		if err := step(ctx, base, conn); err != nil {
			return fmt.Errorf("fill %s: %w", b.database, err)
		}
	}
	return nil
}

func (b *dataset) signUp(ctx context.Context, base *environment.Base) error {
	pool, err := base.OpenDatabase(ctx, b.database, 1)
	if err != nil {
		return err
	}
	defer pool.Close()
	b.user, err = base.SignUp(ctx, pool)
	return err
}

const copySQL = `COPY transactions (account_id, seq, amount, balance_after, created_at, job_id, position, type, description) FROM STDIN (FORMAT binary)`

func (b *dataset) copyTransactions(ctx context.Context, base *environment.Base, conn *pgx.Conn) error {
	var indexes []index
	if b.packed() {
		var err error
		if indexes, err = dropIndexes(ctx, conn); err != nil {
			return err
		}
	}
	rows := newRowSource(b, base.Say)
	const begin = `ALTER TABLE transactions DISABLE TRIGGER transactions_rules` // there are no jobs
	const end = `ALTER TABLE transactions ENABLE ALWAYS TRIGGER transactions_rules; SELECT setval('job_positions', $1)`
	if _, err := conn.Exec(ctx, begin); err != nil {
		return err
	}
	if _, err := conn.PgConn().CopyFrom(ctx, rows, copySQL); err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, end, pgx.QueryExecModeSimpleProtocol, b.rows); err != nil {
		return err
	}
	return buildIndexes(ctx, base, conn, indexes)
}

func (b *dataset) copyAccounts(ctx context.Context, _ *environment.Base, conn *pgx.Conn) error {
	const begin = `ALTER TABLE accounts DISABLE TRIGGER accounts_start_empty`
	const end = `ALTER TABLE accounts ENABLE ALWAYS TRIGGER accounts_start_empty; SELECT setval(pg_get_serial_sequence('accounts', 'id'), (SELECT max(id) FROM accounts))`
	if _, err := conn.Exec(ctx, begin); err != nil {
		return err
	}
	columns := []string{"id", "user_id", "number", "currency", "balance", "last_seq", "last_at", "created_at"}
	rows := pgx.CopyFromSlice(len(b.accounts), func(n int) ([]any, error) {
		a := b.accounts[n]
		return []any{int64(n) + 1, b.user, a.number, "KRW", a.balance, a.seq, a.at, periodBegan}, nil
	})
	if _, err := conn.CopyFrom(ctx, pgx.Identifier{"accounts"}, columns, rows); err != nil {
		return err
	}
	_, err := conn.Exec(ctx, end)
	return err
}

// vacuum does what autovacuum would do in time. It leaves out jobs, as in the template
// of the environments.
func (b *dataset) vacuum(ctx context.Context, base *environment.Base, conn *pgx.Conn) error {
	base.Say("  vacuuming")
	_, err := conn.Exec(ctx, `VACUUM (ANALYZE) transactions, accounts`)
	return err
}

// index is an index of transactions, and how to make it again.
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

func buildIndexes(ctx context.Context, base *environment.Base, conn *pgx.Conn, indexes []index) error {
	if _, err := conn.Exec(ctx, `SET maintenance_work_mem = '1GB'`); err != nil {
		return err
	}
	for n, i := range indexes {
		base.Say("  building index %d of %d, %s", n+1, len(indexes), i.Name)
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

// rowSource makes a dataset's transactions as a binary COPY, in the order of their
// time. It keeps the accounts up to date with the rows that it has made.
type rowSource struct {
	dataset  *dataset
	random   *rand.Rand
	weighted []int // middling accounts, each as often as its weight
	made     int64
	ready    bytes.Buffer
	say      func(format string, args ...any)
	began    time.Time
	sayNext  time.Time
}

func newRowSource(b *dataset, say func(format string, args ...any)) *rowSource {
	r := &rowSource{
		dataset: b, say: say, began: time.Now(),
		random: rand.New(rand.NewPCG(uint64(b.rows), 1)), //nolint:gosec // nothing of it is secret
	}
	for n := range b.middles {
		for range leastWeight + n*(mostWeight-leastWeight)/max(1, b.middles-1) {
			r.weighted = append(r.weighted, 1+n)
		}
	}
	// https://www.postgresql.org/docs/current/sql-copy.html, Binary Format
	r.ready.WriteString("PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	return r
}

const sayEvery = 10 * time.Second

// Read is io.Reader's.
func (r *rowSource) Read(p []byte) (int, error) {
	for r.made < r.dataset.rows && r.ready.Len() < len(p) {
		r.next()
	}
	if now := time.Now(); now.After(r.sayNext) {
		if !r.sayNext.IsZero() {
			r.say("  %s of %s rows, %s a second", report.Thousands(r.made), report.Thousands(r.dataset.rows), report.Number(report.PerSecond(int(r.made), now.Sub(r.began))))
		}
		r.sayNext = now.Add(sayEvery)
	}
	return r.ready.Read(p)
}

// next makes a transaction: first each account's initial deposit, then whatever
// comes.
func (r *rowSource) next() {
	n := r.which()
	a := &r.dataset.accounts[n]
	step := periodEnded.Sub(periodBegan) / time.Duration(r.dataset.rows)
	a.at = periodBegan.Add(time.Duration(r.made)*step + time.Duration(r.random.Int64N(int64(step/2)))).Truncate(time.Microsecond)
	a.seq++
	amount, entry := 1+r.random.Int64N(largestAmount), ledger.Deposit
	switch {
	case a.seq == 1:
		amount = environment.InitialDeposit
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
	if r.made == r.dataset.rows {
		r.ready.Write([]byte{0xff, 0xff}) // the end
	}
}

func (r *rowSource) which() int {
	if r.made < int64(len(r.dataset.accounts)) {
		return int(r.made)
	}
	switch n := r.made % 20; {
	case n < largeOf20:
		return r.dataset.large()
	case n < largeOf20+middlingOf20:
		return r.weighted[r.random.IntN(len(r.weighted))]
	default:
		return r.dataset.middling() + r.random.IntN(len(r.dataset.accounts)-r.dataset.middling())
	}
}

func (r *rowSource) withdraws(n int) bool {
	if n == r.dataset.large() {
		return r.dataset.accounts[n].seq%rareEvery == 0
	}
	return r.random.IntN(3) == 0
}

func (r *rowSource) write(account int64, a *datasetAccount, amount int64, entry ledger.EntryType) {
	row := r.ready.AvailableBuffer()
	row = binary.BigEndian.AppendUint16(row, 9) // fields
	for _, v := range []int64{account, a.seq, amount, a.balance, postgresMicros(a.at)} {
		row = binary.BigEndian.AppendUint32(row, 8)
		row = binary.BigEndian.AppendUint64(row, uint64(v)) //nolint:gosec // the bits
	}
	if a.seq == 1 { // an initial deposit has no job
		row = binary.BigEndian.AppendUint32(row, null)
		row = binary.BigEndian.AppendUint32(row, null)
	} else {
		id := r.jobID(a.at)
		row = binary.BigEndian.AppendUint32(row, uint32(len(id)))
		row = append(row, id[:]...)
		row = binary.BigEndian.AppendUint32(row, 8)
		row = binary.BigEndian.AppendUint64(row, uint64(r.made)) //nolint:gosec // the position: it is not negative
	}
	row = appendText(row, string(entry))
	if r.random.IntN(2) == 0 {
		row = binary.BigEndian.AppendUint32(row, null)
	} else {
		row = appendText(row, descriptions[r.random.IntN(len(descriptions))])
	}
	r.ready.Write(row)
}

const null = 0xffffffff // the length field of a null

func appendText(row []byte, text string) []byte {
	row = binary.BigEndian.AppendUint32(row, uint32(len(text))) //nolint:gosec // a word
	return append(row, text...)
}

// postgresMicros is how Postgres counts time: microseconds since 2000.
func postgresMicros(at time.Time) int64 {
	return at.UnixMicro() - time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()
}

// jobID is a UUIDv7 of that time (RFC 9562, section 5.7), as the API makes them.
func (r *rowSource) jobID(at time.Time) (id uuid.UUID) {
	binary.BigEndian.PutUint64(id[:], uint64(at.UnixMilli())<<16|7<<12|r.random.Uint64N(1<<12))
	binary.BigEndian.PutUint64(id[8:], 2<<62|r.random.Uint64N(1<<62))
	return id
}

// check compares the database with the rows that it should have, and what Passbook
// reads as the large account's last transaction with the account.
func (b *dataset) check(ctx context.Context, base *environment.Base) error {
	pool, err := base.OpenDatabase(ctx, b.database, 1)
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

// sizes returns the bytes a transaction, of the table and of each index.
func (b *dataset) sizes(ctx context.Context, base *environment.Base) (map[string]float64, error) {
	const sql = `
		SELECT 'table', pg_table_size('transactions')::float8 / $1
		UNION ALL SELECT indexrelid::regclass::text, pg_relation_size(indexrelid)::float8 / $1
		FROM pg_index WHERE indrelid = 'transactions'::regclass`
	pool, err := base.OpenDatabase(ctx, b.database, 1)
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
