package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/gofiber/fiber/v2"

	"github.com/passbook/passbook/internal/event"
	"github.com/passbook/passbook/internal/postgres"
)

const (
	mimeEvents        = "text/event-stream"
	headerLastEventID = "Last-Event-ID"

	// leastRetry and mostRetry bound how long a client waits before it connects again: all clients
	// of an API that stops connect to the others.
	leastRetry = time.Second
	mostRetry  = 3 * time.Second
)

var (
	errNotAcceptable = &problem{
		Status: http.StatusNotAcceptable, Code: "not_acceptable",
		Detail: "This is a stream of events: Accept must allow text/event-stream.",
	}
	errLastEventID = &problem{
		Status: http.StatusBadRequest, Code: "last_event_id_invalid",
		Detail: "Last-Event-ID is the seq of a transaction of this account, or 0 for all of them, in one header.",
	}
)

// streamEvents answers with the account's events from Last-Event-ID on, or from now on. The answer
// ends with the access token, or when the API stops.
//
// It takes the connection from the server: a connection that the server itself streams on keeps
// buffers of 20 KB, and a stream is idle most of the time.
func (a *API) streamEvents(c *fiber.Ctx, _ *query) error {
	if !c.Request().Header.IsHTTP11() {
		return errNoChunks
	}
	if c.Accepts(mimeEvents) == "" {
		return errNotAcceptable
	}
	after, err := lastEventID(c)
	if err != nil {
		return err
	}
	account, err := ownedAccount(c)
	if err != nil {
		return err
	}
	session, err := a.cfg.Auth.Session(c.UserContext(), accessToken(c))
	if err != nil {
		return err
	}
	s := &stream{
		streams: &a.streams, life: session.ExpiresIn, at: event.Stream{Account: account, Session: session.SessionID},
		log: a.cfg.Log.With("request_id", c.Locals(requestIDKey{})),
	}
	if c.Method() != fiber.MethodHead {
		return a.openStream(c, s, after)
	}
	if err := a.beginStream(c.UserContext(), s, after); err != nil {
		return err
	}
	describeEvents(c)
	return nil
}

// openStream reserves the stream, and has it take the connection once the handler has returned. The
// connection releases the reservation when it closes, also where the server doesn't hand it over.
func (a *API) openStream(c *fiber.Ctx, s *stream, after *int64) error {
	release, err := a.streams.reserve(s.at.Account.UserID)
	if err != nil {
		return err
	}
	if err := a.beginStream(c.UserContext(), s, after); err != nil {
		release()
		return err
	}
	describeEvents(c)
	ctx := c.Context()
	s.conn, _ = ctx.Conn().(*conn) // Serve's listener accepts no other
	s.conn.atClose(release)
	ctx.HijackSetNoResponse(true) // otherwise the server sends an end with the head
	ctx.Hijack(func(net.Conn) {
		ctx.Response.Header.SetContentLength(-1) // chunked
		ctx.Response.Header.SetConnectionClose()
		s.start(bytes.Clone(ctx.Response.Header.Header()))
	})
	return nil
}

// beginStream finds where the stream begins, and waits until that is durable: the answer shows it.
// No other read is a part of the handler's answer.
func (a *API) beginStream(ctx context.Context, s *stream, after *int64) (err error) {
	postgres.ShowNone(ctx)
	reading, shown := a.cfg.Gate.Watch(ctx)
	if s.accountID, s.at.After, err = a.cfg.Events.Begin(reading, s.at.Account, after); err != nil {
		return err
	}
	return a.cfg.Gate.Wait(reading, shown)
}

func describeEvents(c *fiber.Ctx) {
	c.Set(fiber.HeaderContentType, mimeEvents)
	c.Set("X-Accel-Buffering", "no") // nginx passes each event on at once
}

// lastEventID reads the header; nil where it is absent or empty.
func lastEventID(c *fiber.Ctx) (*int64, error) {
	values := c.Request().Header.PeekAll(headerLastEventID)
	if len(values) == 0 || len(values) == 1 && len(values[0]) == 0 {
		return nil, nil
	}
	text := string(values[0])
	seq, err := strconv.ParseInt(text, 10, 64)
	if err != nil || seq < 0 || strconv.FormatInt(seq, 10) != text || len(values) > 1 {
		return nil, errLastEventID
	}
	return &seq, nil
}

// streamHead is what a stream begins with: how long to wait before the client connects again, and
// what to send then as Last-Event-ID, so that it misses nothing where no transaction has come yet.
func streamHead(seq int64) string {
	retry := leastRetry + rand.N(mostRetry-leastRetry) //nolint:gosec // no secret: it spreads the clients
	return fmt.Sprintf("retry: %d\nid: %d\n\n", retry.Milliseconds(), seq)
}

// heartbeat is a comment: the client has had everything that took effect up to now.
const heartbeat = ":\n\n"

// appendEvents writes events as text/event-stream has them:
// https://html.spec.whatwg.org/multipage/server-sent-events.html
//
// JSON has no line breaks outside its strings, and escapes those in them.
func appendEvents(text []byte, events []event.Event) []byte {
	for _, e := range events {
		var data []byte
		if e.Transaction != nil {
			text = fmt.Appendf(text, "event: transaction\nid: %d\n", e.Transaction.Seq)
			data, _ = json.Marshal(toTransactionBody(*e.Transaction)) // has nothing that can't be marshalled
		} else {
			text = append(text, "event: job\n"...)
			data, _ = json.Marshal(toJobBody(*e.Job))
		}
		text = append(append(append(text, "data: "...), data...), "\n\n"...)
	}
	return text
}
