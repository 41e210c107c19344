package statement_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/statement"
	"github.com/passbook/passbook/internal/test/testenv"
)

func TestMain(m *testing.M) {
	testenv.Main(m)
}

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// entryAt is how fill dates its entries: in steps of a minute, with a long
// pause after the hundredth.
func entryAt(seq int64) time.Time {
	at := start.Add(time.Duration(seq) * time.Minute)
	if seq > 100 {
		at = at.AddDate(0, 0, 30)
	}
	return at
}

// fill writes an account's history past the code that makes one. Every tenth
// entry is a withdrawal.
func fill(t testing.TB, pool *pgxpool.Pool, accountID int64, entries int) {
	t.Helper()
	ledgertest.Exec(t, pool, `DROP TRIGGER transactions_rules ON transactions`) // which ask for jobs
	ledgertest.Exec(t, pool, `
		INSERT INTO transactions (account_id, seq, type, amount, balance_after, created_at)
		SELECT $1, seq, (CASE seq % 10 WHEN 0 THEN 'withdrawal' ELSE 'deposit' END)::entry_type, 1, seq,
			$2::timestamptz + seq * interval '1 minute' + CASE WHEN seq > 100 THEN interval '30 days' ELSE interval '0' END
		FROM generate_series(1, $3) seq`, accountID, start, entries)
}

// open opens an account of a new user.
func open(t testing.TB, pool *pgxpool.Pool, initialDeposit int64) (ledger.Account, ledger.Owned) {
	t.Helper()
	user := ledgertest.User(t, pool)
	account := ledgertest.Account(t, pool, user, initialDeposit)
	return account, ledger.Owned{UserID: user, Number: account.Number}
}

func TestList(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	account, owned := open(t, pool, 0)
	const entries = 250
	fill(t, pool, account.ID, entries)
	ledgertest.Account(t, pool, ledgertest.User(t, pool), 7) // whose history must not show
	statements := statement.New(pool, nil)
	micro := time.Microsecond
	ranges := map[string][2]time.Time{
		"all":          {},
		"from":         {entryAt(50), {}},
		"after":        {entryAt(50).Add(micro), {}},
		"to":           {{}, entryAt(50)},
		"through":      {{}, entryAt(50).Add(micro)},
		"between":      {entryAt(95), entryAt(110)},
		"pause":        {entryAt(100).Add(micro), entryAt(101)},
		"before-all":   {{}, start},
		"after-all":    {entryAt(entries + 1), {}},
		"backwards":    {entryAt(60), entryAt(50)},
		"far-future":   {{}, time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)},
		"distant-past": {time.Date(1, 1, 1, 0, 0, 1, 0, time.UTC), {}},
	}
	for name, span := range ranges {
		for _, entry := range []ledger.EntryType{"", ledger.Deposit, ledger.Withdrawal} {
			for _, ascending := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s/%s/ascending=%t", name, entry, ascending), func(t *testing.T) {
					var want []int64
					for seq := int64(1); seq <= entries; seq++ {
						isWithdrawal := seq%10 == 0
						at := entryAt(seq)
						switch {
						case entry == ledger.Deposit && isWithdrawal, entry == ledger.Withdrawal && !isWithdrawal:
						case !span[0].IsZero() && at.Before(span[0]):
						case !span[1].IsZero() && !at.Before(span[1]):
						default:
							want = append(want, seq)
						}
					}
					if !ascending {
						slices.Reverse(want)
					}
					page := statement.Page{Account: owned, Type: entry, From: span[0], To: span[1], Ascending: ascending, Limit: 7}
					for _, byTime := range []bool{true, false} {
						if got := walk(t, statements, page, byTime); !slices.Equal(got, want) {
							t.Errorf("by time: %t; got %v, want %v", byTime, got, want)
						}
					}
				})
			}
		}
	}
}

// walk turns all pages, each from where the one before ended: its time or its seq.
func walk(t *testing.T, statements *statement.Statements, page statement.Page, byTime bool) (seqs []int64) {
	t.Helper()
	for {
		transactions, err := statements.List(t.Context(), page)
		if err != nil {
			t.Fatal(err)
		}
		for _, transaction := range transactions {
			seqs = append(seqs, transaction.Seq)
		}
		if len(transactions) < page.Limit {
			return seqs
		}
		page.After = seqs[len(seqs)-1]
		if byTime {
			page.AfterTime = transactions[len(transactions)-1].CreatedAt
		}
	}
}

func TestTransaction(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	_, owned := open(t, pool, 700)
	statements := statement.New(pool, nil)
	t.Run("OK", func(t *testing.T) {
		got, err := statements.Transaction(t.Context(), owned, 1)
		if err != nil || got.Seq != 1 || got.Amount != 700 || got.BalanceAfter != 700 || got.Type != ledger.Deposit || got.JobID != nil {
			t.Errorf("got %+v, %v", got, err)
		}
	})
	t.Run("ErrNotFound", func(t *testing.T) {
		for _, seq := range []int64{0, 2, -1} {
			if _, err := statements.Transaction(t.Context(), owned, seq); !errors.Is(err, statement.ErrNotFound) {
				t.Errorf("seq %d: %v, want ErrNotFound", seq, err)
			}
		}
	})
}

func TestBalance(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	account, owned := open(t, pool, 0)
	statements := statement.New(pool, nil)
	t.Run("BeforeTheFirst", func(t *testing.T) {
		got, err := statements.Balance(t.Context(), owned, time.Time{})
		if err != nil || got.Seq != 0 || got.Balance != 0 || time.Since(got.At).Abs() > time.Minute {
			t.Errorf("got %+v, %v", got, err)
		}
	})
	const entries = 150
	fill(t, pool, account.ID, entries)
	ledgertest.Account(t, pool, ledgertest.User(t, pool), 7) // whose history must not show
	for seq := int64(1); seq <= entries; seq++ {
		for _, after := range []time.Duration{-time.Microsecond, 0, time.Microsecond} {
			want := statement.Balance{Currency: "KRW", Seq: seq, Balance: seq, At: entryAt(seq).Add(after)}
			if after < 0 {
				want.Seq, want.Balance = seq-1, seq-1
			}
			got, err := statements.Balance(t.Context(), owned, want.At)
			if err != nil || !got.At.Equal(want.At) || got.Seq != want.Seq || got.Balance != want.Balance {
				t.Errorf("got %+v, %v, want %+v", got, err, want)
			}
		}
	}
	t.Run("AheadOfTheClock", func(t *testing.T) {
		ahead := time.Now().Add(time.Hour).Truncate(time.Microsecond)
		ledgertest.Exec(t, pool, `INSERT INTO transactions (account_id, seq, type, amount, balance_after, created_at)
			VALUES ($1, $2::bigint, 'deposit', 1, $2::bigint, $3)`, account.ID, entries+1, ahead)
		ledgertest.Unguarded(t, pool, fmt.Sprintf(`UPDATE accounts SET last_at = '%s' WHERE id = %d`, ahead.Format(time.RFC3339Nano), account.ID))
		got, err := statements.Balance(t.Context(), owned, time.Time{})
		if err != nil || got.Seq != entries+1 || !got.At.Equal(ahead) {
			t.Errorf("got %+v, %v", got, err)
		}
	})
}

func exportSeqs(ctx context.Context, statements *statement.Statements, page statement.Page) (seqs []int64, err error) {
	export, err := statements.Export(ctx, page)
	for err == nil {
		var transactions []ledger.Transaction
		if transactions, err = export.Next(ctx); len(transactions) == 0 {
			break
		}
		for _, transaction := range transactions {
			seqs = append(seqs, transaction.Seq)
		}
	}
	return seqs, err
}

func TestExport(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	account, owned := open(t, pool, 0)
	const entries = 2500
	fill(t, pool, account.ID, entries)
	grow(t, pool, account.ID, entries)
	statements := statement.New(pool, nil)
	for name, page := range map[string]statement.Page{
		"All":        {},
		"Deposits":   {Type: ledger.Deposit},
		"Withdrawal": {Type: ledger.Withdrawal},
		"From":       {From: entryAt(95)},
		"To":         {To: entryAt(2400)},
		"Both":       {Type: ledger.Deposit, From: entryAt(95), To: entryAt(150)},
	} {
		for _, ascending := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/ascending=%t", name, ascending), func(t *testing.T) {
				page := page
				page.Account, page.Ascending, page.Limit = owned, ascending, 3
				got, err := exportSeqs(t.Context(), statements, page)
				page.Limit = 100
				if want := walk(t, statements, page, true); err != nil || !slices.Equal(got, want) {
					t.Errorf("%d transactions, %v; want %d", len(got), err, len(want))
				}
			})
		}
	}
	t.Run("ErrAccountNotFound", func(t *testing.T) {
		page := statement.Page{Account: ledger.Owned{UserID: ledgertest.User(t, pool), Number: owned.Number}}
		if _, err := statements.Export(t.Context(), page); !errors.Is(err, ledger.ErrAccountNotFound) {
			t.Errorf("got %v", err)
		}
	})
}

// What comes while an export is read is not in it. Between its pages it has no
// connection and no snapshot, so it may take as long as it likes.
func TestExport_IsOfOneMoment(t *testing.T) {
	t.Parallel()
	for _, ascending := range []bool{true, false} {
		t.Run(fmt.Sprintf("ascending=%t", ascending), func(t *testing.T) {
			t.Parallel()
			pool := testenv.Pool(t)
			account, owned := open(t, pool, 0)
			const entries = 2500
			fill(t, pool, account.ID, entries)
			grow(t, pool, account.ID, entries)
			export, err := statement.New(pool, nil).Export(t.Context(), statement.Page{Account: owned, Ascending: ascending})
			if err != nil {
				t.Fatal(err)
			}
			var got []int64
			for added := int64(entries + 1); ; added++ {
				ledgertest.Exec(t, pool, `INSERT INTO transactions (account_id, seq, type, amount, balance_after, created_at)
					VALUES ($1, $2::bigint, 'deposit', 1, $2::bigint, $3)`, account.ID, added, entryAt(added))
				grow(t, pool, account.ID, added)
				transactions, err := export.Next(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if busy := pool.Stat().AcquiredConns(); busy != 0 {
					t.Errorf("%d connections are held between two pages", busy)
				}
				if len(transactions) == 0 {
					break
				}
				for _, transaction := range transactions {
					got = append(got, transaction.Seq)
				}
			}
			if !ascending {
				slices.Reverse(got)
			}
			for i, seq := range got {
				if seq != int64(i+1) {
					t.Fatalf("transaction %d where %d should be", seq, i+1)
				}
			}
			if len(got) != entries {
				t.Errorf("%d transactions, want %d", len(got), entries)
			}
		})
	}
}

// A history that a failover or a restore has made shorter is no whole export.
func TestExport_TakenBack(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	account, owned := open(t, pool, 0)
	const entries = 1500
	fill(t, pool, account.ID, entries)
	grow(t, pool, account.ID, entries)
	export, err := statement.New(pool, nil).Export(t.Context(), statement.Page{Account: owned, Ascending: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := export.Next(t.Context()); err != nil {
		t.Fatal(err)
	}
	ledgertest.Exec(t, pool, `ALTER TABLE transactions DISABLE TRIGGER USER`)
	ledgertest.Exec(t, pool, `DELETE FROM transactions WHERE seq > 1200`)
	grow(t, pool, account.ID, 1200)
	if transactions, err := export.Next(t.Context()); err == nil {
		t.Errorf("%d transactions of a history that was taken back", len(transactions))
	}
}

// grow says in the account what fill has written.
func grow(t testing.TB, pool *pgxpool.Pool, accountID, last int64) {
	t.Helper()
	ledgertest.Exec(t, pool, `ALTER TABLE accounts DISABLE TRIGGER USER`) // which see one transaction come at a time
	ledgertest.Exec(t, pool, `UPDATE accounts SET last_seq = $2::bigint, balance = $2::bigint, last_at = $3 WHERE id = $1`, accountID, last, entryAt(last))
}

// Every page of every filter walks an index in its order and reads little more
// than it shows: no sort, no sequential scan, nothing filtered away.
func TestPlans(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	pool, err := postgres.Open(t.Context(), postgres.Config{URL: url, Serving: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	large, owned := open(t, pool, 0)
	const rows, limit = 200_000, 21
	fillMany(t, url, large.ID, rows)
	accounts := map[string]struct {
		ledger.Owned
		middle int64
	}{
		"Large": {owned, rows / 4},
		"Small": {ledger.Owned{UserID: owned.UserID, Number: "SMALL-1000"}, rows / 4 / smallAccounts},
	}
	middle := entryAt(rows / 4)
	for _, at := range []*time.Time{&middle, nil} {
		t.Run(fmt.Sprintf("Balance/%v", at), func(t *testing.T) {
			checkPlan(t, pool, statement.BalanceSQL, []any{owned.UserID, owned.Number, at}, 0)
		})
	}
	for name, account := range accounts {
		for _, page := range everyFilter(middle.AddDate(0, 0, -7), middle.AddDate(0, 0, 7)) {
			page.Account = account.Owned
			filter := fmt.Sprintf("%s/%s/from=%t/to=%t/ascending=%t", name, page.Type, !page.From.IsZero(), !page.To.IsZero(), page.Ascending)
			t.Run(filter+"/export", func(t *testing.T) {
				sql, args := page.Statement()
				explain(t, pool, "EXPLAIN "+sql, args)
			})
			page.Limit = limit
			check := func(t *testing.T) {
				t.Helper()
				sql, args := page.Statement()
				checkPlan(t, pool, sql, args, limit)
			}
			t.Run(filter+"/first", check)
			page.After, page.AfterTime = account.middle, middle
			t.Run(filter+"/middle", check)
		}
	}
}

// everyFilter is a page by each.
func everyFilter(from, to time.Time) (pages []statement.Page) {
	for _, entry := range []ledger.EntryType{"", ledger.Deposit, ledger.Withdrawal} {
		for _, from := range []time.Time{{}, from} {
			for _, to := range []time.Time{{}, to} {
				for _, ascending := range []bool{true, false} {
					pages = append(pages, statement.Page{Type: entry, From: from, To: to, Ascending: ascending})
				}
			}
		}
	}
	return pages
}

// The small accounts of fillMany: how many there are, and the first one's id.
const smallAccounts, firstSmall = 2_000, 1_000

// fillMany gives half of so many rows to one account and the rest to the small
// ones, in turn, as time would: what stands beside an account's rows is others'.
func fillMany(t testing.TB, url string, large int64, rows int) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context())) //nolint:errcheck // all is committed
	const insert = `
		INSERT INTO transactions (account_id, seq, type, amount, balance_after, created_at)
		SELECT CASE n % 2 WHEN 0 THEN $1 ELSE $2::int + n / 2 % $3 END, CASE n % 2 WHEN 0 THEN n / 2 ELSE n / 2 / $3 + 1 END,
			(CASE CASE n % 2 WHEN 0 THEN n / 2 ELSE n / 2 / $3 + 1 END % 10 WHEN 0 THEN 'withdrawal' ELSE 'deposit' END)::entry_type, 1, n,
			$4::timestamptz + n / 2 * interval '1 minute' + CASE WHEN n / 2 > 100 THEN interval '30 days' ELSE interval '0' END
		FROM generate_series(2, $5::bigint + 1) n`
	execute := func(sql string, args ...any) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	execute(`DROP TRIGGER transactions_rules ON transactions`) // which ask for jobs
	execute(insert, large, firstSmall, int64(smallAccounts), start, rows)
	execute(`INSERT INTO accounts (id, user_id, number, currency, last_at, created_at) OVERRIDING SYSTEM VALUE
		SELECT n, users.id, 'SMALL-' || n, 'KRW', now(), now() FROM users, generate_series($1::bigint, $2) n`, firstSmall, firstSmall+smallAccounts-1)
	execute(`VACUUM ANALYZE transactions`)
	execute(`VACUUM ANALYZE accounts`)
}

// explain fails the test where a plan does anything but walk indexes.
func explain(t *testing.T, pool *pgxpool.Pool, sql string, args []any) (lines []string, plan string) {
	t.Helper()
	rows, err := pool.Query(t.Context(), sql, args...)
	if err != nil {
		t.Fatal(err)
	}
	lines, err = pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	plan = strings.Join(lines, "\n")
	for _, bad := range []string{"Sort  (", "Seq Scan", "Bitmap", "Rows Removed"} {
		if strings.Contains(plan, bad) {
			t.Errorf("the plan has %q:\n%s", bad, plan)
		}
	}
	if !strings.Contains(plan, "Index") {
		t.Errorf("the plan has no index:\n%s", plan)
	}
	return lines, plan
}

// checkPlan fails the test, too, where more is read than so many rows and 12 buffers.
func checkPlan(t *testing.T, pool *pgxpool.Pool, sql string, args []any, rows int) {
	t.Helper()
	lines, plan := explain(t, pool, "EXPLAIN (ANALYZE, BUFFERS, TIMING OFF) "+sql, args)
	// The first line with buffers is that of the whole.
	for _, line := range lines {
		if _, counts, found := strings.Cut(line, "Buffers: shared "); found {
			read := 0
			for count := range strings.FieldsSeq(counts) {
				var n int
				if _, err := fmt.Sscanf(count, "hit=%d", &n); err == nil {
					read += n
				} else if _, err := fmt.Sscanf(count, "read=%d", &n); err == nil {
					read += n
				}
			}
			if most := rows + 12; read > most || read == 0 {
				t.Errorf("%d buffers were read, want at most %d:\n%s", read, most, plan)
			}
			return
		}
	}
	t.Errorf("the plan counts no buffers:\n%s", plan)
}
