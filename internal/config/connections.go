package config

import (
	"fmt"
	"strconv"
	"syscall"
)

const (
	// usualConnections bounds the memory of idle connections, about 20 KiB each. It is more than
	// the requests that may wait for jobs.
	usualConnections = 16384
	// spareFiles is how many file descriptors stay for Postgres, Redis, the operator's port and
	// the runtime: a quarter of the limit where that is more, half of a small limit.
	spareFiles = 256
	// addressShare is the part of all connections that one address may have.
	addressShare = 4
)

// readConnections reads how many connections the API may have, in total and from an address. More
// than the limit of open files allows would take the file descriptors for Postgres.
func readConnections(env *environment) (total, perAddress int) {
	most := connectionsWithin(openFiles())
	maxConnections := variable{
		name:     "MAX_CONNECTIONS",
		standard: strconv.Itoa(min(most, usualConnections)),
		want:     fmt.Sprintf("a number from 1 to %d, what the limit of open files leaves", most),
		example:  strconv.Itoa(min(most, usualConnections)),
	}
	total = read(env, maxConnections, func(text string) (int, error) { return parseCount(text, 1, most) })
	perAddressOf := variable{
		name:     "MAX_CONNECTIONS_PER_ADDRESS",
		standard: strconv.Itoa(max(total/addressShare, 1)),
		want:     "a number, 0 for no bound",
		example:  strconv.Itoa(usualConnections / addressShare),
	}
	const anyNumber = 1 << 30
	perAddress = read(env, perAddressOf, func(text string) (int, error) { return parseCount(text, 0, anyNumber) })
	return total, perAddress
}

// openFiles returns the soft limit; the Go runtime has raised it to the hard limit.
func openFiles() uint64 {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 1024 // the usual minimum
	}
	return limit.Cur
}

// connectionsWithin returns how many connections a limit of open files allows.
func connectionsWithin(files uint64) int {
	const unlimited = 1 << 24
	files = min(files, unlimited)
	spare := max(files/4, min(files/2, spareFiles))
	return int(max(files-spare, 1)) // at most unlimited
}

func parseCount(text string, least, most int) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < least || n > most {
		return 0, fmt.Errorf("%q is out of range or no number", text)
	}
	return n, nil
}
