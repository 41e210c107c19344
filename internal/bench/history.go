package main

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

	"github.com/passbook/passbook/internal/statement"
)

const (
	leastHistory    = 200_000 // rows at scale 1: a hundredth of it is a few for each account
	readers         = 8       // connections
	looksOfEach     = 500     // of each kind, in each bank, at scale 1
	readPasses      = 8       // over all looks, after the first, which warms up
	explainedOfEach = 50
	coldLooks       = 300
	applyJobs       = 60_000
	historyTimeout  = 6 * time.Hour
	exportTimeout   = 30 * time.Minute
	bytesOfRow      = 215     // of disk that a row takes, and for the largest bank
	bytesOfSort     = 40      // while an index of it is built
	mostBytesOfLog  = 4 << 30 // and at most as much as the rows themselves
	bytesBesides    = 256 << 20
)

// history measures histories of rows, a tenth and a hundredth of it, in one run.
type history struct {
	*round
	rows  int64
	banks []*bank // the smallest first
	found []figures
}

func readHistorySettings(args []string) (rows int64, s settings, err error) {
	s = settings{scale: 1}
	flags := flag.NewFlagSet("bench history", flag.ContinueOnError)
	flags.IntVar(&s.rounds, "rounds", 5, "how often to apply a backlog in the largest bank, and in an empty one")
	flags.Int64Var(&rows, "rows", 100_000_000, "transactions of the largest bank; the others have a tenth and a hundredth")
	flags.Float64Var(&s.scale, "scale", 1, "of the number of looks and jobs; figures mean something at 1 alone")
	flags.StringVar(&s.folder, "out", "internal/bench/results", "folder of the results")
	if err := flags.Parse(args); err != nil {
		return 0, settings{}, err
	}
	least := int64(leastHistory * min(s.scale, 1))
	switch {
	case flags.NArg() > 0:
		err = fmt.Errorf("unknown arguments %q", flags.Args())
	case rows < least || s.rounds < 1 || s.scale <= 0:
		err = fmt.Errorf("-rows is at least %d, and -rounds and -scale are more than 0", least)
	}
	return rows, s, err
}

// measureHistory fills the banks, measures and reports.
func measureHistory(ctx context.Context, rows int64, s settings, out io.Writer) (err error) {
	ctx, cancel := context.WithTimeout(ctx, historyTimeout)
	defer cancel()
	began := time.Now()
	r, err := newRig(ctx, s, out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close(context.WithoutCancel(ctx))) }()
	machine, err := r.describe(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, machine)
	h := &history{round: r.newRound(0), rows: rows}
	for _, rows := range []int64{rows / 100, rows / 10, rows} {
		h.banks = append(h.banks, newBank(rows, r.count(middlingAccounts)))
	}
	for _, step := range []func(context.Context) error{h.checkSpace, h.fill, h.settle, h.readWarm, h.explain, h.export, h.readCold, h.apply} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	h.conclude()
	result := summarize(append([]figures{h.figures}, h.found...), h.catalogue(), historyTargets)
	result.TakenAt, result.Took = began.UTC(), time.Since(began).Round(time.Second).String()
	result.Rounds, result.Scale, result.Machine = s.rounds, s.scale, machine
	result.print(out)
	return h.write(result, out)
}

// checkSpace refuses a disk that all of it does not fit on.
func (h *history) checkSpace(context.Context) error {
	total := int64(0)
	for _, b := range h.banks {
		total += b.rows
	}
	need := total*bytesOfRow + min(total*bytesOfRow, mostBytesOfLog) + h.rows*bytesOfSort + bytesBesides
	var fs syscall.Statfs_t
	if err := syscall.Statfs(h.postgres.Dir(), &fs); err != nil {
		return fmt.Errorf("look at the disk: %w", err)
	}
	free := int64(fs.Bavail) * fs.Bsize //nolint:gosec // of a disk
	h.say("It takes up to %.1f GB of %s, where %.1f are free.", float64(need)/1e9, filepath.Dir(h.postgres.Dir()), float64(free)/1e9)
	if free < need {
		return fmt.Errorf("%d transactions take up to %.1f GB of disk, and %.1f are free: name another with TMPDIR, or fewer with ROWS",
			h.rows, float64(need)/1e9, float64(free)/1e9)
	}
	return nil
}

func (h *history) fill(ctx context.Context) error {
	for _, b := range h.banks {
		began := time.Now()
		h.say("Filling a bank of %s, %d accounts.", b.name(), len(b.accounts))
		if err := errors.Join(b.fill(ctx, h.rig), ctx.Err()); err != nil {
			return err
		}
		if err := b.check(ctx, h.rig); err != nil {
			return err
		}
		sizes, err := b.sizes(ctx, h.rig)
		if err != nil {
			return err
		}
		total := 0.0
		for name, bytes := range sizes {
			h.set(b.name(), "bytes-"+name, bytes)
			total += bytes
		}
		h.set(b.name(), "bytes", total)
		h.say("  %s bytes a transaction (%v)", number(total), time.Since(began).Round(time.Second))
	}
	return nil
}

// settle waits until all that was filled is on the disk: a bank has years for that.
func (h *history) settle(ctx context.Context) error {
	h.say("Waiting for the disk.")
	if err := h.admin(ctx, "CHECKPOINT"); err != nil {
		return err
	}
	h.sync()
	return nil
}

// lookedAt is a look in a bank, and how long it took.
type lookedAt struct {
	look
	bank, kind int
	waits      []time.Duration
}

// looks are n of each kind in each bank, each bank's drawn alike.
func (h *history) looks(kinds []kind, n int) []*lookedAt {
	var all []*lookedAt
	for b, bank := range h.banks {
		l := h.looker(bank)
		for k, kind := range kinds {
			for range n {
				all = append(all, &lookedAt{look: kind.at(l), bank: b, kind: k})
			}
		}
	}
	return all
}

func (h *history) looker(b *bank) *looker {
	return &looker{bank: b, random: rand.New(rand.NewPCG(1, 2)), secret: h.key.Secret} //nolint:gosec // what is read is no secret
}

// onBanks plays with an api on each bank.
func (h *history) onBanks(ctx context.Context, play func([]*scene) error) error {
	var open func(scenes []*scene) error
	open = func(scenes []*scene) error {
		if len(scenes) == len(h.banks) {
			return play(scenes)
		}
		return h.onBank(ctx, h.banks[len(scenes)].database, cast{apis: 1, partitions: plain.partitions}, func(s *scene) error {
			return open(append(scenes, s))
		})
	}
	return open(nil)
}

// readWarm looks at everything once, checks what it sees, and then measures the
// same looks in another random order each time, a bank at a time, the banks in
// turn: what one look leaves in a cache is long behind when it comes again, and what
// the machine does meanwhile meets all banks alike.
func (h *history) readWarm(ctx context.Context) error {
	looks := h.looks(kinds, h.count(looksOfEach))
	err := h.onBanks(ctx, func(scenes []*scene) error {
		for pass := range 1 + readPasses {
			h.say("Reading, pass %d of %d.", pass, readPasses)
			if err := h.readBanks(ctx, scenes, looks, pass); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for b, bank := range h.banks {
		for k, kind := range kinds {
			var waits []time.Duration
			for _, l := range looks {
				if l.bank == b && l.kind == k {
					waits = append(waits, l.waits...)
				}
			}
			q := quantilesOf(waits)
			h.set(bank.name(), kind.name+", p50", q.p50)
			h.set(bank.name(), kind.name+", p99", q.p99)
		}
	}
	return nil
}

// readBanks looks at everything once, a bank after the other. Each pass begins with
// another; the first one checks what it sees.
func (h *history) readBanks(ctx context.Context, scenes []*scene, looks []*lookedAt, pass int) error {
	for n := range h.banks {
		bank := (n + pass) % len(h.banks)
		others := func(l *lookedAt) bool { return l.bank != bank }
		if err := h.readAll(ctx, scenes, slices.DeleteFunc(slices.Clone(looks), others), pass == 0); err != nil {
			return err
		}
	}
	return nil
}

// readAll looks at everything once, over as many connections as there are readers,
// and notes how long it took or, where it is to check, what was wrong.
func (h *history) readAll(ctx context.Context, scenes []*scene, looks []*lookedAt, check bool) error {
	looks = slices.Clone(looks)
	rand.Shuffle(len(looks), //nolint:gosec // an order is no secret
		func(i, k int) { looks[i], looks[k] = looks[k], looks[i] })
	var next atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	for range readers {
		group.Go(func() error {
			reader, err := newReader(ctx, scenes)
			if err != nil {
				return err
			}
			defer reader.close()
			defer context.AfterFunc(ctx, reader.close)() // ends what it waits for
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(looks) {
					return nil
				}
				l := looks[i]
				began := time.Now()
				body, err := reader.get(l.bank, l.path)
				took := time.Since(began)
				switch {
				case err != nil:
					return err
				case check:
					if err := l.right(body); err != nil {
						return fmt.Errorf("%s, %s: %s: %w", h.banks[l.bank].name(), kinds[l.kind].name, l.path, err)
					}
				default:
					l.waits = append(l.waits, took)
				}
			}
			return ctx.Err()
		})
	}
	return group.Wait()
}

// reader has a connection to each bank's api.
type reader []*connection

func newReader(ctx context.Context, scenes []*scene) (r reader, err error) {
	for _, s := range scenes {
		c, err := connect(ctx, s.doors[0].address(), s.token)
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
		_ = c.Close() // all is answered
	}
}

// get reads a path. The body is the connection's until it reads the next.
func (r reader) get(bank int, path string) ([]byte, error) {
	c := r[bank]
	if err := c.ask(&request{bytes: []byte("GET " + path + " HTTP/1.1\r\n" + c.head + "\r\n")}); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if c.again > 0 {
		return nil, fmt.Errorf("%s: answered 503", path)
	}
	return c.response.Body(), nil
}

// explain counts the buffers that the statements of a page read, by their plans.
func (h *history) explain(ctx context.Context) error {
	h.say("Counting buffers.")
	pools := make([]*pgxpool.Pool, len(h.banks))
	for i, b := range h.banks {
		s, err := h.openScene(ctx, b.database) // as the API connects
		if err != nil {
			return err
		}
		pools[i] = s.pool
		defer s.pool.Close()
	}
	for _, l := range h.looks(kinds, min(explainedOfEach, h.count(looksOfEach))) {
		buffers, err := buffersOf(ctx, pools[l.bank], l.look)
		if err != nil {
			return fmt.Errorf("explain %s: %w", kinds[l.kind].name, err)
		}
		key := h.banks[l.bank].name() + "/" + kinds[l.kind].name + ", buffers"
		h.figures[key] = max(h.figures[key], float64(buffers))
	}
	return nil
}

func buffersOf(ctx context.Context, pool *pgxpool.Pool, l look) (int, error) {
	var text []byte
	if err := pool.QueryRow(ctx, "EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) "+l.sql, l.args...).Scan(&text); err != nil {
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

// readCold reads first pages of accounts that nobody has looked at since a restart of
// Postgres: first with what the kernel still has in its memory, then, after another,
// with nothing of the data there either. Connections are there, as in a bank that
// has been open for a second.
func (h *history) readCold(ctx context.Context) error {
	looks := h.strangers(2 * h.count(coldLooks))
	for n, how := range []struct {
		name   string
		forget bool
	}{{"cold", false}, {"coldest", true}} {
		h.say("Restarting Postgres, and reading first pages; the kernel forgets the data: %t.", how.forget)
		if err := h.restart(ctx, how.forget); err != nil {
			return err
		}
		err := h.onBanks(ctx, func(scenes []*scene) error {
			if err := h.readBanks(ctx, scenes, h.greetings(), 1); err != nil {
				return err
			}
			for b, bank := range h.banks {
				mine := looks[b][n*len(looks[b])/2 : (n+1)*len(looks[b])/2]
				if err := h.readAll(ctx, scenes, mine, false); err != nil {
					return err
				}
				var waits []time.Duration
				for _, l := range mine {
					waits = append(waits, l.waits...)
				}
				q := quantilesOf(waits)
				h.set(bank.name(), how.name+" first page, p50", q.p50)
				h.set(bank.name(), how.name+" first page, p99", q.p99)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (h *history) restart(ctx context.Context, forgets bool) error {
	if err := h.postgres.Stop(ctx); err != nil {
		return err
	}
	if forgets {
		if err := forget(filepath.Join(h.postgres.Dir(), "data", "base")); err != nil {
			return err
		}
	}
	return h.postgres.Restart(ctx)
}

// strangers are first pages of n accounts of each bank, none of them twice.
func (h *history) strangers(n int) [][]*lookedAt {
	all := make([][]*lookedAt, len(h.banks))
	for b, bank := range h.banks {
		l := h.looker(bank)
		for met := map[string]bool{}; len(met) < min(n, len(bank.accounts)/2); {
			account := l.common()
			if !met[account.Number] {
				all[b] = append(all[b], &lookedAt{look: l.page(statement.Page{Account: account}), bank: b})
			}
			met[account.Number] = true
		}
	}
	return all
}

// greetings are enough reads of each bank's large account, which is no stranger, to
// make the connections.
func (h *history) greetings() []*lookedAt {
	var all []*lookedAt
	for b, bank := range h.banks {
		l := h.looker(bank)
		for range 8 * readers {
			all = append(all, &lookedAt{look: l.page(statement.Page{Account: bank.account(bank.large())}), bank: b})
		}
	}
	return all
}

// forget has the kernel drop the files of a folder from its memory, as far as
// they are on disk (posix_fadvise(2)).
func forget(folder string) error {
	return filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		file, err := os.Open(path) //nolint:gosec // of our own server
		if err != nil {
			return err
		}
		defer file.Close() //nolint:errcheck // it was only looked at
		return unix.Fadvise(int(file.Fd()), 0, 0, unix.FADV_DONTNEED)
	})
}

// export reads the whole history of the largest account there is, as CSV.
func (h *history) export(ctx context.Context) error {
	b := h.banks[len(h.banks)-1]
	account := b.accounts[b.large()]
	h.say("Exporting %s transactions.", thousands(account.seq))
	ctx, cancel := context.WithTimeout(ctx, exportTimeout)
	defer cancel()
	return h.onBank(ctx, b.database, cast{apis: 1, partitions: plain.partitions}, func(s *scene) error {
		before, err := peakMemory(s.doors[0].pid())
		if err != nil {
			return err
		}
		began := time.Now()
		lines, err := s.countCSV(ctx, "/v1/accounts/"+account.number+"/transactions")
		if err != nil {
			return err
		}
		took := time.Since(began)
		if lines != account.seq+1 {
			return fmt.Errorf("wrong: an export of %d lines, want %d and the header", lines, account.seq)
		}
		after, err := peakMemory(s.doors[0].pid())
		if err != nil {
			return err
		}
		h.set("export", "rate", float64(account.seq)/took.Seconds())
		h.set("export", "memory", float64(after-before)/1e6)
		return nil
	})
}

func (s *scene) countCSV(ctx context.Context, path string) (lines int64, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.doors[0].address()+path, http.NoBody)
	if err != nil {
		return 0, err
	}
	request.Header.Set("Accept", "text/csv")
	request.Header.Set("Authorization", "Bearer "+s.token)
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

// apply drains the same backlog in a bank that is nearly empty, the rig's
// template, and in the largest, in turn. The first time in each, of a third of it,
// is not counted: it finds what a bank at work has in memory. Each drain pays for a
// checkpoint, after which the first change of every page is written in full: that
// is one in five minutes, and in a large bank there are more pages. So the backlog
// is long.
func (h *history) apply(ctx context.Context) error {
	full := h.banks[len(h.banks)-1].database
	c := cast{apis: 1, partitions: plain.partitions}
	for n := range 1 + h.rounds {
		h.say("Applying, round %d of %d.", n, h.rounds)
		found := figures{}
		drain := func(name string) func(s *scene) error {
			return func(s *scene) error {
				s.round = h.newRound(n)
				jobs := h.count(applyJobs)
				if n == 0 {
					jobs = h.count(applyJobs / 3)
				}
				if _, err := s.accept(ctx, evenOrders(s.seed(), jobs, h.count(manyAccounts))); err != nil {
					return err
				}
				took, err := s.drain(ctx, plain)
				found["apply/"+name] = perSecond(jobs, took)
				return err
			}
		}
		inFull := func() error { return h.onBank(ctx, full, c, drain("full")) }
		inEmpty := func() error { return h.onScene(ctx, c, drain("empty")) }
		order := []func() error{inEmpty, inFull}
		if n%2 == 1 {
			slices.Reverse(order)
		}
		for _, do := range order {
			if err := do(); err != nil {
				return err
			}
		}
		if n > 0 {
			h.found = append(h.found, found)
		}
	}
	return nil
}

// conclude finds the worst of each, which is what has to be good enough.
func (h *history) conclude() {
	small, large := h.banks[0].name(), h.banks[len(h.banks)-1].name()
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
