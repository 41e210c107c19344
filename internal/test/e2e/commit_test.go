package e2e_test

import (
	"context"
	"net/http"
	"testing"
	"time"
)

// A 202 says that the job is committed: while Postgres has done all of the
// insert but its commit there is none, nor after a commit that failed.
func TestNoAnswerBeforeTheCommit(t *testing.T) {
	t.Parallel()
	const answerBound = 10 * time.Second // no hang, under -race on a loaded machine either
	tests := []struct {
		name     string
		atCommit string // what Postgres does between the insert and its commit
	}{
		{"CommitRefused", `RAISE EXCEPTION 'refused at the commit'`},
		{"CommitWaits", `PERFORM pg_advisory_xact_lock(1)`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newSystem(t, plain, 1, 1)
			c := newClient(t, s)
			a := c.open(0)
			if _, err := s.pool.Exec(t.Context(), `
				CREATE FUNCTION at_commit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN `+test.atCommit+`; RETURN NULL; END $$;
				CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON jobs
				DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION at_commit()`); err != nil {
				t.Fatal(err)
			}
			holder, err := s.pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer holder.Rollback(context.WithoutCancel(t.Context())) //nolint:errcheck // it is over by then
			if _, err := holder.Exec(t.Context(), `SELECT pg_advisory_xact_lock(1)`); err != nil {
				t.Fatal(err)
			}
			req := jobRequest{account: a.Number, entry: "deposits", amount: 1, key: "k"}
			asked := time.Now()
			status, answer, err := c.send(t.Context(), 0, req)
			if took := time.Since(asked); err != nil || status < http.StatusInternalServerError || took > answerBound {
				t.Errorf("answered %d %s, %v after %v before the commit; want 5xx within %v", status, answer, err, took, answerBound)
			}
			if n := s.queued(); n != 0 {
				t.Errorf("%d jobs are there, want none", n)
			}
			if err := holder.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := s.pool.Exec(t.Context(), `DROP TRIGGER at_commit ON jobs`); err != nil {
				t.Fatal(err)
			}
			if _, err := c.settle(0, req); err != nil {
				t.Error(err)
			}
			s.drained()
			if n := len(c.checkHistory(a.Number)); n != 1 {
				t.Errorf("%d transactions of one key, want 1", n)
			}
			s.verify()
		})
	}
}
