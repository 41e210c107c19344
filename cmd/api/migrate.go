package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/migrations"
)

// migrate applies the migrations, and advances the sequences that are behind their tables after
// a restore. It says what it did, also after an error.
func migrate(ctx context.Context, databaseURL string, stdout io.Writer) error {
	applied, err := migrations.Up(ctx, databaseURL)
	for _, name := range applied {
		fmt.Fprintln(stdout, "applied", name)
	}
	if err != nil {
		return err
	}
	pool, err := postgres.Open(ctx, postgres.Config{URL: databaseURL, Application: "passbook-operator"})
	if err != nil {
		return err
	}
	defer pool.Close()
	moved, err := ledger.AdvanceSequences(ctx, pool)
	for _, sentence := range moved {
		fmt.Fprintln(stdout, sentence)
	}
	if err != nil {
		return err
	}
	version, err := migrations.Version()
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%d migrations applied, %d sequences advanced; the schema is at version %d\n", len(applied), len(moved), version)
	return nil
}

// showMigrations shows each migration, applied or pending.
func showMigrations(ctx context.Context, databaseURL string, stdout io.Writer) error {
	pool, err := postgres.Open(ctx, postgres.Config{URL: databaseURL, Application: "passbook-operator"})
	if err != nil {
		return err
	}
	defer pool.Close()
	all, err := migrations.Status(ctx, pool)
	if err != nil {
		return err
	}
	pending := 0
	for _, m := range all {
		switch {
		case m.AppliedAt.IsZero():
			pending++
			fmt.Fprintf(stdout, "%-28s pending\n", m.Name)
		default:
			fmt.Fprintf(stdout, "%-28s applied %s\n", m.Name, m.AppliedAt.UTC().Format(time.RFC3339))
		}
	}
	fmt.Fprintf(stdout, "%d of %d migrations are pending\n", pending, len(all))
	return nil
}
