package config

import (
	"fmt"
	"net/netip"
	"strings"
)

// Limits are the API's limits on users and addresses. 0 is no limit.
type Limits struct {
	RequestsPerMinute int // of a user
	AddressPerMinute  int // log-ins and sign-ups
	AccountsPerUser   int
	Proxies           []netip.Prefix // whose X-Forwarded-For is believed
}

// maxRate bounds what may be allowed in a minute, and maxAccounts a user's accounts.
const (
	maxRate     = 1_000_000_000
	maxAccounts = 1_000_000_000
)

var (
	rateLimit = variable{
		name:     "RATE_LIMIT_PER_MINUTE",
		standard: "6000",
		want:     fmt.Sprintf("a number up to %d, 0 for no limit", maxRate),
		example:  "6000",
	}
	addressLimit = variable{
		name:     "ADDRESS_LIMIT_PER_MINUTE",
		standard: "60",
		want:     fmt.Sprintf("a number up to %d, 0 for no limit", maxRate),
		example:  "60",
	}
	accountLimit = variable{
		name:     "MAX_ACCOUNTS_PER_USER",
		standard: "1000",
		want:     fmt.Sprintf("a number up to %d, 0 for no limit", maxAccounts),
		example:  "1000",
	}
	trustedProxies = variable{
		name:    "TRUSTED_PROXIES",
		want:    "addresses or prefixes, separated by commas",
		example: "10.0.0.0/8,fd00::1",
	}
)

func readLimits(env *environment) Limits {
	limits := Limits{
		RequestsPerMinute: read(env, rateLimit, func(text string) (int, error) { return parseCount(text, 0, maxRate) }),
		AddressPerMinute:  read(env, addressLimit, func(text string) (int, error) { return parseCount(text, 0, maxRate) }),
		AccountsPerUser:   read(env, accountLimit, func(text string) (int, error) { return parseCount(text, 0, maxAccounts) }),
	}
	if env.getenv(trustedProxies.name) != "" {
		limits.Proxies = read(env, trustedProxies, parsePrefixes)
	}
	return limits
}

func parsePrefixes(text string) (prefixes []netip.Prefix, err error) {
	for part := range strings.SplitSeq(text, ",") {
		prefix, err := netip.ParsePrefix(part)
		if err != nil {
			address, err := netip.ParseAddr(part)
			if err != nil || address.Zone() != "" {
				return nil, fmt.Errorf("%q is neither an address nor a prefix", part)
			}
			prefix = netip.PrefixFrom(address, address.BitLen())
		}
		if prefix.Addr().Is4In6() {
			return nil, fmt.Errorf("%q is an IPv4 address in IPv6; write it as IPv4", part)
		}
		prefixes = append(prefixes, prefix)
	}
	return prefixes, nil
}
