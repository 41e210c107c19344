package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"

	"github.com/passbook/passbook/internal/test/testenv"
)

// Reads that hang hold every connection of theirs, and none of the accepts'.
func TestAcceptsHaveConnectionsOfTheirOwn(t *testing.T) {
	t.Parallel()
	const conns, readers, deposits = 4, 32, 20
	s := &system{t: t, postgres: testenv.PostgresServer(t), redis: testenv.RedisServer(t)}
	s.databaseURL = fmt.Sprint(s.postgres.URL(), "&pool_max_conns=", conns)
	s.start(1, 0)
	c := newClient(t, s)
	a := c.open(0)
	holder, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Rollback(context.WithoutCancel(t.Context())) //nolint:errcheck // it wrote nothing
	if _, err := holder.Exec(t.Context(), `LOCK TABLE transactions IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	reading, stop := context.WithCancel(t.Context())
	var group sync.WaitGroup
	defer group.Wait()
	defer stop()
	for range readers {
		group.Go(func() {
			for reading.Err() == nil {
				_, _, _ = c.request(reading, s.api(0), http.MethodGet, "/v1/accounts/"+a.Number+"/transactions", "", nil) // a 503 each
			}
		})
	}
	testenv.Eventually(t, "reads hold the connections", func() (held bool) {
		const sql = `SELECT count(*) >= $1 FROM pg_stat_activity WHERE application_name = 'passbook-api' AND wait_event_type = 'Lock'`
		return s.pool.QueryRow(t.Context(), sql, conns-1).Scan(&held) == nil && held
	})
	for i := range deposits {
		status, answer, err := c.request(t.Context(), s.api(0), http.MethodPost,
			"/v1/accounts/"+a.Number+"/deposits", fmt.Sprint(i), map[string]any{"amount": 1})
		if err != nil || status != http.StatusAccepted {
			t.Errorf("deposit %d: %d %s %v", i, status, answer, err)
		}
	}
}
