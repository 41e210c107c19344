package main

import (
	"fmt"
	"net/url"
)

// announce prints the addresses of everything, and a first request.
func (s *stack) announce() {
	fmt.Fprintf(s.out, `
Passbook is running.

  API          %s
  Documents    %s
  Metrics      %s   (worker: %s)
  Dashboard    %s
  Postgres     %s
  Redis        %s
  Data         %s

A first request, from another terminal:

  curl -i %s -H 'Content-Type: application/json' -d '{"email":"me@example.com","password":"correct horse battery"}'

Ctrl-C stops everything; make clean-data deletes the data.

`,
		s.api.url("/v1"),
		s.api.url("/docs"),
		s.apiOps.url("/metrics"), s.workerOps.url("/metrics"),
		s.workerOps.url("/queues"),
		s.runsOwn("Postgres", "psql '", s.databaseURL, "'"),
		s.runsOwn("Redis", "redis-cli -u '", s.redisURL, "'"),
		s.dir,
		s.api.url("/v1/users"),
	)
}

// runsOwn returns the command that opens a server that local has started. For a server of the
// user's it returns only the address, without the password.
func (s *stack) runsOwn(name, before, address, after string) string {
	for _, r := range s.runs {
		if r.name == name {
			return before + address + after
		}
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return "yours"
	}
	return "yours, " + u.Redacted()
}
