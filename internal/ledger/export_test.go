package ledger

import (
	"slices"

	"github.com/google/uuid"
)

// Opening returns how many openings of a user hold the user's lock or wait for it.
func (a *Accounts) Opening(user uuid.UUID) int {
	a.users.mu.Lock()
	defer a.users.mu.Unlock()
	if own := a.users.of[user]; own != nil {
		return own.callers
	}
	return 0
}

// VerifyRows is how many rows Verify reads in one statement.
const VerifyRows = verifyRows

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

// Walks are the statements of a Round, by table, with the parameters of a first slice.
func Walks() map[string]Walk {
	all := map[string]Walk{}
	for _, w := range walks {
		var args []any
		for _, part := range w.first() {
			args = append(args, part)
		}
		key := Walk{SQL: w.keySQL(), Args: args}
		if all[w.table+" key"] = key; w.last != "" {
			args = append(slices.Clone(args), args[0])
		}
		all[w.table] = Walk{SQL: w.sql, Args: append(slices.Clone(args), 500)}
	}
	return all
}

// Walk is a statement with its parameters.
type Walk struct {
	SQL  string
	Args []any
}
