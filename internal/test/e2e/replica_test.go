package e2e_test

import (
	"testing"

	"github.com/passbook/passbook/internal/ledger/ledgertest"
	"github.com/passbook/passbook/internal/test/testenv"
)

// A client that has seen its job finished finds it in the history, wherever the
// replica is with it, and where there is none any more.
func TestReadReplica(t *testing.T) {
	t.Parallel()
	s := &system{t: t, postgres: testenv.PostgresServer(t), redis: testenv.RedisServer(t), build: plain}
	standby := testenv.PostgresStandby(t, s.postgres)
	s.replicaURL = standby.URL()
	s.start(1, 1)
	c := newClient(t, s)
	a := c.open(0)
	replica := (&system{t: t, databaseURL: standby.URL()}).connect()
	entries := 0
	finish := func() {
		t.Helper()
		entries++
		s.finish(c, jobRequest{a.Number, "deposits", 5, a.Number + string(rune('a'+entries))})
		if n := len(c.checkHistory(a.Number)); n != entries {
			t.Errorf("%d transactions, want %d", n, entries)
		}
	}
	finish()
	var reads int
	err := replica.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE application_name = 'passbook-api-history'`).Scan(&reads)
	if err != nil || reads == 0 {
		t.Errorf("the API has %d connections to the replica, %v", reads, err)
	}
	ledgertest.Exec(t, replica, `SELECT pg_wal_replay_pause()`)
	finish()
	ledgertest.Exec(t, replica, `SELECT pg_wal_replay_resume()`)
	finish()
	replica.Close()
	if err := standby.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(c.checkHistory(a.Number)); n != entries {
		t.Errorf("%d transactions without the replica, want %d", n, entries)
	}
}
