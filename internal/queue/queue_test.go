package queue

import (
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/google/uuid"

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
	if nextID(first) != second {
		t.Errorf("after %s comes %s, want %s", first, nextID(first), second)
	}
	if got, want := nextID(second), (Ticket{JobID: id, Again: 2}).id(); got != want {
		t.Errorf("after %s comes %s, want %s", second, got, want)
	}
}

// A ticket's payload is a UUID in its one form, read digit for digit; anything
// else is a bad ticket. Whatever a ticket is called, another follows it.
func FuzzParse(f *testing.F) {
	const id = "01900000-0000-7000-8000-000000000001"
	for _, seed := range []string{
		"", "x", id, strings.ToUpper(id), "{" + id + "}", "urn:uuid:" + id, strings.ReplaceAll(id, "-", ""), id[:35], id + "0",
		strings.Replace(id, "-", "0", 1), strings.Replace(id, "1", "g", 1), id + ".1", id + ".9223372036854775808", "{" + id[:34] + "}",
	} {
		f.Add([]byte(seed))
	}
	form := regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)
	f.Fuzz(func(t *testing.T, payload []byte) {
		got, err := parse(payload)
		switch {
		case form.Match(payload) != (err == nil):
			t.Errorf("%q: %v", payload, err)
		case err != nil && (!errors.Is(err, ErrBadTicket) || got != uuid.Nil):
			t.Errorf("%q: %s, %v; want ErrBadTicket", payload, got, err)
		case err == nil && got.String() != strings.ToLower(string(payload)):
			t.Errorf("%q was read as %s", payload, got)
		}
		if next := nextID(string(payload)); next == string(payload) || next == nextID(next) {
			t.Errorf("after %q comes %q, and then %q", payload, next, nextID(next))
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
