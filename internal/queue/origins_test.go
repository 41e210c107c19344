package queue

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"
)

const anOrigin = "a.request/00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

// A job's origin reaches the worker by a list of notifications and by a task's headers, and through
// merges. A task's payload has none.
func TestOrigins(t *testing.T) {
	t.Parallel()
	first, second := uuid.New(), uuid.New()
	one := Notification{JobID: first, AccountID: 1, Position: 1, Jobs: 1, Origins: formatOrigins(map[uuid.UUID]string{first: anOrigin})}
	two := Notification{JobID: second, AccountID: 1, Position: 2, Jobs: 1, Origins: formatOrigins(map[uuid.UUID]string{second: anOrigin})}
	if got, err := parseListEntry(one.listEntry()); err != nil || got != one {
		t.Errorf("in a list: %+v %v, want %+v", got, err, one)
	}
	merged := Merge([]Notification{two, one})
	want := map[uuid.UUID]string{first: anOrigin, second: anOrigin}
	if len(merged) != 1 || !maps.Equal(ParseOrigins(merged[0].Origins), want) {
		t.Errorf("merged: %+v", merged)
	}
	task := newTask(merged)
	named, err := parse(task.Payload())
	if err != nil || strings.Contains(string(task.Payload()), anOrigin) {
		t.Errorf("the payload: %v %s", err, task.Payload())
	}
	if setOrigins(named, task.Headers()); !maps.Equal(ParseOrigins(named[0].Origins), want) {
		t.Errorf("in the headers: %+v", named)
	}
	if plain := newTask([]Notification{{JobID: first}}); len(plain.Headers()) > 0 {
		t.Errorf("headers without origins: %v", plain.Headers())
	}
}

// The origins of a notification and of a task are bounded, and forged ones do no harm.
func TestOriginsAreBounded(t *testing.T) {
	t.Parallel()
	many := map[uuid.UUID]string{}
	for range 100 {
		many[uuid.New()] = anOrigin
	}
	n := Notification{JobID: uuid.New(), AccountID: 1, Position: 1, Jobs: 100, Origins: formatOrigins(many)}
	if got := ParseOrigins(n.Origins); len(got) != maxOrigins {
		t.Errorf("%d origins of a notification, want %d", len(got), maxOrigins)
	}
	if _, err := parseListEntry(n.listEntry()); err != nil {
		t.Error(err)
	}
	if merged := Merge([]Notification{n, n, n}); merged[0].Origins != n.Origins {
		t.Errorf("merged: %d bytes", len(merged[0].Origins))
	}
	for _, forged := range []string{"", ",", "=", "x=y", n.JobID.String(), strings.Repeat(fmt.Sprintf("%s=,", n.JobID), 1000)} {
		if got := ParseOrigins(forged); len(got) != 0 {
			t.Errorf("%.50q: %v", forged, got)
		}
	}
	long := Notification{JobID: uuid.New(), Origins: strings.Repeat("x", maxOrigins*originBytes+1)}
	if _, err := parseListEntry(long.listEntry()); err == nil {
		t.Error("a notification of any length is read")
	}
	named := []Notification{{JobID: n.JobID}}
	setOrigins(named, asynq.NewTaskWithHeaders("", nil, map[string]string{originsHeader: strings.Repeat("x", maxTaskOrigins*originBytes+1)}).Headers())
	if named[0].Origins != "" {
		t.Error("headers of any length are read")
	}
}
