package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/passbook/passbook/internal/postgres"
)

func TestReasonOf(t *testing.T) {
	t.Parallel()
	for code, want := range map[string]postgres.Reason{
		"42501": postgres.Privilege,
		"25006": postgres.ReadOnly,
		"08006": postgres.Connection, "28P01": postgres.Connection, "3D000": postgres.Connection, "57P01": postgres.Connection, "57P03": postgres.Connection,
		"57014": postgres.Timeout, "25P03": postgres.Timeout,
		"55P03": postgres.Lock,
		"23514": postgres.Constraint, "22003": postgres.Constraint, "P0001": postgres.Constraint,
		"40001": postgres.Serialization, "40P01": postgres.Serialization,
		"53100": postgres.Resources, "53300": postgres.Resources, "58030": postgres.Resources,
		"42883": postgres.Function, "42P01": postgres.Function, "58P01": postgres.Function,
		"XX001": postgres.Other, "?": postgres.Connection,
	} {
		err := fmt.Errorf("apply: %w", errors.Join(&pgconn.PgError{Code: code}, io.EOF))
		if got := postgres.ReasonOf(err); got != want || !slices.Contains(postgres.Reasons, got) {
			t.Errorf("%s: %s, want %s", code, got, want)
		}
	}
	for err, want := range map[error]postgres.Reason{
		io.ErrUnexpectedEOF:      postgres.Connection,
		context.DeadlineExceeded: postgres.Timeout,
		context.Canceled:         postgres.Timeout,
	} {
		if got := postgres.ReasonOf(fmt.Errorf("apply: %w", err)); got != want || postgres.SQLState(err) != "" {
			t.Errorf("%v: %s, want %s", err, got, want)
		}
	}
}
