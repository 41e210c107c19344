package main

import (
	"context"
	"fmt"
	"io"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/postgres"
	"github.com/passbook/passbook/migrations"
)

// migrate applies the migrations, and advances the sequences that are behind their tables after
// a restore.
func migrate(ctx context.Context, databaseURL string, stdout io.Writer) error {
	if err := migrations.Up(ctx, databaseURL); err != nil {
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
	return err
}
