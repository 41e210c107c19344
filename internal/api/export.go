package api

import (
	"bufio"
	"cmp"
	"encoding/csv"
	"fmt"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/gofiber/fiber/v2"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/statement"
)

const mimeCSV = "text/csv"

// maxExports bounds the exports at once: each has a connection to Postgres to
// itself, and the accepts need theirs.
const maxExports = 2

// flushEvery is after how many rows an export is sent on.
const flushEvery = 100

var errTooManyExports = &problem{
	Status: http.StatusTooManyRequests, Code: "too_many_requests", retryAfter: busyRetry,
	Detail: "Too many exports are on their way. Try again when one is done.",
}

var csvHeader = []string{"seq", "type", "amount", "balance_after", "description", "job_id", "created_at"}

// wantsCSV tells whether the client would rather have CSV than JSON.
func wantsCSV(c *fiber.Ctx) bool {
	return c.Accepts(fiber.MIMEApplicationJSON, mimeCSV) == mimeCSV
}

// exportTransactions answers with all of a page as CSV, of one moment, while it
// is read. A client that goes away ends the reading, and so does one that takes
// nothing for writeTimeout. Where something fails on the way the connection is
// cut, so that nobody takes a part for the whole.
func (a *API) exportTransactions(c *fiber.Ctx, account ledger.Account, page statement.Page) error {
	select {
	case a.exports <- struct{}{}:
	default:
		return errTooManyExports
	}
	export, err := a.cfg.Statements.Export(c.UserContext(), page)
	if err != nil {
		<-a.exports
		return err
	}
	c.Vary(fiber.HeaderAccept)
	c.Set(fiber.HeaderContentType, mimeCSV+"; charset=utf-8; header=present")
	c.Set(fiber.HeaderContentDisposition, fmt.Sprintf("attachment; filename=%q", account.Number+".csv"))
	if c.Method() == fiber.MethodHead {
		export.Close()
		<-a.exports
		return nil
	}
	s := csvStream{export: export, conn: c.Context().Conn()}
	log := a.cfg.Log.With("request_id", c.Locals(requestIDKey{}))
	c.Context().SetBodyStreamWriter(func(w *bufio.Writer) {
		defer func() { <-a.exports }()
		defer export.Close()
		if err := s.send(w); err != nil {
			log.Warn("export cut off", "error", err)
			_ = s.conn.Close()
		}
	})
	return nil
}

// csvStream is an export on its way to a client.
type csvStream struct {
	export *statement.Export
	conn   net.Conn
}

func (s csvStream) send(w *bufio.Writer) (err error) {
	defer func() {
		if cause := recover(); cause != nil {
			err = panicked{cause: cause, stack: debug.Stack()}
		}
	}()
	lines := csv.NewWriter(w)
	_ = lines.Write(csvHeader) // an error stays until Flush
	line := make([]string, len(csvHeader))
	rows := 0
	err = s.export.Each(func(t *ledger.Transaction) error {
		fillLine(line, t)
		_ = lines.Write(line)
		if rows++; rows%flushEvery == 0 {
			return s.flush(lines, w)
		}
		return nil
	})
	return cmp.Or(err, s.flush(lines, w))
}

// flush sends what there is, and gives the client time to take it.
func (s csvStream) flush(lines *csv.Writer, w *bufio.Writer) error {
	if err := s.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	lines.Flush()
	return cmp.Or(lines.Error(), w.Flush())
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
