package api

import (
	"net/http"
	"slices"
	"strings"
	"testing"
)

func TestInvalidParameter(t *testing.T) {
	t.Parallel()
	c := start(t).user(t)
	account := c.open(1)
	var (
		history = jobsOf(account, "transactions")
		jobs    = jobsOf(account, "jobs")
	)
	tests := map[string]struct {
		target string
		faults []string // nil for a 200
	}{
		"Unknown":             {history + "?page=1", []string{"page unknown_parameter"}},
		"Unknown/Case":        {history + "?Limit=1", []string{"Limit unknown_parameter"}},
		"Unknown/NoName":      {history + "?=1", []string{" unknown_parameter"}},
		"Unknown/Nothing":     {history + "?=", []string{" unknown_parameter"}},
		"Unknown/OfJobs":      {jobs + "?type=deposit", []string{"type unknown_parameter"}},
		"Unknown/OfAccounts":  {"/v1/accounts?order=asc", []string{"order unknown_parameter"}},
		"Unknown/Account":     {"/v1/accounts/" + account.Number + "?x=1", []string{"x unknown_parameter"}},
		"Unknown/Livez":       {"/livez?x", []string{"x unknown_parameter"}},
		"Unknown/Thousands":   {history + "?" + strings.Repeat("x&", 7000), slices.Repeat([]string{"x unknown_parameter"}, maxFaults)},
		"Repeated/Hundreds":   {history + "?" + strings.Repeat("to=&", 1000), slices.Repeat([]string{"to repeated_parameter"}, maxFaults)},
		"Empty/Thousands":     {history + "?" + strings.Repeat("&", 7000) + "limit=0", []string{"limit out_of_range"}},
		"Repeated":            {history + "?limit=1&limit=1", []string{"limit repeated_parameter"}},
		"Repeated/Thrice":     {history + "?limit=1&limit=1&limit=1", []string{"limit repeated_parameter", "limit repeated_parameter"}},
		"Repeated/Escaped":    {history + "?limit=1&%6cimit=1", []string{"limit repeated_parameter"}},
		"Semicolon":           {"/v1/jobs?idempotency_key=a;b", []string{"idempotency_key invalid_value"}},
		"Semicolon/Name":      {"/v1/jobs?idempotency_key=a&x;=1", []string{"x; invalid_value", "x; unknown_parameter"}},
		"Semicolon/OK":        {"/v1/jobs?idempotency_key=a%3Bb", nil},
		"Limit/OK/1":          {history + "?limit=1", nil},
		"Limit/OK/100":        {history + "?limit=100", nil},
		"Limit/0":             {history + "?limit=0", []string{"limit out_of_range"}},
		"Limit/101":           {history + "?limit=101", []string{"limit out_of_range"}},
		"Limit/Negative":      {history + "?limit=-1", []string{"limit out_of_range"}},
		"Limit/Empty":         {history + "?limit=", []string{"limit invalid_type"}},
		"Limit/Plus":          {history + "?limit=%2B1", []string{"limit invalid_type"}},
		"Limit/LeadingZero":   {history + "?limit=01", []string{"limit invalid_type"}},
		"Limit/Fraction":      {history + "?limit=1.0", []string{"limit invalid_type"}},
		"Limit/Huge":          {history + "?limit=99999999999999999999", []string{"limit invalid_type"}},
		"Order":               {history + "?order=newest", []string{"order invalid_value"}},
		"Order/Empty":         {jobs + "?order=", []string{"order invalid_value"}},
		"Type":                {history + "?type=Deposit", []string{"type invalid_value"}},
		"Status":              {jobs + "?status=done", []string{"status invalid_value"}},
		"Status/All":          {jobs + "?status=all", []string{"status invalid_value"}},
		"From/OK":             {history + "?from=2026-01-31T09:30:00Z", nil},
		"From/OK/Fraction":    {history + "?from=2026-01-31T09:30:00.5Z", nil},
		"From/OK/Nanoseconds": {history + "?from=2026-01-31T09:30:00.123456789Z", nil},
		"From/OK/Offset":      {history + "?from=2026-01-31T09:30:00%2B09:00", nil},
		"From/Date":           {history + "?from=2026-01-31", []string{"from invalid_format"}},
		"From/Year10000":      {history + "?from=9999-12-31T23:59:59-01:00", []string{"from invalid_format"}},
		"From/OK/Year9999":    {history + "?from=9999-12-31T23:59:59Z", nil},
		"BOM/NoCSV":           {history + "?bom=true", []string{"bom unknown_parameter"}},
		"From/NoZone":         {history + "?from=2026-01-31T09:30:00", []string{"from invalid_format"}},
		"From/NoSuchDay":      {history + "?from=2026-02-30T09:30:00Z", []string{"from invalid_format"}},
		"From/ShortHour":      {history + "?from=2026-01-31T9:30:00Z", []string{"from invalid_format"}},
		"From/Comma":          {history + "?from=2026-01-31T09:30:00,5Z", []string{"from invalid_format"}},
		"From/NoSuchOffset":   {history + "?from=2026-01-31T09:30:00%2B24:00", []string{"from invalid_format"}},
		"From/Seconds":        {history + "?from=1769851800", []string{"from invalid_format"}},
		"From/Empty":          {history + "?from=", []string{"from invalid_format"}},
		"To":                  {history + "?to=tomorrow", []string{"to invalid_format"}},
		"EveryFault": {
			history + "?limit=0&limit=1&order=up&type=x&from=a&to=b&z=1",
			[]string{
				"from invalid_format", "limit repeated_parameter", "order invalid_value",
				"to invalid_format", "type invalid_value", "z unknown_parameter",
			},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := c.in(t).get(test.target)
			if test.faults == nil {
				a.want(http.StatusOK)
				return
			}
			a.problem(http.StatusBadRequest, "invalid_parameter", test.faults...)
		})
	}
}

func TestInvalidParameter_Posts(t *testing.T) {
	t.Parallel()
	c := start(t).user(t)
	account := c.open(1)
	for _, target := range []string{
		"/v1/users", "/v1/sessions", "/v1/sessions/refresh", "/v1/sessions/revoke", "/v1/accounts", jobsOf(account, "deposits"), jobsOf(account, "withdrawals"),
		jobsOf(account, "jobs"),
	} {
		c.post(target+"?wait=x&wait=y", `{}`).
			problem(http.StatusBadRequest, "invalid_parameter", "wait unknown_parameter", "wait unknown_parameter")
	}
}
