package e2e_test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"golang.org/x/sync/errgroup"
)

// check compares what clients saw with what a bank with a single thread does:
//
//   - every request that got its 202 is one job, and there are no others
//   - every job is finished, and as it was first seen finished
//   - the requests of a client that sends one at a time end as one thread ends them
//   - B, sent after A's 202 had arrived, comes after A, whichever APIs took them;
//     a client that sends one request at a time gets the request that it sent
//   - there is a bank with a single thread that would have answered every request
//     and every look at a balance as they were answered: porcupine finds it
//   - a key, sent again, returns its job
//   - `worker verify` finds nothing, and Postgres never had to refuse anything
func (c *chaos) check() {
	c.t.Helper()
	const fewest = 100
	if n := c.load.tally(acceptedRequest); n < fewest {
		c.violation("only %d requests were accepted: that proves nothing", n)
	}
	l := c.login()
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	for _, b := range c.load.books {
		group.Go(func() error {
			c.checkBook(l, b)
			return nil
		})
	}
	_ = group.Wait() // what is wrong is noted
	c.checkKeys(l)
	c.system.verify()
}

func (c *chaos) login() *client {
	l := c.load.login.Load()
	l.t = c.t
	return l
}

// ended is a job at the end of the run.
type ended struct {
	jobAnswer
	text string
	n    int // its place among the account's jobs
}

func (c *chaos) checkBook(l *client, b *book) {
	c.t.Helper()
	jobs := map[string]*ended{}
	for n, text := range all[json.RawMessage](l, "/v1/accounts/"+b.number+"/jobs") {
		job := &ended{text: string(text), n: n}
		if err := json.Unmarshal(text, &job.jobAnswer); err != nil {
			c.t.Fatal(err)
		}
		jobs[job.ID] = job
	}
	if len(jobs) != len(b.requests) {
		c.violation("account %s has %d jobs for %d requests", b.number, len(jobs), len(b.requests))
	}
	for _, p := range b.requests {
		if jobs[p.job] == nil {
			c.violation("account %s: job %s got its 202 and is not there", b.number, p.job)
			return
		}
		if p.finished != "" && p.finished != jobs[p.job].text {
			c.violation("job %s was seen finished as %s and is now %s", p.job, p.finished, jobs[p.job].text)
		}
	}
	c.checkModel(b, jobs)
	c.checkRealTime(b, jobs)
	c.checkTimes(b, jobs)
	c.checkPorcupine(b, jobs)
	l.checkHistory(b.number)
}

// checkModel repeats the requests of a client that sends one at a time, in their order, with one
// thread.
func (c *chaos) checkModel(b *book, jobs map[string]*ended) {
	if !b.sequential {
		return
	}
	bank := newBank(b.initial)
	for i, p := range b.requests {
		next, want := bank.do(jobs[p.job].Type, p.amount)
		bank = next
		if got := jobs[p.job].outcome(); got != want {
			c.violation("account %s, request %d (%s of %d): %s, a single thread makes it %s", b.number, i, p.entry, p.amount, got, want)
			return
		}
	}
}

// checkRealTime compares the jobs' order with the times of their accepts.
func (c *chaos) checkRealTime(b *book, jobs map[string]*ended) {
	bySent := slices.SortedFunc(slices.Values(b.requests), func(x, y *placed) int { return cmp.Compare(x.sent, y.sent) })
	byAccepted := slices.SortedFunc(slices.Values(b.requests), func(x, y *placed) int { return cmp.Compare(x.accepted, y.accepted) })
	latest, next := -1, 0 // the latest place among the jobs accepted so far
	for i, p := range bySent {
		for ; next < len(byAccepted) && byAccepted[next].accepted < p.sent; next++ {
			latest = max(latest, jobs[byAccepted[next].job].n)
		}
		if n := jobs[p.job].n; n < latest {
			c.violation("account %s: job %s was sent after a later one's 202 had arrived, and comes before it", b.number, p.job)
		}
		if b.sequential && jobs[p.job].n != i {
			c.violation("account %s: request %d of a client that sends one at a time is job %d", b.number, i, jobs[p.job].n)
		}
	}
}

// checkTimes compares the jobs' times with the test's clock, which is also Postgres's: they must
// come from no other clock.
func (c *chaos) checkTimes(b *book, jobs map[string]*ended) {
	const slack = time.Second
	for _, p := range b.requests {
		created, err := time.Parse(time.RFC3339, jobs[p.job].CreatedAt)
		at := created.Sub(c.load.started)
		if err != nil || at < p.sent-slack || at > p.accepted+slack {
			c.violation("job %s, sent %v and accepted %v after the start, is dated %s (%v)", p.job, p.sent, p.accepted, jobs[p.job].CreatedAt, err)
			return
		}
	}
}

// bank is an account in a bank with a single thread.
type bank struct {
	balance, seq int64
}

func newBank(initial int64) bank {
	if initial == 0 {
		return bank{}
	}
	return bank{balance: initial, seq: 1}
}

// do applies one job and returns its outcome, as jobAnswer.outcome does.
func (b bank) do(entry string, amount int64) (bank, string) {
	if entry == "withdrawal" {
		amount = -amount
	}
	if b.balance+amount < 0 {
		return b, "rejected insufficient_funds"
	}
	b.balance += amount
	b.seq++
	return b, fmt.Sprintf("succeeded seq %d balance %d", b.seq, b.balance)
}

// The inputs and outputs of porcupine's operations: a job, or a read of the balance.
type (
	asked struct {
		entry  string // empty for a look
		amount int64
	}
	answered struct {
		outcome string // of a job
		seen    bank   // by a look
	}
)

func bankModel(initial int64) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return newBank(initial) },
		Step: func(state, input, output any) (bool, any) {
			now, in, out := state.(bank), input.(asked), output.(answered)
			if in.entry == "" {
				return now == out.seen, now
			}
			next, outcome := now.do(in.entry, in.amount)
			return outcome == out.outcome, next
		},
		DescribeOperation: func(input, output any) string {
			in, out := input.(asked), output.(answered)
			if in.entry == "" {
				return fmt.Sprintf("read: balance %d, seq %d", out.seen.balance, out.seen.seq)
			}
			return fmt.Sprintf("%s of %d: %s", in.entry, in.amount, out.outcome)
		},
		DescribeState: func(state any) string {
			now := state.(bank)
			return fmt.Sprintf("balance %d, seq %d", now.balance, now.seq)
		},
	}
}

// checkPorcupine checks whether there is an order of what happened to the account
// that explains every answer. Twice: once with all jobs between their first try
// and their 202, which is when their order is settled; and once with those that
// moved the balance between their first try and the moment a client saw them
// finished, which is when they take effect, and the reads of the balance among
// them. A rejected job changes nothing that a read could show, and to guess its
// position among the effects takes for ever.
func (c *chaos) checkPorcupine(b *book, jobs map[string]*ended) {
	var accepts, effects []porcupine.Operation
	for i, p := range b.requests {
		op := porcupine.Operation{
			ClientId: i % crowd,
			Input:    asked{jobs[p.job].Type, p.amount}, Output: answered{outcome: jobs[p.job].outcome()},
			Call: int64(p.sent), Return: int64(p.accepted),
		}
		accepts = append(accepts, op)
		op.Return = math.MaxInt64
		if p.finished != "" {
			op.Return = int64(p.seen)
		}
		if jobs[p.job].Transaction != nil {
			effects = append(effects, op)
		}
	}
	for _, s := range b.sights {
		effects = append(effects, porcupine.Operation{
			ClientId: crowd, Input: asked{}, Output: answered{seen: bank{s.balance, s.seq}},
			Call: int64(s.asked), Return: int64(s.answered),
		})
	}
	c.explain(b, "accepts", accepts)
	c.explain(b, "effects", tightened(effects))
}

// effectOrder is where among an account's effects an operation must be, as its own
// answer says: a transaction by its seq, and a look behind the transaction that it saw.
func effectOrder(op porcupine.Operation) (order int64) {
	if out := op.Output.(answered); out.outcome == "" {
		return 2*out.seen.seq + 1
	} else if _, err := fmt.Sscanf(out.outcome, "succeeded seq %d", &order); err != nil {
		return 0
	}
	return 2 * order
}

// tightened is the same history with less to guess. While a store refuses, many jobs of an
// account are under way for seconds, and porcupine would try them in every order. But what
// comes before another is begun before that one ends, and ends before whatever comes
// after does. So an order that explains one history explains the other. Where there can be
// none, the history stays as it is, for porcupine to show.
func tightened(history []porcupine.Operation) []porcupine.Operation {
	const ranks = 1 << 12 // more than operations that begin at the same time
	ops := slices.Clone(history)
	slices.SortStableFunc(ops, func(x, y porcupine.Operation) int { return cmp.Compare(effectOrder(x), effectOrder(y)) })
	same := func(x, y porcupine.Operation) bool { return effectOrder(x) == effectOrder(y) }
	begun, rank := int64(0), int64(0)
	for group := range chunksBy(ops, same) {
		next := begun
		for i := range group {
			next = max(next, group[i].Call)
			group[i].Call = max(group[i].Call, begun)
		}
		begun = next
	}
	ends := int64(math.MaxInt64)
	for _, group := range slices.Backward(slices.Collect(chunksBy(ops, same))) {
		next := ends
		for i := range group {
			next = min(next, group[i].Return)
			group[i].Return = min(group[i].Return, ends)
			if group[i].Call > group[i].Return {
				return history
			}
		}
		ends = next
	}
	for i := range ops { // of those that begin at the same time the earlier one first
		ops[i].Call = ops[i].Call*ranks + min(rank, ranks-1)
		if ops[i].Return <= math.MaxInt64/ranks-1 {
			ops[i].Return = ops[i].Return*ranks + ranks - 1
		}
		rank++
	}
	return ops
}

// chunksBy yields the runs of equal elements.
func chunksBy[T any](all []T, same func(x, y T) bool) iter.Seq[[]T] {
	return func(yield func([]T) bool) {
		for from := 0; from < len(all); {
			to := from + 1
			for to < len(all) && same(all[from], all[to]) {
				to++
			}
			if !yield(all[from:to]) {
				return
			}
			from = to
		}
	}
}

// tightened keeps a history as right, or as wrong, as it was.
func TestTightenedHistory(t *testing.T) {
	t.Parallel()
	deposit := func(seq, call, ends int64) porcupine.Operation {
		return porcupine.Operation{Input: asked{"deposit", 1}, Output: answered{outcome: fmt.Sprintf("succeeded seq %d balance %d", seq, seq)}, Call: call, Return: ends}
	}
	look := func(seq, call, ends int64) porcupine.Operation {
		return porcupine.Operation{Input: asked{}, Output: answered{seen: bank{seq, seq}}, Call: call, Return: ends}
	}
	var long []porcupine.Operation // all under way at once, the later begun first
	const under = 120
	for n := range int64(under) {
		long = append(long, deposit(under-n, n, 10_000+n), look(under-n, 5_000+n, 10_000-n))
	}
	for _, test := range []struct {
		name    string
		history []porcupine.Operation
		want    porcupine.CheckResult
	}{
		{"OK", []porcupine.Operation{deposit(1, 0, 10), deposit(2, 0, 10), look(1, 1, 9), look(2, 2, 8)}, porcupine.Ok},
		{"Never ended", []porcupine.Operation{deposit(1, 0, math.MaxInt64), look(1, 1, 2), deposit(2, 0, math.MaxInt64)}, porcupine.Ok},
		{"Many under way", long, porcupine.Ok},
		{"Look into the future", []porcupine.Operation{look(1, 0, 4), deposit(1, 5, 10)}, porcupine.Illegal},
		{"Look into the past", []porcupine.Operation{deposit(1, 0, 4), look(0, 5, 6)}, porcupine.Illegal},
		{"Looks back in time", []porcupine.Operation{deposit(1, 0, 10), look(1, 1, 2), look(0, 3, 4)}, porcupine.Illegal},
		{"Out of order", []porcupine.Operation{deposit(2, 0, 4), deposit(1, 5, 10)}, porcupine.Illegal},
		{"Wrong balance", []porcupine.Operation{deposit(1, 0, 4), {Input: asked{}, Output: answered{seen: bank{7, 1}}, Call: 1, Return: 9}}, porcupine.Illegal},
		{"Seq twice", []porcupine.Operation{deposit(1, 0, 4), deposit(1, 0, 4)}, porcupine.Illegal},
		{"A gap", []porcupine.Operation{deposit(1, 0, 4), deposit(3, 0, 4)}, porcupine.Illegal},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if got := porcupine.CheckOperationsTimeout(bankModel(0), tightened(test.history), explainWait); got != test.want {
				t.Errorf("%s, want %s", got, test.want)
			}
		})
	}
}

const explainWait = 30 * time.Second

func (c *chaos) explain(b *book, what string, history []porcupine.Operation) {
	model := bankModel(b.initial)
	if porcupine.CheckOperationsTimeout(model, history, explainWait) == porcupine.Ok {
		return
	}
	result, info := porcupine.CheckOperationsVerbose(model, history, explainWait) // dearer, for the picture
	picture := filepath.Join(cmp.Or(*chaosKeep, os.TempDir()), fmt.Sprintf("passbook-%s-%s.html", what, b.number))
	err := porcupine.VisualizePath(model, info, picture)
	c.violation("account %s: no order of its %s explains the answers (%s); the picture: %s %v", b.number, what, result, picture, err)
}

// checkKeys sends every key again, and once more after each 503, as a client does.
func (c *chaos) checkKeys(l *client) {
	c.t.Helper()
	const connections = 64
	deadline, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	var group errgroup.Group
	group.SetLimit(connections)
	for _, b := range c.load.books {
		for i, p := range b.requests {
			send := func() (int, http.Header, []byte, error) {
				return l.call(c.t.Context(), c.system.api(i), http.MethodPost,
					"/v1/accounts/"+p.account+"/"+p.entry, p.key, map[string]any{"amount": p.amount})
			}
			group.Go(func() error {
				status, header, answer, err := send()
				for err == nil && status == http.StatusServiceUnavailable && l.pause(deadline) {
					status, header, answer, err = send()
				}
				var job jobAnswer
				if err == nil {
					err = json.Unmarshal(answer, &job)
				}
				if err != nil || status != http.StatusOK || header.Get("Idempotent-Replayed") != "true" || job.ID != p.job {
					c.violation("key %s, of job %s, answers %d %s %v", p.key, p.job, status, answer, err)
				}
				return nil
			})
		}
	}
	_ = group.Wait() // what is wrong is noted
}
