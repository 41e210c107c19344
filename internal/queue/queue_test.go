package queue

import (
	"errors"
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

func FuzzParse(f *testing.F) {
	for _, seed := range []string{"", "x", uuid.NewString(), strings.ToUpper(uuid.NewString()), "{" + uuid.NewString() + "}", "urn:uuid:" + uuid.NewString()} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		id, err := parse(payload)
		switch {
		case err != nil && !errors.Is(err, ErrBadTicket):
			t.Errorf("%q: %v, want ErrBadTicket", payload, err)
		case err == nil && !strings.EqualFold(id.String(), string(payload)):
			t.Errorf("%q was read as %s", payload, id)
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
