package ledger

// Guards are the triggers that Verify looks for, by their tables.
var Guards = guards

// Statements are those that run for tickets: what each takes besides a ticket's job, and
// how often it steps into the queue where that is not the oldest, or is done.
var Statements = map[string]struct {
	SQL   string
	Args  []any
	Steps int
	Done  bool
}{
	"apply": {SQL: applySQL, Args: []any{MaxAmount, maxCounted, true}, Steps: 4},
	"done":  {SQL: applySQL, Args: []any{MaxAmount, maxCounted, true}, Steps: 2, Done: true},
	"lock":  {SQL: lockSQL},
	"count": {SQL: countSQL, Steps: 2},
	"fail":  {SQL: failSQL, Steps: 2},
}
