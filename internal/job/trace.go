package job

import (
	"time"

	"github.com/google/uuid"
)

// Trace is the part of a traced request that the Acceptor needs.
type Trace struct {
	// Parent is the W3C traceparent of the request's span, the parent of the worker's spans.
	Parent string
	// Inserted is called after a successful insert of the request: with the times when the insert was
	// sent and had returned, and how many requests shared it. It must not block.
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

// inserted calls Inserted of each traced request.
func (t traces) inserted(began, ended time.Time, requests int) {
	for _, trace := range t {
		trace.Inserted(began, ended, requests)
	}
}

// parents returns the traceparents of the account's inserted jobs, by job.
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

// traces calls Inserted of a traced batch, and returns the traceparent for each of its new jobs.
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
