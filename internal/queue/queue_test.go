package queue

import (
	"errors"
	"log/slog"
	"math"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/test/testenv"
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

// What newTask writes parse reads, for any number of accounts that may share a task.
func TestTaskNamesItsJobs(t *testing.T) {
	t.Parallel()
	var jobs []Notification
	for n := range maxShared {
		jobs = append(jobs, Notification{JobID: uuid.New(), AccountID: int64(n), Position: math.MaxInt64 - int64(n), Jobs: n})
		if got, err := parse(newTask(jobs).Payload()); err != nil || !slices.Equal(got, jobs) {
			t.Errorf("%d jobs: read %v, %v; wrote %v", len(jobs), got, err, jobs)
		}
	}
	if got, err := parse(newTask(append(jobs, Notification{})).Payload()); !errors.Is(err, ErrBadTicket) {
		t.Errorf("a task for too many: %v, %v", got, err)
	}
}

// Notifications of an account that are collected together come to one, for the job with the
// highest position and for the number of all; each is with those of its partition.
func TestNotificationsOfAnAccountAreMerged(t *testing.T) {
	t.Parallel()
	const accounts = 100
	tasks := NewClient(nil, queues, slog.New(slog.DiscardHandler), func() { t.Error("a notification was lost") })
	last := map[int64]uuid.UUID{}
	for _, position := range []int64{2, 3, 1} {
		for n := range int64(accounts) {
			id := uuid.New()
			tasks.Notify(n+1, position, id, 2)
			if position == 3 {
				last[n+1] = id
			}
		}
	}
	seen := 0
	for partition, notifications := range newWriter(tasks).collect(<-tasks.notifications) {
		for _, got := range notifications {
			want := Notification{JobID: last[got.AccountID], AccountID: got.AccountID, Position: 3, Jobs: 6}
			if got != want || partition != Partition(got.AccountID, partitions) {
				t.Errorf("in partition %d: %+v, want %+v in %d", partition, got, want, Partition(got.AccountID, partitions))
			}
			seen++
		}
	}
	if seen != accounts {
		t.Errorf("%d notifications, want one for each of %d accounts", seen, accounts)
	}
}

// Those of unknown accounts stay by themselves.
func TestMergeKeepsUnknownAccounts(t *testing.T) {
	t.Parallel()
	all := []Notification{{JobID: uuid.New(), Jobs: 1}, {JobID: uuid.New(), Jobs: 1}}
	if got := Merge(all); !slices.Equal(got, all) {
		t.Errorf("merged %v to %v", all, got)
	}
}

// A task names jobs in lines of a UUID in its one form and three numbers; anything else is a
// bad task. Whatever a task is called, another follows it.
func FuzzParse(f *testing.F) {
	const id = "01900000-0000-7000-8000-000000000001"
	const line = id + " 1 2 3"
	for _, seed := range []string{
		"", "x", id, line, strings.ToUpper(line), "{" + id + "} 1 2 3", "urn:uuid:" + line, strings.ReplaceAll(line, "-", ""), line[:35], line + "0",
		strings.Replace(line, "1", "g", 1), id + ".1", id + ".9223372036854775808", id + " -1 0 99999999999999999999", line + " 4", line + "\n",
		line + "\n" + line, strings.Repeat(line+"\n", maxShared-1) + line, strings.Repeat(line+"\n", maxShared) + line,
	} {
		f.Add([]byte(seed))
	}
	form := regexp.MustCompile(`^[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}(?: [-+]?[0-9]+){3}$`)
	f.Fuzz(func(t *testing.T, payload []byte) {
		got, err := parse(payload)
		if err != nil && (!errors.Is(err, ErrBadTicket) || got != nil) {
			t.Errorf("%q: %v, %v; want ErrBadTicket alone", payload, got, err)
		}
		if err == nil {
			lines := strings.Split(string(payload), "\n")
			if len(lines) != len(got) || len(got) > maxShared {
				t.Errorf("%q was read as %v", payload, got)
			}
			for i, line := range lines {
				if !form.MatchString(line) || !strings.HasPrefix(strings.ToLower(line), got[i].JobID.String()) {
					t.Errorf("%q was read as %v", line, got[i])
				}
			}
			if again, err := parse(newTask(got).Payload()); err != nil || !slices.Equal(again, got) {
				t.Errorf("%v was read as %v, %v", got, again, err)
			}
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
