package job_test

import (
	"maps"
	"testing"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/testenv"
)

// A notification names the origins of the jobs that the request has made, and of no other job.
func TestOrigins(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t)
	user := ledgertest.User(t, pool)
	account := ledgertest.Account(t, pool, user, 0)
	a, notified := acceptor(t, pool, manyQueued)
	want := map[uuid.UUID]string{}

	one := deposit(user, account, "one")
	one.Origin = &job.Origin{Name: "first"}
	accepted, _, err := a.Accept(t.Context(), one)
	if err != nil {
		t.Fatal(err)
	}
	want[accepted.ID] = "first"
	one.Origin = &job.Origin{Name: "again"}
	if _, replayed, err := a.Accept(t.Context(), one); err != nil || !replayed {
		t.Fatalf("sent again: replayed %t, error %v", replayed, err)
	}
	if _, _, err := a.Accept(t.Context(), deposit(user, account, "none")); err != nil {
		t.Fatal(err)
	}

	requests := batch(user, account, "one", "two", "three")
	requests[0].Origin = &job.Origin{Name: "batch"}
	jobs, err := a.AcceptBatch(t.Context(), requests)
	if err != nil {
		t.Fatal(err)
	}
	for _, made := range jobs[1:] {
		want[made.Job.ID] = "batch"
	}
	if !maps.Equal(notified.origins, want) {
		t.Errorf("the origins are %v, want %v", notified.origins, want)
	}
}
