package api

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
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

// framingCase is the deposit that a test sends, byte by byte.
type framingCase struct {
	name       string
	line       string // between the path and the end of the line; " HTTP/1.1" where empty
	host, body string // host is framingHost where empty, none where "-"
	head       string
	bare       bool // head replaces Content-Type and Idempotency-Key too
}

func TestFraming_Accepts(t *testing.T) {
	t.Parallel()
	s := start(t)
	for _, test := range []framingCase{
		{name: "Length", head: framingLength, body: framingBody},
		{name: "Chunked", head: framingChunks, body: framingChunk},
		{name: "ChunkedInCapitals", head: "Transfer-Encoding: Chunked\r\n", body: framingChunk},
		{name: "OtherInTrailer", head: framingChunks, body: "c\r\n" + framingBody + "\r\n0\r\nX-A: b\r\n\r\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := s.user(t)
			if got := s.pipeline(t, test.request(c, c.open(0))); fmt.Sprint(got) != "[202 200]" {
				t.Errorf("answers %v, want [202 200]", got)
			}
		})
	}
}

// The API answers 400 once to a request whose end, host or key a proxy could read differently, and
// answers nothing of what follows on the connection.
func TestFraming_Refuses(t *testing.T) {
	t.Parallel()
	s := start(t)
	for _, test := range []framingCase{
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
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := s.user(t)
			account := c.open(0)
			if got := s.pipeline(t, test.request(c, account)); fmt.Sprint(got) != "[400]" {
				t.Errorf("answers %v, want [400] and the end", got)
			}
			var jobs int
			const sql = `SELECT count(*) FROM jobs JOIN accounts ON accounts.id = jobs.account_id WHERE accounts.number = $1`
			if err := s.pool.QueryRow(t.Context(), sql, account.Number).Scan(&jobs); err != nil || jobs != 0 {
				t.Errorf("%d jobs, want none; %v", jobs, err)
			}
		})
	}
}

// request returns the bytes of the deposit.
func (f framingCase) request(c client, account accountJSON) string {
	line, host := cmp.Or(f.line, " HTTP/1.1"), cmp.Or(f.host, framingHost)
	head := "POST " + jobsOf(account, "deposits") + strings.Trim(line, "-") + "\r\n" +
		strings.Trim(host, "-") + "Authorization: Bearer " + c.token + "\r\n"
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
