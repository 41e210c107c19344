package worker

import "context"

// How often sweeps believe a ticket, for tests that pass it.
const (
	LongPutOff = longPutOff
	LongUnseen = longUnseen
	SweepEvery = sweepEvery
)

// Sweep is one sweep, for tests that count them.
func (w *Worker) Sweep(ctx context.Context) { w.sweep(ctx) }

// SweepAtMost bounds the accounts of a sweep. It must be a multiple of SweepPage.
func (w *Worker) SweepAtMost(accounts int) { w.most = accounts }

// From is the account id after which the next sweep begins.
func (w *Worker) From() int64 { return w.from }

// Housekeep is one step of the housekeeping.
func (w *Worker) Housekeep(ctx context.Context) { w.housekeep(ctx) }
