package job

import (
	"fmt"
	"time"

	"github.com/google/uuid"
)

// Stored are the columns that the statements name.
const Stored = stored

// Statement is an SQL statement and its parameters.
type Statement struct {
	SQL  string
	Args []any
}

// Statements returns the statements that search a user's jobs by id or key, by name.
func Statements(userID uuid.UUID, key string) map[string]Statement {
	id, now := uuid.Must(uuid.NewV7()), time.Now()
	return map[string]Statement{
		"read":     {readSQL, []any{id, userID}},
		"archived": {readArchivedSQL, []any{id, userID}},
		"by key":   {byKeySQL, []any{key, userID}},
		"repeated": {repeatedSQL, []any{[]uuid.UUID{userID}, []string{key}}},
		"finished": {finishedSQL, []any{[]uuid.UUID{userID}, []uuid.UUID{id}}},
		"step":     {stepSQL, []any{id, firstID(now), now, archiveBatch}},
	}
}

// ListQueries returns all statements that List runs, by what they list.
func ListQueries() map[string]string {
	queries := map[string]string{}
	for _, ascending := range []bool{true, false} {
		queries[fmt.Sprintf("all/ascending=%t", ascending)] = listSQL(Statuses, ascending)
		for _, status := range Statuses {
			queries[fmt.Sprintf("%s/ascending=%t", status, ascending)] = listSQL([]Status{status}, ascending)
		}
	}
	return queries
}

// SweepStatements returns the statements of a sweep that knows the oldest queued jobs of some
// accounts, and that all queued jobs of other accounts have a position above the given one.
func SweepStatements(oldest []OldestQueued, above int64) map[string]Statement {
	accounts, positions := unzip(oldest)
	return map[string]Statement{
		"oldest":   {oldestQueuedSQL, []any{int64(0), above, 1000}},
		"next":     {nextOldestSQL, []any{accounts, positions}},
		"last":     {lastSQL, []any{accounts[1], positions[1]}},
		"unlocked": {unlockedSQL, []any{accounts, positions}},
	}
}
