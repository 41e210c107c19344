package ledger

// Statements are those that run for every ticket, with what they take beside the
// ticket's job.
var Statements = map[string]struct{ SQL, More string }{
	"lock":  {lockSQL, ""},
	"apply": {applySQL, ", 32, 100"},
	"count": {countSQL, ""},
	"fail":  {failSQL, ", 32"},
}
