package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"github.com/passbook/passbook/internal/ledger"
)

// progressEvery is how often progress is shown where there is no terminal.
const progressEvery = 5 * time.Second

// progress shows how far a verification has come: by a bar on a terminal, elsewhere by lines.
type progress struct {
	w     io.Writer
	bar   *progressbar.ProgressBar // nil: no terminal
	every time.Duration
	shown time.Time // the last line
}

func newProgress(w io.Writer, every time.Duration) *progress {
	p := &progress{w: w, every: every, shown: time.Now()}
	if file, ok := w.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
		const unknown = -1
		p.bar = progressbar.NewOptions64(unknown, progressbar.OptionSetWriter(w), progressbar.OptionSetDescription("verifying rows"),
			progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionFullWidth(), progressbar.OptionSetSpinnerChangeInterval(0))
	}
	return p
}

// show shows what has been verified so far. The number of rows to expect is Postgres's estimate, so
// the bar does not end before the verification does.
func (p *progress) show(v ledger.Verification) {
	switch {
	case p.bar != nil:
		if v.Expected > 0 {
			p.bar.ChangeMax64(max(v.Expected, v.Rows+1))
		}
		_ = p.bar.Set64(v.Rows) // where it can't be drawn, it is not seen
	case time.Since(p.shown) >= p.every:
		p.shown = time.Now()
		fmt.Fprintf(p.w, "%d of about %d rows so far: %d accounts, %d transactions and %d jobs, %d mismatches\n",
			v.Rows, max(v.Expected, v.Rows), v.Accounts, v.Transactions, v.Jobs, v.Mismatches)
	}
}

// clear removes the bar, until the next show, so that a line may be printed.
func (p *progress) clear() {
	if p.bar != nil {
		_ = p.bar.Clear()
	}
}
