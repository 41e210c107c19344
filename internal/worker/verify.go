package worker

import (
	"context"
	"encoding/json"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/ops"
	"github.com/passbook/passbook/internal/queue"
)

// How fast the ledger is verified in the background.
const (
	// verifyShare bounds the load on Postgres: after a slice the verifier pauses verifyShare times as
	// long as the slice took, so it is busy for 2 % of the time. longestVerifyPause bounds the pause.
	verifyShare = 49
	// verifyRate bounds the rows a second.
	verifyRate = 2000
	// A slice has maxVerifyRows rows at most. If it takes longer than verifySlice, the next one has
	// half as many, so that no snapshot is held for long. sliceTimeout ends a slice.
	maxVerifyRows = 500
	verifySlice   = 50 * time.Millisecond
	sliceTimeout  = 5 * time.Second
	// longestVerifyPause is shorter than the hold of queue.Shared, so that the hold does not expire.
	longestVerifyPause = 10 * time.Second
	// roundEvery is the shortest time between the starts of two rounds.
	roundEvery = time.Minute
	// otherVerifierPause is how often a worker checks whether another one still verifies.
	otherVerifierPause = 10 * time.Second
	// verifyRetry is the pause after an error.
	verifyRetry = 5 * time.Second
	// verifiedLasts is how long the mismatches are shown after the last verified slice.
	verifiedLasts = 2 * time.Minute
	// lastRoundLasts is how long the last round is shown: an alert compares its time with now.
	lastRoundLasts = 30 * 24 * time.Hour
)

// Bounds of what the verifier logs in a minute.
const (
	maxMismatchLines = 10
	verifyLogEvery   = time.Minute
)

// Verifier verifies the ledger in the background, round after round. One worker at a time does so. It
// keeps the round's progress in Redis, and another worker continues from there after a restart.
// While Redis is away, each worker continues from the progress that it knows.
//
// A kill loses at most the slice in progress, which is verified again.
type Verifier struct {
	pool    *pgxpool.Pool
	shared  *queue.Shared
	log     *slog.Logger
	metrics verifierMetrics

	held        bool         // this worker holds shared, so it verifies
	ahead       bool         // state is newer than the value in Redis
	state       verification // the progress that this worker knows
	rows        int          // of the next slice
	nextRoundAt time.Time    // when the next round may begin, by this process's own clock
	lines       int          // mismatches logged since lineTime
	lineTime    time.Time
	warned      time.Time // the last warning that a slice failed
}

// verification is the progress that the workers share.
type verification struct {
	Round  ledger.Round   // the running one; its zero value between two rounds
	Last   *finishedRound // nil: none yet
	Failed bool           // the last slice could not be verified
}

type finishedRound struct {
	Ended      time.Time // by Postgres's clock
	Took       time.Duration
	Mismatches int64
}

// NewVerifier makes a verifier, and registers its metrics.
func NewVerifier(pool *pgxpool.Pool, shared *queue.Shared, registry prometheus.Registerer, log *slog.Logger) *Verifier {
	return newVerifier(pool, shared, registry, log, verifiedLasts)
}

func newVerifier(pool *pgxpool.Pool, shared *queue.Shared, registry prometheus.Registerer, log *slog.Logger, lasts time.Duration) *Verifier {
	return &Verifier{pool: pool, shared: shared, log: log, rows: maxVerifyRows, metrics: newVerifierMetrics(registry, lasts)}
}

// Run verifies until ctx ends.
func (v *Verifier) Run(ctx context.Context) error {
	defer v.release(ctx)
	for {
		pause := v.step(ctx)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
	}
}

// release gives up the hold. Redis may have it although v.held is false: the end of ctx may have cut off
// the answer to a Hold.
func (v *Verifier) release(ctx context.Context) {
	_ = v.shared.Release(context.WithoutCancel(ctx)) // after an error the hold expires
}

// step verifies a slice, if it is this worker's turn. It returns how long to pause.
func (v *Verifier) step(ctx context.Context) (pause time.Duration) {
	if !v.held && !v.take(ctx) {
		return otherVerifierPause
	}
	if now := time.Now(); v.state.Round.Table == "" && now.Before(v.nextRoundAt) {
		v.set(v.state)
		v.keep(ctx) // so that the hold does not expire
		return min(v.nextRoundAt.Sub(now), otherVerifierPause)
	}
	began := time.Now()
	slice, err := v.verify(ctx)
	took := time.Since(began)
	switch {
	case ctx.Err() != nil:
		return 0
	case err != nil:
		v.rows = max(v.rows/8, 1) // a smaller slice may succeed on a slow disk, or before a damaged row
		v.state.Failed = true
		v.keep(ctx)
		v.warn(err)
		return verifyRetry
	case took > verifySlice:
		v.rows = max(v.rows/2, 1)
	default:
		v.rows = min(2*v.rows, maxVerifyRows)
	}
	v.report(slice)
	v.keep(ctx)
	return min(max(verifyShare*took, time.Duration(slice.Rows)*time.Second/verifyRate), longestVerifyPause)
}

// take returns whether this worker is to verify, and reads the round's progress from Redis.
func (v *Verifier) take(ctx context.Context) bool {
	value, held, err := v.shared.Hold(ctx, nil)
	if err != nil { // it continues without Redis
		v.log.Debug("could not read the progress of the verification", "error", err)
		return ctx.Err() == nil
	}
	if v.held = held; held && v.ahead {
		return true
	}
	v.adopt(value)
	return held
}

// adopt takes over the progress in Redis, of another worker or of this one before a restart.
func (v *Verifier) adopt(value []byte) {
	if len(value) == 0 {
		return
	}
	var state verification
	if err := json.Unmarshal(value, &state); err != nil { // another build wrote it
		v.log.Debug("could not read the progress of the verification", "error", err)
		return
	}
	v.set(state)
	v.ahead = false
}

// verify verifies the next slice.
func (v *Verifier) verify(ctx context.Context) (ledger.Slice, error) {
	ctx, cancel := context.WithTimeout(ctx, sliceTimeout)
	defer cancel()
	state := v.state
	slice, err := state.Round.Verify(ctx, v.pool, v.rows)
	if err != nil {
		return slice, err
	}
	if slice.Done {
		took := max(slice.Ended.Sub(state.Round.Begun), 0)
		state.Last = &finishedRound{Ended: slice.Ended, Took: took, Mismatches: state.Round.Verified.Mismatches}
		v.log.Debug("ledger verified", "accounts", state.Round.Verified.Accounts, "transactions", state.Round.Verified.Transactions,
			"jobs", state.Round.Verified.Jobs, "mismatches", state.Round.Verified.Mismatches, "took", took)
		state.Round = ledger.Round{}
		v.nextRoundAt = time.Now().Add(roundEvery - took)
	}
	state.Failed = false
	v.set(state)
	v.ahead = true
	return slice, nil
}

// report logs the mismatches of a slice, maxMismatchLines a verifyLogEvery, and counts its accounts.
func (v *Verifier) report(slice ledger.Slice) {
	v.metrics.accounts.Add(float64(slice.Accounts))
	for _, mismatch := range slice.Mismatches {
		if time.Since(v.lineTime) >= verifyLogEvery {
			v.lines, v.lineTime = 0, time.Now()
		}
		switch v.lines++; {
		case v.lines <= maxMismatchLines:
			v.log.Error("ledger mismatch", "account", mismatch.Account, "finding", mismatch.Finding)
		case v.lines == maxMismatchLines+1:
			v.log.Error("more ledger mismatches, which are not logged; worker verify prints all")
		}
	}
}

// keep writes the progress to Redis. If another worker holds it by now, keep takes over its progress.
func (v *Verifier) keep(ctx context.Context) {
	kept, err := json.Marshal(v.state)
	if err != nil {
		v.log.Error("could not encode the progress of the verification", "error", err)
		return
	}
	value, held, err := v.shared.Hold(ctx, kept)
	if err != nil {
		v.log.Debug("could not keep the progress of the verification", "error", err)
		v.held = false
		return
	}
	if v.held, v.ahead = held, false; !held {
		v.adopt(value)
	}
}

func (v *Verifier) warn(err error) {
	if time.Since(v.warned) >= verifyLogEvery {
		v.warned = time.Now()
		v.log.Warn("could not verify the ledger", "error", err)
	}
}

// set keeps the progress, and shows it in the metrics unless the last slice failed.
func (v *Verifier) set(state verification) {
	v.state = state
	if !state.Failed {
		v.metrics.show(state)
	}
}

// verifierMetrics are a verifier's metrics. All but accounts show the shared progress, so each worker
// shows the same values.
type verifierMetrics struct {
	accounts                       prometheus.Counter
	mismatches, lastRound, seconds *ops.Gauge
}

func newVerifierMetrics(registry prometheus.Registerer, lasts time.Duration) verifierMetrics {
	m := verifierMetrics{
		accounts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "passbook_verified_accounts_total", Help: "Accounts that this worker has verified in the background.",
		}),
		mismatches: ops.NewGauge("passbook_verification_mismatches", "Mismatches that the background verification found in the last round, or has found so far in the running one if those are more; absent while nothing is verified.", lasts),
		lastRound:  ops.NewGauge("passbook_verification_last_round_timestamp_seconds", "When the last round of the background verification ended, by Postgres's clock; absent before.", lastRoundLasts),
		seconds:    ops.NewGauge("passbook_verification_round_seconds", "How long the last round of the background verification took; absent before.", lastRoundLasts),
	}
	registry.MustRegister(m.accounts, m.mismatches, m.lastRound, m.seconds)
	return m
}

func (m verifierMetrics) show(state verification) {
	mismatches := state.Round.Verified.Mismatches
	if last := state.Last; last != nil {
		mismatches = max(mismatches, last.Mismatches)
		m.lastRound.Set(float64(last.Ended.UnixMilli()) / 1000)
		m.seconds.Set(last.Took.Seconds())
	}
	m.mismatches.Set(float64(mismatches))
}
