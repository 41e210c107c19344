package queue

import (
	"errors"
	"math"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
)

func TestTaskNames(t *testing.T) {
	t.Parallel()
	id := uuid.New()
	first, second := Task{JobID: id}.id(), Task{JobID: id, Attempt: 1}.id()
	third, others := Task{JobID: id, Attempt: 2}.id(), Task{JobID: uuid.New(), Attempt: 1}.id()
	for before, want := range map[string]string{first: second, second: third, others: third} {
		if got := nextID(id, before); got != want {
			t.Errorf("after %s comes %s, want %s", before, got, want)
		}
	}
}

// parse reads what newTask wrote, for each number of accounts that a task may have.
func TestTaskNamesItsJobs(t *testing.T) {
	t.Parallel()
	var jobs []Notification
	for n := range maxTaskJobs {
		jobs = append(jobs, Notification{JobID: uuid.New(), AccountID: int64(n), Position: math.MaxInt64 - int64(n), Jobs: n})
		if got, err := parse(newTask(jobs).Payload()); err != nil || !slices.Equal(got, jobs) {
			t.Errorf("%d jobs: read %v, %v; wrote %v", len(jobs), got, err, jobs)
		}
	}
	if got, err := parse(newTask(append(jobs, Notification{})).Payload()); !errors.Is(err, ErrMalformedTask) {
		t.Errorf("a task for too many: %v, %v", got, err)
	}
}

// A line of a payload is a UUID in canonical form and three numbers; anything else is a
// malformed task. Every name of a task has a next one.
func FuzzParse(f *testing.F) {
	const id = "01900000-0000-7000-8000-000000000001"
	const line = id + " 1 2 3"
	for _, seed := range []string{
		"", "x", id, line, strings.ToUpper(line), "{" + id + "} 1 2 3", "urn:uuid:" + line, strings.ReplaceAll(line, "-", ""), line[:35], line + "0",
		strings.Replace(line, "1", "g", 1), id + ".1", id + ".9223372036854775808", id + " -1 0 99999999999999999999", line + " 4", line + "\n",
		line + "\n" + line, strings.Repeat(line+"\n", maxTaskJobs-1) + line, strings.Repeat(line+"\n", maxTaskJobs) + line,
	} {
		f.Add([]byte(seed))
	}
	form := regexp.MustCompile(`^[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}(?: [-+]?[0-9]+){3}$`)
	f.Fuzz(func(t *testing.T, payload []byte) {
		got, err := parse(payload)
		if err != nil && (!errors.Is(err, ErrMalformedTask) || got != nil) {
			t.Errorf("%q: %v, %v; want ErrMalformedTask alone", payload, got, err)
		}
		if err == nil {
			lines := strings.Split(string(payload), "\n")
			if len(lines) != len(got) || len(got) > maxTaskJobs {
				t.Errorf("%q was read as %v", payload, got)
			}
			for i, line := range lines {
				if !form.MatchString(line) || !strings.HasPrefix(strings.ToLower(line), got[i].JobID.String()) {
					t.Errorf("%q was read as %v", line, got[i])
				}
			}
			if again, err := parse(newTask(got).Payload()); err != nil || !slices.Equal(again, got) {
				t.Errorf("%v was read as %v, %v", got, again, err)
			}
		}
		job := uuid.Max
		if next := nextID(job, string(payload)); next == string(payload) || next == nextID(job, next) {
			t.Errorf("after %q comes %q, and then %q", payload, next, nextID(job, next))
		}
	})
}
