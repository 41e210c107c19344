package api

import (
	"bytes"
	"cmp"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/statement"
)

const mimeCSV = "text/csv; charset=utf-8; header=present"

const (
	// maxExports bounds the concurrent exports: each keeps a page of lines in memory, 70 to
	// 700 KB.
	maxExports = 64
	// maxReadings bounds the exports that read a page at once, each with a connection to
	// Postgres, which other requests need too.
	maxReadings = 2
	// longestExport bounds how long an export may take.
	longestExport = 30 * time.Minute
	// A client must read each page at leastRate, in bytes a second, or faster, with exportGrace
	// in addition. Otherwise the API cuts its export off.
	leastRate   = 16 << 10
	exportGrace = 10 * time.Second
	// pageTimeout bounds the reading of a page, including the wait for one of maxReadings.
	pageTimeout = 10 * time.Second
)

var (
	errTooManyExports = &problem{
		Status: http.StatusTooManyRequests, Code: "too_many_requests", retryAfter: busyRetry, reason: refusedExport,
		Detail: "Your last export is still being sent, or too many of other users are. Try again when one is done.",
	}
	errNoChunks = &problem{
		Status: http.StatusHTTPVersionNotSupported, Code: "http_version_not_supported",
		Detail: "This needs HTTP/1.1: in HTTP/1.0 a part of the answer looks like the whole. A proxy may have to be told.",
	}
)

// byteOrderMark makes Excel read a file as UTF-8. Otherwise Excel uses the system's encoding, and
// shows no Hangul.
const byteOrderMark = "\ufeff"

var csvHeader = []string{"seq", "type", "amount", "balance_after", "description", "job_id", "created_at"}

// wantsCSV reports whether the client prefers CSV to JSON.
func wantsCSV(c *fiber.Ctx) bool {
	return c.Accepts(fiber.MIMEApplicationJSON, mimeCSV) == mimeCSV
}

// exports are the running exports: at most one a user, and maxExports in all.
type exports struct {
	longest, grace time.Duration // longestExport and exportGrace; shorter in tests
	rate           int           // leastRate; higher in tests
	readings       chan struct{} // holds one element for each page that is being read
	open           prometheus.Gauge

	mu      sync.Mutex // guards the fields below
	cancels map[uuid.UUID]context.CancelFunc
	stopped bool
	running sync.WaitGroup
}

func newExports(open prometheus.Gauge) exports {
	return exports{
		longest: longestExport, grace: exportGrace, rate: leastRate,
		readings: make(chan struct{}, maxReadings), cancels: map[uuid.UUID]context.CancelFunc{},
		open: open,
	}
}

// begin registers an export. The returned context ends when the export takes too long, or the API
// stops. The caller must call end.
func (e *exports) begin(ctx context.Context, user uuid.UUID) (exporting context.Context, end func(), err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.stopped {
		return nil, nil, &unavailable
	}
	if _, another := e.cancels[user]; another || len(e.cancels) == maxExports {
		return nil, nil, errTooManyExports
	}
	exporting, cancel := context.WithTimeout(context.WithoutCancel(ctx), e.longest)
	e.cancels[user] = cancel
	e.running.Add(1)
	e.open.Inc()
	return exporting, sync.OnceFunc(func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		cancel()
		delete(e.cancels, user)
		e.open.Dec()
		e.running.Done()
	}), nil
}

// next reads a page, when fewer than maxReadings are being read.
func (e *exports) next(ctx context.Context, export *statement.Export) ([]ledger.Transaction, error) {
	ctx, cancel := context.WithTimeout(ctx, pageTimeout)
	defer cancel()
	select {
	case e.readings <- struct{}{}:
		defer func() { <-e.readings }()
		return export.Next(ctx)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// stop cuts all exports off, and waits for their end.
func (e *exports) stop() {
	e.mu.Lock()
	e.stopped = true
	for _, cancel := range e.cancels {
		cancel()
	}
	e.mu.Unlock()
	e.running.Wait()
}

// exportTransactions answers with all of a page as CSV, as of one moment. It reads each part when
// the client has taken the part before. The export ends when the client goes away, is slower than
// leastRate, or has not read everything after longestExport. After an error in the middle it
// cuts the connection, so that the client doesn't take a part for the whole. With bom it begins
// with a byte order mark.
func (a *API) exportTransactions(c *fiber.Ctx, page statement.Page, bom bool) error {
	if !c.Request().Header.IsHTTP11() {
		return errNoChunks
	}
	if c.Method() == fiber.MethodHead {
		if _, err := a.cfg.Accounts.Account(c.UserContext(), page.Account.UserID, page.Account.Number); err != nil {
			return err
		}
		describeExport(c, page.Account)
		return nil
	}
	exporting, end, err := a.exports.begin(c.UserContext(), caller(c))
	if err != nil {
		return err
	}
	body := &exportBody{
		exports: &a.exports, ctx: exporting, end: end, conn: c.Context().Conn(),
		log: a.cfg.Log.With("request_id", c.Locals(requestIDKey{})),
	}
	if bom {
		body.lines.WriteString(byteOrderMark)
	}
	if err := body.begin(c.UserContext(), a.cfg.Statements, page); err != nil {
		end()
		return err
	}
	body.unwatch = context.AfterFunc(exporting, body.cut)
	describeExport(c, page.Account)
	c.Context().SetBodyStream(body, -1)
	return nil
}

func describeExport(c *fiber.Ctx, account ledger.Owned) {
	c.Vary(fiber.HeaderAccept)
	c.Set(fiber.HeaderContentType, mimeCSV)
	c.Set(fiber.HeaderContentDisposition, fmt.Sprintf("attachment; filename=%q", account.Number+".csv"))
}

// exportBody is the body of an export. The connection's goroutine reads it, and closes it at the
// end or when the client is gone.
type exportBody struct {
	exports *exports
	export  *statement.Export
	ctx     context.Context //nolint:containedctx // ends the export, which outlives its handler
	end     func()
	unwatch func() bool
	conn    net.Conn
	isCut   atomic.Bool
	log     *slog.Logger

	lines bytes.Buffer // that the client has not read yet
	err   error        // io.EOF once every page is read
}

// begin reads the first page. Where that fails, the client gets a problem as its answer.
func (b *exportBody) begin(ctx context.Context, statements *statement.Statements, page statement.Page) (err error) {
	if b.export, err = statements.Export(ctx, page); err != nil {
		return err
	}
	b.lines.WriteString(strings.Join(csvHeader, ",") + "\n")
	if err = b.readPage(ctx); errors.Is(err, io.EOF) {
		b.err = io.EOF // after the header line
		return b.allow()
	}
	return err
}

// cut ends the writes that wait for the client.
func (b *exportBody) cut() {
	b.isCut.Store(true)
	_ = b.conn.SetWriteDeadline(time.Now())
}

// Read returns some lines. When it reads a new page, it sets the deadline for the client to take
// that page.
func (b *exportBody) Read(p []byte) (int, error) {
	if b.isCut.Load() { // the server may have set its own deadline after cut set its
		return 0, os.ErrDeadlineExceeded
	}
	if b.lines.Len() == 0 && b.err == nil {
		b.err = b.readPage(b.ctx)
	}
	if b.lines.Len() > 0 {
		return b.lines.Read(p)
	}
	if errors.Is(b.err, io.EOF) {
		b.unwatch() // otherwise end would cut the last bytes off
		b.end()     // before the client sees the end: it may request another export
	}
	return 0, b.err
}

// Close ends the export, and logs it where not all of it was sent.
func (b *exportBody) Close() error {
	b.unwatch()
	if !errors.Is(b.err, io.EOF) || b.lines.Len() > 0 {
		b.log.Warn("export cut off", "error", cmp.Or(b.ctx.Err(), b.err, errNotTaken))
	}
	b.end()
	return nil
}

var errNotTaken = errors.New("the client is gone or too slow")

// readPage reads the next page to lines; io.EOF where there is no other page.
func (b *exportBody) readPage(ctx context.Context) (err error) {
	defer func() {
		if cause := recover(); cause != nil {
			err = panicked{cause: cause, stack: debug.Stack()}
		}
	}()
	transactions, err := b.exports.next(ctx, b.export)
	if err != nil {
		return err
	}
	if len(transactions) == 0 {
		return io.EOF
	}
	lines, line := csv.NewWriter(&b.lines), make([]string, len(csvHeader))
	for i := range transactions {
		fillLine(line, &transactions[i])
		_ = lines.Write(line) // to a bytes.Buffer, which never fails
	}
	lines.Flush()
	return b.allow()
}

// allow sets the deadline for the client to take the lines.
func (b *exportBody) allow() error {
	timely := b.exports.grace + time.Duration(b.lines.Len())*time.Second/time.Duration(b.exports.rate)
	if err := b.conn.SetWriteDeadline(time.Now().Add(timely)); err != nil {
		return err
	}
	if b.isCut.Load() { // a later cut sets its deadline after this one
		return os.ErrDeadlineExceeded
	}
	return nil
}

func fillLine(line []string, t *ledger.Transaction) {
	line[0] = strconv.FormatInt(t.Seq, 10)
	line[1] = string(t.Type)
	line[2] = strconv.FormatInt(t.Amount, 10)
	line[3] = strconv.FormatInt(t.BalanceAfter, 10)
	line[4], line[5] = "", ""
	if t.Description != nil {
		line[4] = harmless(*t.Description)
	}
	if t.JobID != nil {
		line[5] = t.JobID.String()
	}
	line[6] = timestamp(t.CreatedAt).String()
}

// harmless puts an apostrophe before each part of a cell that a spreadsheet would run as a formula
// (OWASP, CSV Injection), whichever separator the spreadsheet uses. One that splits at semicolons,
// and takes a quote for the end of a cell, reads the formula of x;=1+1 as a cell.
func harmless(cell string) string {
	var safe strings.Builder
	atStart := true // of a part, also behind a quote
	for _, r := range cell {
		if atStart && strings.ContainsRune(formulaStarts, r) {
			safe.WriteByte('\'')
		}
		safe.WriteRune(r)
		atStart = strings.ContainsRune(separators, r) || atStart && r == '"'
	}
	return safe.String()
}

const (
	formulaStarts = "=+-@\t\r\n＝＋－＠"
	separators    = ",;\t|\r\n"
)
