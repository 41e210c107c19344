package ledger

import "fmt"

// Statements are those that run for tickets, with what they take: %s is a ticket's job.
var Statements = map[string]struct{ SQL, Args string }{
	"apply": {applySQL, "'%s', 100"},
	"left":  {leftSQL, "'{%s}', 32"},
	"lock":  {lockSQL, "'%s'"},
	"count": {countSQL, "'%s'"},
	"fail":  {failSQL, "'%s'"},
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
