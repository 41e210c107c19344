package environment

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/passbook/passbook/internal/auth"
	"github.com/passbook/passbook/internal/ledger"
)

// Owner is a user with one account.
type Owner struct{ Token, Number string }

// Owners makes n more users, with an account each.
func (e *Environment) Owners(ctx context.Context, n int) ([]Owner, error) {
	service, err := auth.New(e.Pool, auth.Config{Keys: []auth.Key{e.Key}})
	if err != nil {
		return nil, err
	}
	accounts := ledger.NewAccounts(e.Pool)
	owners := make([]Owner, n)
	for i := range owners {
		address := fmt.Sprintf("owner-%d@example.com", i)
		user, err := service.SignUp(ctx, address, e.password)
		if err != nil {
			return nil, err
		}
		tokens, err := service.LogIn(ctx, address, e.password)
		if err != nil {
			return nil, err
		}
		owners[i] = Owner{Token: tokens.AccessToken, Number: fmt.Sprintf("OWNER-%05d", i)}
		if _, _, err := accounts.Open(ctx, ledger.Opening{UserID: user.ID, Number: owners[i].Number, Currency: "KRW"}); err != nil {
			return nil, err
		}
	}
	return owners, nil
}

// Held are requests that an api holds open, on a connection each.
type Held struct {
	api   *Process
	gauge string // the api's metric that counts them
	conns []net.Conn
}

const (
	heldTogether = 64 // fewer than an api takes of one user at once
	heldTick     = 10 * time.Millisecond
	heldWait     = 20 * time.Second // for an api to hold what it was sent: less than a request waits
)

// NewHeld holds nothing yet.
func (e *Environment) NewHeld(gauge string) *Held { return &Held{api: e.Servers[0], gauge: gauge} }

// Add sends n more requests. It returns once the api holds all of them.
func (h *Held) Add(ctx context.Context, n int, request func(i int) (token, path string)) error {
	ctx, cancel := context.WithTimeout(ctx, heldWait)
	defer cancel()
	for range n {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", h.api.Address())
		if err != nil {
			return fmt.Errorf("hold a request: %w", err)
		}
		token, path := request(len(h.conns))
		h.conns = append(h.conns, conn)
		if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: h\r\nAccept: */*\r\nAuthorization: Bearer %s\r\n\r\n", path, token); err != nil {
			return fmt.Errorf("hold a request: %w", err)
		}
		if len(h.conns)%heldTogether == 0 {
			if err := h.await(ctx); err != nil {
				return err
			}
		}
	}
	return h.await(ctx)
}

// await waits until the api holds all requests.
func (h *Held) await(ctx context.Context) error {
	for {
		held, err := h.api.gauges(ctx, h.gauge)
		if err != nil {
			return err
		}
		if int(held) == len(h.conns) {
			return nil
		}
		if err := Sleep(ctx, heldTick); err != nil {
			return fmt.Errorf("the api holds %v of %d requests: %w", held, len(h.conns), err)
		}
	}
}

// collections free what lies in pools too, which outlives the first.
const collections = 3

// Memory is how much the api uses once it has freed what it can, in bytes.
func (h *Held) Memory(ctx context.Context) (int64, error) {
	for range collections {
		if _, err := h.api.Operator(ctx, "/debug/pprof/heap?gc=1"); err != nil {
			return 0, err
		}
	}
	used, err := h.api.gauges(ctx, "go_memstats_heap_inuse_bytes", "go_memstats_stack_inuse_bytes")
	return int64(used), err
}

// Close gives the requests up.
func (h *Held) Close() { closeAll(h.conns) }

// Operator reads a page of the process's operator's port.
func (p *Process) Operator(ctx context.Context, path string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.opsAddress()+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	request.Close = true
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask the operator's port: %w", err)
	}
	defer response.Body.Close() //nolint:errcheck // it was only read
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask the operator's port: %s", response.Status)
	}
	return io.ReadAll(response.Body)
}

// gauges is the sum of some of the process's gauges, over all their series.
func (p *Process) gauges(ctx context.Context, names ...string) (sum float64, err error) {
	page, err := p.Operator(ctx, "/metrics")
	if err != nil {
		return 0, err
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(page))
	if err != nil {
		return 0, fmt.Errorf("read the metrics of %s: %w", p.Name, err)
	}
	for _, name := range names {
		if families[name] == nil {
			return 0, fmt.Errorf("read the metrics of %s: there is no %s", p.Name, name)
		}
		for _, series := range families[name].GetMetric() {
			sum += series.GetGauge().GetValue()
		}
	}
	return sum, nil
}
