package api

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/passbook/passbook/internal/test/testenv"
)

const bodyHead = "POST /v1/users HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"

// A body that is announced as too large is refused by its head alone, whatever the client
// sends of it or waits for, and the client gets the answer before the connection ends.
func TestReceive_RefusesByAnnouncement(t *testing.T) {
	t.Parallel()
	s := start(t)
	for name, sent := range map[string]string{
		"Nothing":         bodyHead + "Content-Length: 65537\r\n\r\n",
		"Vast":            bodyHead + "Content-Length: 9223372036854775807\r\n\r\n",
		"OneByte":         bodyHead + "Content-Length: 65537\r\n\r\n{",
		"WaitsFor100":     bodyHead + "Content-Length: 65537\r\nExpect: 100-continue\r\n\r\n",
		"AllAndMore":      bodyHead + "Content-Length: 65537\r\n\r\n" + strings.Repeat(" ", 65537) + livez,
		"SpaceInTheValue": bodyHead + "content-length:   65537  \r\n\r\n",
		"OnGet":           "GET /livez HTTP/1.1\r\nHost: h\r\nContent-Length: 65537\r\n\r\n",
		"Chunked":         bodyHead + "Transfer-Encoding: chunked\r\n\r\nfffff\r\n" + strings.Repeat(" ", 65537),
		"ManyChunks":      bodyHead + "Transfer-Encoding: chunked\r\n\r\n" + strings.Repeat("10\r\n"+strings.Repeat(" ", 16)+"\r\n", 4097),
		"Upload":          bodyHead + "Content-Length: 900000\r\n\r\n" + strings.Repeat(" ", 900_000),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := s.dial(t)
			if _, err := io.WriteString(conn, sent); err != nil {
				t.Fatal(err)
			}
			reader := bufio.NewReader(conn)
			wantAnswers(t, name, reader, http.StatusRequestEntityTooLarge)
			if rest, err := reader.ReadByte(); !errors.Is(err, io.EOF) {
				t.Errorf("then %q, %v; want the end", rest, err)
			}
		})
	}
}

// What is within the bound arrives, in one piece or in many, and the next request behind it.
func TestReceive_TakesWhatFits(t *testing.T) {
	t.Parallel()
	s := start(t)
	body := `{"x":` + strings.Repeat(" ", 65536-7) + `1}`
	var chunks strings.Builder
	for part := body; part != ""; part = part[min(1000, len(part)):] {
		fmt.Fprintf(&chunks, "%x\r\n%s\r\n", min(1000, len(part)), part[:min(1000, len(part))])
	}
	for name, sent := range map[string]string{
		"Length":      bodyHead + "Content-Length: 65536\r\n\r\n" + body,
		"WaitsFor100": bodyHead + "Expect: 100-continue\r\nContent-Length: 65536\r\n\r\n" + body,
		"Chunked":     bodyHead + "Transfer-Encoding: chunked\r\n\r\n" + chunks.String() + "0\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := s.dial(t)
			if _, err := io.WriteString(conn, sent+livez); err != nil {
				t.Fatal(err)
			}
			reader := bufio.NewReader(conn)
			if strings.Contains(sent, "Expect") {
				wantAnswers(t, name, reader, http.StatusContinue)
			}
			wantAnswers(t, name, reader, http.StatusUnprocessableEntity, http.StatusOK)
		})
	}
}

// A body whose client closes the connection before its end is refused, although a part of it is a
// valid body.
func TestReceive_RefusesAPart(t *testing.T) {
	t.Parallel()
	s := start(t)
	c := s.user(t)
	account := c.open(0)
	for _, padding := range []int{0, 20_000} { // the latter is more than fasthttp reads ahead
		body := `{"amount":1}` + strings.Repeat(" ", padding)
		conn := s.dial(t)
		if _, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer %s\r\nIdempotency-Key: k\r\n"+
			"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", jobsOf(account, "deposits"), c.token, len(body)+1, body); err != nil {
			t.Fatal(err)
		}
		if half, ok := conn.(*net.TCPConn); !ok || half.CloseWrite() != nil {
			t.Fatal("not half closed")
		}
		wantAnswers(t, "a part", bufio.NewReader(conn), http.StatusBadRequest)
	}
}

// Clients that announce the largest body, and send a byte, use little memory. The test runs
// alone: the memory is the process's.
func TestReceive_GrowsAsDataArrives(t *testing.T) { //nolint:paralleltest // see above
	s := start(t, func(set *settings) {
		set.edit = func(a *API) { a.app.Server().ReadTimeout = time.Hour }
	})
	const clients, most = 1000, 40 << 20
	before := heapInUse()
	for range clients {
		if _, err := io.WriteString(s.dial(t), bodyHead+"Content-Length: 65536\r\n\r\n{"); err != nil {
			t.Fatal(err)
		}
	}
	testenv.Eventually(t, "every request has begun to arrive", func() bool {
		connections, _, waiting := s.connections()
		return connections == clients && waiting == 0
	})
	if grown := heapInUse() - before; grown > most {
		t.Errorf("%d clients take %d MiB, want %d at most", clients, grown>>20, most>>20)
	}
}

// The number of headers is bounded, whatever their size.
func TestReceive_BoundsHeaders(t *testing.T) {
	t.Parallel()
	s := start(t)
	get := func(headers int) string { // with Host
		return "GET /livez HTTP/1.1\r\nHost: h\r\n" + strings.Repeat("a:\r\n", headers-1) + "\r\n"
	}
	conn := s.dial(t)
	ask(t, conn, get(maxHeaders), http.StatusOK)
	for _, headers := range []int{maxHeaders + 1, 4000} {
		conn := s.dial(t)
		reader := bufio.NewReader(conn)
		if _, err := io.WriteString(conn, get(headers)+livez); err != nil {
			t.Fatal(err)
		}
		wantAnswers(t, "headers", reader, http.StatusRequestHeaderFieldsTooLarge)
		if rest, err := reader.ReadByte(); !errors.Is(err, io.EOF) {
			t.Errorf("%d headers: then %q, %v; want the end", headers, rest, err)
		}
	}
	ask(t, conn, livez, http.StatusOK)
}

// What a request had in parameters takes no memory once it is answered. It runs alone: the
// memory is the process's.
func TestReceive_KeepsNoParameters(t *testing.T) { //nolint:paralleltest // see above
	s := start(t)
	const clients, most = 200, 20 << 20
	before := heapInUse()
	for range clients {
		ask(t, s.dial(t), "GET /livez?"+strings.Repeat("x&", 7000)+" HTTP/1.1\r\nHost: h\r\n\r\n", http.StatusBadRequest)
	}
	if grown := heapInUse() - before; grown > most {
		t.Errorf("%d clients take %d MiB, want %d at most", clients, grown>>20, most>>20)
	}
}

func heapInUse() int64 {
	runtime.GC()
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	return int64(memory.HeapInuse)
}
