package api

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ledger/ledgertest"
)

func TestMalformedBody(t *testing.T) {
	t.Parallel()
	c := start(t).user(t)
	target := jobsOf(c.open(0), "deposits")
	tests := map[string]string{
		"Empty":              ``,
		"White":              " \r\n",
		"Syntax":             `{"amount":1`,
		"Comma":              `{"amount":1,}`,
		"SingleQuotes":       `{'amount':1}`,
		"LeadingZero":        `{"amount":01}`,
		"Plus":               `{"amount":+1}`,
		"Hexadecimal":        `{"amount":0x1}`,
		"NaN":                `{"amount":NaN}`,
		"Comment":            `{"amount":1}//`,
		"Trailing":           `{"amount":1}{}`,
		"TrailingBracket":    `{"amount":1}]`,
		"TrailingNUL":        "{\"amount\":1}\x00",
		"ByteOrderMark":      "\ufeff{\"amount\":1}",
		"Duplicate":          `{"amount":1,"amount":1}`,
		"DuplicateEscaped":   `{"amount":1,"am\u006funt":1}`,
		"DuplicateNested":    `{"amount":1,"x":{"y":[{"z":1,"z":1}]}}`,
		"DuplicateOfUnknown": `{"amount":1,"x":1,"x":1}`,
		"InvalidUTF8":        "{\"amount\":1,\"description\":\"\xff\"}",
		"InvalidUTF8Name":    "{\"amount\":1,\"\xff\":1}",
		"LoneSurrogate":      `{"amount":1,"description":"\ud800"}`,
		"ControlCharacter":   "{\"amount\":1,\"description\":\"\n\"}",
		"TooDeep":            strings.Repeat(`[`, 20_000) + strings.Repeat(`]`, 20_000),
	}
	for name, body := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.in(t).post(target, body, "Idempotency-Key", name).problem(http.StatusBadRequest, "malformed_body")
		})
	}
}

func TestInvalidEntry(t *testing.T) {
	t.Parallel()
	c := start(t).user(t)
	target := jobsOf(c.open(0), "withdrawals")
	amount := func(literal string) string { return `{"amount":` + literal + `}` }
	described := func(text string) string { return fmt.Sprintf(`{"amount":1,"description":%s}`, text) }
	tests := map[string]struct {
		body   string
		faults []string // none where it is accepted
	}{
		"OK":                  {amount(`1`), nil},
		"OK/Largest":          {amount(`9007199254740991`), nil},
		"OK/WhiteSpace":       {" {\t\"amount\"\r:\n100 } ", nil},
		"OK/Escaped":          {`{"\u0061mount":1}`, nil},
		"Amount/Missing":      {`{}`, []string{"/amount required"}},
		"Amount/String":       {amount(`"100"`), []string{"/amount invalid_type"}},
		"Amount/Fraction":     {amount(`1.0`), []string{"/amount invalid_type"}},
		"Amount/Exponent":     {amount(`1e2`), []string{"/amount invalid_type"}},
		"Amount/ExponentE":    {amount(`1E2`), []string{"/amount invalid_type"}},
		"Amount/Null":         {amount(`null`), []string{"/amount required"}},
		"Amount/True":         {amount(`true`), []string{"/amount invalid_type"}},
		"Amount/Array":        {amount(`[1]`), []string{"/amount invalid_type"}},
		"Amount/Object":       {amount(`{"amount":1}`), []string{"/amount invalid_type"}},
		"Amount/Zero":         {amount(`0`), []string{"/amount out_of_range"}},
		"Amount/MinusZero":    {amount(`-0`), []string{"/amount out_of_range"}},
		"Amount/Negative":     {amount(`-1`), []string{"/amount out_of_range"}},
		"Amount/PastLargest":  {amount(`9007199254740992`), []string{"/amount out_of_range"}},
		"Amount/PastInt64":    {amount(`18446744073709551617`), []string{"/amount out_of_range"}},
		"Text/OK/Longest":     {described(`"` + strings.Repeat("é", 140) + `"`), nil},
		"Text/OK/FourBytes":   {described(`"` + strings.Repeat("🐖", 140) + `"`), nil},
		"Text/OK/Empty":       {described(`""`), nil},
		"Text/OK/Quotes":      {described(`"\"'<&>\\\u0041\/"`), nil},
		"Text/TooLong":        {described(`"` + strings.Repeat("é", 141) + `"`), []string{"/description too_long"}},
		"Text/NUL":            {described(`"a\u0000"`), []string{"/description invalid_value"}},
		"Text/LineBreak":      {described(`"a\nb"`), []string{"/description invalid_value"}},
		"Text/Delete":         {described(`"\u007f"`), []string{"/description invalid_value"}},
		"Text/C1":             {described(`"\u0085"`), []string{"/description invalid_value"}},
		"Text/TooLongAndNUL":  {described(`"` + strings.Repeat(`\u0000`, 141) + `"`), []string{"/description invalid_value", "/description too_long"}},
		"Text/Null":           {described(`null`), nil},
		"Text/Override":       {described(`"a\u202eb"`), []string{"/description invalid_value"}},
		"Text/Isolate":        {described(`"\u2066a"`), []string{"/description invalid_value"}},
		"Text/LineSeparator":  {described(`"a\u2028"`), []string{"/description invalid_value"}},
		"Text/Joiner":         {described(`"\u0915\u094d\u200d"`), nil}, // as Hindi writes it
		"Unknown/Many":        {manyFields(20_000 / len(`"f00000":1,`)), manyFaults()},
		"Text/Number":         {described(`1`), []string{"/description invalid_type"}},
		"Body/Array":          {`[]`, []string{" invalid_type", "/amount required"}},
		"Body/String":         {`"amount"`, []string{" invalid_type", "/amount required"}},
		"Unknown":             {`{"amount":1,"currency":"KRW"}`, []string{"/currency unknown_field"}},
		"Unknown/Case":        {`{"Amount":1}`, []string{"/Amount unknown_field", "/amount required"}},
		"Unknown/EmptyName":   {`{"amount":1,"":1}`, []string{"/ unknown_field"}},
		"Unknown/PointerName": {`{"amount":1,"a/b~c":1}`, []string{"/a~1b~0c unknown_field"}},
		"EveryFault": {
			`{"amount":"1","description":"` + strings.Repeat("x", 141) + `","b":{},"a":null}`,
			[]string{"/a unknown_field", "/amount invalid_type", "/b unknown_field", "/description too_long"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := c.in(t).post(target, test.body, "Idempotency-Key", uuid.NewString())
			if test.faults == nil {
				a.want(http.StatusAccepted)
				return
			}
			a.problem(http.StatusUnprocessableEntity, "invalid_request", test.faults...)
		})
	}
}

func TestUnsupportedMediaType(t *testing.T) {
	t.Parallel()
	c := start(t).user(t)
	target := jobsOf(c.open(0), "deposits")
	for _, mediaType := range []string{"", "text/plain", "application/x-www-form-urlencoded", "application/jsonx", "application/problem+json", "json", ";", "multipart/form-data; boundary=x"} {
		t.Run("Refused/"+mediaType, func(t *testing.T) {
			t.Parallel()
			c.in(t).post(target, `{"amount":1}`, "Idempotency-Key", "k", "Content-Type", mediaType).
				problem(http.StatusUnsupportedMediaType, "unsupported_media_type")
		})
	}
	for _, mediaType := range []string{"application/json", "application/json; charset=utf-8", "Application/JSON;charset=UTF-8"} {
		t.Run("OK/"+mediaType, func(t *testing.T) {
			t.Parallel()
			c.in(t).post(target, `{"amount":1}`, "Idempotency-Key", uuid.NewString(), "Content-Type", mediaType).want(http.StatusAccepted)
		})
	}
}

// A coding that changes nothing is none, however it is written. The request is written by
// hand: the contract's schema of the header refuses it before it is sent.
func TestContentCodingIdentity(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.user(t)
	account := c.open(0)
	codings := []string{"identity", "Identity", "IDENTITY", ""}
	for i, coding := range codings {
		conn := s.dial(t)
		if _, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer %s\r\nIdempotency-Key: k%d\r\n"+
			"Content-Type: application/json\r\nContent-Encoding: %s\r\nContent-Length: 12\r\n\r\n{\"amount\":1}",
			jobsOf(account, "deposits"), c.token, i, coding); err != nil {
			t.Fatal(err)
		}
		wantAnswers(t, coding, bufio.NewReader(conn), http.StatusAccepted)
	}
	if found := ledgertest.Check(t, s.pool); found.Jobs != int64(len(codings)) {
		t.Errorf("%d jobs, want %d", found.Jobs, len(codings))
	}
}

// A coding would make a body of any size of one that keeps the bound.
func TestUnsupportedContentCoding(t *testing.T) {
	t.Parallel()
	c := start(t).user(t)
	target := jobsOf(c.open(0), "deposits")
	for _, coding := range []string{"gzip", "deflate", "br", "identity, gzip"} {
		t.Run(coding, func(t *testing.T) {
			t.Parallel()
			c.in(t).post(target, `{"amount":1}`, "Idempotency-Key", "k", "Content-Encoding", coding).
				problem(http.StatusUnsupportedMediaType, "unsupported_media_type")
		})
	}
}

func TestBodyTooLarge(t *testing.T) {
	t.Parallel()
	c := start(t).user(t)
	target := jobsOf(c.open(0), "deposits")
	body := func(size int) string { return `{"amount":1}` + strings.Repeat(" ", size-len(`{"amount":1}`)) }
	c.post(target, body(65536), "Idempotency-Key", "k").want(http.StatusAccepted)
	c.post(target, body(65537), "Idempotency-Key", "l").problem(http.StatusRequestEntityTooLarge, "body_too_large")
	c.post(target, body(262144), "Idempotency-Key", "l").problem(http.StatusRequestEntityTooLarge, "body_too_large")
	c.post("/nowhere", body(65537)).problem(http.StatusRequestEntityTooLarge, "body_too_large")
	c.sendRaw("POST "+target+" HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"+
		"10001\r\n"+body(0x10001)+"\r\n0\r\n\r\n").problem(http.StatusRequestEntityTooLarge, "body_too_large")
}

// parseBody takes what encoding/json and a few rules more take, each name once,
// and nothing else; it loses nothing, and names each field that no read has removed.
func FuzzParseBody(f *testing.F) {
	for _, seed := range []string{
		`{}`, `{"amount":1,"description":"x"}`, `{"a":{"b":[1,{"c":null}]}}`, `{"a":1,"a":2}`, `{"a":{"b":1,"b":2}}`,
		`{"a":1,"\u0061":2}`, `{"a":1} `, `{"a":1}x`, `[]`, `"a"`, `null`, ``, "{\"\xff\":1}", `{"":1,"~/":2}`, "\ufeff{}", `{"a":1e999}`,
		`{"a":"\ud83d\ude00"}`, `{"a":"\ud83d"}`, `{"a":"\\ud83d"}`, `[{"a":1,"a":2}]`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		const deepest = 9000 // near ten thousand the two may differ by one
		if bytes.Count(data, []byte("["))+bytes.Count(data, []byte("{")) > deepest {
			return
		}
		b, err := parseBody(data)
		if want := strictJSON(data); (err == nil) != want {
			t.Fatalf("%q: %v, and it is well-formed: %t", data, err, want)
		}
		if err != nil {
			return
		}
		var want map[string]json.RawMessage
		if bytes.TrimLeft(data, " \t\r\n")[0] != '{' {
			if len(b.faults) != 1 || len(b.fields) != 0 {
				t.Fatalf("%q is no object: faults %v, fields %v", data, b.faults, b.fields)
			}
			return
		}
		if err := json.Unmarshal(data, &want); err != nil {
			t.Fatal(err)
		}
		for name, value := range want {
			if string(b.fields[name]) != string(value) {
				t.Errorf("%q: field %q is %s, want %s", data, name, b.fields[name], value)
			}
		}
		if len(b.fields) != len(want) {
			t.Errorf("%q: %d fields, want %d", data, len(b.fields), len(want))
		}
		if unread := b.err(); (unread != nil) != (len(want) > 0) || len(b.faults) != len(want) {
			t.Errorf("%q: %v, %d faults, want one for each of %d fields", data, unread, len(b.faults), len(want))
		}
		unescaped := strings.NewReplacer("~1", "/", "~0", "~") // one pass, as RFC 6901, section 4, asks
		for _, fault := range b.faults {
			if _, ok := want[unescaped.Replace(strings.TrimPrefix(*fault.Pointer, "/"))]; !ok {
				t.Errorf("%q: pointer %q names no field", data, *fault.Pointer)
			}
		}
	})
}

// strictJSON reports whether data is one JSON value of the contract's form, by the
// standard library, which is laxer in three points.
func strictJSON(data []byte) bool {
	if !json.Valid(data) || !utf8.Valid(data) || loneSurrogate.Match(pairs.ReplaceAll(data, []byte(" "))) {
		return false
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	return namesOnce(decoder)
}

var (
	// pairs are what is no lone surrogate: escaped backslashes, so that what
	// follows one is not read as an escape, and surrogates in pairs.
	pairs         = regexp.MustCompile(`\\\\|(?i:\\u[dD][89ab][0-9a-f]{2}\\u[dD][c-f][0-9a-f]{2})`)
	loneSurrogate = regexp.MustCompile(`(?i)\\u[d][89a-f][0-9a-f]{2}`)
)

// namesOnce reads a valid value and reports whether every name in it, at any
// depth, stands once in its object.
func namesOnce(decoder *json.Decoder) bool {
	token, err := decoder.Token()
	if err != nil {
		return false
	}
	once, names := true, map[string]bool{}
	for delim := token; delim == json.Delim('{') || delim == json.Delim('['); {
		if !decoder.More() {
			_, err := decoder.Token() // the closing one
			return once && err == nil
		}
		if delim == json.Delim('{') {
			name, err := decoder.Token()
			text, _ := name.(string)
			once = once && err == nil && !names[text]
			names[text] = true
		}
		once = namesOnce(decoder) && once
	}
	return once
}

// manyFields is a body that knows no field but amount.
func manyFields(n int) string {
	var b strings.Builder
	b.WriteString(`{"amount":1`)
	for i := range n {
		fmt.Fprintf(&b, `,"f%05d":1`, i)
	}
	return b.String() + "}"
}

// manyFaults are those that are named of them: that they are too many, and the first.
func manyFaults() []string {
	faults := []string{" too_many_fields"}
	for i := range maxFaults - 1 {
		faults = append(faults, fmt.Sprintf("/f%05d unknown_field", i))
	}
	return faults
}

// An amount is a JSON integer written as one, from 1 to the largest, and
// nothing else is.
func FuzzAmount(f *testing.F) {
	for _, seed := range []string{
		`1`, `0`, `-1`, `01`, `1.0`, `1e2`, `"100"`, `null`, `true`, `9007199254740991`, `9007199254740992`, ` 7 `, `99999999999999999999`, `1,"x":2`, `[1]`, `{}`,
	} {
		f.Add(seed)
	}
	integer := regexp.MustCompile(`^[ \t\r\n]*([1-9][0-9]{0,15})[ \t\r\n]*$`)
	f.Fuzz(func(t *testing.T, literal string) {
		var want int64
		if match := integer.FindStringSubmatch(literal); match != nil {
			if n, err := strconv.ParseInt(match[1], 10, 64); err == nil && n <= ledger.MaxAmount {
				want = n
			}
		}
		var got int64
		b, err := parseBody([]byte(`{"amount":` + literal + `}`))
		if err == nil {
			if got = b.amount("amount"); b.err() != nil {
				got = 0
			}
		}
		if got != want {
			t.Errorf("%q: got %d, want %d", literal, got, want)
		}
	})
}
