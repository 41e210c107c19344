package api

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/test/failpoint"
)

// batchBody is a batch as it is answered.
type batchBody struct {
	Data []jobBody `json:"data"`
}

// acceptBatch accepts all jobs of a batch or none. It answers after they are committed. After
// a crash in between the client has no answer; the same batch gets it.
func (a *API) acceptBatch(c *fiber.Ctx, _ *query) error {
	b, err := readBody(c)
	if err != nil {
		return err
	}
	requests := b.batch(caller(c), accountNumber(c))
	if err := b.err(); err != nil {
		return err
	}
	if err := checkNumber(requests[0].Account); err != nil {
		return err
	}
	if err := a.limitBatch(c, caller(c), len(requests)); err != nil {
		return err
	}
	requests[0].Origin = a.originOf(c)
	accepted, err := a.cfg.Acceptor.AcceptBatch(c.UserContext(), requests)
	if err != nil {
		return batchProblem(err)
	}
	return a.sendBatch(c, accepted, preferredWait(c))
}

// batch reads the jobs of a batch. A key that stands twice is a fault, even where both jobs are the
// same: the client may have meant two.
func (b *body) batch(userID uuid.UUID, account string) (requests []job.Request) {
	keys := make(map[string]int, job.MaxBatchJobs)
	b.each("jobs", job.MaxBatchJobs, func(i int, item *body) {
		req := job.Request{
			UserID:      userID,
			Account:     account,
			Type:        ledger.EntryType(item.oneOf("type", string(ledger.Deposit), string(ledger.Withdrawal))),
			Amount:      item.amount("amount"),
			Description: item.description(),
			Key:         item.key(),
		}
		if first, repeated := keys[req.Key]; repeated && req.Key != "" {
			item.fault(fieldKey, "repeated_key", fmt.Sprintf("is the key of /jobs/%d; each job has its own", first))
		} else {
			keys[req.Key] = i
		}
		requests = append(requests, req)
	})
	return requests
}

// batchProblem names the jobs whose keys were used for something else. Other errors stay.
func batchProblem(err error) error {
	reused, ok := errors.AsType[*job.ReusedKeysError](err)
	if !ok {
		return err
	}
	faults := make([]fault, len(reused.Requests))
	for i, n := range reused.Requests {
		pointer := fmt.Sprintf("/jobs/%d/%s", n, fieldKey)
		faults[i] = fault{Pointer: &pointer, Code: codeKeyReused, Detail: "was used for something else"}
	}
	return invalid(http.StatusUnprocessableEntity, codeKeyReused,
		"You have used keys of this batch for something else; errors names each. Nothing happened.", firstFaults(faults))
}

// sendBatch answers 202 while a job is queued, and 200 once all are finished.
func (a *API) sendBatch(c *fiber.Ctx, accepted []job.Accepted, wait time.Duration) error {
	failpoint.Hit(failpoint.ResponseUnwritten)
	jobs, isReplay := make([]job.Job, len(accepted)), true
	for i, one := range accepted {
		a.metrics.job(one.Job, one.Replayed)
		isReplay = isReplay && one.Replayed
		jobs[i] = one.Job
	}
	if isReplay {
		c.Set(headerReplay, "true")
	}
	c.Locals(acceptedKey{}, jobs)
	return sendWithin(c, wait, jobs, func(jobs []job.Job, held bool) error {
		if held {
			setApplied(c, wait)
		}
		body := batchBody{Data: make([]jobBody, len(jobs))}
		for i, j := range jobs {
			body.Data[i] = toJobBody(j)
		}
		c.Status(http.StatusOK)
		if slices.ContainsFunc(jobs, isQueued) {
			c.Status(http.StatusAccepted)
			c.Set(fiber.HeaderRetryAfter, pollAfter)
		}
		return c.JSON(body)
	})
}
