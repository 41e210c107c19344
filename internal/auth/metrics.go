package auth

import (
	"errors"

	"github.com/golang-jwt/jwt/v5"
	"github.com/prometheus/client_golang/prometheus"
)

// metrics are what a Service counts.
type metrics struct {
	reuses        prometheus.Counter
	hashesWaiting prometheus.Gauge
	hashesRefused prometheus.Counter
	tokensRefused *prometheus.CounterVec
}

// newMetrics registers the metrics; registry may be nil.
func newMetrics(registry prometheus.Registerer) *metrics {
	m := &metrics{
		reuses: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "passbook_refresh_token_reuses_total", Help: "Spent refresh tokens that were used again, each of which revoked its session.",
		}),
		hashesWaiting: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "passbook_password_hashes_waiting", Help: "Passwords that wait to be hashed or compared, because as many as allowed are being hashed.",
		}),
		hashesRefused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "passbook_password_hashes_refused_total", Help: "Passwords that were not hashed, because they waited too long.",
		}),
		tokensRefused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "passbook_access_tokens_refused_total", Help: "Access tokens that were not accepted, by the reason. Requests without a token are not counted.",
		}, []string{"reason"}),
	}
	for _, reason := range tokenFaults {
		m.tokensRefused.WithLabelValues(reason) // counts from 0, so that a rate sees the first
	}
	if registry != nil {
		registry.MustRegister(m.reuses, m.hashesWaiting, m.hashesRefused, m.tokensRefused)
	}
	return m
}

// Why an access token is not accepted.
const (
	malformed     = "malformed"
	unknownKey    = "unknown_key"
	badSignature  = "bad_signature"
	wrongClaims   = "wrong_claims"
	notYetValid   = "not_yet_valid"
	expired       = "expired"
	sessionIsOver = "session_over" // revoked, or unknown
)

var tokenFaults = []string{malformed, unknownKey, badSignature, wrongClaims, notYetValid, expired, sessionIsOver}

// tokenFault returns why verify or checkTime has refused a token.
func tokenFault(err error) string {
	switch {
	case errors.Is(err, errExpired):
		return expired
	case errors.Is(err, errNotYetValid):
		return notYetValid
	case errors.Is(err, errUnknownKey):
		return unknownKey
	case errors.Is(err, jwt.ErrTokenSignatureInvalid):
		return badSignature
	case errors.Is(err, jwt.ErrTokenInvalidClaims):
		return wrongClaims
	}
	return malformed
}
