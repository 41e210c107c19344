package api

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/test/failpoint"
)

type jobBody struct {
	ID          string              `json:"id"`
	Account     string              `json:"account"`
	Type        string              `json:"type"`
	Amount      int64               `json:"amount"`
	Currency    string              `json:"currency"`
	Description *string             `json:"description"`
	Status      string              `json:"status"`
	Failure     *failureBody        `json:"failure"`
	Transaction *jobTransactionBody `json:"transaction"`
	CreatedAt   timestamp           `json:"created_at"`
	FinishedAt  *timestamp          `json:"finished_at"`
}

type failureBody struct {
	Code   string `json:"code"`
	Detail string `json:"detail"`
}

// jobTransactionBody is the transaction that a job made.
type jobTransactionBody struct {
	Seq          int64     `json:"seq"`
	BalanceAfter int64     `json:"balance_after"`
	CreatedAt    timestamp `json:"created_at"`
}

// failures are the texts of the failure codes.
var failures = map[string]string{
	ledger.InsufficientFunds:    "The balance was less than the amount.",
	ledger.BalanceLimitExceeded: "The balance would have passed the largest one, " + strconv.FormatInt(ledger.MaxAmount, 10) + ".",
	ledger.AccountIsFrozen:      "The account was frozen. Nothing changed.",
	ledger.AccountIsClosed:      "The account was closed. Nothing changed.",
	ledger.InternalError:        "The job could not be applied; an operator looks into it. Nothing changed.",
}

func toJobBody(job job.Job) jobBody {
	body := jobBody{
		ID:          job.ID.String(),
		Account:     job.Account,
		Type:        string(job.Type),
		Amount:      job.Amount,
		Currency:    job.Currency,
		Description: job.Description,
		Status:      string(job.Status),
		CreatedAt:   timestamp(job.CreatedAt),
	}
	if job.FinishedAt != nil {
		finished := timestamp(*job.FinishedAt)
		body.FinishedAt = &finished
	}
	if job.Failure != nil {
		body.Failure = &failureBody{Code: *job.Failure, Detail: failures[*job.Failure]}
	}
	if job.Seq != nil {
		body.Transaction = &jobTransactionBody{Seq: *job.Seq, BalanceAfter: *job.BalanceAfter, CreatedAt: *body.FinishedAt}
	}
	return body
}

// pollAfter is the Retry-After of an unfinished job, in seconds, the shortest that the header can
// say.
const pollAfter = "1"

// accept accepts a deposit or a withdrawal. It answers after the job is committed: with 202, or
// with 200 if the job has finished already. After a crash in between the client has no answer;
// the same request with the same key gets it.
func (a *API) accept(entry ledger.EntryType) func(*fiber.Ctx, *query) error {
	return func(c *fiber.Ctx, _ *query) error {
		key, err := requiredKey(c)
		if err != nil {
			return err
		}
		b, err := readBody(c)
		if err != nil {
			return err
		}
		req := job.Request{
			UserID:      caller(c),
			Account:     accountNumber(c),
			Type:        entry,
			Amount:      b.amount("amount"),
			Description: b.description(),
			Key:         key,
		}
		if err := b.err(); err != nil {
			return err
		}
		if err := checkNumber(req.Account); err != nil {
			return err
		}
		req.Origin = a.originOf(c)
		accepted, replayed, err := a.cfg.Acceptor.Accept(c.UserContext(), req)
		if err != nil {
			return err
		}
		return a.sendAccepted(c, accepted, replayed, preferredWait(c))
	}
}

func (a *API) sendAccepted(c *fiber.Ctx, accepted job.Job, replayed bool, wait time.Duration) error {
	failpoint.Hit(failpoint.ResponseUnwritten)
	a.metrics.job(accepted, replayed)
	if replayed {
		c.Set(headerReplay, "true")
	}
	c.Location(jobPath + accepted.ID.String())
	return sendWithin(c, wait, []job.Job{accepted}, func(jobs []job.Job, held bool) error {
		if held {
			setApplied(c, wait)
		}
		c.Status(http.StatusOK)
		if isQueued(jobs[0]) {
			c.Status(http.StatusAccepted)
		}
		return sendJob(c, jobs[0])
	})
}

func sendJob(c *fiber.Ctx, j job.Job) error {
	if isQueued(j) {
		c.Set(fiber.HeaderRetryAfter, pollAfter)
	}
	return c.JSON(toJobBody(j))
}

// sendTagged sends the job with an ETag, and without its body where the client has it already.
func sendTagged(c *fiber.Ctx, j job.Job) error {
	if err := sendJob(c, j); err != nil {
		return err
	}
	etag := fmt.Sprintf(`"%x"`, sha256.Sum256(c.Response().Body()))
	c.Set(fiber.HeaderETag, etag)
	if hasETag(c, etag) {
		c.Status(http.StatusNotModified)
		c.Response().ResetBody()
		c.Response().Header.Del(fiber.HeaderContentType)
	}
	return nil
}

func (a *API) readJob(c *fiber.Ctx, q *query) error {
	wait := q.seconds("wait", maxWait)
	if err := q.err(); err != nil {
		return err
	}
	id, err := uuid.Parse(c.Params("id"))
	if err != nil || !strings.EqualFold(id.String(), c.Params("id")) { // Parse takes other forms too; an id has only one
		return fmt.Errorf("%w: %w", job.ErrNotFound, errMalformed)
	}
	found, err := a.cfg.Jobs.Job(c.UserContext(), caller(c), id)
	if err != nil {
		return err
	}
	return sendWithin(c, wait, []job.Job{found}, func(jobs []job.Job, _ bool) error { return sendTagged(c, jobs[0]) })
}

// findJob answers with the list of the caller's job with a key, or of none.
func (a *API) findJob(c *fiber.Ctx, q *query) error {
	key := q.key()
	if err := q.err(); err != nil {
		return err
	}
	page := pageBody[jobBody]{Data: []jobBody{}}
	found, err := a.cfg.Jobs.ByKey(c.UserContext(), caller(c), key)
	switch {
	case err == nil:
		page.Data = append(page.Data, toJobBody(found))
	case !errors.Is(err, job.ErrNotFound):
		return err
	}
	return c.JSON(page)
}

func (a *API) listJobs(c *fiber.Ctx, q *query) error {
	statuses := make([]string, len(job.Statuses))
	for i, status := range job.Statuses {
		statuses[i] = string(status)
	}
	page := job.Page{
		Status:    job.Status(q.oneOf("status", statuses...)),
		Ascending: q.ascending(),
	}
	limit := q.limit()
	if err := q.err(); err != nil {
		return err
	}
	account, err := ownedAccount(c)
	if err != nil {
		return err
	}
	list := fmt.Sprintf("jobs of %s's %s, status %q, ascending %t", account.UserID, account.Number, page.Status, page.Ascending)
	if page.After, err = q.after(a.cursors, list); err != nil {
		return err
	}
	page.Account, page.Limit = account, limit+1
	jobs, err := a.cfg.Jobs.List(c.UserContext(), page)
	if err != nil {
		return err
	}
	return sendPage(c, a.cursors, list, limit, jobs, toJobBody, func(j job.Job) int64 { return j.Position })
}
