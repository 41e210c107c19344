package api

import (
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/passbook/passbook/internal/test/testenv"
)

// A request that the server refuses before any handler is counted by its status, and its
// method, which a client may invent, becomes no label.
func TestMetrics_RefusedRequests(t *testing.T) {
	t.Parallel()
	for status, sent := range map[int]string{
		http.StatusBadRequest:                  "INVENTED / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n",
		http.StatusRequestEntityTooLarge:       bodyHead + "Content-Length: 65537\r\n\r\n",
		http.StatusRequestHeaderFieldsTooLarge: "GET /" + strings.Repeat("x", 17_000) + " HTTP/1.1\r\n\r\n",
	} {
		t.Run(strconv.Itoa(status), func(t *testing.T) {
			t.Parallel()
			s := start(t)
			ask(t, s.dial(t), sent, status)
			observed := s.api.metrics.requests.WithLabelValues(noRoute, "none", strconv.Itoa(status))
			histogram, ok := observed.(prometheus.Histogram)
			if !ok {
				t.Fatalf("%T is no histogram", observed)
			}
			var m dto.Metric
			if err := histogram.Write(&m); err != nil {
				t.Fatal(err)
			}
			if count := m.GetHistogram().GetSampleCount(); count != 1 {
				t.Errorf("%d requests counted, want 1", count)
			}
		})
	}
}

// Log-ins are counted by their outcome, also those that a limit refuses.
func TestMetrics_LogIns(t *testing.T) {
	t.Parallel()
	of, _ := limiters(t)
	s := start(t, func(set *settings) { set.limits.Addresses = of("addresses", 4) })
	c := s.anonymous(t)
	signUp(c)
	logIn(c)
	wrong := strings.Replace(annsCredentials, "correct", "another", 1)
	for _, want := range []int{http.StatusUnauthorized, http.StatusUnauthorized, http.StatusTooManyRequests} {
		c.post("/v1/sessions", wrong).want(want)
	}
	for outcome, want := range map[string]float64{logInSucceeded: 1, logInWrong: 2, logInLimited: 1, logInBusy: 0, logInFailed: 0} {
		var m dto.Metric
		if err := s.api.metrics.logIns.WithLabelValues(outcome).Write(&m); err != nil {
			t.Fatal(err)
		}
		if got := m.GetCounter().GetValue(); got != want {
			t.Errorf("%v log-ins with the outcome %s, want %v", got, outcome, want)
		}
	}
}

// Open connections and running exports are counted.
func TestMetrics_Open(t *testing.T) {
	t.Parallel()
	s := start(t)
	value := func(gauge prometheus.Gauge) float64 {
		var m dto.Metric
		if err := gauge.Write(&m); err != nil {
			t.Fatal(err)
		}
		return m.GetGauge().GetValue()
	}
	_ = s.dial(t)
	testenv.Eventually(t, "the connection to be counted", func() bool { return value(s.api.metrics.connections) == 1 })
	_, end, err := s.api.exports.begin(t.Context(), uuid.New())
	if err != nil {
		t.Fatal(err)
	}
	if n := value(s.api.metrics.exports); n != 1 {
		t.Errorf("%v exports, want 1", n)
	}
	end()
	if n := value(s.api.metrics.exports); n != 0 {
		t.Errorf("%v exports after the end, want none", n)
	}
}
