package worker

import (
	"context"
	"slices"
	"time"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/postgres"
)

const (
	// scanPage is how many accounts one query reads.
	scanPage = 1000
	// maxSwept bounds the accounts of a sweep, and so its memory.
	maxSwept = 100_000
	// stayFor is how many sweeps in a row check the same maxSwept accounts, if more accounts have
	// queued jobs. Such a sweep and its pause take seconds, so six of them last longer than each wait
	// of stalled.go, except the wait for a task in a long pending list.
	stayFor = 6
	// scanShare bounds full scans to a twentieth of the time, while at least one begins every
	// longestScanPause.
	scanShare        = 20
	longestScanPause = 30 * time.Second
)

// scan is how the sweeps find the accounts with queued jobs.
//
// A full scan reads the whole index of queued jobs. While a snapshot is held for long, that
// index keeps an entry of every job that has finished since, and a full scan becomes slower and
// slower.
//
// A known scan reads two parts of the index. For each account that the last sweep saw, it reads
// from the position of the oldest queued job that the account had then. For all other accounts it
// reads what is above the newest position of an earlier sweep, because they had no queued job
// then. It misses a job that was replayed since, or was committed long after it drew its
// position; the next full scan finds those. A new process begins with a full scan.
type scan struct {
	most int // maxSwept; fewer in tests
	// page is Backlog.OldestQueued; tests make it fail as it does under a long snapshot.
	page   func(ctx context.Context, after, above int64, limit int) ([]job.OldestQueued, error)
	from   int64 // the next full scan begins after this account id
	stayed int   // for how many sweeps from has been the same

	complete bool          // the last full scan saw every account with queued jobs
	newest   [3]int64      // the newest position before this sweep, before the last one, and before the one before that
	at       time.Time     // end of the last full scan
	took     time.Duration // its duration
}

// note records the newest position before this sweep. If the position has become lower, as after
// a failover, this sweep makes a full scan.
func (s *scan) note(newest int64) {
	if newest < s.newest[0] {
		s.complete = false
	}
	s.newest = [3]int64{newest, s.newest[0], s.newest[1]}
}

// above is the position above which a known scan looks for other accounts. It is two sweeps
// old, so that accepts under way had a sweep's time to commit.
func (s *scan) above() int64 { return s.newest[2] }

// isDue is true when this sweep must make a full scan.
func (s *scan) isDue() bool {
	return !s.complete || time.Since(s.at) >= min(scanShare*s.took, longestScanPause)
}

// ended records that a full scan has ended, and whether it saw every account with queued jobs.
func (s *scan) ended(began time.Time, complete bool) {
	s.at, s.took, s.complete = time.Now(), time.Since(began), complete
}

// oldestQueued reads the oldest queued jobs of up to maxSwept accounts. If Postgres ends a full
// scan because it takes too long, oldestQueued makes a known scan instead.
func (w *Worker) oldestQueued(ctx context.Context) ([]job.OldestQueued, error) {
	newest, err := w.newest(ctx)
	if err != nil {
		return nil, err
	}
	w.scan.note(newest)
	if w.scan.isDue() {
		began := time.Now()
		queued, complete, err := w.scanAll(ctx)
		if err == nil || !postgres.IsTimeout(err) {
			w.scan.ended(began, err == nil && complete)
			return queued, err
		}
		w.scan.ended(began, true) // otherwise every sweep would try a full scan again
		w.warner.warn("scan", "sweep could not read the whole queue; is a snapshot held?", "error", err)
	}
	return w.scanKnown(ctx)
}

// scanAll is a full scan: it reads the oldest queued jobs of up to maxSwept accounts. If more
// accounts have queued jobs, stayFor sweeps in a row read the same ones and find out which of them
// are stalled. Then the next accounts follow.
func (w *Worker) scanAll(ctx context.Context) (queued []job.OldestQueued, complete bool, err error) {
	after, from := w.scan.from, w.scan.from
	for len(queued) < w.scan.most {
		page, err := w.page(ctx, after, 0)
		if err != nil {
			return nil, false, err
		}
		queued = append(queued, page...)
		if len(page) < scanPage { // the last page
			after = 0
			break
		}
		after = page[len(page)-1].AccountID
	}
	if w.scan.stayed++; from == after || w.scan.stayed >= stayFor {
		w.scan.from, w.scan.stayed = after, 0
	}
	return queued, from == 0 && after == 0, nil
}

// scanKnown is a known scan: it reads the oldest queued jobs of the last sweep's accounts, and of
// up to maxSwept accounts with newer jobs.
func (w *Worker) scanKnown(ctx context.Context) (queued []job.OldestQueued, err error) {
	var known []job.OldestQueued
	for _, account := range w.accounts {
		known = append(known, account.oldest)
	}
	for some := range slices.Chunk(known, scanPage) {
		next, err := w.next(ctx, some)
		if err != nil {
			return nil, err
		}
		queued = append(queued, next...)
	}
	seen := make(map[int64]bool, len(queued))
	for _, oldest := range queued {
		seen[oldest.AccountID] = true
	}
	for after, more := int64(0), true; more && len(queued) < w.scan.most; {
		page, err := w.page(ctx, after, w.scan.above())
		if err != nil {
			return nil, err
		}
		if more = len(page) == scanPage; more {
			after = page[len(page)-1].AccountID
		}
		queued = append(queued, slices.DeleteFunc(page, func(oldest job.OldestQueued) bool { return seen[oldest.AccountID] })...)
	}
	return queued, nil
}

func (w *Worker) newest(ctx context.Context) (position int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	return w.cfg.Backlog.Newest(ctx)
}

func (w *Worker) page(ctx context.Context, after, above int64) ([]job.OldestQueued, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	return w.scan.page(ctx, after, above, scanPage)
}

func (w *Worker) next(ctx context.Context, known []job.OldestQueued) ([]job.OldestQueued, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	return w.cfg.Backlog.NextOldestQueued(ctx, known)
}
