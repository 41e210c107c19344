package event_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/event"
	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/internal/test/testenv"
)

// unlucky is an amount that the database refuses, so that its job fails.
const unlucky = 13

// bank is an account whose jobs end in every way.
type bank struct {
	t       *testing.T
	pool    *pgxpool.Pool
	account ledger.Account
	stream  event.Stream // of the account's owner
	want    []string     // what took effect, in order, as text makes it
}

func newBank(t *testing.T) *bank {
	t.Helper()
	pool, err := postgres.Open(t.Context(), postgres.Config{URL: testenv.Postgres(t), MaxConns: 4, Serving: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	ledgertest.Exec(t, pool, fmt.Sprintf(`ALTER TABLE transactions ADD CONSTRAINT unlucky CHECK (amount <> %d)`, unlucky))
	b := &bank{t: t, pool: pool, want: []string{"transaction 1 100"}}
	user := ledgertest.User(t, pool)
	b.account = ledgertest.Account(t, pool, user, 100)
	b.stream = event.Stream{Account: ledger.Owned{UserID: user, Number: b.account.Number}, Session: session(t, pool, user)}
	return b
}

func session(t *testing.T, pool *pgxpool.Pool, user uuid.UUID) (id uuid.UUID) {
	t.Helper()
	id = uuid.New()
	ledgertest.Exec(t, pool, `INSERT INTO sessions (id, user_id) VALUES ($1, $2)`, id, user)
	return id
}

// do has a job end in the n-th way.
func (b *bank) do(n int) (id uuid.UUID) {
	b.t.Helper()
	switch n % 4 {
	case 0, 1:
		id = ledgertest.Job(b.t, b.pool, b.account, ledger.Deposit, 5)
		b.want = append(b.want, fmt.Sprintf("transaction %d 5", 1+strings.Count(strings.Join(b.want, ";"), "transaction")))
	case 2:
		id = ledgertest.Job(b.t, b.pool, b.account, ledger.Withdrawal, ledger.MaxAmount)
		b.want = append(b.want, fmt.Sprintf("rejected insufficient_funds %s", id))
	case 3:
		id = ledgertest.Job(b.t, b.pool, b.account, ledger.Deposit, unlucky)
		b.want = append(b.want, fmt.Sprintf("failed internal_error %s", id))
	}
	b.finish(id)
	return id
}

// finish applies a job, or attempts it until it has failed.
func (b *bank) finish(id uuid.UUID) {
	b.t.Helper()
	for range ledger.MaxAttempts {
		_, _, err := ledger.NewApplier(b.pool).Apply(b.t.Context(), id, 1)
		if err == nil {
			return
		}
		if !errors.Is(err, ledger.ErrRefused) {
			b.t.Fatal(err)
		}
	}
}

func text(e event.Event) string {
	if e.Transaction != nil {
		return fmt.Sprintf("transaction %d %d", e.Transaction.Seq, e.Transaction.Amount)
	}
	return fmt.Sprintf("%s %s %s", e.Job.Status, *e.Job.Failure, e.Job.ID)
}

// begin returns the stream after a seq, or from now on.
func (b *bank) begin(after ...int64) event.Stream {
	b.t.Helper()
	var seq *int64
	if len(after) > 0 {
		seq = &after[0]
	}
	stream := b.stream
	id, cursor, err := event.NewReader(b.pool).Begin(b.t.Context(), stream.Account, seq)
	if err != nil || id != b.account.ID {
		b.t.Fatalf("account %d, %v; want account %d", id, err, b.account.ID)
	}
	stream.After = cursor
	return stream
}

// read reads all that follows, page by page.
func (b *bank) read(stream event.Stream) (all []string) {
	b.t.Helper()
	for {
		pages, err := event.NewReader(b.pool).Read(b.t.Context(), []event.Stream{stream})
		if err != nil || pages[0].Err != nil {
			b.t.Fatal(err, pages)
		}
		for _, e := range pages[0].Events {
			all = append(all, text(e))
		}
		if stream.After = pages[0].Next; len(pages[0].Events) < event.PageSize {
			return all
		}
	}
}

func (b *bank) wantRead(what string, stream event.Stream, want []string) {
	b.t.Helper()
	if got := b.read(stream); !slices.Equal(got, want) {
		b.t.Errorf("%s: got %q\nwant %q", what, got, want)
	}
}

// Events come in the order in which they took effect, on pages of any length, from each transaction
// on and from any event on, also where Postgres's clock goes back. Neither a replay nor the archive
// changes their order.
func TestRead(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	now := b.begin()
	for n := range 30 {
		b.do(n)
		if n == 10 { // from here on the clock is behind all times of the account
			ledgertest.Exec(t, b.pool, `UPDATE accounts SET answered_until = clock_timestamp() + interval '1 hour'`)
		}
	}
	check := func(t *testing.T) {
		t.Helper()
		b.t = t
		b.wantRead("from the beginning", b.begin(0), b.want)
		b.wantRead("from before the first job", now, b.want[1:])
		b.wantRead("from now on", b.begin(), nil)
		for i, line := range b.want {
			var seq int64
			if _, err := fmt.Sscanf(line, "transaction %d", &seq); err == nil {
				b.wantRead("after "+line, b.begin(seq), b.want[i+1:])
			}
		}
		b.wantEachCursor()
	}
	t.Run("OK", check)
	t.Run("Archived", func(t *testing.T) {
		ledgertest.Unguarded(t, b.pool, ledgertest.ToArchive+` WHERE status IN ('succeeded', 'rejected') AND position % 2 = 0;
			DELETE FROM rejections USING archived_jobs WHERE id = job_id; DELETE FROM jobs USING archived_jobs WHERE jobs.id = archived_jobs.id`)
		check(t)
	})
	t.Run("Replayed", func(t *testing.T) {
		b.t = t
		id := uuid.MustParse(strings.TrimPrefix(b.want[4], "failed internal_error "))
		ledgertest.Replay(t, b.pool, id)
		b.finish(id)
		b.want = append(slices.Delete(b.want, 4, 5), fmt.Sprintf("failed internal_error %s", id))
		check(t)
	})
}

// wantEachCursor reads one account through many streams at once, each from another event on.
func (b *bank) wantEachCursor() {
	b.t.Helper()
	streams := []event.Stream{b.begin(0)}
	for range b.want {
		pages, err := event.NewReader(b.pool).Read(b.t.Context(), streams)
		if err != nil {
			b.t.Fatal(err)
		}
		for i, page := range pages {
			if len(page.Events) != len(b.want)-i {
				b.t.Fatalf("%d events after the first %d, want %d", len(page.Events), i, len(b.want)-i)
			}
			if len(page.Events) > 0 && text(page.Events[0]) != b.want[i] {
				b.t.Errorf("%q follows the first %d, want %q", text(page.Events[0]), i, b.want[i])
			}
		}
		next := b.stream
		next.After = b.after(streams[len(streams)-1], pages[len(pages)-1].Events[0])
		streams = append(streams, next)
	}
}

// after is the cursor after one event.
func (b *bank) after(stream event.Stream, e event.Event) event.Cursor {
	if e.Transaction != nil {
		return event.Cursor{Seq: e.Transaction.Seq, At: e.Transaction.CreatedAt}
	}
	return event.Cursor{Seq: stream.After.Seq, At: *e.Job.FinishedAt}
}

// A page ends between events of any kind, and the next one goes on there.
func TestRead_Pages(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	for n := range event.PageSize {
		b.do([]int{0, 2, 2}[n%3])
	}
	for n := range event.PageSize {
		b.do([]int{2, 0, 0}[n%3])
	}
	b.wantRead("from the beginning", b.begin(0), b.want)
}

// Each job event has everything that a read of the job shows.
func TestRead_ShowsTheJob(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	for n := range 4 {
		id := b.do(n)
		stream := b.begin(0)
		pages, err := event.NewReader(b.pool).Read(t.Context(), []event.Stream{stream})
		if err != nil {
			t.Fatal(err)
		}
		last := pages[0].Events[len(pages[0].Events)-1]
		want, err := job.NewReader(b.pool).Job(t.Context(), stream.Account.UserID, id)
		if err != nil {
			t.Fatal(err)
		}
		show := func(j job.Job) string {
			return fmt.Sprint(j.ID, j.Position, j.Account, j.Type, j.Amount, j.Currency, j.Description, j.Status, j.Seq, j.CreatedAt, j.FinishedAt)
		}
		if last.Job != nil && show(*last.Job) != show(want) || last.Transaction != nil && *last.Transaction.JobID != id {
			t.Errorf("got %+v, want %+v", last, want)
		}
	}
}

// A stream ends with its session, and where what it has shown is lost. No stream follows another
// user's account, nor with another user's session.
func TestRead_Over(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	for n := range 3 {
		b.do(n)
	}
	another := ledgertest.User(t, b.pool)
	goOn := b.begin(1)
	lostSeq, lostTime := b.begin(2), b.begin()
	lostSeq.After.Seq = 99
	lostTime.After.At = lostTime.After.At.Add(time.Microsecond)
	theirs, theirSession, revoked, unknown := goOn, goOn, goOn, goOn
	theirs.Account.UserID, theirs.Session = another, session(t, b.pool, another)
	theirSession.Session = theirs.Session
	revoked.Session = session(t, b.pool, goOn.Account.UserID)
	ledgertest.Exec(t, b.pool, `UPDATE sessions SET revoked_at = now() WHERE id = $1`, revoked.Session)
	unknown.Session = uuid.New()
	streams := map[string]event.Stream{
		"LostSeq": lostSeq, "LostTime": lostTime, "AnothersAccount": theirs, "AnothersSession": theirSession, "Revoked": revoked, "NoSession": unknown,
	}
	for name, stream := range streams {
		t.Run(name, func(t *testing.T) {
			pages, err := event.NewReader(b.pool).Read(t.Context(), []event.Stream{goOn, stream, goOn})
			if err != nil {
				t.Fatal(err)
			}
			if !errors.Is(pages[1].Err, event.ErrOver) || len(pages[1].Events) > 0 {
				t.Errorf("got %+v, want %v", pages[1], event.ErrOver)
			}
			for _, page := range []event.Page{pages[0], pages[2]} {
				if page.Err != nil || len(page.Events) != 3 {
					t.Errorf("beside it %+v, want three events", page)
				}
			}
		})
	}
}

// A job whose request is lost ends the streams that come to it, and no other.
func TestRead_Damaged(t *testing.T) {
	t.Parallel()
	for name, n := range map[string]int{"Rejected": 2, "Failed": 3} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBank(t)
			from := b.begin()
			b.do(0)
			lost := b.do(n)
			b.do(1)
			other := *b
			other.account = ledgertest.Account(t, b.pool, b.stream.Account.UserID, 0)
			other.stream.Account.Number = other.account.Number
			sound := other.begin()
			other.do(0)
			ledgertest.Unguarded(t, b.pool, fmt.Sprintf(`DELETE FROM jobs WHERE id = '%s'`, lost))
			pages, err := event.NewReader(b.pool).Read(t.Context(), []event.Stream{sound, from, sound})
			if err != nil {
				t.Fatal(err)
			}
			if !errors.Is(pages[1].Err, event.ErrDamaged) || len(pages[1].Events) > 0 {
				t.Errorf("got %+v, want %v", pages[1], event.ErrDamaged)
			}
			for _, page := range []event.Page{pages[0], pages[2]} {
				if page.Err != nil || len(page.Events) != 1 {
					t.Errorf("beside it %+v, want one event", page)
				}
			}
		})
	}
}

func TestBegin(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	another := ledger.Owned{UserID: ledgertest.User(t, b.pool), Number: b.account.Number}
	for name, test := range map[string]struct {
		account ledger.Owned
		after   int64
		want    error
	}{
		"OK": {b.stream.Account, 1, nil}, "Beginning": {b.stream.Account, 0, nil},
		"ToCome": {b.stream.Account, 2, event.ErrUnknownSeq}, "Anothers": {another, 1, ledger.ErrAccountNotFound},
		"AnothersUnknown": {another, 2, ledger.ErrAccountNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			if _, _, err := event.NewReader(b.pool).Begin(t.Context(), test.account, &test.after); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
	if _, _, err := event.NewReader(b.pool).Begin(t.Context(), another, nil); !errors.Is(err, ledger.ErrAccountNotFound) {
		t.Errorf("got %v, want %v", err, ledger.ErrAccountNotFound)
	}
}

// The statement reads each index in its order, from the cursor on, also where it was planned while
// the tables were empty. An account without news costs no search of its outcomes.
func TestReadPlan(t *testing.T) {
	t.Parallel()
	b := newBank(t)
	for n := range 40 {
		b.do(n)
	}
	ledgertest.Exec(t, b.pool, `ANALYZE`)
	plan := func(stream event.Stream) string {
		t.Helper()
		args := []any{[]uuid.UUID{stream.Session}, []uuid.UUID{stream.Account.UserID}, []string{stream.Account.Number}, []int64{stream.After.Seq}, []time.Time{stream.After.At}}
		rows, err := b.pool.Query(t.Context(), `EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) `+event.ReadSQL, args...)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		var lines []string
		for rows.Next() {
			var line string
			if err := rows.Scan(&line); err != nil {
				t.Fatal(err)
			}
			lines = append(lines, line)
		}
		if rows.Err() != nil {
			t.Fatal(rows.Err())
		}
		return strings.Join(lines, "\n")
	}
	withNews, without := plan(b.begin(1)), plan(b.begin())
	for _, index := range []string{"transactions_pkey", "rejections_times", "failures_times", "archived_jobs_rejected_times"} {
		line := lineWith(withNews, "using "+index)
		if !strings.Contains(line, "actual") {
			t.Errorf("with news, %s: %q\n%s", index, line, withNews)
		}
		if line := lineWith(without, "using "+index); !strings.Contains(line, "never executed") {
			t.Errorf("without news, %s: %q\n%s", index, line, without)
		}
	}
	for _, index := range []string{"sessions_pkey", "accounts_number"} {
		if !strings.Contains(withNews, "using "+index) {
			t.Errorf("the plan does not use %s:\n%s", index, withNews)
		}
	}
	for _, bad := range []string{"Seq Scan", "Bitmap", "Materialize"} {
		if strings.Contains(withNews, bad) {
			t.Errorf("the plan has a %s:\n%s", bad, withNews)
		}
	}
}

func lineWith(plan, text string) string {
	for line := range strings.Lines(plan) {
		if strings.Contains(line, text) {
			return line
		}
	}
	return ""
}
