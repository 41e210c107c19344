package fuzz

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// changes are the ways in which a request is made invalid, or odd: several of them leave it valid.
// Each returns what it did, or nothing where it does not apply.
var changes = []struct {
	change func(*Source, *Request) string
	alone  bool // the change may concern how the connection goes on
}{
	{(*Source).setMember, false},
	{(*Source).setMember, false},
	{(*Source).setMember, false},
	{(*Source).dropMember, false},
	{(*Source).addMember, false},
	{(*Source).repeatMember, false},
	{(*Source).editBody, false},
	{(*Source).editBody, false},
	{(*Source).setParameter, false},
	{(*Source).setParameter, false},
	{(*Source).addParameter, false},
	{(*Source).repeatParameter, false},
	{(*Source).setToken, false},
	{(*Source).setToken, false},
	{(*Source).setSegment, true},
	{(*Source).editTarget, true},
	{(*Source).dropHeader, true},
	{(*Source).setHeader, true},
	{(*Source).repeatHeader, true},
	{(*Source).addHeader, true},
	{(*Source).addHeader, true},
	{(*Source).setMethod, true},
	{(*Source).frame, true},
	{(*Source).frame, true},
	{(*Source).frame, true},
	{(*Source).editText, true},
}

// change changes the request in one way.
func (s *Source) change(r *Request) {
	if r.Raw != "" {
		return // a later change would be lost
	}
	const tries = 20
	for range tries {
		way := pick(s, changes)
		if done := way.change(s, r); done != "" {
			r.Changes = append(r.Changes, done)
			r.Alone = r.Alone || way.alone
			return
		}
	}
}

// oddValues are JSON values, and what looks like one.
var oddValues = []literal{
	`0`, `-1`, `-0`, `1.0`, `1e2`, `1E400`, `0.1`, `9007199254740991`, `9007199254740992`, `9223372036854775807`,
	`9223372036854775808`, `18446744073709551617`, `"100"`, `""`, `null`, `true`, `false`, `[]`, `{}`, `[1]`, `{"amount":1}`, `[null]`,
	`"\u0000"`, `"\ud800"`, `"\udc00\ud800"`, `"\ud83d\ude00"`, `"\u202eabc"`, `"\u2066a"`, `"\u2028"`, `"\u0085"`, `"\u007f"`, `"\ufeff"`,
	`"\ufffe"`, `"e\u0301"`, `"\u00e9"`, `" "`, `"\t"`, `"\n"`, `"a\r\nb"`, `"=1+1"`, `"+1"`, `"@a"`, `"-1"`, `"<script>"`, `"'; DROP TABLE jobs; --"`,
	`"../.."`, `"%00"`, `"\\"`, `"\/"`, `"KRW"`, `"krw"`, `"USD"`, `"XXX"`, `"me@example.com"`, `"a@b"`, `"deposit"`,
	`NaN`, `Infinity`, `01`, `+1`, `.5`, `1.`, `0x10`, `1_000`, `'a'`, `undefined`, `"a`, "\"\xff\"", "\"\xed\xa0\x80\"", "\"\xc0\x80\"", "\"\x01\"", `/**/1`,
	literal(`"` + strings.Repeat("x", 129) + `"`), literal(`"` + strings.Repeat("é", 141) + `"`), literal(`"` + strings.Repeat("🐖", 300) + `"`),
	literal(`"` + strings.Repeat(`\u0000`, 200) + `"`), literal(`"` + strings.Repeat("x", 70_000) + `"`),
	literal(strings.Repeat("[", 12_000) + strings.Repeat("]", 12_000)), literal(strings.Repeat(`{"a":`, 5_000) + "1" + strings.Repeat("}", 5_000)),
	literal(strings.Repeat("9", 400)), literal("1" + strings.Repeat("0", 60_000)),
}

// oddTexts are values of parameters and headers.
var oddTexts = []string{
	"", "0", "-1", "1", "101", "1.0", "1e1", " 1", "1 ", "+1", "٣", "9223372036854775808", "18446744073709551617", "0x10", "null", "true", "TRUE", "asc ", "ASC",
	"a", "*", ".", "..", "%", "%00", "%zz", "\x00", "\xff", "\x7f", "é", "e\u0301", "\u202e", "\ufeff", "'", `"`, `""`, `"a`, `a"`, `"\"`, `"a" "b"`, "a,b", "a;b",
	"<script>", "' OR 1=1 --", "{}", "[]", "../../etc/passwd", "00000000-0000-0000-0000-000000000000", "{0197c1f2-6d3a-7b41-9c55-2f8e4d10a6b3}",
	"0197C1F2-6D3A-7B41-9C55-2F8E4D10A6B3", "urn:uuid:0197c1f2-6d3a-7b41-9c55-2f8e4d10a6b3", "0197c1f26d3a7b419c552f8e4d10a6b3",
	"2026-02-03", "2026-02-30T00:00:00Z", "2026-02-03T04:05:06", "2026-02-03t04:05:06z", "2026-02-03 04:05:06Z", "2026-02-03T24:00:00Z", "2026-06-30T23:59:60Z",
	"0000-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999999Z", "9999-12-31T23:59:59-23:59", "10000-01-01T00:00:00Z",
	"2026-02-03T04:05:06.1234567890Z", "2026-02-03T04:05:06,5Z", "2026-02-03T04:05:06+24:00", "2026-02-03T04:05:06+0900",
	"text/csv", "application/json", "text/event-stream", "application/xml", "text/csv;q=0", "*/*;q=0", "text/csv;q=2", "text/*, */*;q=0.1", ",,,", "wait=5", "wait=0", "wait=31",
	"wait=-1", "wait", "wait=5, wait=6", "respond-async", "respond-async, wait=1",
	strings.Repeat("x", 64), strings.Repeat("x", 65), strings.Repeat("x", 256), strings.Repeat("x", 600), strings.Repeat("x", 5000), strings.Repeat("x", 20_000),
}

// setMember puts another value somewhere into the body.
func (s *Source) setMember(r *Request) string {
	if r.tree == nil {
		return ""
	}
	slot := pick(s, slots(&r.tree))
	odd := pick(s, oddValues)
	*slot = odd
	r.Body = encode(r.tree)
	return "a value is " + shortened(string(odd))
}

// dropMember removes a member of an object, or an item of an array.
func (s *Source) dropMember(r *Request) string {
	slot, size := s.composite(r)
	if size == 0 {
		return ""
	}
	i := s.rand.IntN(size)
	switch tree := (*slot).(type) {
	case object:
		*slot = slices.Delete(slices.Clone(tree), i, i+1)
	case []any:
		*slot = slices.Delete(slices.Clone(tree), i, i+1)
	}
	r.Body = encode(r.tree)
	return "a member is left out"
}

// addMember adds a member that the document does not know.
func (s *Source) addMember(r *Request) string {
	slot, _ := s.composite(r)
	if slot == nil {
		return ""
	}
	name := pick(s, []string{"", "x", "Amount", "amount ", "id", "balance", "user_id", "status", "seq", "__proto__", "a/b~c", "\x00", "é"})
	switch tree := (*slot).(type) {
	case object:
		*slot = append(slices.Clone(tree), member{name, pick(s, oddValues)})
	case []any:
		*slot = append(slices.Clone(tree), pick(s, oddValues))
	}
	r.Body = encode(r.tree)
	return "a member " + strconv.Quote(name) + " is added"
}

// repeatMember repeats a member with its value or another.
func (s *Source) repeatMember(r *Request) string {
	slot, size := s.composite(r)
	if size == 0 {
		return ""
	}
	i := s.rand.IntN(size)
	switch tree := (*slot).(type) {
	case object:
		again := tree[i]
		if s.chance(50) {
			again.value = pick(s, oddValues)
		}
		*slot = append(slices.Clone(tree), again)
	case []any:
		*slot = append(slices.Clone(tree), tree[i])
	}
	r.Body = encode(r.tree)
	return "a member is repeated"
}

// composite returns an object or array of the body and its size; nil where there is none.
func (s *Source) composite(r *Request) (slot *any, size int) {
	all := slices.DeleteFunc(slots(&r.tree), func(slot *any) bool {
		switch (*slot).(type) {
		case object, []any:
			return false
		}
		return true
	})
	if len(all) == 0 {
		return nil, 0
	}
	slot = pick(s, all)
	switch tree := (*slot).(type) {
	case object:
		size = len(tree)
	case []any:
		size = len(tree)
	}
	return slot, size
}

// editBody changes the text of the body.
func (s *Source) editBody(r *Request) string {
	if r.Body == "" && s.chance(80) { // a body where there is none is seldom of interest
		return ""
	}
	at := s.rand.IntN(len(r.Body) + 1)
	before, after := r.Body[:at], r.Body[at:]
	edits := []struct{ name, body string }{
		{"no body", ""},
		{"a cut body", before},
		{"a byte more", before + string(rune(s.byte())) + after},
		{"an invalid byte", before + "\xff" + after},
		{"a NUL", before + "\x00" + after},
		{"data after the body", r.Body + pick(s, []string{"{}", "]", "}", "x", "\x00", ",", "null"})},
		{"a byte order mark", "\ufeff" + r.Body},
		{"white space", " \t\r\n" + r.Body + "\n"},
		{"the largest body", r.Body + strings.Repeat(" ", max(0, 65536-len(r.Body)))},
		{"a body that is too large", r.Body + strings.Repeat(" ", max(0, 65537-len(r.Body)))},
		{"an array around the body", "[" + r.Body + "]"},
		{"a body twice", r.Body + r.Body},
		{"a form", "amount=1&description=x"},
	}
	chosen := pick(s, edits)
	r.Body, r.tree = chosen.body, parse(chosen.body)
	return chosen.name
}

// parameters returns the target's path and the pairs of its query.
func (r *Request) parameters() (path string, pairs []string) {
	path, query, found := strings.Cut(r.Target, "?")
	if found {
		pairs = strings.Split(query, "&")
	}
	return path, pairs
}

func (r *Request) setParameters(path string, pairs []string) {
	r.Target = path + "?" + strings.Join(pairs, "&")
}

func (s *Source) setParameter(r *Request) string {
	path, pairs := r.parameters()
	if len(pairs) == 0 {
		return ""
	}
	i := s.rand.IntN(len(pairs))
	name, _, _ := strings.Cut(pairs[i], "=")
	odd := pick(s, oddTexts)
	pairs[i] = name + "=" + s.percent(odd)
	r.setParameters(path, pairs)
	return "a parameter is " + shortened(odd)
}

func (s *Source) addParameter(r *Request) string {
	path, pairs := r.parameters()
	names := []string{"", "x", "limit", "cursor", "order", "Limit", "limit[]", "status", "type", "at", "from", "to", "bom", "wait", "%6cimit", "li%00mit", "idempotency_key"}
	added := pick(s, []string{pick(s, names) + "=" + s.percent(pick(s, oddTexts)), pick(s, names), "", "=", ";limit=1", "limit=1;order=asc", "limit=1#order=asc"})
	r.setParameters(path, append(pairs, added))
	return "the parameter " + shortened(added) + " is added"
}

func (s *Source) repeatParameter(r *Request) string {
	path, pairs := r.parameters()
	if len(pairs) == 0 {
		return ""
	}
	r.setParameters(path, append(pairs, pick(s, pairs)))
	return "a parameter is repeated"
}

// percent escapes a text for a target, one byte more than needed or one less.
func (s *Source) percent(text string) string {
	var b strings.Builder
	for _, c := range []byte(text) {
		plain := c > ' ' && c < 0x7f && c != '%' && c != '&' && c != '#' && c != '?' && c != '+'
		if c == '\r' || c == '\n' || plain == s.chance(2) {
			fmt.Fprintf(&b, "%%%02x", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// setSegment changes a segment of the path.
func (s *Source) setSegment(r *Request) string {
	path, query, found := strings.Cut(r.Target, "?")
	segments := strings.Split(path, "/")
	if len(segments) < 2 {
		return ""
	}
	i := 1 + s.rand.IntN(len(segments)-1)
	old := segments[i]
	odd := pick(s, oddTexts)
	segments[i] = pick(s, []string{
		s.percent(strings.ReplaceAll(odd, "/", "%2f")), strings.ToUpper(old), strings.ToLower(old), old + "%20", old + "%00", old + ".", old + ";x=1",
		old + "%2f..", "%2e%2e", "..", ".", "", old + "/" + old, old + "\\", escapedFirst(old),
	})
	r.Target = strings.Join(segments, "/")
	if found {
		r.Target += "?" + query
	}
	return "a segment is " + shortened(segments[i])
}

// escapedFirst escapes a text's first byte, which changes no path's meaning.
func escapedFirst(text string) string {
	if text == "" {
		return ""
	}
	return fmt.Sprintf("%%%02x%s", text[0], text[1:])
}

func (s *Source) editTarget(r *Request) string {
	path, _, _ := strings.Cut(r.Target, "?")
	edits := []string{
		r.Target + "/", "/" + r.Target, path + "/?", path + "?", path + "#fragment", path + "??", "http://passbook.test" + r.Target, "http://other.test" + r.Target,
		"https://passbook.test:1" + r.Target, "//other.test" + r.Target, "*", "passbook.test:443", strings.TrimPrefix(r.Target, "/"), "/" + escapedFirst(strings.TrimPrefix(path, "/")),
		path + strings.Repeat("/x", 500), "/" + strings.Repeat("x", 20_000), path + "/../" + strings.TrimPrefix(path, "/"), "/.." + r.Target, "\\" + r.Target, path + " HTTP/1.1",
		strings.ToUpper(path), "/v2" + r.Target, "/",
	}
	chosen := pick(s, edits)
	r.Target = chosen
	return "the target is " + shortened(chosen)
}

func (s *Source) dropHeader(r *Request) string {
	if len(r.Headers) == 0 {
		return ""
	}
	i := s.rand.IntN(len(r.Headers))
	dropped := r.Headers[i].Name
	r.Headers = slices.Delete(slices.Clone(r.Headers), i, i+1)
	return "without " + dropped
}

func (s *Source) setHeader(r *Request) string {
	if len(r.Headers) == 0 {
		return ""
	}
	h := &r.Headers[s.rand.IntN(len(r.Headers))]
	odd := s.line(pick(s, []string{pick(s, oddTexts), h.Value + pick(s, oddTexts), strings.ToUpper(h.Value), " " + h.Value + "\t", h.Value + ", " + h.Value, h.Value + ";"}))
	h.Value = odd
	return h.Name + " is " + shortened(odd)
}

func (s *Source) repeatHeader(r *Request) string {
	if len(r.Headers) == 0 {
		return ""
	}
	h := pick(s, r.Headers)
	if s.chance(50) {
		h.Value = s.line(pick(s, oddTexts))
	}
	h.Name = pick(s, []string{h.Name, strings.ToLower(h.Name), strings.ToUpper(h.Name)})
	r.Headers = append(r.Headers, h)
	return h.Name + " is repeated"
}

// line is a text that does not end a header.
func (s *Source) line(text string) string {
	return strings.NewReplacer("\r", "", "\n", "").Replace(text)
}

// oddHeaders are headers that change how a server reads or answers a request.
var oddHeaders = []Header{
	{"Content-Encoding", "gzip"},
	{"Content-Encoding", "identity"},
	{"Expect", "100-continue"},
	{"Expect", "200-ok"},
	{"Range", "bytes=0-10"},
	{"If-None-Match", "*"},
	{"If-Match", `"x"`},
	{"If-Modified-Since", "Tue, 03 Feb 2026 04:05:06 GMT"},
	{"Origin", "https://other.test"},
	{"Access-Control-Request-Method", "POST"},
	{"X-Forwarded-For", "127.0.0.1"},
	{"X-Forwarded-Host", "other.test"},
	{"Forwarded", "for=127.0.0.1"},
	{"X-HTTP-Method-Override", "DELETE"},
	{"X-Original-URL", "/v1/accounts"},
	{"Connection", "close"},
	{"Connection", "keep-alive, authorization"},
	{"Upgrade", "h2c"},
	{"Upgrade", "websocket"},
	{"Cookie", "session=1; a=b"},
	{"TE", "trailers"},
	{"Trailer", "Idempotency-Key"},
	{"Accept", "text/csv"},
	{"Accept", "text/event-stream"},
	{"Accept", "application/xml"},
	{"Accept", ""},
	{"Accept-Encoding", "gzip, br"},
	{"Accept-Language", "ko"},
	{"Accept-Charset", "utf-16"},
	{"Content-Type", "text/plain"},
	{"Content-Type", "application/json; charset=utf-16"},
	{"Content-Type", "multipart/form-data; boundary=x"},
	{"Content-Language", "ko"},
	{"X-Request-Id", "fuzz"},
	{"X-Request-Id", "a b"},
	{"X-Request-Id", "\xff"},
	{"Prefer", "wait=1"},
	{"Prefer", "wait=x; y"},
	{"Prefer", "respond-async, wait=0"},
	{"Last-Event-ID", "1"},
	{"Last-Event-ID", "x"},
	{"Idempotency-Key", "fuzz"},
	{"Idempotent-Replayed", "true"},
	{"Authorization", "Basic YTpi"},
	{"Proxy-Authorization", "Basic YTpi"},
	{"Date", "x"},
	{"Host", "other.test"},
}

func (s *Source) addHeader(r *Request) string {
	h := pick(s, oddHeaders)
	if s.chance(10) {
		h.Value = s.line(pick(s, oddTexts))
	}
	r.Headers = append(r.Headers, h)
	return fmt.Sprintf("%s: %s is added", h.Name, shortened(h.Value))
}

// setToken puts another thing in place of the access token.
func (s *Source) setToken(r *Request) string {
	token := r.Token()
	if token == "" {
		return ""
	}
	parts := append(strings.Split(token, "."), "", "")
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","typ":"at+jwt","kid":"k1"}`))
	edits := []string{
		bearer, "Bearer", token, "bearer " + token, "BEARER " + token, "Bearer  " + token, "Basic " + token, bearer + token[:len(token)-1], bearer + token + "x",
		bearer + token + " ", bearer + none + "." + parts[1] + ".", bearer + parts[0] + "." + parts[1] + ".", bearer + parts[0] + ".." + parts[2], bearer + token + "." + parts[2],
		bearer + strings.ToUpper(token), bearer + `"` + token + `"`, bearer + token + ", " + bearer + token, bearer + strings.Repeat("x", 4000), bearer + "\x00", bearer + "null",
	}
	if refresh, ok := s.known.pick(s, "refresh_token"); ok {
		edits = append(edits, bearer+fmt.Sprint(refresh))
	}
	i := slices.IndexFunc(r.Headers, func(h Header) bool { return strings.EqualFold(h.Name, headerAuth) })
	r.Headers[i].Value = pick(s, edits)
	return "another token"
}

func (s *Source) setMethod(r *Request) string {
	r.Method = pick(s, []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get", "Post", "QUERY", "X", "G\x00T", "é"})
	return "the method is " + shortened(r.Method)
}

// frame changes how the bytes say where the request ends.
func (s *Source) frame(r *Request) string {
	text := r.Text()
	head, body, _ := strings.Cut(text, "\r\n\r\n")
	line, headers, _ := strings.Cut(head, "\r\n")
	last := headers[strings.LastIndex(headers, "\n")+1:]
	chunked := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(r.Body), r.Body)
	without := strings.Join(slices.DeleteFunc(strings.Split(head, "\r\n"), func(h string) bool {
		name, _, _ := strings.Cut(strings.ToLower(h), ":")
		return name == "content-length" || name == "transfer-encoding"
	}), "\r\n")
	const end = "\r\n\r\n"
	edits := []struct{ name, text string }{
		{"a shorter length", fmt.Sprintf("%s\r\nContent-Length: %d%s%s", without, max(0, len(r.Body)-1), end, r.Body)},
		{"a longer length", fmt.Sprintf("%s\r\nContent-Length: %d%s%s", without, len(r.Body)+1, end, r.Body)},
		{"two lengths", fmt.Sprintf("%s\r\nContent-Length: %d\r\nContent-Length: 0%s%s", without, len(r.Body), end, r.Body)},
		{"a list of lengths", fmt.Sprintf("%s\r\nContent-Length: %d, %[2]d%s%s", without, len(r.Body), end, r.Body)},
		{"a length with a sign", fmt.Sprintf("%s\r\nContent-Length: +%d%s%s", without, len(r.Body), end, r.Body)},
		{"a negative length", without + "\r\nContent-Length: -1" + end + r.Body},
		{"a length in hexadecimal", fmt.Sprintf("%s\r\nContent-Length: 0x%x%s%s", without, len(r.Body), end, r.Body)},
		{"a vast length", without + "\r\nContent-Length: 99999999999999999999" + end + r.Body},
		{"no length", without + end + r.Body},
		{"a length and chunks", fmt.Sprintf("%s\r\nContent-Length: %d\r\nTransfer-Encoding: chunked%s%s", without, len(r.Body), end, chunked)},
		{"chunks and a length", fmt.Sprintf("%s\r\nTransfer-Encoding: chunked\r\nContent-Length: %d%s%s", without, len(r.Body), end, r.Body)},
		{"chunks", without + "\r\nTransfer-Encoding: chunked" + end + chunked},
		{"chunks, in capitals", without + "\r\nTRANSFER-ENCODING: Chunked" + end + chunked},
		{"chunks twice", without + "\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked" + end + chunked},
		{"gzip, chunked", without + "\r\nTransfer-Encoding: gzip, chunked" + end + chunked},
		{"another coding", without + "\r\nTransfer-Encoding: xchunked" + end + chunked},
		{"identity", without + "\r\nTransfer-Encoding: identity" + end + r.Body},
		{"chunks with an extension", fmt.Sprintf("%s\r\nTransfer-Encoding: chunked%s%x;a=b\r\n%s\r\n0;c\r\n\r\n", without, end, len(r.Body), r.Body)},
		{"chunks with a trailer", fmt.Sprintf("%s\r\nTransfer-Encoding: chunked%s%x\r\n%s\r\n0\r\nIdempotency-Key: trailer\r\n\r\n", without, end, len(r.Body), r.Body)},
		{"a chunk of a bad size", without + "\r\nTransfer-Encoding: chunked" + end + "+1\r\nx\r\n0\r\n\r\n"},
		{"a chunk that is cut", fmt.Sprintf("%s\r\nTransfer-Encoding: chunked%s%x\r\n%s", without, end, len(r.Body)+2, r.Body)},
		{"a chunk without its end", fmt.Sprintf("%s\r\nTransfer-Encoding: chunked%s%x\r\n%s0\r\n\r\n", without, end, len(r.Body), r.Body)},
		{"line feeds alone", strings.ReplaceAll(head, "\r\n", "\n") + "\n\n" + body},
		{"a line feed in a header", head + "\r\nX-A: b\nX-C: d" + end + body},
		{"a carriage return in a header", head + "\r\nX-A: b\rX-C: d" + end + body},
		{"a NUL in a header", head + "\r\nX-A: b\x00c" + end + body},
		{"a folded header", head + "\r\n folded" + end + body},
		{"a space before a colon", line + "\r\n" + strings.Replace(headers, ":", " :", 1) + end + body},
		{"a space before a header", line + "\r\n " + headers + end + body},
		{"a header without a colon", line + "\r\nX-A\r\n" + headers + end + body},
		{"a header without a name", line + "\r\n: a\r\n" + headers + end + body},
		{"a header that is last and long", head + "\r\nX-A: " + strings.Repeat("a", 17_000) + end + body},
		{"many headers", head + strings.Repeat("\r\na: b", 101) + end + body},
		{"HTTP/1.0", strings.Replace(text, version, "HTTP/1.0", 1)},
		{"HTTP/1.0 that stays", strings.Replace(head, version, "HTTP/1.0", 1) + "\r\nConnection: keep-alive" + end + body},
		{"HTTP/2.0", strings.Replace(text, version, "HTTP/2.0", 1)},
		{"HTTP/0.9", r.Method + " " + r.Target + "\r\n"},
		{"no version", strings.Replace(text, " "+version, "", 1)},
		{"a version in small letters", strings.Replace(text, version, "http/1.1", 1)},
		{"two spaces", strings.Replace(text, " ", "  ", 1)},
		{"a tab", strings.Replace(text, " ", "\t", 1)},
		{"an empty line first", "\r\n" + text},
		{"the request twice", text + text},
		{"a request in the body", fmt.Sprintf("%s\r\nContent-Length: 0%s%s", without, end, text)},
		{"the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
		{"half a head", head[:1+s.rand.IntN(len(head)-1)]},
		{"a header in the middle of another", strings.Replace(head, last, last[:len(last)/2]+"\r\n"+last[len(last)/2:], 1) + end + body},
	}
	chosen := pick(s, edits)
	r.Raw = chosen.text
	return chosen.name
}

// editText changes some bytes anywhere in the request.
func (s *Source) editText(r *Request) string {
	text := []byte(r.Text())
	for range 1 + s.small(8) {
		i := s.rand.IntN(len(text))
		switch s.rand.IntN(3) {
		case 0:
			text[i] = s.byte()
		case 1:
			text = slices.Insert(text, i, s.byte())
		case 2:
			if len(text) > 1 {
				text = slices.Delete(text, i, i+1)
			}
		}
	}
	r.Raw = string(text)
	return "some bytes are others"
}

func (s *Source) byte() byte { return byte(s.rand.IntN(256)) } //nolint:gosec // it fits

// shortened is a text for a report.
func shortened(text string) string {
	const most = 40
	if len(text) > most {
		return fmt.Sprintf("%.*q… of %d bytes", most, text, len(text))
	}
	return strconv.Quote(text)
}
