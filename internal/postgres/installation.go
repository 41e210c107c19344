package postgres

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Installation returns the id of the installation to which the database belongs.
func Installation(ctx context.Context, pool *pgxpool.Pool) (id uuid.UUID, err error) {
	ctx, cancel := context.WithTimeout(ctx, RoundTripTimeout)
	defer cancel()
	if err := pool.QueryRow(ctx, `SELECT id FROM installation`).Scan(&id); err != nil {
		return uuid.Nil, fmt.Errorf("read the installation's id: %w", err)
	}
	return id, nil
}

// AwaitInstallation is Installation for a process that starts; see Await.
func AwaitInstallation(ctx context.Context, pool *pgxpool.Pool, log *slog.Logger) (id uuid.UUID, err error) {
	err = Await(ctx, pool, log, func(ctx context.Context) (err error) {
		id, err = Installation(ctx, pool)
		return err
	})
	return id, err
}
