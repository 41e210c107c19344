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

// query holds the parameters of a request and collects their faults.
type query struct {
	values map[string]string
	faults []fault
}

// parseQuery reads the parameters that the route knows. Unknown and repeated parameters are
// faults, and so is a semicolon: a proxy may drop a parameter with a semicolon, or read it as two
// parameters. It stops after maxFaults faults.
func parseQuery(c *fiber.Ctx, known []string) *query {
	q := &query{values: map[string]string{}}
	var pair fasthttp.Args // the URI's own Args would keep memory for thousands of pairs until the connection ends
	for text := range bytes.SplitSeq(c.Request().URI().QueryString(), []byte("&")) {
		pair.ParseBytes(text)
		for name, value := range pair.All() { // one pair, or none
			q.add(string(name), string(value), known)
			if bytes.IndexByte(text, ';') >= 0 {
				q.fault(string(name), "invalid_value", "must have its semicolons written as %3B")
			}
		}
		if pair.Len() == 0 && len(text) > 0 { // fasthttp skips a pair without a name and a value
			q.add("", "", known)
		}
		if len(q.faults) >= maxFaults {
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
		q.fault(name, "repeated_parameter", "must appear only once")
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

// err returns a problem with every fault, or nil.
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
		q.fault("limit", "invalid_type", "must be a whole number")
	case limit < 1 || limit > maxLimit:
		q.fault("limit", "out_of_range", fmt.Sprintf("must be from 1 to %d", maxLimit))
	}
	return limit
}

// seconds reads a number of seconds from 0 to most; 0 where absent.
func (q *query) seconds(name string, most int) time.Duration {
	text, given := q.values[name]
	if !given {
		return 0
	}
	seconds, err := strconv.Atoi(text)
	switch {
	case err != nil || strconv.Itoa(seconds) != text:
		q.fault(name, "invalid_type", "must be a whole number of seconds")
	case seconds < 0 || seconds > most:
		q.fault(name, "out_of_range", fmt.Sprintf("must be from 0 to %d", most))
	}
	return time.Duration(seconds) * time.Second
}

// without refuses parameters that don't fit the rest of the request.
func (q *query) without(detail string, names ...string) {
	for _, name := range names {
		if _, given := q.values[name]; given {
			q.fault(name, "unknown_parameter", detail)
		}
	}
}

// after returns the position of the cursor; 0 where there is none.
func (q *query) after(cursors cursors, list string) (int64, error) {
	cursor, given := q.values["cursor"]
	if !given {
		return 0, nil
	}
	return cursors.decode(list, cursor)
}

// oneOf reads a parameter with a few allowed values; empty where absent.
func (q *query) oneOf(name string, values ...string) string {
	text, given := q.values[name]
	if given && !slices.Contains(values, text) {
		q.fault(name, "invalid_value", "must be one of "+strings.Join(values, ", "))
	}
	return text
}

// ascending reads order: desc, the newest first, where absent.
func (q *query) ascending() bool {
	return q.oneOf("order", "desc", "asc") == "asc"
}

var timePattern = regexp.MustCompile(
	`^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$`)

// maxYear is the last year that RFC 3339 can write: an answer in UTC must not be later.
const maxYear = 9999

// time reads a time; zero where absent.
func (q *query) time(name string) time.Time {
	text, given := q.values[name]
	if !given {
		return time.Time{}
	}
	// An unescaped + has become a space, and no time has a space. time.Parse takes more forms
	// than RFC 3339, and a zero time would mean no bound.
	text = strings.Replace(text, " ", "+", 1)
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil || !timePattern.MatchString(text) || !t.Truncate(time.Microsecond).After(time.Time{}) || t.UTC().Year() > maxYear {
		q.fault(name, "invalid_format", "must be an RFC 3339 time such as 2026-01-31T09:30:00Z")
		return time.Time{}
	}
	return t.UTC()
}
