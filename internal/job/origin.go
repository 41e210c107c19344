package job

import (
	"time"

	"github.com/google/uuid"
)

// Origin is what the Acceptor needs to know of a request that is traced, or that gets a log line.
type Origin struct {
	// Name names the request and its span to the worker, as ops.Origin.String writes it.
	Name string
	// Inserted is called after a successful insert of the request: with the times when the insert was
	// sent and had returned, and how many requests shared it. It must not block. Nil for a request that
	// is not traced.
	Inserted func(began, ended time.Time, requests int)
}

// inserted calls Inserted of a traced request.
func (o *Origin) inserted(began, ended time.Time, requests int) {
	if o.Inserted != nil {
		o.Inserted(began, ended, requests)
	}
}

// origins are the origins of a batch's requests by the ids of their jobs; nil for none.
type origins map[uuid.UUID]*Origin

func originsOf(batch []*request) (found origins) {
	for _, r := range batch {
		if r.Origin == nil {
			continue
		}
		if found == nil {
			found = origins{}
		}
		found[r.id] = r.Origin
	}
	return found
}

// inserted calls Inserted of each traced request.
func (o origins) inserted(began, ended time.Time, requests int) {
	for _, origin := range o {
		origin.inserted(began, ended, requests)
	}
}

// byAccount returns the names of the origins of the inserted jobs, by account and job; nil for none.
func (o origins) byAccount(rows []acceptedRow) (names map[int64]map[uuid.UUID]string) {
	if len(o) == 0 {
		return nil
	}
	names = map[int64]map[uuid.UUID]string{}
	for _, row := range rows {
		origin := o[row.ID]
		if origin == nil || row.Position == nil {
			continue
		}
		if names[row.AccountID] == nil {
			names[row.AccountID] = map[uuid.UUID]string{}
		}
		names[row.AccountID][row.ID] = origin.Name
	}
	return names
}

// origins calls Inserted of a traced batch, and returns the name of the origin of each of its new jobs.
func (b *batchRequest) origins(fresh []int, began time.Time) (names map[uuid.UUID]string) {
	origin := b.requests[0].Origin
	if origin == nil {
		return nil
	}
	origin.inserted(began, time.Now(), 1)
	names = map[uuid.UUID]string{}
	for _, n := range fresh {
		names[b.ids[n-1]] = origin.Name
	}
	return names
}
