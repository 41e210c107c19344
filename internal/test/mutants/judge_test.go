//go:build mutants

package mutants_test

import (
	"bufio"
	"encoding/json"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"
)

// verdict is how a checker ended.
type verdict string

const (
	noticed  verdict = "noticed"   // a test failed
	passed   verdict = "SURVIVED"  // all passed, which is well without a mutation only
	idle     verdict = "NO TEST"   // none ran: the checker is misspelt
	unbuilt  verdict = "UNBUILT"   // it does not compile, or what it tests does not start
	tooLate  verdict = "TOO LATE"  // the bound passed first
	unstable verdict = "NO ANSWER" // it failed, and no test of it did
	unsound  verdict = "UNSOUND"   // it does not pass without a mutation
)

// outcome is what one run of a checker came to.
type outcome struct {
	verdict verdict
	said    string // by the first test that failed, or by the compiler
	took    time.Duration
}

// event is a line of go tool test2json.
type event struct {
	Action string
	Test   string
	Output string
}

var (
	// said is what a test says as it fails.
	said = regexp.MustCompile(`^ *\w+\.go:\d+: `)
	// notItself is a failure of what a test needs: servers, programs.
	notItself = regexp.MustCompile(`\.go:\d+: (testenv|build): `)
)

// judge reads what a checker did.
func judge(lines io.Reader) outcome {
	var (
		o          outcome
		ran, timed bool
		failed     []string
		says       = map[string][]string{} // by test
	)
	for decoder := json.NewDecoder(bufio.NewReader(lines)); ; {
		var e event
		if decoder.Decode(&e) != nil { // its end, or a go command that was killed
			break
		}
		switch {
		case e.Action == "run":
			ran = true
		case e.Action == "output":
			timed = timed || strings.HasPrefix(e.Output, "panic: test timed out")
			if said.MatchString(e.Output) {
				says[e.Test] = append(says[e.Test], strings.TrimSpace(e.Output))
			}
		case e.Action == "fail" && e.Test != "":
			failed = append(failed, e.Test)
		case e.Action == "fail":
			o.verdict = unstable
		case e.Action == "pass" && e.Test == "":
			o.verdict = passed
		}
	}
	for _, test := range failed {
		if len(says[test]) > 0 && o.said == "" {
			o.said = says[test][0]
		}
		if slices.ContainsFunc(says[test], notItself.MatchString) {
			return outcome{verdict: unbuilt, said: strings.Join(says[test], "\n")}
		}
	}
	switch {
	case !ran:
		o.verdict = idle
	case timed:
		o.verdict = tooLate
	case len(failed) > 0:
		o.verdict = noticed
	}
	return o
}
