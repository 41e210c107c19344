package ledger

import "fmt"

// Statements are those that run for every ticket, with what they take beside the
// ticket's job.
var Statements = map[string]struct{ SQL, More string }{
	"apply": {applySQL, ", 100"},
	"left":  {leftSQL, ", 32"},
	"lock":  {lockSQL, ""},
	"count": {countSQL, ""},
	"fail":  {failSQL, ""},
}

// RememberMany has the terms of so many accounts remembered, and answers with the
// most that were at a time.
func RememberMany(n int) (most int) {
	var t terms
	for i := range n {
		t.keep(termsKey{number: fmt.Sprint(i)}, Account{})
		most = max(most, len(t.known))
	}
	return most
}
