package queue

import (
	"errors"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"

	"github.com/passbook/passbook/internal/testenv"
)

func TestMain(m *testing.M) {
	testenv.Main(m)
}

// The partition of an account is for ever: another hash would put an account's
// jobs into two queues during an upgrade.
func TestPartitionIsStable(t *testing.T) {
	t.Parallel()
	for accountID, want := range map[int64]int{1: 2, 2: 15, 3: 12, 1000: 6, 1 << 40: 12} {
		if got := Partition(accountID, 16); got != want {
			t.Errorf("account %d is in partition %d, want %d", accountID, got, want)
		}
	}
}

func TestPartitionsAreEven(t *testing.T) {
	t.Parallel()
	const partitions, accounts = 16, 16000
	var count [partitions]int
	for id := range int64(accounts) {
		count[Partition(id, partitions)]++
	}
	for partition, n := range count {
		if n < accounts/partitions*8/10 || n > accounts/partitions*12/10 {
			t.Errorf("partition %d has %d of %d accounts", partition, n, accounts)
		}
	}
}

func TestTicketNames(t *testing.T) {
	t.Parallel()
	id := uuid.New()
	first, second := Ticket{JobID: id}.id(), Ticket{JobID: id, Again: 1}.id()
	third, others := Ticket{JobID: id, Again: 2}.id(), Ticket{JobID: uuid.New(), Again: 1}.id()
	for before, want := range map[string]string{first: second, second: third, others: third} {
		if got := nextID(id, before); got != want {
			t.Errorf("after %s comes %s, want %s", before, got, want)
		}
	}
}

// What newTask writes parse reads, for any number of accounts that may share a
// ticket.
func TestSharedTickets(t *testing.T) {
	t.Parallel()
	var jobs []uuid.UUID
	for range maxShared {
		jobs = append(jobs, uuid.New())
		if got, err := parse(newTask(jobs)); err != nil || !slices.Equal(got, jobs) {
			t.Errorf("%d jobs: read %v, %v; wrote %v", len(jobs), got, err, jobs)
		}
	}
	if got, err := parse(newTask(append(jobs, uuid.New()))); !errors.Is(err, ErrBadTicket) {
		t.Errorf("a ticket for too many: %v, %v", got, err)
	}
}

// Rings of an account that are collected together come to one, for the job with
// the highest position; those of a partition share a ticket, up to its bound.
func TestRingsShareTickets(t *testing.T) {
	t.Parallel()
	const accounts = 100
	tickets := NewClient(nil, queuesOf(1), slog.New(slog.DiscardHandler), func() { t.Error("a ring was lost") })
	last := make([]uuid.UUID, accounts)
	for _, position := range []int64{2, 3, 1} {
		for n := range last {
			id := uuid.New()
			tickets.Ring(int64(n), position, id)
			if position == 3 {
				last[n] = id
			}
		}
	}
	var got [][]uuid.UUID
	for _, ticket := range due(tickets) {
		got = append(got, ticket.jobs)
	}
	if want := slices.Collect(slices.Chunk(last, maxShared)); !slices.EqualFunc(got, want, slices.Equal) {
		t.Errorf("the tickets are for %v, want the last job of each account, %v", got, want)
	}
}

// due are the tickets that come of the rings that wait.
func due(c *Client) []shared {
	w := newWriter(c)
	w.take(<-c.rings)
	return w.due(time.Now(), longestWait)
}

// A ticket is for accounts of one partition, and in that one's queue.
func TestTicketsKeepToTheirPartition(t *testing.T) {
	t.Parallel()
	tickets := NewClient(nil, queues, slog.New(slog.DiscardHandler), func() { t.Error("a ring was lost") })
	want := map[uuid.UUID]int{}
	for n := range int64(200) {
		id := uuid.New()
		want[id] = Partition(n, partitions)
		tickets.Ring(n, n, id)
	}
	for _, ticket := range due(tickets) {
		for _, id := range ticket.jobs {
			if want[id] != ticket.partition {
				t.Errorf("job of partition %d is in the queue of %d", want[id], ticket.partition)
			}
			delete(want, id)
		}
	}
	if len(want) > 0 {
		t.Errorf("%d jobs have no ticket", len(want))
	}
}

// A ticket names jobs by UUIDs in their one form, one after another, read digit
// for digit; anything else is a bad ticket. Whatever a ticket is called, another
// follows it.
func FuzzParse(f *testing.F) {
	const id = "01900000-0000-7000-8000-000000000001"
	for _, seed := range []string{
		"", "x", id, strings.ToUpper(id), "{" + id + "}", "urn:uuid:" + id, strings.ReplaceAll(id, "-", ""), id[:35], id + "0",
		strings.Replace(id, "-", "0", 1), strings.Replace(id, "1", "g", 1), id + ".1", id + ".9223372036854775808", "{" + id[:34] + "}",
	} {
		f.Add([]byte(seed), "")
		f.Add([]byte(id), seed)
	}
	f.Add([]byte(id), strings.Repeat(id, maxShared-1))
	f.Add([]byte(id), strings.Repeat(id, maxShared))
	const one = `[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}`
	form, also := regexp.MustCompile(`^`+one+`$`), regexp.MustCompile(`^(?:`+one+`)*$`)
	f.Fuzz(func(t *testing.T, payload []byte, header string) {
		got, err := parse(asynq.NewTaskWithHeaders(taskType, payload, map[string]string{alsoHeader: header}))
		good := form.Match(payload) && also.MatchString(header) && len(header) < maxShared*idLength
		var read strings.Builder
		for _, id := range got {
			read.WriteString(id.String())
		}
		switch {
		case good != (err == nil):
			t.Errorf("%q, %q: %v", payload, header, err)
		case err != nil && (!errors.Is(err, ErrBadTicket) || got != nil):
			t.Errorf("%q, %q: %s, %v; want ErrBadTicket", payload, header, got, err)
		case err == nil && read.String() != strings.ToLower(string(payload)+header):
			t.Errorf("%q, %q was read as %s", payload, header, got)
		}
		job := uuid.Max
		if next := nextID(job, string(payload)); next == string(payload) || next == nextID(job, next) {
			t.Errorf("after %q comes %q, and then %q", payload, next, nextID(job, next))
		}
	})
}

func TestMergedFlags(t *testing.T) {
	t.Parallel()
	for flags, want := range map[string]string{
		"": "Kl", "Kl": "Kl", "AK": "AK", "E": "EKl", "Ex": "ExKl", "K": "Kl", "AKE": "AKE", "lE": "lEK",
	} {
		if got := mergedFlags(flags); got != want {
			t.Errorf("flags %q become %q, want %q", flags, got, want)
		}
	}
}
