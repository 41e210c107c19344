package worker

import (
	"context"
	"time"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/queue"
)

// For how many sweeps a task in a state is believed to apply its account.
const (
	LongRetry   = longRetry
	LongMissing = longMissing
	LongUnmoved = longUnmoved
	SweepEvery  = sweepEvery
)

// Sweep is one sweep, for tests that count them.
func (w *Worker) Sweep(ctx context.Context) { w.sweep(ctx) }

// SweepAtMost bounds the accounts of a sweep. It must be a multiple of scanPage.
func (w *Worker) SweepAtMost(accounts int) { w.scan.most = accounts }

// OnFullScan makes each query of a full scan call before, and fail with its error.
func (w *Worker) OnFullScan(before func() error) {
	read := w.scan.page
	w.scan.page = func(ctx context.Context, after, above int64, limit int) ([]job.OldestQueued, error) {
		if above == 0 {
			if err := before(); err != nil {
				return nil, err
			}
		}
		return read(ctx, after, above, limit)
	}
}

// FullScanTook makes the last full scan one that took so long, and has just ended.
func (w *Worker) FullScanTook(took time.Duration) { w.scan.at, w.scan.took = time.Now(), took }

// Housekeep is one step of the housekeeping.
func (w *Worker) Housekeep(ctx context.Context) { w.housekeep(ctx) }

// Step is one step of a verifier.
func (v *Verifier) Step(ctx context.Context) time.Duration { return v.step(ctx) }

// Round is the running round of a verifier.
func (v *Verifier) Round() ledger.Round { return v.state.Round }

// EndRest lets the next round begin.
func (v *Verifier) EndRest() { v.nextRoundAt = time.Time{} }

// SliceOf makes the next slice one of so many rows.
func (v *Verifier) SliceOf(rows int) { v.rows = rows }

// NewVerifierThatForgets makes a verifier that shows mismatches for the given time after a slice.
var NewVerifierThatForgets = newVerifier

// Release ends a verifier's hold, as its Run does when it ends.
func (v *Verifier) Release(ctx context.Context) { v.release(ctx) }

// Bounds of a verifier.
const (
	MaxMismatchLines = maxMismatchLines
	OtherVerifier    = otherVerifierPause
	VerifyRate       = verifyRate
)

// Remember keeps the origins of notifications, as Apply does.
func (w *Worker) Remember(notifications []queue.Notification) { w.origins.remember(notifications) }

// ReportFinished writes the lines of finished jobs.
func (w *Worker) ReportFinished(applied []ledger.Applied) { w.reportFinished(applied) }
