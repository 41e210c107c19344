package boot

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"
)

const (
	healthTimeout = 3 * time.Second // of the whole question
	maxReadiness  = 16 << 10        // bytes of the answer
)

// CheckHealth asks the process whose operator's port is at addr on this machine whether it is
// ready. It returns an error with what is missing where the process is not, or does not answer.
//
// It is for images without a shell, where a health check has no other program to run.
func CheckHealth(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+reachable(addr)+"/readyz", http.NoBody)
	if err != nil {
		return fmt.Errorf("check health: %w", err)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // without a proxy
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("check health: %w", err)
	}
	defer response.Body.Close() //nolint:errcheck // it was only read
	body, err := io.ReadAll(io.LimitReader(response.Body, maxReadiness))
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("not ready: %s", body)
	}
	return err
}

// reachable returns addr as this machine reaches it: the address of all interfaces is no address
// to connect to.
func reachable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}
