package e2e_test

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/passbook/passbook/internal/test/testenv"
)

// Two APIs share the limits of a user, an email and an address. While Redis is away, each holds them
// by itself.
func TestLimits(t *testing.T) {
	t.Parallel()
	const requests, guests, accounts = 30, 20, 2
	s := &system{t: t, postgres: testenv.PostgresServer(t), redis: testenv.RedisServer(t)}
	s.reach = func(string, int) []string {
		return []string{
			fmt.Sprintf("RATE_LIMIT_PER_MINUTE=%d", requests), fmt.Sprintf("ADDRESS_LIMIT_PER_MINUTE=%d", guests),
			fmt.Sprintf("MAX_ACCOUNTS_PER_USER=%d", accounts), "TRUSTED_PROXIES=127.0.0.1",
		}
	}
	s.start(2, 1)
	c := newClient(t, s)
	me := func(api int) int {
		status, header, _, err := c.call(t.Context(), s.api(api), http.MethodGet, "/v1/users/me", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		if after, _ := strconv.Atoi(header.Get("Retry-After")); (status == http.StatusTooManyRequests) != (after > 0) || header.Get("RateLimit") == "" {
			t.Fatalf("%d with %v", status, header)
		}
		return status
	}
	for range accounts {
		c.open(0)
	}
	c.must(http.StatusConflict, http.MethodPost, "/v1/accounts", map[string]any{}, nil)
	testenv.Eventually(t, "one API to refuse the user", func() bool { return me(0) == http.StatusTooManyRequests })
	testenv.Eventually(t, "the other API to refuse him too", func() bool { return me(1) == http.StatusTooManyRequests })

	t.Run("LogIn", func(t *testing.T) {
		allowed := 0
		wrong := map[string]any{"email": "guessed@example.com", "password": "a long enough password"}
		for n := range 24 {
			status, _, err := c.request(t.Context(), s.api(n), http.MethodPost, "/v1/sessions", "", wrong)
			switch {
			case err != nil || status != http.StatusUnauthorized && status != http.StatusTooManyRequests:
				t.Fatalf("%d %v", status, err)
			case status == http.StatusUnauthorized:
				allowed++
			}
		}
		if allowed != 10 && allowed != 11 { // one more each minute
			t.Errorf("%d log-ins were tried, want 10", allowed)
		}
	})
	t.Run("WithoutRedis", func(t *testing.T) {
		if err := s.redis.Kill(); err != nil {
			t.Fatal(err)
		}
		next := &system{t: t, postgres: s.postgres, redis: s.redis, reach: s.reach, pool: s.pool}
		next.apis = append(next.apis, startVariant(t, s.build, "api", next.envOf("api", 0)))
		other := newSignedUpClient(t, next)
		allowed := 0
		for {
			status, _, err := other.request(t.Context(), next.api(0), http.MethodGet, "/v1/users/me", "", nil)
			if err != nil {
				t.Fatal(err)
			}
			if status == http.StatusTooManyRequests {
				break
			}
			allowed++
		}
		if allowed < requests {
			t.Errorf("%d requests were allowed, want at least %d", allowed, requests)
		}
		testenv.Eventually(t, "the metric to say so", func() bool {
			_, metrics := get(t, next.apis[0].operator()+"/metrics")
			return strings.Contains(metrics, "passbook_limits_local 1")
		})
	})
}
