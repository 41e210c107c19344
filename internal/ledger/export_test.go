package ledger

import "fmt"

// Statements are those that run for tickets: what each takes besides a ticket's job, and
// how often it steps into the queue where that is not the oldest.
var Statements = map[string]struct {
	SQL   string
	Args  []any
	Steps int
}{
	"apply": {applySQL, []any{MaxAmount, maxCounted}, 2},
	"lock":  {lockSQL, nil, 0},
	"count": {countSQL, nil, 1},
	"fail":  {failSQL, nil, 1},
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
