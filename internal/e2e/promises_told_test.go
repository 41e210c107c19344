package e2e_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"
)

// Bounds of what is remembered beside jobs and transactions.
const (
	maxMoments = 1000 // balances at a time
	maxChanges = 20   // changed answers with their texts; the rest are counted
)

// told is what the clients of a round were told, and every answer that contradicted an
// earlier one. It holds a few hundred bytes for each job, until the round ends.
type told struct {
	mu       sync.Mutex // guards the rest
	jobs     map[string]toldJob
	history  map[seqOf]string // a transaction, as a line of CSV
	balances map[seqOf]int64  // the balance after that transaction
	latest   map[string]int64 // the highest seq of each account
	moments  []moment
	answers  int
	outcomes int // answers that told a new outcome
	changed  int
	changes  []string // the first maxChanges of them
}

type seqOf struct {
	account string
	seq     int64
}

// toldJob is a finished job as a client was first told, and when its answer arrived.
type toldJob struct {
	body string
	at   time.Time
}

// moment is an account's balance at a time.
type moment struct {
	Number  string    `json:"number"`
	Balance int64     `json:"balance"`
	Seq     int64     `json:"seq"`
	At      time.Time `json:"at"`
}

// known is what clients knew when one of them sent a request: its answer shows that, or
// what is newer.
type known struct {
	at     time.Time
	latest map[string]int64
}

// toldTransaction is a transaction with everything that a client sees of it.
type toldTransaction struct {
	transaction
	Description string `json:"description"`
	CreatedAt   string `json:"created_at"`
}

// line is the transaction as an export writes it.
func (x toldTransaction) line() string {
	job := ""
	if x.JobID != nil {
		job = *x.JobID
	}
	return fmt.Sprintf("%d,%s,%d,%d,%s,%s,%s", x.Seq, x.Type, x.Amount, x.BalanceAfter, x.Description, job, x.CreatedAt)
}

func newTold() *told {
	return &told{jobs: map[string]toldJob{}, history: map[seqOf]string{}, balances: map[seqOf]int64{}, latest: map[string]int64{}}
}

func (d *told) known() known {
	d.mu.Lock()
	defer d.mu.Unlock()
	return known{time.Now(), maps.Clone(d.latest)}
}

func (d *told) change(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.changeLocked(format, args...)
}

func (d *told) changeLocked(format string, args ...any) {
	if d.changed++; len(d.changes) < maxChanges {
		d.changes = append(d.changes, fmt.Sprintf(format, args...))
	}
}

// job notes a job as it was read, and returns whether it is finished. A finished job
// stays as it was first told, byte for byte.
func (d *told) job(since known, body []byte) bool {
	var job struct {
		jobAnswer
		Account string `json:"account"`
	}
	err := json.Unmarshal(body, &job)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.answers++
	before, isTold := d.jobs[job.ID]
	switch {
	case err != nil || job.ID == "":
		d.changeLocked("no job: %s", body)
	case job.Status == "queued" && isTold && before.at.Before(since.at):
		d.changeLocked("job %s is queued again, and was told as %s", job.ID, before.body)
	case job.Status == "queued":
	case isTold && before.body != string(body):
		d.changeLocked("job %s was told as %s and is now %s", job.ID, before.body, body)
	case !isTold:
		d.jobs[job.ID] = toldJob{string(body), time.Now()}
		d.outcomes++
		if job.Transaction != nil {
			d.noteBalance(job.Account, job.Transaction.Seq, job.Transaction.BalanceAfter)
		}
	}
	return err == nil && job.Status != "queued"
}

// transaction notes a transaction, from wherever it was read.
func (d *told) transaction(account string, seq, balanceAfter int64, line string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.answers++
	at := seqOf{account, seq}
	before, isTold := d.history[at]
	switch {
	case !isTold:
		d.history[at] = line
		d.outcomes++
		d.noteBalance(account, seq, balanceAfter)
	case before != line:
		d.changeLocked("account %s: transaction %s was told as %s", account, line, before)
	}
}

// reaches notes that an answer went up to an account's transaction seq: an earlier answer
// must not have gone further.
func (d *told) reaches(since known, what, account string, seq int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if was := since.latest[account]; seq < was {
		d.changeLocked("account %s: %s ends at transaction %d, and %d was told before", account, what, seq, was)
	}
}

// balance notes an account's balance after its last transaction.
func (d *told) balance(since known, what, account string, seq, balance int64) {
	d.reaches(since, what, account, seq)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.answers++
	d.noteBalance(account, seq, balance)
}

func (d *told) noteBalance(account string, seq, balance int64) {
	at := seqOf{account, seq}
	before, isTold := d.balances[at]
	switch {
	case !isTold:
		d.balances[at] = balance
		d.outcomes++
		d.latest[account] = max(d.latest[account], seq)
	case before != balance:
		d.changeLocked("account %s: the balance after transaction %d was told as %d and is now %d", account, seq, before, balance)
	}
}

// moment keeps a balance at a time, to be asked for again; n draws the one that it replaces
// where there are maxMoments.
func (d *told) moment(m moment, n func(int) int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.answers++
	d.noteBalance(m.Number, m.Seq, m.Balance)
	if len(d.moments) < maxMoments {
		d.moments = append(d.moments, m)
		return
	}
	d.moments[n(maxMoments)] = m
}

// count returns how many answers were noted, how many new outcomes they told, and how many
// contradict an earlier one.
func (d *told) count() (answers, outcomes, changed int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.answers, d.outcomes, d.changed
}

// Each way in which an answer can take back an earlier one is noticed.
func TestTold(t *testing.T) {
	t.Parallel()
	const (
		queued   = `{"id":"j","account":"A","status":"queued"}`
		finished = `{"id":"j","account":"A","status":"succeeded","transaction":{"seq":2,"balance_after":7},"finished_at":"1"}`
		rejected = `{"id":"j","account":"A","status":"rejected","failure":{"code":"insufficient_funds"}}`
	)
	for _, test := range []struct {
		name   string
		answer func(d *told, since known)
		want   string
	}{
		{"OK", func(d *told, since known) {
			d.job(since, []byte(finished))
			d.balance(d.known(), "a balance", "A", 3, 9)
			d.transaction("A", 2, 7, "2,x")
		}, ""},
		{"QueuedAgain", func(d *told, _ known) { d.job(d.known(), []byte(queued)) }, "queued again"},
		{"QueuedAsAskedBefore", func(d *told, since known) { d.job(since, []byte(queued)) }, ""},
		{"AnotherTime", func(d *told, since known) { d.job(since, []byte(strings.Replace(finished, `"1"`, `"2"`, 1))) }, "is now"},
		{"AnotherOutcome", func(d *told, since known) { d.job(since, []byte(rejected)) }, "is now"},
		{"AnotherTransaction", func(d *told, _ known) { d.transaction("A", 1, 5, "1,y") }, "was told as 1,x"},
		{"AnotherBalance", func(d *told, since known) { d.balance(since, "a balance", "A", 2, 8) }, "after transaction 2"},
		{"AnotherBalanceAtATime", func(d *told, _ known) { d.moment(moment{Number: "A", Seq: 2, Balance: 8}, nil) }, "after transaction 2"},
		{"SeqGoesBack", func(d *told, _ known) { d.balance(d.known(), "a balance", "A", 1, 5) }, "ends at transaction 1"},
		{"SeqAsAskedBefore", func(d *told, since known) { d.balance(since, "a balance", "A", 1, 5) }, ""},
		{"HistoryGoesBack", func(d *told, _ known) { d.reaches(d.known(), "a page", "A", 1) }, "ends at transaction 1"},
		{"NoJob", func(d *told, since known) { d.job(since, []byte(`{}`)) }, "no job"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			d := newTold()
			before := d.known()
			d.transaction("A", 1, 5, "1,x")
			d.job(before, []byte(finished))
			test.answer(d, before)
			if got := strings.Join(d.changes, "; "); (test.want == "") != (got == "") || !strings.Contains(got, test.want) {
				t.Errorf("found %q, want %q", got, test.want)
			}
		})
	}
}
