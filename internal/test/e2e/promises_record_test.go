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

// record is the outcomes that the clients of a round have read, and every answer that
// contradicted an earlier answer. It holds a few hundred bytes a job until the round ends.
type record struct {
	mu       sync.Mutex // guards the rest
	jobs     map[string]recordedJob
	history  map[seqOf]recorded[string] // a transaction, as a line of CSV
	balances map[seqOf]recorded[int64]  // the balance after that transaction
	latest   map[string]int64           // the highest seq of each account
	moments  []moment
	answers  int
	news     int // answers that showed a higher seq of an account than any answer before
	changed  int
	changes  []string // the first maxChanges of them
}

type seqOf struct {
	account string
	seq     int64
}

// recorded is what was read first, and by which route.
type recorded[T any] struct {
	what  T
	route string
}

// recordedJob is a finished job as a client read it first, and when that answer arrived.
type recordedJob struct {
	recorded[string]
	at time.Time
}

// moment is an account's balance at a time.
type moment struct {
	Number  string    `json:"number"`
	Balance int64     `json:"balance"`
	Seq     int64     `json:"seq"`
	At      time.Time `json:"at"`
}

// known is what clients knew when one of them sent a request to a route: its answer shows
// that, or what is newer.
type known struct {
	route  string
	at     time.Time
	latest map[string]int64
}

// seenTransaction is a transaction with everything that a client sees of it.
type seenTransaction struct {
	transaction
	Description string `json:"description"`
	CreatedAt   string `json:"created_at"`
}

// line is the transaction as an export writes it.
func (x seenTransaction) line() string {
	job := ""
	if x.JobID != nil {
		job = *x.JobID
	}
	return fmt.Sprintf("%d,%s,%d,%d,%s,%s,%s", x.Seq, x.Type, x.Amount, x.BalanceAfter, x.Description, job, x.CreatedAt)
}

func newRecord() *record {
	return &record{jobs: map[string]recordedJob{}, history: map[seqOf]recorded[string]{}, balances: map[seqOf]recorded[int64]{}, latest: map[string]int64{}}
}

func (d *record) known(route string) known {
	d.mu.Lock()
	defer d.mu.Unlock()
	return known{route, time.Now(), maps.Clone(d.latest)}
}

func (d *record) change(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.changeLocked(format, args...)
}

func (d *record) changeLocked(format string, args ...any) {
	if d.changed++; len(d.changes) < maxChanges {
		d.changes = append(d.changes, fmt.Sprintf(format, args...))
	}
}

// job notes a job as it was read, and returns whether it is finished. A finished job
// stays as it was first read, byte for byte.
func (d *record) job(since known, body []byte) bool {
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
		d.changeLocked("job %s is queued again in %s, and was read in %s as %s", job.ID, since.route, before.route, before.what)
	case job.Status == "queued":
	case isTold && before.what != string(body):
		d.changeLocked("job %s was read in %s as %s and is now %s", job.ID, before.route, before.what, body)
	case !isTold:
		d.jobs[job.ID] = recordedJob{recorded[string]{string(body), since.route}, time.Now()}
		if job.Transaction != nil {
			d.noteBalance(since, job.Account, job.Transaction.Seq, job.Transaction.BalanceAfter)
		}
	}
	return err == nil && job.Status != "queued"
}

// transaction notes a transaction, from wherever it was read.
func (d *record) transaction(since known, account string, seq, balanceAfter int64, line string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.answers++
	at := seqOf{account, seq}
	before, isTold := d.history[at]
	switch {
	case !isTold:
		d.history[at] = recorded[string]{line, since.route}
		d.noteBalance(since, account, seq, balanceAfter)
	case before.what != line:
		d.changeLocked("account %s: transaction %s was read in %s as %s", account, line, before.route, before.what)
	}
}

// reaches notes that an answer went up to an account's transaction seq: an earlier answer
// must not have gone further.
func (d *record) reaches(since known, account string, seq int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if was := since.latest[account]; seq < was {
		d.changeLocked("account %s ends at transaction %d in %s, and %d was read before in %s",
			account, seq, since.route, was, d.balances[seqOf{account, was}].route)
	}
}

// head notes an account's last transaction, as the head of an event stream shows it.
func (d *record) head(since known, account string, seq int64) {
	d.reaches(since, account, seq)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.answers++
	if seq > d.latest[account] {
		d.latest[account] = seq
		d.news++
	}
}

// balance notes an account's balance after its last transaction.
func (d *record) balance(since known, account string, seq, balance int64) {
	d.reaches(since, account, seq)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.answers++
	d.noteBalance(since, account, seq, balance)
}

func (d *record) noteBalance(since known, account string, seq, balance int64) {
	at := seqOf{account, seq}
	before, isTold := d.balances[at]
	switch {
	case !isTold:
		d.balances[at] = recorded[int64]{balance, since.route}
		if seq > d.latest[account] {
			d.latest[account] = seq
			d.news++
		}
	case before.what != balance:
		d.changeLocked("account %s: the balance after transaction %d was read in %s as %d and is now %d",
			account, seq, before.route, before.what, balance)
	}
}

// moment keeps a balance at a time, to be read again at the end. n draws the moment that it
// replaces where there are maxMoments.
func (d *record) moment(since known, m moment, n func(int) int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.answers++
	d.noteBalance(since, m.Number, m.Seq, m.Balance)
	if len(d.moments) < maxMoments {
		d.moments = append(d.moments, m)
		return
	}
	d.moments[n(maxMoments)] = m
}

// count returns how many answers were noted, how many of them were news, and how many
// contradict an earlier one.
func (d *record) count() (answers, news, changed int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.answers, d.news, d.changed
}

// record notices each way in which an answer can contradict an earlier one.
func TestRecord(t *testing.T) {
	t.Parallel()
	const (
		queued   = `{"id":"j","account":"A","status":"queued"}`
		finished = `{"id":"j","account":"A","status":"succeeded","transaction":{"seq":2,"balance_after":7},"finished_at":"1"}`
		rejected = `{"id":"j","account":"A","status":"rejected","failure":{"code":"insufficient_funds"}}`
	)
	for _, test := range []struct {
		name   string
		answer func(d *record, since known)
		want   string
	}{
		{"OK", func(d *record, since known) {
			d.job(since, []byte(finished))
			d.balance(d.known("a test"), "A", 3, 9)
			d.transaction(since, "A", 2, 7, "2,x")
		}, ""},
		{"QueuedAgain", func(d *record, _ known) { d.job(d.known("a test"), []byte(queued)) }, "queued again"},
		{"QueuedAsReadBefore", func(d *record, since known) { d.job(since, []byte(queued)) }, ""},
		{"AnotherTime", func(d *record, since known) { d.job(since, []byte(strings.Replace(finished, `"1"`, `"2"`, 1))) }, "is now"},
		{"AnotherOutcome", func(d *record, since known) { d.job(since, []byte(rejected)) }, "is now"},
		{"AnotherTransaction", func(d *record, since known) { d.transaction(since, "A", 1, 5, "1,y") }, "in a test as 1,x"},
		{"AnotherBalance", func(d *record, since known) { d.balance(since, "A", 2, 8) }, "after transaction 2"},
		{"AnotherBalanceAtATime", func(d *record, since known) { d.moment(since, moment{Number: "A", Seq: 2, Balance: 8}, nil) }, "after transaction 2"},
		{"SeqGoesBack", func(d *record, _ known) { d.balance(d.known("a test"), "A", 1, 5) }, "ends at transaction 1"},
		{"SeqAsReadBefore", func(d *record, since known) { d.balance(since, "A", 1, 5) }, ""},
		{"HistoryGoesBack", func(d *record, _ known) { d.reaches(d.known("a test"), "A", 1) }, "ends at transaction 1"},
		{"HeadGoesBack", func(d *record, _ known) { d.head(d.known("a test"), "A", 1) }, "ends at transaction 1"},
		{"BehindAHead", func(d *record, since known) {
			d.head(since, "A", 5)
			d.balance(d.known("a test"), "A", 4, 9)
		}, "ends at transaction 4"},
		{"NoJob", func(d *record, since known) { d.job(since, []byte(`{}`)) }, "no job"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			d := newRecord()
			before := d.known("a test")
			d.transaction(before, "A", 1, 5, "1,x")
			d.job(before, []byte(finished))
			test.answer(d, before)
			if got := strings.Join(d.changes, "; "); (test.want == "") != (got == "") || !strings.Contains(got, test.want) {
				t.Errorf("found %q, want %q", got, test.want)
			}
		})
	}
}
