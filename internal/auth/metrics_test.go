package auth

import (
	"errors"
	"testing"
	"testing/synctest"

	"github.com/google/uuid"
	dto "github.com/prometheus/client_model/go"

	"github.com/passbook/passbook/internal/test/testenv"
)

// Each token that is not accepted is counted once, by its reason.
func TestTokensRefused(t *testing.T) {
	t.Parallel()
	s := newService(t, testenv.Pool(t), newClock())
	identity, tokens := newSession(t, s)
	now := postgresNow(t, s)
	claims := changed(testClaims(), object{"sub": identity.UserID, "sid": identity.SessionID, "iat": now.Unix(), "nbf": now.Unix(), "exp": now.Unix() + 900})
	token := func(key []byte, header, wrong object) string {
		return sign(t, signingMethod, key, changed(testHeader(), header), changed(claims, wrong))
	}
	wantAuthenticated(t, s, tokens.AccessToken)
	for reason, refused := range map[string]string{
		malformed:     "x.y.z",
		unknownKey:    token(testSecret(1), object{"kid": "k9"}, nil),
		badSignature:  token(testSecret(9), nil, nil),
		wrongClaims:   token(testSecret(1), nil, object{"aud": "other"}),
		notYetValid:   token(testSecret(1), nil, object{"nbf": now.Unix() + 600}),
		expired:       token(testSecret(1), nil, object{"exp": now.Unix() - 1}),
		sessionIsOver: token(testSecret(1), nil, object{"sid": uuid.New()}),
	} {
		wantUnauthenticated(t, s, refused)
		if n := count(t, s.metrics.tokensRefused.WithLabelValues(reason)); n != 1 {
			t.Errorf("%s: %v counted, want 1", reason, n)
		}
	}
}

// One metric counts passwords while they wait for a slot. Another counts those that were refused.
func TestHashesWaiting(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := &hasher{logIns: make(slots, 1), signUps: make(slots, 1), metrics: newMetrics(nil)}
		waiting := func() float64 {
			var metric dto.Metric
			if err := h.metrics.hashesWaiting.Write(&metric); err != nil {
				t.Fatal(err)
			}
			return metric.GetGauge().GetValue()
		}
		h.signUps <- struct{}{}
		ended := make(chan error)
		go func() { ended <- hashOne(t.Context(), h) }()
		synctest.Wait()
		if n := waiting(); n != 1 {
			t.Errorf("%v waiting, want 1", n)
		}
		if err := <-ended; !errors.Is(err, ErrBusy) {
			t.Errorf("%v, want %v", err, ErrBusy)
		}
		if n, refused := waiting(), count(t, h.metrics.hashesRefused); n != 0 || refused != 1 {
			t.Errorf("%v waiting and %v refused, want 0 and 1", n, refused)
		}
	})
}
