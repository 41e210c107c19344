package api

import (
	"bytes"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"
)

// Bounds of a page.
const (
	defaultLimit = 20
	maxLimit     = 100
)

// query holds a request's parameters and collects what is wrong with them.
type query struct {
	values map[string]string
	faults []fault
}

// parseQuery takes the parameters that the route knows; unknown and repeated
// ones are faults. It reads no further than the last fault that is named.
func parseQuery(c *fiber.Ctx, known []string) *query {
	q := &query{values: map[string]string{}}
	var pair fasthttp.Args // the URI's own would hold memory for thousands, as long as the connection lasts
	for text := range bytes.SplitSeq(c.Request().URI().QueryString(), []byte("&")) {
		pair.ParseBytes(text)
		for name, value := range pair.All() { // one, or none of an empty text
			q.add(string(name), string(value), known)
		}
		if len(q.faults) == maxFaults {
			break
		}
	}
	return q
}

func (q *query) add(name, value string, known []string) {
	_, repeated := q.values[name]
	switch {
	case !slices.Contains(known, name):
		q.fault(name, "unknown_parameter", takes(known))
	case repeated:
		q.fault(name, "repeated_parameter", "may stand once")
	}
	q.values[name] = value
}

func takes(known []string) string {
	if len(known) == 0 {
		return "this request takes no parameters"
	}
	return "this request takes " + strings.Join(known, ", ")
}

func (q *query) fault(parameter, code, detail string) {
	q.faults = append(q.faults, fault{Parameter: &parameter, Code: code, Detail: detail})
}

// err is the problem that names every fault, or nil.
func (q *query) err() error {
	if len(q.faults) == 0 {
		return nil
	}
	return invalid(http.StatusBadRequest, "invalid_parameter", "The query has faults; errors names each.", firstFaults(q.faults))
}

func (q *query) limit() int {
	text, given := q.values["limit"]
	if !given {
		return defaultLimit
	}
	limit, err := strconv.Atoi(text)
	switch {
	case err != nil || strconv.Itoa(limit) != text:
		q.fault("limit", "invalid_type", "is a whole number")
	case limit < 1 || limit > maxLimit:
		q.fault("limit", "out_of_range", fmt.Sprintf("is from 1 to %d", maxLimit))
	}
	return limit
}

// without refuses parameters that don't go with the rest of the request.
func (q *query) without(detail string, names ...string) {
	for _, name := range names {
		if _, given := q.values[name]; given {
			q.fault(name, "unknown_parameter", detail)
		}
	}
}

// after is the place in the list that the cursor names; 0 where absent.
func (q *query) after(cursors cursors, list string) (int64, error) {
	cursor, given := q.values["cursor"]
	if !given {
		return 0, nil
	}
	return cursors.decode(list, cursor)
}

// oneOf reads a parameter that takes one of a few values; empty where absent.
func (q *query) oneOf(name string, values ...string) string {
	text, given := q.values[name]
	if given && !slices.Contains(values, text) {
		q.fault(name, "invalid_value", "is one of "+strings.Join(values, ", "))
	}
	return text
}

// ascending reads order: desc, the newest first, where absent.
func (q *query) ascending() bool {
	return q.oneOf("order", "desc", "asc") == "asc"
}

var timePattern = regexp.MustCompile(
	`^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$`)

// maxYear is the last that RFC 3339 has: an answer in UTC must not pass it.
const maxYear = 9999

// time reads a time; zero where absent.
func (q *query) time(name string) time.Time {
	text, given := q.values[name]
	if !given {
		return time.Time{}
	}
	// A + that was not escaped has become a space; no time has one. Parse takes
	// more than RFC 3339 knows, and a zero time would be no bound.
	text = strings.Replace(text, " ", "+", 1)
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil || !timePattern.MatchString(text) || !t.Truncate(time.Microsecond).After(time.Time{}) || t.UTC().Year() > maxYear {
		q.fault(name, "invalid_format", "is an RFC 3339 time such as 2026-01-31T09:30:00Z")
		return time.Time{}
	}
	return t.UTC()
}
