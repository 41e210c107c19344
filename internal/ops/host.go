package ops

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// requireHost answers 421 to a request for an unknown host name. A page of another site can make its
// own name resolve to 127.0.0.1 (DNS rebinding); the browser then treats this port as a part of
// that site. The site can't do so with a name that it does not own: loopback names, the listed
// ones, and addresses. Without a token only loopback addresses are needed, so only they pass.
func requireHost(hasToken bool, hosts []string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := hostname(r.Host)
		addr, err := netip.ParseAddr(host)
		isAddr := err == nil
		switch {
		case isAddr && (hasToken || addr.Unmap().IsLoopback()),
			host == "localhost", strings.HasSuffix(host, ".localhost"), // RFC 6761, section 6.3
			slices.ContainsFunc(hosts, func(known string) bool { return strings.EqualFold(known, host) }):
			next.ServeHTTP(w, r)
		default:
			http.Error(w, "this port does not answer to this host name; OPS_HOSTS adds names", http.StatusMisdirectedRequest)
		}
	})
}

// hostname returns a Host header without its port, brackets and last dot, in lower case.
func hostname(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
}

// refuseFrames keeps other sites from showing the port's pages in a frame, where a click meant for the
// site would delete a task. Old browsers know only the first header.
func refuseFrames(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Frame-Options", "DENY")
		w.Header().Set("Content-Security-Policy", "frame-ancestors 'none'")
		next.ServeHTTP(w, r)
	})
}
