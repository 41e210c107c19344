package api

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/auth"
	"github.com/passbook/passbook/internal/limit"
)

// Bounds on requests in flight. An accept is not counted: the Acceptor bounds them. Neither are
// health and documents, which are answered at any load.
const (
	// maxInFlight is how many requests with an access token are handled at once: more would wait
	// for a connection to Postgres for too long.
	maxInFlight = 512
	// maxInFlightPerUser is how many of them one user may have: the others remain for other users.
	maxInFlightPerUser = maxInFlight / 2
	// maxGuestsInFlight is how many log-ins and sign-ups are: passwords take long to check.
	maxGuestsInFlight = 128
	// maxRefreshesInFlight is how many refreshes and revokes are. They have their own slots, so that a
	// flood of log-ins causes no refusal of a refresh, and a flood of refreshes none of a log-in.
	maxRefreshesInFlight = 128
)

// Limits bound how often clients may ask. A nil Limiter is no limit.
type Limits struct {
	Requests *limit.Limiter // of a user
	// A log-in counts for its address and for its email. So the limits stop a guesser who has one
	// address, and guessers with many addresses who try one email. A guesser may use up the quota of
	// an email. Its owner can still log in from an address from which he has proved before who he is:
	// Known has these pairs of email and address, and each pair has a quota of its own in Pairs. A
	// refresh counts for none of them.
	Addresses *limit.Limiter // log-ins, sign-ups and changes of a password
	Emails    *limit.Limiter // log-ins
	Pairs     *limit.Limiter
	Known     *limit.Known
	Changes   *limit.Limiter // of a user's password; log-ins with his email do not count here
	// BadTokens counts, for an address, refresh tokens that are unknown or no longer valid. Valid
	// tokens are not counted.
	BadTokens *limit.Limiter
	// Proxies are the peers whose X-Forwarded-For is believed.
	Proxies []netip.Prefix
}

// Reasons of refusals, as the metric names them.
const (
	refusedUser         = "user_rate"
	refusedEmail        = "email_rate"
	refusedAddress      = "address_rate"
	refusedChange       = "password_rate"
	refusedToken        = "token_rate"
	refusedInFlight     = "in_flight"
	refusedUserInFlight = "user_in_flight"
	refusedAccept       = "accepts"
	refusedQueue        = "account_queue"
	refusedExport       = "exports"
	refusedStream       = "event_streams"
	refusedAccount      = "accounts"
)

var refusals = []string{
	refusedUser, refusedEmail, refusedAddress, refusedChange, refusedToken, refusedInFlight, refusedUserInFlight, refusedAccept,
	refusedQueue, refusedExport, refusedStream, refusedAccount,
}

const (
	headerLimit  = "RateLimit"
	headerPolicy = "RateLimit-Policy"
	policyName   = `"user"`
)

// limitKey is the local that holds the limit.State of an authenticated request.
type limitKey struct{}

// limitUser counts a request for its user.
func (a *API) limitUser(c *fiber.Ctx, user uuid.UUID) error {
	if a.cfg.Limits.Requests == nil {
		return nil
	}
	state := a.cfg.Limits.Requests.Take(string(user[:]))
	c.Locals(limitKey{}, state)
	if !state.Allowed {
		return tooMany(state, refusedUser, "You have made too many requests. Nothing happened; send this one again after Retry-After.")
	}
	return nil
}

// limitBatch counts each job of a batch as a request of its user. limitUser has counted the first.
// A batch that is refused counts as that one request.
func (a *API) limitBatch(c *fiber.Ctx, user uuid.UUID, jobs int) error {
	if a.cfg.Limits.Requests == nil {
		return nil
	}
	state := a.cfg.Limits.Requests.TakeMore(string(user[:]), jobs)
	c.Locals(limitKey{}, state)
	if !state.Allowed {
		return tooMany(state, refusedUser, "Each job of a batch counts as a request, and your quota has too few left. Nothing happened; send this batch again after Retry-After.")
	}
	return nil
}

// sayLimit adds the headers of draft-ietf-httpapi-ratelimit-headers to the answer of an
// authenticated request.
func (a *API) sayLimit(c *fiber.Ctx) {
	state, ok := c.Locals(limitKey{}).(limit.State)
	if !ok {
		return
	}
	c.Set(headerPolicy, a.policy)
	c.Set(headerLimit, policyName+";r="+strconv.Itoa(state.Remaining)+";t="+strconv.Itoa(seconds(state.ResetAfter)))
}

func policyOf(quota limit.Quota) string {
	return fmt.Sprintf("%s;q=%d;w=%d", policyName, quota.Most, seconds(quota.Per))
}

// seconds rounds up to whole seconds.
func seconds(d time.Duration) int {
	return int(math.Ceil(d.Seconds()))
}

func tooMany(state limit.State, reason, detail string) error {
	p := newProblem(http.StatusTooManyRequests, "too_many_requests", detail)
	p.retryAfter, p.reason = max(seconds(state.RetryAfter), 1), reason
	return p
}

// limitAddress counts a log-in or a sign-up for its address, before its password is hashed.
func (a *API) limitAddress(c *fiber.Ctx) error {
	address := a.clientAddress(c).String()
	if state := a.cfg.Limits.Addresses.TakeShared(c.UserContext(), address); !state.Allowed {
		return tooMany(state, refusedAddress, "Too many log-ins and sign-ups came from your address. Nothing happened; try again after Retry-After.")
	}
	return nil
}

// limitLogIn counts an attempt to log in for its address and its email, before the password is looked
// at: the right one is refused too. The answer does not depend on whether a user has the email.
func (a *API) limitLogIn(c *fiber.Ctx, email string) error {
	if err := a.limitAddress(c); err != nil {
		return err
	}
	limits := a.cfg.Limits
	state := limits.Emails.TakeShared(c.UserContext(), hashEmail(email))
	if pair := a.pairOf(c, email); !state.Allowed && limits.Known.MayHave(c.UserContext(), pair) {
		state = limits.Pairs.TakeShared(c.UserContext(), pair)
	}
	if !state.Allowed {
		return tooMany(state, refusedEmail, "There were too many log-ins with this email. Nothing happened; try again after Retry-After.")
	}
	return nil
}

// limitChange counts an attempt to change a user's password for the address and for the user, before the
// current password is looked at.
func (a *API) limitChange(c *fiber.Ctx, user uuid.UUID) error {
	if err := a.limitAddress(c); err != nil {
		return err
	}
	if state := a.cfg.Limits.Changes.TakeShared(c.UserContext(), string(user[:])); !state.Allowed {
		return tooMany(state, refusedChange, "You have tried too often to change your password. Nothing happened; try again after Retry-After.")
	}
	return nil
}

// remember stores that the owner of the email uses the client's address. The caller has checked his
// password or a refresh token, or he has just signed up.
func (a *API) remember(c *fiber.Ctx, email string) {
	a.cfg.Limits.Known.Add(c.UserContext(), a.pairOf(c, email))
}

// limitToken runs use, which looks for a refresh token in Postgres, unless the client's address has sent
// too many bad tokens. It counts a bad token after use. So requests at the same time can exceed the
// quota by maxRefreshesInFlight at most.
func (a *API) limitToken(c *fiber.Ctx, use func() error) error {
	address := a.clientAddress(c).String()
	if state := a.cfg.Limits.BadTokens.Peek(address); !state.Allowed {
		return tooMany(state, refusedToken, "Too many bad refresh tokens came from your address. Nothing happened; try again after Retry-After.")
	}
	err := use()
	if errors.Is(err, auth.ErrInvalidRefreshToken) {
		a.cfg.Limits.BadTokens.TakeShared(c.UserContext(), address)
	}
	return err
}

// hashEmail keeps emails out of Redis. Emails that are equal have the same hash.
func hashEmail(email string) string {
	sum := sha256.Sum256([]byte(auth.EmailKey(email)))
	return string(sum[:])
}

func (a *API) pairOf(c *fiber.Ctx, email string) string {
	sum := sha256.Sum256([]byte(auth.EmailKey(email) + "\n" + a.clientAddress(c).String()))
	return string(sum[:])
}

// clientAddress returns the client's address, as a prefix that one client commonly has to itself. A
// trusted proxy adds the address of its peer at the end of X-Forwarded-For, so the client's is the
// last one there that is not a trusted proxy's. Whatever stands before it may be forged.
func (a *API) clientAddress(c *fiber.Ctx) netip.Prefix {
	tcp, ok := c.Context().RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	client := tcp.AddrPort().Addr().Unmap()
	forwarded := bytes.Join(c.Request().Header.PeekAll(fiber.HeaderXForwardedFor), []byte(","))
	for hops := strings.Split(string(forwarded), ","); len(hops) > 0 && a.isProxy(client); hops = hops[:len(hops)-1] {
		hop, err := parseHop(strings.TrimSpace(hops[len(hops)-1]))
		if err != nil {
			break
		}
		client = hop.Unmap().WithZone("")
	}
	return networkOf(client)
}

// parseHop reads an address of X-Forwarded-For. Some proxies add the port.
func parseHop(text string) (netip.Addr, error) {
	if hop, err := netip.ParseAddrPort(text); err == nil {
		return hop.Addr(), nil
	}
	return netip.ParseAddr(text)
}

func (a *API) isProxy(address netip.Addr) bool {
	return slices.ContainsFunc(a.cfg.Limits.Proxies, func(proxies netip.Prefix) bool { return proxies.Contains(address) })
}

// slots bound the requests of one kind that are in flight. A nil slots has no bound.
type slots struct {
	most  int64
	taken atomic.Int64
}

// take takes a slot, or returns false if all are taken. release gives it back. A refused take does
// not count. Otherwise a flood of them would refuse others while slots are free.
func (s *slots) take() bool {
	if s == nil {
		return true
	}
	for n := s.taken.Load(); n < s.most; n = s.taken.Load() { // another took or released a slot meanwhile
		if s.taken.CompareAndSwap(n, n+1) {
			return true
		}
	}
	return false
}

func (s *slots) release() {
	if s != nil {
		s.taken.Add(-1)
	}
}

// slotsOf returns the slots that the requests of a route need.
func (a *API) slotsOf(r route) *slots {
	switch {
	case r.open && r.method == fiber.MethodGet, r.accepts:
		return nil
	case r.refreshes:
		return a.refreshes
	case r.open:
		return a.guests
	default:
		return a.callers
	}
}

// errInFlight is for a request that finds all slots taken.
var errInFlight = &problem{
	Status: http.StatusServiceUnavailable, Code: "unavailable", retryAfter: busyRetry, reason: refusedInFlight,
	Detail: "The service has too many requests under way. Nothing happened; send this one again after Retry-After.",
}

// userSlots bound how many of the slots one user has. A wait for a job has none: it begins when the
// slots are given back.
type userSlots struct {
	most int

	mu    sync.Mutex // guards taken
	taken map[uuid.UUID]int
}

// take takes a slot of the user, or returns false if the user has as many as allowed. release gives it
// back.
func (u *userSlots) take(user uuid.UUID) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.taken[user] == u.most {
		return false
	}
	u.taken[user]++
	return true
}

func (u *userSlots) release(user uuid.UUID) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.taken[user]--; u.taken[user] == 0 {
		delete(u.taken, user)
	}
}

// errUserInFlight answers a request of a user who has too many requests in flight.
var errUserInFlight = &problem{
	Status: http.StatusTooManyRequests, Code: "too_many_requests", retryAfter: busyRetry, reason: refusedUserInFlight,
	Detail: "You have too many requests under way. Nothing happened; send this one again when some are answered.",
}
