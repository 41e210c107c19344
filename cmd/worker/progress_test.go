package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/passbook/passbook/internal/ledger"
)

// Where there is no terminal, progress is a line now and then.
func TestProgressLines(t *testing.T) {
	t.Parallel()
	var often, rarely strings.Builder
	for w, every := range map[*strings.Builder]time.Duration{&often: 0, &rarely: time.Hour} {
		p := newProgress(w, every)
		for rows := int64(1); rows <= 3; rows++ {
			p.show(ledger.Verification{Rows: rows, Expected: 2, Accounts: 1})
		}
		p.clear()
	}
	want := "1 of about 2 rows so far: 1 accounts, 0 transactions and 0 jobs, 0 mismatches\n" +
		"2 of about 2 rows so far: 1 accounts, 0 transactions and 0 jobs, 0 mismatches\n" +
		"3 of about 3 rows so far: 1 accounts, 0 transactions and 0 jobs, 0 mismatches\n"
	if often.String() != want || rarely.String() != "" {
		t.Errorf("got %q and %q", often.String(), rarely.String())
	}
}

// On a terminal it is a bar, also beyond the estimate and where there is none.
func TestProgressBar(t *testing.T) {
	t.Parallel()
	for _, expected := range []int64{0, 100} {
		t.Run(fmt.Sprint(expected), func(t *testing.T) {
			t.Parallel()
			controller, terminal := openTerminal(t)
			p := newProgress(terminal, time.Hour)
			for _, rows := range []int64{10, 50, 100, 500} {
				p.show(ledger.Verification{Rows: rows, Expected: expected})
			}
			p.clear()
			shown := make([]byte, 64<<10)
			n, err := controller.Read(shown)
			if err != nil || !strings.Contains(string(shown[:n]), "verifying rows") {
				t.Errorf("the terminal shows %q, %v", shown[:n], err)
			}
		})
	}
}

// openTerminal opens a pseudoterminal: what is written to terminal is read from controller.
func openTerminal(t *testing.T) (controller, terminal *os.File) {
	t.Helper()
	controller, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = controller.Close() })
	fd := int(controller.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = terminal.Close() })
	return controller, terminal
}
