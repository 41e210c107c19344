// Package history measures reads and applies in histories of different lengths: up to
// a hundred million transactions, a tenth and a hundredth of it, in one run.
package history

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/passbook/passbook/internal/bench/environment"
	"github.com/passbook/passbook/internal/bench/load"
	"github.com/passbook/passbook/internal/bench/report"
	"github.com/passbook/passbook/internal/statement"
)

const (
	leastHistory    = 200_000 // rows at scale 1: a hundredth of it is a few for each account
	readers         = 8       // connections
	readsOfEach     = 500     // of each kind, in each dataset, at scale 1
	readPasses      = 8       // over all reads, after the first, which warms up
	explainedOfEach = 50
	coldReads       = 300
	applyJobs       = 60_000
	historyTimeout  = 6 * time.Hour
	exportTimeout   = 30 * time.Minute
	bytesOfRow      = 215     // of disk that a row takes, and for the largest dataset
	bytesOfSort     = 40      // more while an index is built
	maxBytesOfLog   = 4 << 30 // and at most as much as the rows themselves
	bytesOfServer   = 256 << 20
	manyAccounts    = 1_000 // that the applies go to, at scale 1
)

// run is one measurement.
type run struct {
	*environment.Base
	settings Settings
	datasets []*dataset // the smallest first
	figures  report.Figures
	applied  []report.Figures // of each round of applies
}

// Settings say what to measure.
type Settings struct {
	Rows   int64 // transactions of the largest dataset
	Rounds int   // of applies
	Folder string
	environment.Config
}

// ReadSettings reads the settings from arguments.
func ReadSettings(args []string) (s Settings, err error) {
	flags := flag.NewFlagSet("bench history", flag.ContinueOnError)
	flags.IntVar(&s.Rounds, "rounds", 5, "how often to apply a backlog in the largest dataset, and in an empty database")
	flags.Int64Var(&s.Rows, "rows", 100_000_000, "transactions of the largest dataset; the others have a tenth and a hundredth")
	flags.Float64Var(&s.Scale, "scale", 1, "of the number of reads and jobs; figures are valid at 1 only")
	flags.StringVar(&s.Folder, "out", "internal/bench/results", "folder of the results")
	if err := flags.Parse(args); err != nil {
		return Settings{}, err
	}
	least := int64(leastHistory * min(s.Scale, 1))
	switch {
	case flags.NArg() > 0:
		err = fmt.Errorf("unknown arguments %q", flags.Args())
	case s.Rows < least || s.Rounds < 1 || s.Scale <= 0:
		err = fmt.Errorf("-rows is at least %d, and -rounds and -scale are more than 0", least)
	}
	return s, err
}

// Measure fills the datasets, measures and writes the results.
func Measure(ctx context.Context, s Settings) (err error) {
	ctx, cancel := context.WithTimeout(ctx, historyTimeout)
	defer cancel()
	began := time.Now()
	base, err := environment.Open(ctx, s.Config)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, base.Close(context.WithoutCancel(ctx))) }()
	machine, err := base.Describe(ctx)
	if err != nil {
		return err
	}
	base.Say("%v", machine)
	h := &run{Base: base, settings: s, figures: report.Figures{}}
	for _, rows := range []int64{s.Rows / 100, s.Rows / 10, s.Rows} {
		h.datasets = append(h.datasets, newDataset(rows, base.Count(middlingAccounts)))
	}
	for _, step := range []func(context.Context) error{h.checkSpace, h.fill, h.settle, h.readWarm, h.explain, h.export, h.readCold, h.apply} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	h.conclude()
	result := report.Summarize(append([]report.Figures{h.figures}, h.applied...), h.catalogue(), targets)
	result.Finish(began, s.Rounds, s.Scale, machine, s.Out)
	return h.write(result)
}

// checkSpace refuses a disk that is too small for the datasets.
func (h *run) checkSpace(context.Context) error {
	total := int64(0)
	for _, b := range h.datasets {
		total += b.rows
	}
	need := total*bytesOfRow + min(total*bytesOfRow, maxBytesOfLog) + h.settings.Rows*bytesOfSort + bytesOfServer
	var fs syscall.Statfs_t
	if err := syscall.Statfs(h.Postgres.Dir(), &fs); err != nil {
		return fmt.Errorf("read the size of the disk: %w", err)
	}
	free := int64(fs.Bavail) * fs.Bsize //nolint:gosec // of a disk
	h.Say("It takes up to %.1f GB of %s, where %.1f are free.", float64(need)/1e9, filepath.Dir(h.Postgres.Dir()), float64(free)/1e9)
	if free < need {
		return fmt.Errorf("%d transactions take up to %.1f GB of disk, and %.1f are free: name another with TMPDIR, or fewer with ROWS",
			h.settings.Rows, float64(need)/1e9, float64(free)/1e9)
	}
	return nil
}

func (h *run) fill(ctx context.Context) error {
	for _, b := range h.datasets {
		began := time.Now()
		h.Say("Filling a dataset of %s, %d accounts.", b.name(), len(b.accounts))
		if err := errors.Join(b.fill(ctx, h.Base), ctx.Err()); err != nil {
			return err
		}
		if err := b.check(ctx, h.Base); err != nil {
			return err
		}
		sizes, err := b.sizes(ctx, h.Base)
		if err != nil {
			return err
		}
		total := 0.0
		for name, bytes := range sizes {
			h.set(b.name(), "bytes-"+name, bytes)
			total += bytes
		}
		h.set(b.name(), "bytes", total)
		h.Say("  %s bytes a transaction (%v)", report.Number(total), time.Since(began).Round(time.Second))
	}
	return nil
}

// settle waits until every dataset is on disk, as in a bank that has been open for years.
func (h *run) settle(ctx context.Context) error {
	h.Say("Waiting for the disk.")
	if err := h.Admin(ctx, "CHECKPOINT"); err != nil {
		return err
	}
	h.Sync()
	return nil
}

// timedRead is a read of a dataset, and how long it took.
type timedRead struct {
	read
	dataset, kind int
	waits         []time.Duration
}

// reads makes n reads of each kind in each dataset, from the same random source in each.
func (h *run) reads(kinds []kind, n int) []*timedRead {
	var all []*timedRead
	for d, dataset := range h.datasets {
		r := h.readsOf(dataset)
		for k, kind := range kinds {
			for range n {
				all = append(all, &timedRead{read: kind.at(r), dataset: d, kind: k})
			}
		}
	}
	return all
}

func (h *run) readsOf(d *dataset) *reads {
	return &reads{dataset: d, random: rand.New(rand.NewPCG(1, 2)), secret: h.Key.Secret} //nolint:gosec // what is read is no secret
}

// onEach calls do with an environment on each dataset, with one api.
func (h *run) onEach(ctx context.Context, do func([]*environment.Environment) error) error {
	var open func(environments []*environment.Environment) error
	open = func(environments []*environment.Environment) error {
		if len(environments) == len(h.datasets) {
			return do(environments)
		}
		t := apiAlone
		t.Database = h.datasets[len(environments)].database
		_, err := h.Run(ctx, t, func(e *environment.Environment) error {
			return open(append(environments, e))
		})
		return err
	}
	return open(nil)
}

// apiAlone is an api without a worker.
var apiAlone = environment.Topology{APIs: 1, Partitions: environment.Default.Partitions}

// readWarm reads everything once and checks the responses. Then it times the same
// reads, in another random order each time, one dataset after another: when a read
// comes again, the caches no longer favour it, and changes of the machine's speed meet
// all datasets alike.
func (h *run) readWarm(ctx context.Context) error {
	reads := h.reads(kinds, h.Count(readsOfEach))
	err := h.onEach(ctx, func(environments []*environment.Environment) error {
		for pass := range 1 + readPasses {
			h.Say("Reading, pass %d of %d.", pass, readPasses)
			if err := h.readDatasets(ctx, environments, reads, pass); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for d, dataset := range h.datasets {
		for k, kind := range kinds {
			var waits []time.Duration
			for _, r := range reads {
				if r.dataset == d && r.kind == k {
					waits = append(waits, r.waits...)
				}
			}
			q := report.QuantilesOf(waits)
			h.set(dataset.name(), kind.name+", p50", q.P50)
			h.set(dataset.name(), kind.name+", p99", q.P99)
		}
	}
	return nil
}

// readDatasets reads everything once, one dataset after another. Each pass begins with
// another dataset; the first pass checks the responses.
func (h *run) readDatasets(ctx context.Context, environments []*environment.Environment, reads []*timedRead, pass int) error {
	for n := range h.datasets {
		dataset := (n + pass) % len(h.datasets)
		others := func(r *timedRead) bool { return r.dataset != dataset }
		if err := h.readAll(ctx, environments, slices.DeleteFunc(slices.Clone(reads), others), pass == 0); err != nil {
			return err
		}
	}
	return nil
}

// readAll reads everything once, over as many connections as there are readers. It
// either checks the responses or notes how long they took.
func (h *run) readAll(ctx context.Context, environments []*environment.Environment, reads []*timedRead, check bool) error {
	reads = slices.Clone(reads)
	rand.Shuffle(len(reads), //nolint:gosec // an order is no secret
		func(i, k int) { reads[i], reads[k] = reads[k], reads[i] })
	var next atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	for range readers {
		group.Go(func() error {
			reader, err := newReader(ctx, environments)
			if err != nil {
				return err
			}
			defer reader.close()
			defer context.AfterFunc(ctx, reader.close)() // ends what it waits for
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(reads) {
					return nil
				}
				if err := h.readOne(reader, reads[i], check); err != nil {
					return err
				}
			}
			return ctx.Err()
		})
	}
	return group.Wait()
}

func (h *run) readOne(reader reader, r *timedRead, check bool) error {
	began := time.Now()
	body, err := reader.get(r.dataset, r.path)
	took := time.Since(began)
	if err != nil {
		return err
	}
	if !check {
		r.waits = append(r.waits, took)
		return nil
	}
	if err := r.check(body); err != nil {
		return fmt.Errorf("%s, %s: %s: %w", h.datasets[r.dataset].name(), kinds[r.kind].name, r.path, err)
	}
	return nil
}

// reader has a connection to the api on each dataset.
type reader []*load.Connection

func newReader(ctx context.Context, environments []*environment.Environment) (r reader, err error) {
	for _, e := range environments {
		c, err := load.Connect(ctx, e.Servers[0].Address(), e.Token)
		if err != nil {
			r.close()
			return nil, err
		}
		r = append(r, c)
	}
	return r, nil
}

func (r reader) close() {
	for _, c := range r {
		_ = c.Close() // every response has been read
	}
}

// get reads a path. The body is the connection's until its next request.
func (r reader) get(dataset int, path string) ([]byte, error) {
	c := r[dataset]
	body, err := c.Get(path)
	if err == nil && c.Retried > 0 {
		return nil, fmt.Errorf("%s: status 503", path)
	}
	return body, err
}

// explain counts the buffers that the statements of the reads use, by their plans.
func (h *run) explain(ctx context.Context) error {
	h.Say("Counting buffers.")
	pools := make([]*pgxpool.Pool, len(h.datasets))
	for i, d := range h.datasets {
		e, err := h.Connect(ctx, d.database) // as the API connects
		if err != nil {
			return err
		}
		pools[i] = e.Pool
		defer e.Pool.Close()
	}
	for _, r := range h.reads(kinds, min(explainedOfEach, h.Count(readsOfEach))) {
		buffers, err := buffersOf(ctx, pools[r.dataset], r.read)
		if err != nil {
			return fmt.Errorf("explain %s: %w", kinds[r.kind].name, err)
		}
		key := h.datasets[r.dataset].name() + "/" + kinds[r.kind].name + ", buffers"
		h.figures[key] = max(h.figures[key], float64(buffers))
	}
	return nil
}

func buffersOf(ctx context.Context, pool *pgxpool.Pool, r read) (int, error) {
	var text []byte
	if err := pool.QueryRow(ctx, "EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) "+r.sql, r.args...).Scan(&text); err != nil {
		return 0, err
	}
	var plans []struct {
		Plan struct {
			Hit  *int `json:"Shared Hit Blocks"`
			Read *int `json:"Shared Read Blocks"`
		}
	}
	if err := json.Unmarshal(text, &plans); err != nil {
		return 0, err
	}
	if len(plans) != 1 || plans[0].Plan.Hit == nil || plans[0].Plan.Read == nil {
		return 0, fmt.Errorf("a plan without buffers: %s", text)
	}
	return *plans[0].Plan.Hit + *plans[0].Plan.Read, nil
}

// readCold restarts Postgres and reads first pages of accounts that no client has read
// since. After the first restart the kernel still caches the data; before the second
// the kernel drops it. The connections are open before the reads are timed.
func (h *run) readCold(ctx context.Context) error {
	reads := h.firstPages(2 * h.Count(coldReads))
	for n, restart := range []struct {
		name      string
		dropCache bool
	}{{"cold", false}, {"coldest", true}} {
		h.Say("Restarting Postgres, and reading first pages; the kernel drops its cache of the data: %t.", restart.dropCache)
		if err := h.restart(ctx, restart.dropCache); err != nil {
			return err
		}
		err := h.onEach(ctx, func(environments []*environment.Environment) error {
			if err := h.readDatasets(ctx, environments, h.largePages(), 1); err != nil {
				return err
			}
			for d, dataset := range h.datasets {
				half := reads[d][n*len(reads[d])/2 : (n+1)*len(reads[d])/2]
				if err := h.readAll(ctx, environments, half, false); err != nil {
					return err
				}
				var waits []time.Duration
				for _, r := range half {
					waits = append(waits, r.waits...)
				}
				q := report.QuantilesOf(waits)
				h.set(dataset.name(), restart.name+" first page, p50", q.P50)
				h.set(dataset.name(), restart.name+" first page, p99", q.P99)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (h *run) restart(ctx context.Context, dropCache bool) error {
	if err := h.Postgres.Stop(ctx); err != nil {
		return err
	}
	if dropCache {
		if err := dropFromCache(filepath.Join(h.Postgres.Dir(), "data", "base")); err != nil {
			return err
		}
	}
	return h.Postgres.Restart(ctx)
}

// firstPages are first pages of n accounts of each dataset, each account once.
func (h *run) firstPages(n int) [][]*timedRead {
	all := make([][]*timedRead, len(h.datasets))
	for d, dataset := range h.datasets {
		r := h.readsOf(dataset)
		for seen := map[string]bool{}; len(seen) < min(n, len(dataset.accounts)/2); {
			account := r.common()
			if !seen[account.Number] {
				all[d] = append(all[d], &timedRead{read: r.page(statement.Page{Account: account}), dataset: d})
			}
			seen[account.Number] = true
		}
	}
	return all
}

// largePages are enough reads of each dataset's large account, which firstPages leaves
// out, to open the connections.
func (h *run) largePages() []*timedRead {
	var all []*timedRead
	for d, dataset := range h.datasets {
		r := h.readsOf(dataset)
		for range 8 * readers {
			all = append(all, &timedRead{read: r.page(statement.Page{Account: dataset.account(dataset.large())}), dataset: d})
		}
	}
	return all
}

// dropFromCache has the kernel drop the files of a folder from its memory, as far as
// they are on disk (posix_fadvise(2)).
func dropFromCache(folder string) error {
	return filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		file, err := os.Open(path) //nolint:gosec // of our own server
		if err != nil {
			return err
		}
		defer file.Close() //nolint:errcheck // it was not written to
		return unix.Fadvise(int(file.Fd()), 0, 0, unix.FADV_DONTNEED)
	})
}

// export reads the whole history of the largest account, as CSV.
func (h *run) export(ctx context.Context) error {
	b := h.datasets[len(h.datasets)-1]
	account := b.accounts[b.large()]
	h.Say("Exporting %s transactions.", report.Thousands(account.seq))
	ctx, cancel := context.WithTimeout(ctx, exportTimeout)
	defer cancel()
	t := apiAlone
	t.Database = b.database
	_, err := h.Run(ctx, t, func(e *environment.Environment) error {
		before, err := environment.PeakMemory(e.Servers[0].PID())
		if err != nil {
			return err
		}
		began := time.Now()
		lines, err := countLines(ctx, e, "/v1/accounts/"+account.number+"/transactions")
		if err != nil {
			return err
		}
		took := time.Since(began)
		if lines != account.seq+1 {
			return fmt.Errorf("wrong: an export of %d lines, want %d and the header", lines, account.seq)
		}
		after, err := environment.PeakMemory(e.Servers[0].PID())
		if err != nil {
			return err
		}
		h.set("export", "rate", float64(account.seq)/took.Seconds())
		h.set("export", "memory", float64(after-before)/1e6)
		return nil
	})
	return err
}

// countLines exports a history as CSV.
func countLines(ctx context.Context, e *environment.Environment, path string) (lines int64, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+e.Servers[0].Address()+path, http.NoBody)
	if err != nil {
		return 0, err
	}
	request.Header.Set("Accept", "text/csv")
	request.Header.Set("Authorization", "Bearer "+e.Token)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, fmt.Errorf("export: %w", err)
	}
	defer response.Body.Close() //nolint:errcheck // it was only read
	if response.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("export: %s", response.Status)
	}
	chunk := make([]byte, 256<<10)
	for body := bufio.NewReaderSize(response.Body, 1<<20); ; {
		n, err := body.Read(chunk)
		lines += int64(bytes.Count(chunk[:n], []byte("\n")))
		if errors.Is(err, io.EOF) {
			return lines, nil
		}
		if err != nil {
			return 0, fmt.Errorf("export: %w", err)
		}
	}
}

// apply drains the same backlog in a nearly empty database, a copy of the template,
// and in the largest dataset, in turn. The first round, of a third of the backlog, does
// not count: it brings into memory what a bank at work has there.
//
// Each drain begins with a checkpoint, after which Postgres writes the first change of
// every page in full, and a large dataset has more pages. In production that happens
// every five minutes, so the backlog is long.
func (h *run) apply(ctx context.Context) error {
	inFull, inEmpty := apiAlone, apiAlone
	inFull.Database = h.datasets[len(h.datasets)-1].database
	for n := range 1 + h.settings.Rounds {
		h.Say("Applying, round %d of %d.", n, h.settings.Rounds)
		jobs := h.Count(applyJobs)
		if n == 0 {
			jobs = h.Count(applyJobs / 3)
		}
		drains := []struct {
			name string
			on   environment.Topology
		}{{"empty", inEmpty}, {"full", inFull}}
		if n%2 == 1 {
			slices.Reverse(drains)
		}
		found := report.Figures{}
		for _, drain := range drains {
			rate, err := h.drain(ctx, drain.on, load.EvenOrders(load.Random(n), jobs, h.Count(manyAccounts)))
			if err != nil {
				return err
			}
			found["apply/"+drain.name] = rate
		}
		if n > 0 {
			h.applied = append(h.applied, found)
		}
	}
	return nil
}

// drain returns the rate, in jobs a second, at which workers apply a backlog.
func (h *run) drain(ctx context.Context, t environment.Topology, orders []load.Order) (rate float64, err error) {
	_, err = h.Run(ctx, t, func(e *environment.Environment) error {
		if _, err := e.Accept(ctx, orders); err != nil {
			return err
		}
		took, err := e.Drain(ctx, environment.Default)
		rate = report.PerSecond(len(orders), took)
		return err
	})
	return rate, err
}

func (h *run) set(part, name string, value float64) {
	h.figures[part+"/"+name] = value
}

// conclude finds the worst kind of read for each target.
func (h *run) conclude() {
	small, large := h.datasets[0].name(), h.datasets[len(h.datasets)-1].name()
	worst := func(name string, value float64) {
		h.set("worst", name, max(h.figures["worst/"+name], value))
	}
	for _, k := range kinds {
		if !k.page {
			continue
		}
		worst("p50", h.figures[large+"/"+k.name+", p50"])
		worst("p99", h.figures[large+"/"+k.name+", p99"])
		worst("growth", h.figures[large+"/"+k.name+", p50"]/h.figures[small+"/"+k.name+", p50"])
		worst("beyond", h.figures[large+"/"+k.name+", buffers"]-pageLimit)
	}
	for _, of := range []string{"first", "deposits, first", "withdrawals, first"} {
		deepest := strings.Replace(of, "first", "deepest", 1) + " page, p50"
		worst("depth", h.figures[large+"/"+deepest]/h.figures[large+"/"+of+" page, p50"])
	}
	h.set("worst", "cold", h.figures[large+"/cold first page, p99"])
	h.set("worst", "bytes", h.figures[large+"/bytes"])
}
