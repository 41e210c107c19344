package worker

import (
	"context"
	"time"
)

// How often sweeps believe a ticket, for tests that pass it.
const (
	LongPutOff = longPutOff
	LongUnseen = longUnseen
	SweepEvery = sweepEvery
)

// Sweep is one sweep, for tests that count them.
func (w *Worker) Sweep(ctx context.Context) { w.sweep(ctx) }

// SweepAtMost bounds the accounts of a sweep. It must be a multiple of SweepPage.
func (w *Worker) SweepAtMost(accounts int) { w.walk.most = accounts }

// From is the account id after which the next sweep begins.
func (w *Worker) From() int64 { return w.walk.from }

// Housekeep is one step of the housekeeping.
func (w *Worker) Housekeep(ctx context.Context) { w.housekeep(ctx) }

// WalkedFor says how long the last full walk took, and that it has just ended.
func (w *Worker) WalkedFor(took time.Duration) { w.walk.at, w.walk.took = time.Now(), took }
