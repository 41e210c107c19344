package main

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/passbook/passbook/internal/api"
	"github.com/passbook/passbook/internal/boot"
	"github.com/passbook/passbook/internal/config"
	"github.com/passbook/passbook/internal/limit"
)

// logIns is how often a client may try to log in with an email, or to change a user's password: ten
// times at once, and then once a minute. A guesser has some 1,500 tries a day.
var logIns = limit.Quota{Most: 10, Per: 10 * time.Minute}

// newLimits makes the limits of users, addresses and emails.
func newLimits(cfg config.API, process *boot.Process) api.Limits {
	of := func(name string, quota limit.Quota) *limit.Limiter {
		return limit.New(limit.Config{Quota: quota, Redis: process.Redis, Prefix: cfg.QueuePrefix, Name: name, Log: process.Log})
	}
	limits := api.Limits{
		Requests:  of("requests", limit.Quota{Most: cfg.Limits.RequestsPerMinute, Per: time.Minute}),
		Addresses: of("addresses", limit.Quota{Most: cfg.Limits.AddressPerMinute, Per: time.Minute}),
		Emails:    of("emails", logIns),
		Pairs:     of("pairs", logIns),
		Known:     limit.NewKnown(process.Redis, cfg.QueuePrefix, "known"),
		Changes:   of("changes", logIns),
		BadTokens: of("tokens", limit.Quota{Most: cfg.Limits.AddressPerMinute, Per: time.Minute}),
		Proxies:   cfg.Limits.Proxies,
	}
	process.Registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "passbook_limits_local", Help: "1 while Redis does not count requests, so that each API holds the users' limits by itself; else 0.",
	}, func() float64 {
		if limits.Requests.IsLocal() {
			return 1
		}
		return 0
	}))
	return limits
}
