package api

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/gofiber/fiber/v2"

	"github.com/passbook/passbook/internal/job"
)

const (
	// maxWait is the longest wait for a job, in seconds.
	maxWait = 30
	// hungUpEvery is how often a waiting request looks whether its client has hung up.
	hungUpEvery = time.Second
	// maxPreferences is how many preferences of a header are read.
	maxPreferences = 16

	headerPrefer  = "Prefer"
	headerApplied = "Preference-Applied"
)

// pending is an answer that waits until its jobs finish.
type pending struct {
	jobs []job.Job // as they stand
	wait time.Duration
	send func(jobs []job.Job, held bool) error
}

type (
	pendingKey struct{} // of a request's pending answer, in its locals
	waitedKey  struct{} // of how long the request has waited for its jobs
)

// sendWithin calls send with the jobs once they are finished, or with the jobs as they stand when
// the wait is over. held says that the wait was kept. The handler must return what sendWithin
// returns.
func sendWithin(c *fiber.Ctx, wait time.Duration, jobs []job.Job, send func(jobs []job.Job, held bool) error) error {
	if wait == 0 || !slices.ContainsFunc(jobs, isQueued) {
		return send(jobs, wait > 0)
	}
	c.Locals(pendingKey{}, pending{jobs: jobs, wait: wait, send: send})
	return nil
}

func isQueued(j job.Job) bool { return j.Status == job.Queued }

// sendPending waits for the jobs of an answer that is pending, and sends it. The gate has let the
// jobs as they stand pass, and the hub gives only what is durable. So a crash of Postgres, before
// or after, undoes nothing that the answer shows.
//
// The wait has no connection to Postgres, no query, and no share of the time for the request.
func (a *API) sendPending(c *fiber.Ctx) error {
	p, isPending := c.Locals(pendingKey{}).(pending)
	if !isPending {
		return nil
	}
	began := time.Now()
	a.metrics.waiting.Inc()
	held := a.await(c, p)
	a.metrics.waiting.Dec()
	c.Locals(waitedKey{}, time.Since(began))
	return p.send(p.jobs, held)
}

// await replaces each of the jobs when it finishes. It returns early, with jobs as they stand,
// when the wait is over, the client hangs up or the API begins to stop. held is false where too
// many jobs are waited for, or the API stops: then it does not wait.
func (a *API) await(c *fiber.Ctx, p pending) (held bool) {
	if a.isStopping() {
		return false
	}
	finished := make([]<-chan job.Job, len(p.jobs))
	for i, j := range p.jobs {
		if !isQueued(j) {
			continue
		}
		waiting, stop, ok := a.cfg.Finished.Wait(caller(c), j.ID)
		if !ok {
			return false
		}
		defer stop()
		finished[i] = waiting
	}
	over := time.Now().Add(p.wait)
	tick := time.NewTimer(min(p.wait, hungUpEvery))
	defer tick.Stop()
	for i := 0; i < len(finished); {
		if finished[i] == nil {
			i++
			continue
		}
		select {
		case p.jobs[i] = <-finished[i]:
			i++
		case <-a.cfg.Stopping:
			return true
		case <-a.shutdown:
			return true
		case <-tick.C:
			remaining := time.Until(over)
			if remaining <= 0 || hasHungUp(c) {
				return true
			}
			tick.Reset(min(remaining, hungUpEvery))
		}
	}
	return true
}

// hasHungUp reports whether the client has ended its side of the connection. It reads nothing:
// what the client has sent is its next request.
func hasHungUp(c *fiber.Ctx) bool {
	own, ok := c.Context().Conn().(*conn)
	if !ok {
		return false
	}
	inner, ok := own.Conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := inner.SyscallConn()
	if err != nil {
		return true
	}
	var ended bool
	err = raw.Control(func(fd uintptr) {
		n, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		ended = n == 0 && err == nil || errors.Is(err, syscall.ECONNRESET)
	})
	return ended || err != nil
}

// preference matches one preference at the beginning of a Prefer header (RFC 7240, section 2): its
// name, its value, and the comma behind its parameters.
var preference = func() *regexp.Regexp {
	const name, quoted = "[!#$%&'*+.^_`|~0-9A-Za-z-]+", `"(?:[^"\\]|\\.)*"`
	const word = `(?:` + name + `|` + quoted + `)`
	const parameter = `[ \t]*;[ \t]*(?:` + name + `(?:[ \t]*=[ \t]*` + word + `?)?)?`
	return regexp.MustCompile(`^[ \t]*(?:(` + name + `)(?:[ \t]*=[ \t]*(` + word + `)?)?(?:` + parameter + `)*)?[ \t]*(?:,|$)`)
}()

// preferredWait returns the wait=N of the Prefer headers, 0 where there is none. It ignores what
// RFC 7240 lets a server ignore: a header that is malformed, a wait that is not from 1 to maxWait,
// and all waits but the first.
func preferredWait(c *fiber.Ctx) time.Duration {
	for _, header := range c.Request().Header.PeekAll(headerPrefer) {
		text := string(header)
		for n := 0; n < maxPreferences && text != ""; n++ {
			found := preference.FindStringSubmatch(text)
			if found == nil {
				break
			}
			if strings.EqualFold(found[1], "wait") {
				seconds, err := strconv.ParseUint(strings.Trim(found[2], `"`), 10, 8)
				if err != nil || seconds < 1 || seconds > maxWait {
					return 0
				}
				return time.Duration(seconds) * time.Second
			}
			text = text[len(found[0]):]
		}
	}
	return 0
}

// setApplied says that the answer was held as the client preferred.
func setApplied(c *fiber.Ctx, wait time.Duration) {
	c.Set(headerApplied, fmt.Sprintf("wait=%d", wait/time.Second))
}
