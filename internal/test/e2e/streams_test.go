package e2e_test

import (
	"bufio"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"testing"
	"time"

	"github.com/passbook/passbook/internal/test/testenv"
)

var (
	streams     = flag.Int("streams", 100, "how many event streams TestStreams opens at once, more than 20")
	streamsRest = flag.Duration("streams.rest", time.Second, "for how long TestStreams measures the API at rest, without them and with them; each looks every 15 s")
)

const (
	streamsPerUser = 20     // which is a user's bound
	mostPerStream  = 50_000 // bytes: 2,000 streams have 100 MB
)

// One API holds many event streams, in little memory. At rest they cost no time of its processor and
// only the looks that they share; each still sends what happens on its account.
func TestStreams(t *testing.T) {
	t.Parallel()
	s := &system{t: t, postgres: testenv.PostgresServer(t), redis: testenv.RedisServer(t), build: plain}
	s.reach = func(string, int) []string {
		return []string{fmt.Sprint("MAX_CONNECTIONS=", 2**streams+100), "MAX_CONNECTIONS_PER_ADDRESS=0"} // half of them may be streams
	}
	s.start(1, 1)
	api := s.apis[0]
	var users []*client
	var numbers []string
	for n := 0; n < *streams; n += streamsPerUser {
		c := newUser(t, s)
		users, numbers = append(users, c), append(numbers, c.open(0).Number)
	}
	alone := api.rest()
	var open []*eventConn
	var before int64
	for n := range *streams {
		if n == streamsPerUser {
			before = api.used() // what the first streams, and the requests before them, cost once is not counted
		}
		open = append(open, users[n/streamsPerUser].openEvents(numbers[n/streamsPerUser]))
	}
	each := (api.used() - before) / int64(*streams-streamsPerUser)
	t.Logf("%d streams are open, with %d bytes each; the API has %s", *streams, each, api.memory())
	if each > mostPerStream {
		t.Errorf("a stream has %d bytes, want %d at most", each, mostPerStream)
	}
	checkRest(t, alone, api.rest())

	for i, c := range users {
		if _, err := c.settle(0, jobRequest{account: numbers[i], entry: "deposits", amount: 1, key: "k"}); err != nil {
			t.Fatal(err)
		}
	}
	for _, stream := range open {
		stream.wants("event: transaction")
	}
	api.stop()
}

// atRest is what a process has done in a time in which it had no request.
type atRest struct {
	took, used time.Duration // by the clock, and of the processor
	queries    float64
}

// rest waits until the process is at rest, and measures it for streams.rest.
func (p *process) rest() (r atRest) {
	p.t.Helper()
	var asked float64
	testenv.Eventually(p.t, "the API to be at rest", func() bool {
		before := asked
		asked = p.acquires()
		return asked == before
	})
	began, ran := time.Now(), p.processorTime()
	<-time.After(*streamsRest)
	r = atRest{took: time.Since(began), used: p.processorTime() - ran, queries: p.acquires() - asked}
	p.t.Logf("at rest: %v of the processor and %g queries in %v", r.used, r.queries, r.took)
	return r
}

// checkRest checks what the streams cost while nothing happens: without them the process did what alone
// says. It probes Postgres every 2 s, so one measurement may have a few more probes than another.
func checkRest(t *testing.T, alone, with atRest) {
	t.Helper()
	const (
		beat, look   = 15 * time.Second, 5 * time.Second // of a stream, and of the hub
		shared       = 128 / 4                           // looks in a statement: it takes 128, and less while they still arrive
		share        = 20                                // a twentieth of a processor
		chance       = 2                                 // how much more the process may do in one measurement than in another
		spareQueries = 20                                // of probes that fall into one short measurement, and not into the other
		spare        = 200 * time.Millisecond
	)
	others := chance*alone.queries*with.took.Seconds()/alone.took.Seconds() + spareQueries
	beats, looks := int(with.took/beat)+1, int(with.took/look)+1
	if most := float64(beats*(*streams/shared+1)+looks) + others; with.queries > most {
		t.Errorf("%g queries in %v, want %.0f at most", with.queries, with.took, most)
	}
	if most := with.took/share + spare; with.used > most {
		t.Errorf("%v of the processor in %v, want %v at most", with.used, with.took, most)
	}
}

// eventConn is a connection with an event stream on it, in as little memory as it takes.
type eventConn struct {
	t     testing.TB
	conn  net.Conn
	lines *bufio.Reader
}

// openEvents opens a stream of an account's events, and waits for its head.
func (c *client) openEvents(number string) *eventConn {
	c.t.Helper()
	w := c.waiter()
	_, err := fmt.Fprintf(w, "GET /v1/accounts/%s/events HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer %s\r\nAccept: text/event-stream\r\n\r\n", number, c.token)
	if err != nil {
		c.t.Fatal(err)
	}
	const head = 1024
	lines := bufio.NewReaderSize(w, head)
	res, err := http.ReadResponse(lines, nil) //nolint:bodyclose // its connection is closed
	if err != nil || res.StatusCode != http.StatusOK {
		c.t.Fatalf("a stream of %s: %v, %v", number, res, err)
	}
	return &eventConn{t: c.t, conn: w, lines: bufio.NewReaderSize(httputil.NewChunkedReader(lines), head)}
}

// wants reads up to a line.
func (e *eventConn) wants(line string) {
	e.t.Helper()
	if err := e.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		e.t.Fatal(err)
	}
	for {
		got, err := e.lines.ReadString('\n')
		if err != nil {
			e.t.Fatalf("no %q: %v", line, err)
		}
		if strings.TrimSpace(got) == line {
			return
		}
	}
}

// used is how much memory the process has in use, in bytes. It collects what is garbage first.
func (p *process) used() int64 {
	p.t.Helper()
	get(p.t, p.operator()+"/debug/pprof/heap?gc=1")
	return int64(p.metric("go_memstats_heap_inuse_bytes") + p.metric("go_memstats_stack_inuse_bytes"))
}

// processorTime is how long the process has run, on all processors together.
func (p *process) processorTime() time.Duration {
	p.t.Helper()
	return time.Duration(p.metric("process_cpu_seconds_total") * float64(time.Second))
}
