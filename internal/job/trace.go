package job

import (
	"time"

	"github.com/google/uuid"
)

// Trace is what a traced request gives the Acceptor.
type Trace struct {
	// Parent is a W3C traceparent, of the span that the worker's spans of the job belong to.
	Parent string
	// Inserted is told when the insert with the request was sent and when it had returned, and how
	// many requests shared it. It is not told of an insert that failed. It must not block.
	Inserted func(began, ended time.Time, requests int)
}

// traces are the traces of a batch's requests by the ids of their jobs; nil for none.
type traces map[uuid.UUID]*Trace

func tracesOf(batch []*request) (found traces) {
	for _, r := range batch {
		if r.Trace == nil {
			continue
		}
		if found == nil {
			found = traces{}
		}
		found[r.id] = r.Trace
	}
	return found
}

// inserted tells each request of its insert.
func (t traces) inserted(began, ended time.Time, requests int) {
	for _, trace := range t {
		trace.Inserted(began, ended, requests)
	}
}

// parents returns the parents of an account's jobs that were inserted.
func (t traces) parents(rows []acceptedRow, accountID int64) (parents map[uuid.UUID]string) {
	if len(t) == 0 {
		return nil
	}
	parents = map[uuid.UUID]string{}
	for _, row := range rows {
		if trace := t[row.ID]; trace != nil && row.Position != nil && row.AccountID == accountID {
			parents[row.ID] = trace.Parent
		}
	}
	return parents
}

// traces tells a batch's request of its insert, and returns the parent for each of its new jobs.
func (b *batchRequest) traces(fresh []int, began time.Time) (parents map[uuid.UUID]string) {
	trace := b.requests[0].Trace
	if trace == nil {
		return nil
	}
	trace.Inserted(began, time.Now(), 1)
	parents = map[uuid.UUID]string{}
	for _, n := range fresh {
		parents[b.ids[n-1]] = trace.Parent
	}
	return parents
}
