package queue

import (
	"strings"

	"github.com/google/uuid"
)

const (
	// maxTraces bounds the traces of a notification, and maxTaskTraces those of a task, some 90 bytes
	// each. The traces of further jobs end with their requests.
	maxTraces     = 8
	maxTaskTraces = maxTaskJobs
	// traceBytes bounds a written trace: a job's id, a W3C traceparent, and two separators.
	traceBytes = 36 + 55 + 2
	// tracesHeader is the header of a task that has the traces of its jobs.
	tracesHeader = "traces"
)

// formatTraces writes the traces of jobs, as JOB=TRACEPARENT,… (https://www.w3.org/TR/trace-context/).
func formatTraces(traces map[uuid.UUID]string) string {
	var text strings.Builder
	n := 0
	for job, parent := range traces {
		if n++; n > maxTraces {
			break
		}
		if n > 1 {
			text.WriteByte(',')
		}
		text.WriteString(job.String() + "=" + parent)
	}
	return text.String()
}

// ParseTraces reads the traces of a notification's jobs, by job. It skips what it can't read: no
// decision depends on a trace.
func ParseTraces(text string) map[uuid.UUID]string {
	traces := map[uuid.UUID]string{}
	for one := range strings.SplitSeq(text, ",") {
		name, parent, _ := strings.Cut(one, "=")
		if job, err := uuid.Parse(name); err == nil && parent != "" && len(traces) < maxTaskTraces {
			traces[job] = parent
		}
	}
	return traces
}

// joinTraces joins the traces of two notifications, up to most.
func joinTraces(x, y string, most int) string {
	switch {
	case x == "":
		return y
	case y == "", strings.Count(x, ",")+1+strings.Count(y, ",")+1 > most:
		return x
	}
	return x + "," + y
}

// headersOf are a task's headers: the traces of its jobs, if there are any.
func headersOf(notifications []Notification) map[string]string {
	traces := ""
	for _, n := range notifications {
		traces = joinTraces(traces, n.Traces, maxTaskTraces)
	}
	if traces == "" {
		return nil
	}
	return map[string]string{tracesHeader: traces}
}

// setTraces gives the first of a task's notifications the traces in the task's headers.
func setTraces(notifications []Notification, headers map[string]string) {
	if traces := headers[tracesHeader]; len(traces) <= maxTaskTraces*traceBytes && len(notifications) > 0 {
		notifications[0].Traces = traces
	}
}
