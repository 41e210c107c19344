package ledger

import "github.com/google/uuid"

// Turns returns how many openings of a user hold their turn or wait for it.
func (a *Accounts) Turns(user uuid.UUID) int {
	a.turns.mu.Lock()
	defer a.turns.mu.Unlock()
	if own := a.turns.of[user]; own != nil {
		return own.many
	}
	return 0
}

// Guards are the triggers that Verify looks for, by their tables.
var Guards = guards

// Statements are the statements that apply jobs. Args are their parameters after the job's id.
// Steps is how often each searches the queue for a job that is not the oldest, or is done.
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
	"fail":  {SQL: failSQL, Args: []any{"x"}, Steps: 2},
}
