package e2e_test

import (
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/passbook/passbook/internal/test/testenv"
)

// A load balancer that asks /readyz every tenth of a second, and sends on connections that
// it keeps until that says no, sees no request fail while an API stops. The API ends well,
// although a client has sent half a request.
func TestShutdownDelay(t *testing.T) {
	t.Parallel()
	s := &system{t: t, postgres: testenv.PostgresServer(t), redis: testenv.RedisServer(t)}
	env := append(s.env(), "SHUTDOWN_DELAY=5s", "MAX_ACCOUNTS_PER_USER=0") // far more than the balancer needs; openings at once
	s.apis = []*process{start(t, "api", env)}
	s.workers = []*process{start(t, "worker", env)}
	api, worker := s.apis[0], s.workers[0]
	c := newClient(t, s)
	a := c.open(0)
	half, err := new(net.Dialer).DialContext(t.Context(), "tcp", api.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer half.Close() //nolint:errcheck // its end is not looked at

	var answered atomic.Int64
	looksAway := make(chan struct{})
	var clients sync.WaitGroup
	for range 32 {
		clients.Go(func() {
			for !isClosed(looksAway) {
				// Without a key: the HTTP client would send it again by itself.
				status, answer, err := c.request(t.Context(), s.api(0), http.MethodPost, "/v1/accounts", "", map[string]any{})
				if err != nil || status != http.StatusCreated {
					t.Errorf("while the API stops: %d %s %v", status, answer, err)
					return
				}
				answered.Add(1)
			}
		})
	}
	testenv.Eventually(t, "requests are on their way", func() bool { return answered.Load() > 100 })
	if _, err := io.WriteString(half, "POST /v1/users HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n{"); err != nil {
		t.Fatal(err)
	}
	stop := func(p *process) {
		if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, p.name+" to say on the operator's port that it stops", func() bool {
			status, body := get(t, p.operator()+"/readyz")
			return status == http.StatusServiceUnavailable && strings.Contains(body, "shutting_down")
		})
	}
	stop(api)
	if status, body := get(t, "http://"+api.addr+"/readyz"); status != http.StatusServiceUnavailable {
		t.Errorf("the balancer is told %d %s", status, body)
	}
	if status, answer, err := c.send(t.Context(), 0, jobRequest{a.Number, "deposits", 1, "late"}); err != nil || status != http.StatusAccepted {
		t.Errorf("a late deposit: %d %s %v", status, answer, err)
	}
	close(looksAway)
	clients.Wait()
	stop(worker)
	for _, p := range []*process{api, worker} {
		if err := p.wait(); err != nil {
			t.Errorf("%s stopped with %v\n%s", p.name, err, p.log())
		}
	}
}

func isClosed(signal <-chan struct{}) bool {
	select {
	case <-signal:
		return true
	default:
		return false
	}
}
