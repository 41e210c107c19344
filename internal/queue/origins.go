package queue

import (
	"strings"

	"github.com/google/uuid"
)

const (
	// maxOrigins bounds the origins of a notification, and maxTaskOrigins those of a task, some 130
	// bytes each. The logs and the traces of further jobs don't lead back to their requests.
	maxOrigins     = 8
	maxTaskOrigins = maxTaskJobs
	// originBytes bounds a written origin: a job's id, the id of a request, a W3C traceparent, and
	// three separators.
	originBytes = 36 + 64 + 55 + 3
	// originsHeader is the header of a task that has the origins of its jobs.
	originsHeader = "origins"
)

// formatOrigins writes the origins of jobs, as JOB=ORIGIN,…
func formatOrigins(origins map[uuid.UUID]string) string {
	var text strings.Builder
	n := 0
	for job, origin := range origins {
		if n++; n > maxOrigins {
			break
		}
		if n > 1 {
			text.WriteByte(',')
		}
		text.WriteString(job.String() + "=" + origin)
	}
	return text.String()
}

// ParseOrigins reads the origins of a notification's jobs, by job. It skips what it can't read: no
// decision depends on an origin.
func ParseOrigins(text string) map[uuid.UUID]string {
	origins := map[uuid.UUID]string{}
	for one := range strings.SplitSeq(text, ",") {
		name, origin, _ := strings.Cut(one, "=")
		if job, err := uuid.Parse(name); err == nil && origin != "" && len(origins) < maxTaskOrigins {
			origins[job] = origin
		}
	}
	return origins
}

// joinOrigins joins the origins of two notifications, up to most.
func joinOrigins(x, y string, most int) string {
	switch {
	case x == "":
		return y
	case y == "", strings.Count(x, ",")+1+strings.Count(y, ",")+1 > most:
		return x
	}
	return x + "," + y
}

// headersOf are a task's headers: the origins of its jobs, if there are any.
func headersOf(notifications []Notification) map[string]string {
	origins := ""
	for _, n := range notifications {
		origins = joinOrigins(origins, n.Origins, maxTaskOrigins)
	}
	if origins == "" {
		return nil
	}
	return map[string]string{originsHeader: origins}
}

// setOrigins gives the first of a task's notifications the origins in the task's headers.
func setOrigins(notifications []Notification, headers map[string]string) {
	if origins := headers[originsHeader]; len(origins) <= maxTaskOrigins*originBytes && len(notifications) > 0 {
		notifications[0].Origins = origins
	}
}
