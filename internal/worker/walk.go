package worker

import (
	"context"
	"slices"
	"time"

	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/postgres"
)

const (
	// sweepPage is how many accounts one query reads.
	sweepPage = 1000
	// maxSwept bounds the accounts that one sweep looks at, and so its memory.
	maxSwept = 100_000
	// stayFor is how many sweeps look at the same maxSwept accounts where more have
	// queued jobs. With so many, sweeps take long enough for every time below to pass.
	stayFor = 6
	// walkShare makes full walks that take long take no more than a twentieth of the
	// time, but for one each longestWalkPause.
	walkShare        = 20
	longestWalkPause = 30 * time.Second
)

// walk is how far the sweeps have walked through the queue.
//
// While somewhere a snapshot is held for long, the queue's index keeps every job that
// has finished since, and a full walk takes longer and longer. What a sweep knows saves
// most of it: an account's oldest queued job is that of the sweep before, or a later one,
// or it is above the highest position that was given then. That misses a job which was
// replayed since, or committed long after it was given its position; full walks find
// those. A new process knows nothing, and begins with one.
type walk struct {
	most   int   // accounts of a sweep: maxSwept; tests sweep fewer
	from   int64 // the account id after which the next full walk begins,
	stayed int   // and for how many sweeps it has been that

	known bool          // the sweep before saw every account with queued jobs
	given [3]int64      // the highest position given before this sweep, the last, and the one before
	at    time.Time     // when the last full walk ended
	took  time.Duration // how long it took
}

// note notes the highest position given before this sweep. The sweep walks fully where it
// was higher before, as a failover leaves it.
func (w *walk) note(newest int64) {
	if newest < w.given[0] {
		w.known = false
	}
	w.given = [3]int64{newest, w.given[0], w.given[1]}
}

// above is the position above which this sweep looks for accounts that it doesn't know:
// that of two sweeps ago, so that accepts under way had a sweep's time to commit.
func (w *walk) above() int64 { return w.given[2] }

// isDue is true when this sweep has to walk through the whole queue.
func (w *walk) isDue() bool {
	return !w.known || time.Since(w.at) >= min(walkShare*w.took, longestWalkPause)
}

// ended notes the end of a full walk that began at a time. known is false where it did
// not see all accounts with queued jobs.
func (w *walk) ended(began time.Time, known bool) {
	w.at, w.took, w.known = time.Now(), time.Since(began), known
}

// heads reads the oldest queued jobs of up to maxSwept accounts. A full walk that
// Postgres ends because it takes too long puts the sweep off for what it alone would find.
func (w *Worker) heads(ctx context.Context) ([]job.Head, error) {
	newest, err := w.newest(ctx)
	if err != nil {
		return nil, err
	}
	w.walk.note(newest)
	if w.walk.isDue() {
		began := time.Now()
		heads, complete, err := w.walkFully(ctx)
		if err == nil || !postgres.IsTimeout(err) {
			w.walk.ended(began, err == nil && complete)
			return heads, err
		}
		w.walk.ended(began, true) // or every sweep would try again, and find no more
		w.cfg.Log.Warn("sweep could not read the whole queue; is a snapshot held?", "error", err)
	}
	return w.walkOn(ctx)
}

// walkFully reads the oldest queued jobs of up to maxSwept accounts. Where more have
// any, stayFor sweeps look at the same ones, for as long as it takes to know which
// are stalled; then the next ones have their turn.
func (w *Worker) walkFully(ctx context.Context) (heads []job.Head, complete bool, err error) {
	after, from := w.walk.from, w.walk.from
	for len(heads) < w.walk.most {
		page, err := w.page(ctx, after, 0)
		if err != nil {
			return nil, false, err
		}
		heads = append(heads, page...)
		if len(page) < sweepPage { // these are the last
			after = 0
			break
		}
		after = page[len(page)-1].AccountID
	}
	if w.walk.stayed++; from == after || w.walk.stayed >= stayFor {
		w.walk.from, w.walk.stayed = after, 0
	}
	return heads, from == 0 && after == 0, nil
}

// walkOn reads what became of the accounts of the sweep before, and the accounts that
// have queued jobs since. It finds up to maxSwept of them; a full walk finds the rest.
func (w *Worker) walkOn(ctx context.Context) (heads []job.Head, err error) {
	var known []job.Head
	for _, suspect := range w.suspects {
		known = append(known, suspect.head)
	}
	for some := range slices.Chunk(known, sweepPage) {
		next, err := w.next(ctx, some)
		if err != nil {
			return nil, err
		}
		heads = append(heads, next...)
	}
	seen := make(map[int64]bool, len(heads))
	for _, head := range heads {
		seen[head.AccountID] = true
	}
	for after, more := int64(0), true; more && len(heads) < w.walk.most; {
		page, err := w.page(ctx, after, w.walk.above())
		if err != nil {
			return nil, err
		}
		if more = len(page) == sweepPage; more {
			after = page[len(page)-1].AccountID
		}
		heads = append(heads, slices.DeleteFunc(page, func(head job.Head) bool { return seen[head.AccountID] })...)
	}
	return heads, nil
}

func (w *Worker) newest(ctx context.Context) (position int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	return w.cfg.Backlog.Newest(ctx)
}

func (w *Worker) page(ctx context.Context, after, above int64) ([]job.Head, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	return w.cfg.Backlog.Heads(ctx, after, above, sweepPage)
}

func (w *Worker) next(ctx context.Context, known []job.Head) ([]job.Head, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	return w.cfg.Backlog.NextHeads(ctx, known)
}
