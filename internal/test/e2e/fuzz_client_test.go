package e2e_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/passbook/passbook/internal/test/contract"
	"github.com/passbook/passbook/internal/test/fuzz"
)

const (
	fuzzDeadline = 45 * time.Second // of an answer; one may wait for 30 s
	fuzzTries    = 40               // of a request that is answered 503, as on a busy machine
	fuzzPause    = 300 * time.Millisecond
	streamTime   = 200 * time.Millisecond // that a stream without an end is read for
	streamBytes  = 8 << 10
)

// fuzzClient sends requests and judges the answers.
type fuzzClient struct {
	run     *fuzzRun
	source  *fuzz.Source
	address string
	name    string // begins its users' emails
	callers int

	skips func(fuzz.Request) bool    // requests that it does not send; nil for none
	judge func(exchange) []fuzzFault // in place of judgeAll; nil for that

	email, token string
	left         int // requests before the next caller

	conn   net.Conn // that stays open between requests; nil for none
	reader *bufio.Reader
}

// step sends one request, and returns its route. The error is one of the test itself.
func (c *fuzzClient) step() (contract.Route, error) {
	if c.left--; c.left < 0 {
		if err := c.nextCaller(); err != nil {
			return contract.Route{}, err
		}
	}
	r := c.source.Next()
	for c.skips != nil && c.skips(r) {
		r = c.source.Next()
	}
	x, faults := c.attempt(r)
	if len(faults) > 0 {
		c.find(r, x, faults)
	}
	if len(x.answers) > 0 {
		c.source.Learn(r, x.answers[0])
		if x.answers[0].Status == http.StatusUnauthorized && r.Token() == c.token {
			c.left = 0 // a request has ended the session
		}
	}
	return r.Route, nil
}

// nextCaller makes a user and a session, and opens accounts.
func (c *fuzzClient) nextCaller() error {
	c.callers++
	c.left, c.email = requestsACaller, fmt.Sprintf("%s.%d@example.com", c.name, c.callers)
	var err error
	if c.token, err = c.run.newSession(c.email); err != nil {
		return err
	}
	c.source.SetCaller(c.token, c.email, password)
	for _, r := range c.source.Begin() {
		x, faults := c.attempt(r)
		if len(faults) > 0 || len(x.answers) == 0 || x.answers[0].Status >= http.StatusBadRequest {
			return fmt.Errorf("%s: %v %v", r, faults, x.answers)
		}
		c.source.Learn(r, x.answers[0])
	}
	return nil
}

// exchange is what was sent, and what came back.
type exchange struct {
	text     string
	requests []fuzzParsed // as net/http reads them
	rest     error        // why the rest of the text is no request; nil where there is none
	answers  []contract.Answer
	err      error // why no more answers came; nil where the connection ended, or stays
}

// fuzzParsed is a request as net/http reads it.
type fuzzParsed struct {
	*http.Request
	body string
}

// attempt sends a request, again while the API says that it can't answer now, and judges the answer.
func (c *fuzzClient) attempt(r fuzz.Request) (x exchange, faults []fuzzFault) {
	for try := 1; ; try++ {
		x = c.exchange(r)
		if !x.isUnavailable() || try == fuzzTries {
			break
		}
		c.record(x)
		select {
		case <-time.After(fuzzPause):
		case <-c.run.t.Context().Done():
		}
	}
	c.record(x)
	if c.judge != nil {
		return x, c.judge(x)
	}
	return x, c.judgeAll(r, x)
}

func (x exchange) isUnavailable() bool {
	return slices.ContainsFunc(x.answers, func(a contract.Answer) bool { return a.Status == http.StatusServiceUnavailable })
}

// exchange sends a request once.
func (c *fuzzClient) exchange(r fuzz.Request) exchange {
	x := exchange{text: r.Text()}
	x.requests, x.rest = readRequests(x.text)
	if r.Alone || r.Raw != "" {
		c.sendAlone(&x)
		return x
	}
	isReused := c.conn != nil
	if c.sendKept(&x); len(x.answers) == 0 && isReused { // the API may have closed it meanwhile
		c.sendKept(&x)
	}
	return x
}

// sendAlone sends on a new connection and closes the client's side: the API answers until the end.
func (c *fuzzClient) sendAlone(x *exchange) {
	conn, err := c.dial()
	if err != nil {
		x.err = err
		return
	}
	defer conn.Close() //nolint:errcheck // it has been read to its end
	go func() {        // the API may answer before it has read everything
		_, _ = io.WriteString(conn, x.text) // an error shows in the answers
		if half, ok := conn.(*net.TCPConn); ok {
			_ = half.CloseWrite()
		}
	}()
	reader := bufio.NewReader(conn)
	for x.err == nil {
		if _, err := reader.Peek(1); err != nil {
			if err != io.EOF {
				x.err = err
			}
			return
		}
		c.read(x, conn, reader)
	}
}

// sendKept sends on the connection that stays open.
func (c *fuzzClient) sendKept(x *exchange) {
	if c.conn == nil {
		if c.conn, x.err = c.dial(); x.err != nil {
			return
		}
		c.reader = bufio.NewReader(c.conn)
	}
	if x.err = c.conn.SetDeadline(time.Now().Add(fuzzDeadline)); x.err == nil {
		_, x.err = io.WriteString(c.conn, x.text)
	}
	closes := true
	if x.err == nil {
		closes = c.read(x, c.conn, c.reader)
	}
	if closes || x.err != nil || c.reader.Buffered() > 0 {
		if x.err == nil && c.reader.Buffered() > 0 {
			c.read(x, c.conn, c.reader) // one answer too many
		}
		c.hangUp()
	}
}

func (c *fuzzClient) dial() (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(c.run.t.Context(), "tcp", c.address)
	if err == nil {
		err = conn.SetDeadline(time.Now().Add(fuzzDeadline))
	}
	return conn, err
}

func (c *fuzzClient) hangUp() {
	if c.conn != nil {
		_ = c.conn.Close() // its answers have been read
		c.conn = nil
	}
}

// read reads the next answer, and of a stream without an end the beginning.
func (c *fuzzClient) read(x *exchange, conn net.Conn, reader *bufio.Reader) (closes bool) {
	method := http.MethodGet
	if n := len(x.answers); n < len(x.requests) {
		method = x.requests[n].Method
	} else if strings.HasPrefix(x.text, http.MethodHead+" ") {
		method = http.MethodHead
	}
	for {
		res, err := http.ReadResponse(reader, &http.Request{Method: method}) //nolint:bodyclose // it is read to its end, or the connection closed
		if err != nil {
			x.err = err
			return true
		}
		if res.StatusCode < http.StatusOK { // 100 Continue
			continue
		}
		a := contract.Answer{Status: res.StatusCode, Header: res.Header}
		if strings.HasPrefix(res.Header.Get("Content-Type"), "text/event-stream") {
			_ = conn.SetReadDeadline(time.Now().Add(streamTime)) // where it fails, so does the read
			a.Body, _ = io.ReadAll(io.LimitReader(res.Body, streamBytes))
			x.answers = append(x.answers, a)
			x.err = io.EOF
			return true
		}
		if a.Body, err = io.ReadAll(res.Body); err != nil {
			x.err = fmt.Errorf("an answer is cut: %w", err)
			return true
		}
		x.answers = append(x.answers, a)
		return res.Close
	}
}

// readRequests reads what the bytes mean.
func readRequests(text string) (all []fuzzParsed, err error) {
	reader := bufio.NewReader(strings.NewReader(strings.TrimLeft(text, "\r\n"))) // RFC 9112, section 2.2
	for {
		if _, err := reader.Peek(1); err != nil {
			return all, nil //nolint:nilerr // the end
		}
		req, err := http.ReadRequest(reader)
		if err != nil {
			return all, err
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return all, err
		}
		req.URL.Scheme, req.URL.Host = "http", req.Host
		all = append(all, fuzzParsed{Request: req, body: string(body)})
	}
}
