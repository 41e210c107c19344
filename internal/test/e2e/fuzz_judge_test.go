package e2e_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/passbook/passbook/internal/test/contract"
	"github.com/passbook/passbook/internal/test/fuzz"
)

// fuzzFault is something wrong with an answer.
type fuzzFault struct {
	kind string
	text string
}

// fuzzValues matches what differs between faults of one cause: what is in quotes, and numbers.
var fuzzValues = regexp.MustCompile(`'[^']*'|"[^"]*"|[0-9]+`)

// cause is the same for faults of one cause.
func (f fuzzFault) cause() string { return f.kind + ": " + fuzzValues.ReplaceAllString(f.text, "…") }

const refusesValid = "a valid request is refused"

// anywhere are the codes with which the API refuses a request before it has a route.
var anywhere = []string{"malformed_request", "headers_too_large", "request_timeout", "route_not_found", "method_not_allowed", "body_too_large"}

// formal are the codes that say that a request is not as the document describes it.
var formal = append([]string{
	"malformed_body", "invalid_request", "invalid_parameter", "unsupported_media_type", "not_acceptable", "idempotency_key_missing", "idempotency_key_invalid",
}, anywhere...)

// judgeAll returns what is wrong with the answers.
func (c *fuzzClient) judgeAll(r fuzz.Request, x exchange) (faults []fuzzFault) {
	for i, a := range x.answers {
		switch {
		case i < len(x.requests):
			faults = append(faults, c.judgeAnswer(r, x.requests[i], a)...)
		case x.rest == nil:
			faults = append(faults, fuzzFault{"more answers than requests", fmt.Sprintf("answer %d to %d requests", i+1, len(x.requests))})
		default:
			faults = append(faults, c.judgeRefusal(x.text, a)...)
		}
	}
	if len(x.answers) == 0 && len(x.requests) > 0 {
		faults = append(faults, fuzzFault{"no answer", fmt.Sprintf("no answer: %v", x.err)})
	}
	return faults
}

func (c *fuzzClient) judgeRefusal(text string, a contract.Answer) (faults []fuzzFault) {
	method, _, _ := strings.Cut(text, " ")
	for _, fault := range c.run.contract.CheckRefusal(method, a) {
		faults = append(faults, fuzzFault{fmt.Sprintf("%d to what is no request", a.Status), fault})
	}
	return faults
}

// judgeAnswer judges an answer to a request.
func (c *fuzzClient) judgeAnswer(r fuzz.Request, req fuzzParsed, a contract.Answer) (faults []fuzzFault) {
	problem := problemOf(a)
	add := func(kind, text string) { faults = append(faults, fuzzFault{kind, text}) }
	if a.Status >= http.StatusInternalServerError && a.Status != http.StatusHTTPVersionNotSupported {
		add(fmt.Sprint("status ", a.Status), "the API is at fault")
	}
	if r.IsValid() && slices.Contains(formal, problem.Code) && !problem.isSaidInWords(r) {
		add(refusesValid, problem.Code)
	}
	route, known := c.run.contract.Find(req.Method, req.URL.EscapedPath())
	isRefusal := !known || slices.Contains(anywhere, problem.Code)
	if known && req.Method == http.MethodHead && a.Status >= http.StatusBadRequest { // it has no body to tell by
		isRefusal = len(c.run.contract.CheckAnswer(route, req.Request, a)) > 0
	}
	check := func() []string { return c.run.contract.CheckAnswer(route, req.Request, a) }
	if isRefusal {
		check = func() []string { return c.run.contract.CheckRefusal(req.Method, a) }
	}
	for _, fault := range check() {
		add(fmt.Sprint("not as described: ", a.Status), fault)
	}
	if known && a.Status < http.StatusMultipleChoices {
		if route.Method == http.MethodGet {
			req.body = "" // a server may ignore it (RFC 9110, section 9.3.1)
		}
		for _, fault := range c.run.contract.CheckValidity(route, req.Request, req.body) {
			add("accepts what is not described", fault)
		}
		if req.body != "" && !jsontext.Value(req.body).IsValid() {
			add("accepts what is not described", "the body is no JSON, or repeats a name")
		}
	}
	if known && a.Status < http.StatusMultipleChoices && fuzz.IsSecured(route) {
		faults = append(faults, c.judgeOwner(a)...)
		faults = append(faults, judgeContent(req, a)...)
	}
	return faults
}

// fuzzProblem is what the judge reads of a problem document.
type fuzzProblem struct {
	Code   string
	Errors []struct{ Pointer, Parameter, Code string }
}

func problemOf(a contract.Answer) (p fuzzProblem) {
	if a.Status >= http.StatusBadRequest {
		_ = json.Unmarshal(a.Body, &p) // what is no problem document has no code, and is judged by the contract
	}
	return p
}

// isSaidInWords reports whether the document says only in words why it refuses the request: the body
// as a whole is too large, parameters exclude one another, or a batch has a key twice.
func (p fuzzProblem) isSaidInWords(r fuzz.Request) bool {
	const maxBody = 64 << 10
	if p.Code == "body_too_large" {
		return len(r.Body) > maxBody
	}
	excluded := 0
	for _, fault := range p.Errors {
		if fault.Parameter != "" && fault.Code == "unknown_parameter" || fault.Code == "repeated_key" {
			excluded++
		}
	}
	return excluded > 0 && excluded == len(p.Errors)
}

// judgeOwner finds accounts of other users in an answer.
func (c *fuzzClient) judgeOwner(a contract.Answer) (faults []fuzzFault) {
	var shown any
	if json.Unmarshal(a.Body, &shown) != nil {
		return nil
	}
	c.run.mu.Lock()
	defer c.run.mu.Unlock()
	walk(shown, func(object map[string]any) {
		for _, name := range []string{"number", "account"} {
			number, _ := object[name].(string)
			if owner, opened := c.run.owners[number]; opened && owner != c.email {
				faults = append(faults, fuzzFault{"shows what is another's", "account " + number + " is of " + owner})
			}
		}
	})
	return faults
}

// judgeContent compares what an answer shows with what was sent.
func judgeContent(req fuzzParsed, a contract.Answer) (faults []fuzzFault) {
	var shown, sent any
	if req.Method != http.MethodPost || json.Unmarshal([]byte(req.body), &sent) != nil || json.Unmarshal(a.Body, &shown) != nil {
		return nil
	}
	for _, pair := range pairs(sent, shown) {
		for name, value := range pair[0] {
			if got, there := pair[1][name]; there && value != nil && fmt.Sprint(got) != fmt.Sprint(value) {
				faults = append(faults, fuzzFault{"shows other than was sent", fmt.Sprintf("%s is %q, sent was %q", name, fmt.Sprint(got), fmt.Sprint(value))})
			}
		}
	}
	return faults
}

// pairs returns the objects that were sent, each with the object of the answer that stands for it: the
// whole, or item by item.
func pairs(sent, shown any) (all [][2]map[string]any) {
	of, _ := sent.(map[string]any)
	by, _ := shown.(map[string]any)
	items, isList := by["data"].([]any)
	if !isList {
		return [][2]map[string]any{{of, by}}
	}
	for _, value := range of {
		list, _ := value.([]any)
		if len(list) != len(items) {
			continue
		}
		for i := range list {
			all = append(all, pairs(list[i], items[i])...)
		}
	}
	return all
}

// walk calls visit with every object of a JSON value.
func walk(value any, visit func(map[string]any)) {
	switch value := value.(type) {
	case map[string]any:
		visit(value)
		for _, child := range value {
			walk(child, visit)
		}
	case []any:
		for _, child := range value {
			walk(child, visit)
		}
	}
}

// record keeps what the answers accepted, and the requests whose outcome is unknown.
func (c *fuzzClient) record(x exchange) {
	f := c.run
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sent++
	for i, a := range x.answers {
		f.statuses[a.Status]++
		if i < len(x.requests) && x.requests[i].Method == http.MethodPost && a.Status < http.StatusMultipleChoices {
			c.recordAccepted(x.requests[i], a)
		}
		if a.Status >= http.StatusInternalServerError {
			f.unanswered = append(f.unanswered, x.text)
		}
	}
	if len(x.answers) < len(x.requests) {
		f.unanswered = append(f.unanswered, x.text)
	}
}

// recordAccepted runs under the run's lock.
func (c *fuzzClient) recordAccepted(req fuzzParsed, a contract.Answer) {
	var shown any
	if json.Unmarshal(a.Body, &shown) != nil {
		return
	}
	walk(shown, func(object map[string]any) {
		id, _ := object["id"].(string)
		account, isJob := object["account"].(string)
		if isJob {
			amount, _ := object["amount"].(float64)
			kind, _ := object["type"].(string)
			description, _ := object["description"].(string)
			c.run.jobs[id] = fuzzJob{account: account, kind: kind, description: description, amount: int64(amount)}
		}
	})
	number, isAccount := shown.(map[string]any)["number"].(string)
	if _, known := c.run.accounts[number]; isAccount && !known && req.URL.Path == "/v1/accounts" {
		var sent struct {
			InitialDeposit int64 `json:"initial_deposit"`
		}
		_ = json.Unmarshal([]byte(req.body), &sent) // the answer says that it is as described
		c.run.accounts[number], c.run.owners[number] = sent.InitialDeposit, c.email
	}
}

// find reports a finding that is new, with the smallest request that shows it.
func (c *fuzzClient) find(r fuzz.Request, x exchange, faults []fuzzFault) {
	fault := faults[0]
	if !c.run.isNew(fault.cause() + " " + r.Route.String()) {
		return
	}
	smallest, x, how := c.smallest(r, x, fault)
	c.run.t.Errorf("%s\n%s: %s\n%s:\n%s\n%.2000v", r, fault.kind, fault.text, how, smallest.Command(c.address), x.answers)
}

// smallest returns the smallest request that shows a fault of the same cause, its answers, and what it is.
func (c *fuzzClient) smallest(r fuzz.Request, x exchange, fault fuzzFault) (_ fuzz.Request, _ exchange, how string) {
	if fault.kind == refusesValid { // a smaller one may be invalid
		return r, x, "the request"
	}
	shows := func(smaller fuzz.Request) bool {
		if c.skips != nil && c.skips(smaller) {
			return false
		}
		smaller = smaller.Renew(c.source.NewKey)
		again, faults := c.attempt(smaller)
		if !slices.ContainsFunc(faults, func(f fuzzFault) bool { return f.cause() == fault.cause() }) {
			return false
		}
		r, x = smaller, again
		return true
	}
	if !shows(r) {
		return r, x, "the request, which does not show it again"
	}
	fuzz.Shrink(r, shows)
	return r, x, "the smallest request that shows it"
}

// The smallest request that a finding shows has the fault itself, and not another one of its kind. It
// is none that the client does not send.
func TestFuzzClient_SmallestHasTheSameFault(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if r.Header.Get("Authorization") == "" {
			_, _ = io.WriteString(w, "no token for '/v1/accounts' at 12:01")
		} else if len(r.TransferEncoding) > 0 {
			_, _ = fmt.Fprintf(w, "%d bytes at 12:02 are in chunks", time.Now().UnixNano())
		}
	}))
	t.Cleanup(server.Close)
	c := &fuzzClient{
		run: &fuzzRun{t: t, statuses: map[int]int{}}, source: &fuzz.Source{}, address: server.Listener.Addr().String(),
		skips: func(r fuzz.Request) bool { return !strings.HasPrefix(r.Body, "{") },
		judge: func(x exchange) (faults []fuzzFault) {
			for _, a := range x.answers {
				faults = append(faults, fuzzFault{"a kind", string(a.Body)})
			}
			return faults
		},
	}
	defer c.hangUp()
	r := fuzz.Request{
		Method: http.MethodPost, Target: "/v1/accounts?a=1", Version: "HTTP/1.1", Body: `{"amount":1}`, Chunk: 3,
		Headers: []fuzz.Header{{Name: "Host", Value: "h"}, {Name: "Authorization", Value: "Bearer x"}, {Name: "X-A", Value: "b"}},
	}
	x, faults := c.attempt(r)
	smallest, x, _ := c.smallest(r, x, faults[0])
	if len(smallest.Headers) != 2 || smallest.Target != "/v1/accounts" || smallest.Chunk == 0 || smallest.Body != "{" {
		t.Errorf("got %q", smallest.Text())
	}
	if len(x.answers) != 1 || !strings.HasSuffix(string(x.answers[0].Body), "in chunks") {
		t.Errorf("its answers are %v", x.answers)
	}
}
