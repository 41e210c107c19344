package api

import (
	"bufio"
	"cmp"
	"context"
	"encoding/csv"
	"fmt"
	"io"
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

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/statement"
)

const mimeCSV = "text/csv; charset=utf-8; header=present"

const (
	// maxExports bounds the exports at once: each has a connection to Postgres to
	// itself, and the accepts need theirs.
	maxExports = 2
	// longestExport ends an export whose client takes too little at a time: while
	// it lasts Postgres can't clean up behind the balances that change.
	longestExport = 30 * time.Minute
	// exportBuffer is how many bytes of lines are made before they are sent.
	exportBuffer = 32 << 10
)

var (
	errTooManyExports = &problem{
		Status: http.StatusTooManyRequests, Code: "too_many_requests", retryAfter: busyRetry,
		Detail: "Your last export, or too many others', are on their way. Try again when one is done.",
	}
	errNoChunks = &problem{
		Status: http.StatusHTTPVersionNotSupported, Code: "http_version_not_supported",
		Detail: "An export needs HTTP/1.1: in HTTP/1.0 a part of one looks like the whole. A proxy may have to be told.",
	}
)

var csvHeader = []string{"seq", "type", "amount", "balance_after", "description", "job_id", "created_at"}

// wantsCSV tells whether the client would rather have CSV than JSON.
func wantsCSV(c *fiber.Ctx) bool {
	return c.Accepts(fiber.MIMEApplicationJSON, mimeCSV) == mimeCSV
}

// exports are those on their way: one a user, and maxExports in all.
type exports struct {
	longest time.Duration

	mu      sync.Mutex // guards what follows
	cancels map[uuid.UUID]context.CancelFunc
	stopped bool
	running sync.WaitGroup
}

// begin makes room for an export. The context it answers with is over when the
// export has taken too long, or the API stops; end must be called.
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
	return exporting, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		cancel()
		delete(e.cancels, user)
		e.running.Done()
	}, nil
}

// stop cuts all exports off, and waits until their connections are free.
func (e *exports) stop() {
	e.mu.Lock()
	e.stopped = true
	for _, cancel := range e.cancels {
		cancel()
	}
	e.mu.Unlock()
	e.running.Wait()
}

// exportTransactions answers with all of a page as CSV, of one moment, while it
// is read. A client that goes away ends the reading, and so does one that takes
// nothing for writeTimeout, or is not done after longestExport. Where something
// fails on the way the connection is cut, so that nobody takes a part for the
// whole.
func (a *API) exportTransactions(c *fiber.Ctx, account ledger.Owned, page statement.Page) error {
	if !c.Request().Header.IsHTTP11() {
		return errNoChunks
	}
	if c.Method() == fiber.MethodHead {
		if _, err := a.cfg.Accounts.Account(c.UserContext(), account.UserID, account.Number); err != nil {
			return err
		}
		describeExport(c, account)
		return nil
	}
	exporting, end, err := a.exports.begin(c.UserContext(), caller(c))
	if err != nil {
		return err
	}
	begun := false
	defer func() {
		if !begun {
			end()
		}
	}()
	export, err := a.cfg.Statements.Export(c.UserContext(), page)
	if err != nil {
		return err
	}
	begun = true
	describeExport(c, account)
	conn := c.Context().Conn()
	read, lines := io.Pipe()
	body := &exportBody{PipeReader: read, conn: conn}
	c.Context().SetBodyStream(body, -1)
	log := a.cfg.Log.With("request_id", c.Locals(requestIDKey{}))
	go func() {
		unwatch := context.AfterFunc(exporting, func() {
			_ = lines.CloseWithError(exporting.Err())
			body.cut()
		})
		err := sendLines(exporting, export, lines)
		if err != nil {
			log.Warn("export cut off", "error", err)
		}
		unwatch()
		end()                         // before the client knows: it may have another to ask for
		_ = lines.CloseWithError(err) // which cuts the connection where it is not nil
	}()
	return nil
}

func describeExport(c *fiber.Ctx, account ledger.Owned) {
	c.Vary(fiber.HeaderAccept)
	c.Set(fiber.HeaderContentType, mimeCSV)
	c.Set(fiber.HeaderContentDisposition, fmt.Sprintf("attachment; filename=%q", account.Number+".csv"))
}

// exportBody is an export as its client takes it.
type exportBody struct {
	*io.PipeReader
	conn  net.Conn
	isCut atomic.Bool
}

// cut has what waits for the client wait no more.
func (b *exportBody) cut() {
	b.isCut.Store(true)
	_ = b.conn.SetWriteDeadline(time.Now())
}

// Read gives the client the time to take what is read.
func (b *exportBody) Read(p []byte) (int, error) {
	n, err := b.PipeReader.Read(p)
	if n == 0 || err != nil {
		return n, err
	}
	if err := b.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	if b.isCut.Load() { // a cut that comes after this sets its deadline after ours
		return 0, os.ErrDeadlineExceeded
	}
	return n, nil
}

// sendLines writes an export to its body, until the body is closed or ctx ends.
func sendLines(ctx context.Context, export *statement.Export, body io.Writer) (err error) {
	defer func() {
		if cause := recover(); cause != nil {
			err = panicked{cause: cause, stack: debug.Stack()}
		}
	}()
	buffer := bufio.NewWriterSize(body, exportBuffer)
	lines := csv.NewWriter(buffer) // writes to the buffer itself
	_ = lines.Write(csvHeader)     // an error stays until Flush
	line := make([]string, len(csvHeader))
	err = export.Each(ctx, func(t *ledger.Transaction) error {
		fillLine(line, t)
		return lines.Write(line)
	})
	lines.Flush()
	return cmp.Or(err, lines.Error())
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

// harmless puts an apostrophe before a cell that a spreadsheet would run as a
// formula (OWASP, CSV Injection).
func harmless(cell string) string {
	if strings.IndexFunc(cell, startsFormula) == 0 {
		return "'" + cell
	}
	return cell
}

func startsFormula(r rune) bool {
	return strings.ContainsRune("=+-@\t\r\n＝＋－＠", r)
}
