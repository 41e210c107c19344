package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

const maxTries = 5

// InTx runs do in one transaction and commits it. After a serialization failure or a deadlock it
// runs do again, up to maxTries times in all, so do must keep nothing from a run that failed.
func InTx(ctx context.Context, pool *pgxpool.Pool, do func(pgx.Tx) error) error {
	var err error
	for range maxTries {
		err = Transact(ctx, pool, do)
		if !isTransient(err) {
			return err
		}
	}
	return fmt.Errorf("run transaction %d times: %w", maxTries, err)
}

// Transact runs do in one transaction and commits it. The commit waits until it is flushed, behind
// a pooler too.
func Transact(ctx context.Context, pool *pgxpool.Pool, do func(pgx.Tx) error) error {
	return pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		return pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{BeginQuery: beginSQL(conn.Conn())}, do)
	})
}
