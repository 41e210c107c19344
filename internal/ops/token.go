package ops

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
	"strings"
)

// QueuesPath is the path of the worker's dashboard.
const QueuesPath = "/queues"

// requireToken passes on requests with the token: as a bearer token or, for browsers, as the password
// of Basic authentication with any user name. With readToken it passes on only requests that read the
// metrics or the dashboard. An empty token matches no request; without any token all pass.
func requireToken(token, readToken string, next http.Handler) http.Handler {
	if token == "" && readToken == "" {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		given := givenToken(r)
		switch {
		case isToken(given, token):
			next.ServeHTTP(w, r)
		case isToken(given, readToken) && !onlyReads(r):
			http.Error(w, "OPS_READ_TOKEN allows only to read the metrics and the dashboard; this request needs OPS_TOKEN", http.StatusForbidden)
		case isToken(given, readToken):
			next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), readTokenKey{}, true)))
		default:
			w.Header().Add("WWW-Authenticate", `Bearer realm="passbook"`)
			w.Header().Add("WWW-Authenticate", `Basic realm="passbook", charset="UTF-8"`)
			http.Error(w, "unauthorized", http.StatusUnauthorized)
		}
	})
}

// onlyReads is true for a request that OPS_READ_TOKEN allows.
func onlyReads(r *http.Request) bool {
	path := r.URL.Path
	return (r.Method == http.MethodGet || r.Method == http.MethodHead) &&
		(path == "/metrics" || path == QueuesPath || strings.HasPrefix(path, QueuesPath+"/"))
}

type readTokenKey struct{}

// MayOnlyLook is true for a request that came with OPS_READ_TOKEN.
func MayOnlyLook(r *http.Request) bool {
	only, _ := r.Context().Value(readTokenKey{}).(bool)
	return only
}

// isToken compares hashes: they have one length, so the comparison does not reveal the token's.
func isToken(given, token string) bool {
	got, want := sha256.Sum256([]byte(given)), sha256.Sum256([]byte(token))
	return token != "" && subtle.ConstantTimeCompare(got[:], want[:]) == 1
}

func givenToken(r *http.Request) string {
	if _, password, ok := r.BasicAuth(); ok {
		return password
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if strings.EqualFold(scheme, "Bearer") {
		return token
	}
	return ""
}
