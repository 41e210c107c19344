package queue

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"
)

const aTraceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

// A job's trace reaches the worker by a list of notifications and by a task's headers, and through
// merges. A task's payload has none.
func TestTraces(t *testing.T) {
	t.Parallel()
	first, second := uuid.New(), uuid.New()
	one := Notification{JobID: first, AccountID: 1, Position: 1, Jobs: 1, Traces: formatTraces(map[uuid.UUID]string{first: aTraceparent})}
	two := Notification{JobID: second, AccountID: 1, Position: 2, Jobs: 1, Traces: formatTraces(map[uuid.UUID]string{second: aTraceparent})}
	if got, err := parseListEntry(one.listEntry()); err != nil || got != one {
		t.Errorf("in a list: %+v %v, want %+v", got, err, one)
	}
	merged := Merge([]Notification{two, one})
	want := map[uuid.UUID]string{first: aTraceparent, second: aTraceparent}
	if len(merged) != 1 || !maps.Equal(ParseTraces(merged[0].Traces), want) {
		t.Errorf("merged: %+v", merged)
	}
	task := newTask(merged)
	named, err := parse(task.Payload())
	if err != nil || strings.Contains(string(task.Payload()), aTraceparent) {
		t.Errorf("the payload: %v %s", err, task.Payload())
	}
	if setTraces(named, task.Headers()); !maps.Equal(ParseTraces(named[0].Traces), want) {
		t.Errorf("in the headers: %+v", named)
	}
	if plain := newTask([]Notification{{JobID: first}}); len(plain.Headers()) > 0 {
		t.Errorf("headers without traces: %v", plain.Headers())
	}
}

// The traces of a notification and of a task are bounded, and forged ones do no harm.
func TestTracesAreBounded(t *testing.T) {
	t.Parallel()
	many := map[uuid.UUID]string{}
	for range 100 {
		many[uuid.New()] = aTraceparent
	}
	n := Notification{JobID: uuid.New(), AccountID: 1, Position: 1, Jobs: 100, Traces: formatTraces(many)}
	if got := ParseTraces(n.Traces); len(got) != maxTraces {
		t.Errorf("%d traces of a notification, want %d", len(got), maxTraces)
	}
	if _, err := parseListEntry(n.listEntry()); err != nil {
		t.Error(err)
	}
	if merged := Merge([]Notification{n, n, n}); merged[0].Traces != n.Traces {
		t.Errorf("merged: %d bytes", len(merged[0].Traces))
	}
	for _, forged := range []string{"", ",", "=", "x=y", n.JobID.String(), strings.Repeat(fmt.Sprintf("%s=,", n.JobID), 1000)} {
		if got := ParseTraces(forged); len(got) != 0 {
			t.Errorf("%.50q: %v", forged, got)
		}
	}
	long := Notification{JobID: uuid.New(), Traces: strings.Repeat("x", maxTraces*traceBytes+1)}
	if _, err := parseListEntry(long.listEntry()); err == nil {
		t.Error("a notification of any length is read")
	}
	named := []Notification{{JobID: n.JobID}}
	setTraces(named, asynq.NewTaskWithHeaders("", nil, map[string]string{tracesHeader: strings.Repeat("x", maxTaskTraces*traceBytes+1)}).Headers())
	if named[0].Traces != "" {
		t.Error("headers of any length are read")
	}
}
