package ledger

import (
	"context"
	"fmt"

	"github.com/passbook/passbook/internal/postgres"
)

// applyNeeds are the rights with which a job is applied, is rejected, and ends failed. apply_job runs
// with the rights of its owner, as the triggers of the queue do.
var applyNeeds = []postgres.Need{
	{Privilege: "SELECT", Table: "jobs", By: "apply_job"},
	{Privilege: "SELECT", Table: "queue", By: "apply_job"},
	{Privilege: "SELECT", Table: "accounts", By: "apply_job"},
	{Privilege: "UPDATE", Table: "accounts", By: "apply_job"},
	{Privilege: "INSERT", Table: "transactions", By: "apply_job"},
	{Privilege: "INSERT", Table: "rejections", By: "apply_job"},
	{Privilege: "DELETE", Table: "queue", By: "leave_queue"},
	{Privilege: "SELECT", Table: "jobs"},
	{Privilege: "SELECT", Table: "queue"},
	{Privilege: "UPDATE", Table: "queue"},
	{Privilege: "INSERT", Table: "failures"},
}

// tryApplySQL applies nothing, since no job has this id. It fails if the function is missing, if the role
// may not execute it, if the server can't load its language, or if the transaction can't write.
const tryApplySQL = `SELECT apply_job('00000000-0000-0000-0000-000000000000', 0, 0)`

// CheckApply returns nil where Postgres would apply a job. It writes nothing.
func (a *Applier) CheckApply(ctx context.Context) error {
	if err := postgres.CheckExecute(ctx, a.pool, "apply_job"); err != nil {
		return err
	}
	if err := postgres.CheckNeeds(ctx, a.pool, applyNeeds); err != nil {
		return err
	}
	if _, err := a.pool.Exec(ctx, tryApplySQL); err != nil {
		return fmt.Errorf("try to apply a job that does not exist: %w", err)
	}
	return nil
}
