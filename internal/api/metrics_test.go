package api

import (
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
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
