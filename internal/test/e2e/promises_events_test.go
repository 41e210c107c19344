package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"time"
)

// followTime is how long a reader follows an account before it goes on with another route. Some
// of these times have a crash in them.
const followTime = 500 * time.Millisecond

// readEvents follows an account for a while, from near the last transaction that is known. A crash
// of Postgres does not end the stream.
func (r *round) readEvents(since known, api int, a *roundAccount) error {
	const back = 20
	ctx, cancel := context.WithTimeout(r.t.Context(), followTime)
	defer cancel()
	seq := max(0, since.latest[a.number]-rand.Int64N(back))
	stream, status, err := r.c.follow(ctx, api, a.number, seq)
	switch {
	case err != nil || status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests: // it has not noticed that others ended
		return errUnanswered
	case status == http.StatusBadRequest: // a transaction that was read is not there
		r.record.change("account %s has no events after transaction %d", a.number, seq)
		return nil
	case stream == nil:
		return fmt.Errorf("events of %s: %d", a.number, status)
	}
	defer stream.close()
	for {
		e, err := stream.next()
		if err != nil {
			return nil // followTime is over, or the API ends the stream
		}
		if seq, err = r.noteEvent(since, a.number, seq, e); err != nil {
			return err
		}
	}
}

// readEventHead opens a stream from now on. Its head shows the account's last transaction.
func (r *round) readEventHead(since known, api int, a *roundAccount) error {
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	stream, status, err := r.c.follow(ctx, api, a.number, fromNow)
	switch {
	case err != nil || status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests:
		return errUnanswered
	case stream == nil:
		return fmt.Errorf("events of %s: %d", a.number, status)
	}
	defer stream.close()
	seq, err := stream.head()
	if err != nil {
		return errUnanswered // the API ends
	}
	r.record.head(since, a.number, seq)
	return nil
}

// noteEvent notes an event that a stream sent after transaction seq, and returns the last
// transaction up to it.
func (r *round) noteEvent(since known, number string, seq int64, e followedEvent) (int64, error) {
	if e.name == "job" {
		if !r.record.job(since, e.data) {
			r.record.change("account %s: the stream has an unfinished job: %s", number, e.data)
		}
		return seq, nil
	}
	var x seenTransaction
	if err := json.Unmarshal(e.data, &x); err != nil {
		return seq, err
	}
	if x.Seq != seq+1 {
		r.record.change("account %s: the stream has transaction %d after %d", number, x.Seq, seq)
	}
	r.record.transaction(since, number, x.Seq, x.BalanceAfter, x.line())
	return x.Seq, nil
}

// checkEvents reads all events of an account whose jobs are finished: one for each job and, where
// the account has one client, in the order of its requests.
func (r *round) checkEvents(a *roundAccount, requests []roundRequest) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	stream, status, err := r.c.follow(ctx, 0, a.number, 0)
	if stream == nil {
		r.t.Errorf("account %s: its events: %d %v", a.number, status, err)
		return
	}
	defer stream.close()
	since, seq, seen := r.record.known("the check"), int64(0), map[string]bool{}
	for n := -1; n < len(requests); n++ { // the first is the initial deposit
		e, err := stream.next()
		if err == nil {
			seq, err = r.noteEvent(since, a.number, seq, e)
		}
		var job struct {
			ID    string `json:"id"`     // of a job
			JobID string `json:"job_id"` // of a transaction
		}
		if err == nil {
			err = json.Unmarshal(e.data, &job)
		}
		id := job.ID + job.JobID
		switch {
		case err != nil:
			r.t.Errorf("account %s: event %d of %d: %v", a.number, n+2, len(requests)+1, err)
			return
		case seen[id]:
			r.t.Errorf("account %s: the stream has job %s twice", a.number, id)
		case n >= 0 && len(a.requests) == 1 && id != requests[n].job:
			r.t.Errorf("account %s: event %d is of job %s, want job %s", a.number, n+2, id, requests[n].job)
		}
		seen[id] = true
	}
	for _, req := range requests {
		if !seen[req.job] {
			r.t.Errorf("account %s: the stream does not have job %s", a.number, req.job)
		}
	}
}
