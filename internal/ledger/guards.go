package ledger

import (
	"context"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"
)

// guards are the triggers that enforce the rules of the bank. migrations/00001_schema.sql enables
// them in every session, whatever its session_replication_role is.
var guards = map[string][]string{
	"accounts":      {"accounts_are_kept", "accounts_form", "accounts_move", "accounts_start_empty", "accounts_status", "accounts_terms"},
	"jobs":          {"jobs_are_kept", "jobs_enter_queue", "jobs_form", "jobs_leave_archived", "jobs_skip_archived", "jobs_take_transaction_id", "jobs_terms"},
	"queue":         {"queue_attempts", "queue_is_kept", "queue_rows", "queue_terms"},
	"rejections":    {"rejections_are_kept", "rejections_leave_queue", "rejections_leave_archived"},
	"failures":      {"failures_are_kept", "failures_leave_queue", "failures_replay", "failures_stamp", "failures_stay"},
	"archived_jobs": {"archived_jobs_append_only"},
	"transactions":  {"transactions_append_only", "transactions_rules"},

	"operator_actions": {"operator_actions_act", "operator_actions_append_only"},
}

// guardsSQL reads which triggers of a table are not ENABLE ALWAYS.
//
// $1 the table, $2 its triggers. One row a trigger: its name, and how it is enabled, null
// if it is missing.
const guardsSQL = `
	SELECT guard, tgenabled::text
	FROM unnest($2::text[]) guard LEFT JOIN pg_trigger ON tgrelid = $1::text::regclass AND tgname = guard
	WHERE tgenabled IS DISTINCT FROM 'A'`

// verifyGuards reports the triggers that are missing or not ENABLE ALWAYS, for example after a
// restore or a replication.
func verifyGuards(ctx context.Context, q querier, mismatch func(string, ...any)) error {
	for _, table := range slices.Sorted(maps.Keys(guards)) {
		rows, _ := q.Query(ctx, guardsSQL, table, guards[table]) // ForEachRow returns its error
		var trigger string
		var enabled *string
		_, err := pgx.ForEachRow(rows, []any{&trigger, &enabled}, func() error {
			if enabled == nil {
				mismatch("trigger %s on %s is missing", trigger, table)
				return nil
			}
			mismatch("trigger %s on %s does not always fire: ALTER TABLE %[2]s ENABLE ALWAYS TRIGGER %[1]s", trigger, table)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
