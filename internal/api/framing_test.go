package api

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	framingHost   = "Host: h\r\n"
	framingType   = "Content-Type: application/json\r\n"
	framingKey    = "Idempotency-Key: k\r\n"
	framingLength = "Content-Length: 12\r\n"
	framingChunks = "Transfer-Encoding: chunked\r\n"
	framingBody   = `{"amount":1}`
	framingChunk  = "c\r\n" + framingBody + "\r\n0\r\n\r\n"
)

// framingCase is a request that a test sends, byte by byte.
type framingCase struct {
	name       string
	line       string // between the path and the end of the line; " HTTP/1.1" where empty
	host, body string // host is framingHost where empty, none where "-"
	head       string
	bare       bool // head replaces Content-Type and Idempotency-Key too
}

// wellFramed are requests that everything in front of the API reads in the same way.
var wellFramed = []framingCase{
	{name: "Length", head: framingLength, body: framingBody},
	{name: "Chunked", head: framingChunks, body: framingChunk},
	{name: "ChunkedInCapitals", head: "Transfer-Encoding: Chunked\r\n", body: framingChunk},
	{name: "OtherInTrailer", head: framingChunks, body: "c\r\n" + framingBody + "\r\n0\r\nX-A: b\r\n\r\n"},
}

func TestFraming_Accepts(t *testing.T) {
	t.Parallel()
	s := start(t)
	for _, test := range wellFramed {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := s.user(t)
			if got := s.pipeline(t, test.request(http.MethodPost, jobsOf(c.open(0), "deposits"), c.token)); fmt.Sprint(got) != "[202 200]" {
				t.Errorf("answers %v, want [202 200]", got)
			}
		})
	}
}

// misframed are requests whose end, host or key a proxy could read in another way.
var misframed = []framingCase{
	{name: "TwoLengths", head: framingLength + "Content-Length: 22\r\n", body: framingBody + "          "},
	{name: "TwoEqualLengths", head: framingLength + framingLength, body: framingBody},
	{name: "ListOfLengths", head: "Content-Length: 12, 12\r\n", body: framingBody},
	{name: "LengthAndChunked", head: "Content-Length: 4\r\n" + framingChunks, body: framingChunk},
	{name: "ChunkedAndLength", head: framingChunks + "Content-Length: 4\r\n", body: framingChunk},
	{name: "UnknownCoding", head: "Transfer-Encoding: xchunked\r\n", body: framingChunk},
	{name: "Identity", head: "Transfer-Encoding: identity\r\n" + framingLength, body: framingBody},
	{name: "ChunkedNotLast", head: "Transfer-Encoding: chunked, identity\r\n", body: framingChunk},
	{name: "GzipThenChunked", head: "Transfer-Encoding: gzip, chunked\r\n", body: framingChunk},
	{name: "ChunkedTwice", head: framingChunks + framingChunks, body: framingChunk},
	{name: "ChunkedListedTwice", head: "Transfer-Encoding: chunked, chunked\r\n", body: framingChunk},
	{name: "EmptyCoding", head: "Transfer-Encoding:\r\n" + framingLength, body: framingBody},
	{name: "NewlineInChunkExtension", head: framingChunks, body: "c;\nx\r\n" + framingBody + "\r\n0\r\n\r\n"},
	{name: "BareLFAfterChunkSize", head: framingChunks, body: "c\n" + framingBody + "\r\n0\r\n\r\n"},
	{name: "ChunkSizeWithSign", head: framingChunks, body: "+c\r\n" + framingBody + "\r\n0\r\n\r\n"},
	{name: "ChunkSizeWithPrefix", head: framingChunks, body: "0xc\r\n" + framingBody + "\r\n0\r\n\r\n"},
	{name: "ChunkLongerThanItsSize", head: framingChunks, body: "c\r\n" + framingBody + "xx0\r\n\r\n"},
	{name: "KeyInTrailer", head: framingType + framingChunks, bare: true, body: "c\r\n" + framingBody + "\r\n0\r\nIdempotency-Key: t\r\n\r\n"},
	{
		name: "AnnouncedKeyInTrailer", head: framingType + "Trailer: Idempotency-Key\r\n" + framingChunks, bare: true,
		body: "c\r\n" + framingBody + "\r\n0\r\nIdempotency-Key: t\r\n\r\n",
	},
	{name: "KeyInHeadAndTrailer", head: framingChunks, body: "c\r\n" + framingBody + "\r\n0\r\nIdempotency-Key: t\r\n\r\n"},
	{name: "KeyInHeadAndTrailerAgain", head: framingChunks, body: "c\r\n" + framingBody + "\r\n0\r\nidempotency-key: k\r\n\r\n"},
	{name: "AuthorizationInTrailer", head: framingChunks, body: "c\r\n" + framingBody + "\r\n0\r\nAuthorization: Bearer x\r\n\r\n"},
	{name: "TypeInTrailer", head: framingChunks, body: "c\r\n" + framingBody + "\r\n0\r\nContent-Type: text/plain\r\n\r\n"},
	{name: "LengthInTrailer", head: framingChunks, body: "c\r\n" + framingBody + "\r\n0\r\nContent-Length: 4\r\n\r\n"},
	{name: "HostInTrailer", head: framingChunks, body: "c\r\n" + framingBody + "\r\n0\r\nHost: y\r\n\r\n"},
	{name: "BareCR", head: "X-A: b\rContent-Length: 99\r\n" + framingLength, body: framingBody},
	{name: "BareLF", head: "X-A: b\nX-B: c\r\n" + framingLength, body: framingBody},
	{name: "BareLFAtTheEnd", head: "Content-Length: 12\r\nX-A: b\n\n", body: framingBody},
	{name: "NUL", head: "X-A: a\x00b\r\n" + framingLength, body: framingBody},
	{name: "Control", head: "X-A: a\x01b\r\n" + framingLength, body: framingBody},
	{name: "EmptyName", head: ": x\r\n" + framingLength, body: framingBody},
	{name: "NoColon", head: "X-A\r\n" + framingLength, body: framingBody},
	{name: "SpaceBeforeColon", head: "Content-Length : 12\r\n" + framingLength, body: framingBody},
	{name: "SpaceInName", head: "X A: b\r\n" + framingLength, body: framingBody},
	{name: "Folded", head: "X-A: b\r\n c\r\n" + framingLength, body: framingBody},
	{name: "FoldedFirst", host: " X-A: b\r\n" + framingHost, head: framingLength, body: framingBody},
	{name: "LengthWithSign", head: "Content-Length: +12\r\n", body: framingBody},
	{name: "LengthBelowZero", head: "Content-Length: -12\r\n", body: framingBody},
	{name: "LengthInHex", head: "Content-Length: 0xc\r\n", body: framingBody},
	{name: "LengthWithJunk", head: "Content-Length: 12x\r\n", body: framingBody},
	{name: "EmptyLength", head: "Content-Length:\r\n", body: framingBody},
	{name: "LengthPastInt64", head: "Content-Length: 18446744073709551628\r\n", body: framingBody},
	{name: "NoHost", host: "-", head: framingLength, body: framingBody},
	{name: "TwoHosts", head: "Host: y\r\n" + framingLength, body: framingBody},
	{name: "TwoEqualHosts", head: framingHost + framingLength, body: framingBody},
	{name: "HostWithSpace", host: "Host: a b\r\n", head: framingLength, body: framingBody},
	{name: "TwoTypes", head: framingType + framingLength, body: framingBody},
	{name: "TwoKeys", head: framingKey + framingLength, body: framingBody},
	{name: "TwoAuthorizations", head: "Authorization: Bearer x\r\n" + framingLength, body: framingBody},
	{name: "ChunkedInHTTP10", line: " HTTP/1.0", head: framingChunks, body: framingChunk},
	{name: "UnknownVersion", line: " HTTP/1.2", head: framingLength, body: framingBody},
	{name: "Fragment", line: "#x HTTP/1.1", head: framingLength, body: framingBody},
	{name: "FragmentInQuery", line: "?#x HTTP/1.1", head: framingLength, body: framingBody},
	{name: "SpaceInTarget", line: " x HTTP/1.1", head: framingLength, body: framingBody},
	{name: "NoVersion", line: "-", head: framingLength, body: framingBody},
}

// A body of any route is read as its body, also where the route takes none: what follows on the
// connection is the next request.
func TestFraming_BodyOnEveryRoute(t *testing.T) {
	t.Parallel()
	s := start(t)
	v := newVictim(t, s)
	for _, o := range operations(t) {
		if slices.Contains(o.types, eventStream) { // no answer to GET that ends by itself
			continue
		}
		t.Run(o.String(), func(t *testing.T) {
			t.Parallel()
			target := o.request(t, v.theirs).target
			for _, test := range wellFramed {
				if got := s.pipeline(t, test.request(o.method, target, v.token)); len(got) != 2 || got[0] >= http.StatusInternalServerError || got[1] != http.StatusOK {
					t.Errorf("%s: answers %v, want one and then [200]", test.name, got)
				}
			}
		})
	}
}

// The API answers 400 once, on every route, to a request that a proxy could read in another way, and
// nothing of what follows on the connection. It decides so before it knows the route: all cases go to the
// first route of each method, and one in framingShare to each other route.
func TestFraming_EveryRoute(t *testing.T) {
	t.Parallel()
	const framingShare = 4
	s := start(t)
	v := newVictim(t, s)
	before, jobs := v.state(), jobsIn(t, s)
	byMethod := operations(t)
	slices.SortStableFunc(byMethod, func(a, b operation) int { return cmp.Compare(a.method, b.method) })
	t.Run("Routes", func(t *testing.T) {
		for i, o := range byMethod {
			first := i == 0 || byMethod[i-1].method != o.method
			t.Run(o.String(), func(t *testing.T) {
				t.Parallel()
				target := o.request(t, v.theirs).target
				for n, test := range misframed {
					if !first && (n+i)%framingShare != 0 {
						continue
					}
					if got := s.pipeline(t, test.request(o.method, target, v.token)); fmt.Sprint(got) != "[400]" {
						t.Errorf("%s: answers %v, want [400] and the end", test.name, got)
					}
				}
			})
		}
	})
	v.wantUnharmed(before)
	if now := jobsIn(t, s); now != jobs {
		t.Errorf("%d jobs, want %d", now, jobs)
	}
}

// request returns the bytes.
func (f framingCase) request(method, target, token string) string {
	line, host := cmp.Or(f.line, " HTTP/1.1"), cmp.Or(f.host, framingHost)
	head := method + " " + target + strings.Trim(line, "-") + "\r\n" +
		strings.Trim(host, "-") + "Authorization: Bearer " + token + "\r\n"
	if !f.bare {
		head += framingType + framingKey
	}
	return head + f.head + "\r\n" + f.body
}

// pipeline sends a request and one for /livez behind it, and returns the
// statuses of all answers until the connection ends.
func (s *server) pipeline(t *testing.T, request string) []int {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // it has been read to its end
	if err := conn.SetDeadline(time.Now().Add(stopWait)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, request+"GET /livez HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	var statuses []int
	reader := bufio.NewReader(conn)
	for {
		res, err := http.ReadResponse(reader, nil)
		if err != nil {
			if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
				t.Error("the connection stays open")
			}
			return statuses
		}
		if _, err := io.Copy(io.Discard, res.Body); err != nil {
			t.Error(err)
		}
		_ = res.Body.Close()
		statuses = append(statuses, res.StatusCode)
	}
}
