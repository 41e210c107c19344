package e2e_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/passbook/passbook/internal/test/testenv"
)

// followedEvent is an event of a stream.
type followedEvent struct {
	name string // "transaction" or "job"
	data []byte
}

// followed is an open stream.
type followed struct {
	response *http.Response
	lines    *bufio.Reader
}

// fromNow is where a stream begins without a Last-Event-ID.
const fromNow = -1

// follow opens a stream of an account's events after a transaction, or fromNow, which ends with ctx. The
// stream is nil where the API answers with another status than 200.
func (c *client) follow(ctx context.Context, api int, number string, after int64) (stream *followed, status int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.system.api(api)+"/v1/accounts/"+number+"/events", http.NoBody)
	if err != nil {
		return nil, 0, err
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	req.Header.Set("Accept", "text/event-stream")
	if after != fromNow {
		req.Header.Set("Last-Event-ID", strconv.FormatInt(after, 10))
	}
	response, err := (&http.Client{Transport: c.http.Transport}).Do(req) // c.http bounds the time of an answer
	if err != nil {
		return nil, 0, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, response.StatusCode, response.Body.Close()
	}
	return &followed{response, bufio.NewReader(response.Body)}, response.StatusCode, nil
}

func (f *followed) close() { _ = f.response.Body.Close() }

// head returns the transaction after which the stream begins.
func (f *followed) head() (seq int64, err error) {
	for {
		line, err := f.lines.ReadString('\n')
		if err != nil {
			return 0, err
		}
		if id, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "id: "); ok {
			return strconv.ParseInt(id, 10, 64)
		}
	}
}

// next returns the next event; an error where the stream has ended.
func (f *followed) next() (e followedEvent, err error) {
	for {
		line, err := f.lines.ReadString('\n')
		if err != nil {
			return e, err
		}
		field, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		switch {
		case field == "event":
			e.name = value
		case field == "data":
			e.data = []byte(value)
		case line == "\n" && e.name != "":
			return e, nil
		}
	}
}

// A stream of one API sends each transaction of a job that another API accepted, as soon as a worker
// has applied it: with the hub's look every five seconds alone the test would take too long. It goes
// on through an outage of Redis. Where its API ends, the client goes on at another.
func TestEventStream(t *testing.T) {
	t.Parallel()
	const some, few = 40, 3
	s := &system{t: t, postgres: testenv.PostgresServer(t), redis: testenv.RedisServer(t)}
	s.start(2, 2)
	c := newClient(t, s)
	number := c.open(0).Number
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	seq := int64(0)
	deposit := func(stream *followed, n int) {
		t.Helper()
		for range n {
			if _, err := c.settle(0, jobRequest{account: number, entry: "deposits", amount: 1, key: fmt.Sprint("k", seq)}); err != nil {
				t.Fatal(err)
			}
			seq++
			e, err := stream.next()
			var x transaction
			if err == nil {
				err = json.Unmarshal(e.data, &x)
			}
			if err != nil || x.Seq != seq {
				t.Fatalf("got %s, %v; want transaction %d", e.data, err, seq)
			}
		}
	}
	stream, status, err := c.follow(ctx, 1, number, 0)
	if stream == nil {
		t.Fatal(status, err)
	}
	defer stream.close()
	deposit(stream, some)
	if err := s.redis.Kill(); err != nil {
		t.Fatal(err)
	}
	deposit(stream, few)
	if err := s.redis.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	deposit(stream, some)
	s.apis[1].stop()
	if e, err := stream.next(); err == nil {
		t.Errorf("the stream of an API that has stopped has %s", e.data)
	}
	again, status, err := c.follow(ctx, 0, number, seq)
	if again == nil {
		t.Fatal(status, err)
	}
	defer again.close()
	deposit(again, some)
}
