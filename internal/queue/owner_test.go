package queue

import (
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/test/testenv"
)

// The installation that comes first owns the queues, also after Redis was emptied. The other
// one owns them after the key was deleted.
func TestOwner(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	var logged strings.Builder
	log := slog.New(slog.NewTextHandler(&logged, nil))
	first, second := NewOwner(client, "test", uuid.New(), log), NewOwner(client, "test", uuid.New(), log)
	check := func(when string, conflicting *Owner) {
		t.Helper()
		for range 3 {
			first.Check(t.Context())
			second.Check(t.Context())
		}
		for _, o := range []*Owner{first, second} {
			if err := o.Err(); errors.Is(err, ErrOtherInstallation) != (o == conflicting) {
				t.Errorf("%s: %v", when, err)
			}
		}
	}
	check("at first", second)
	if err := client.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	check("after FLUSHALL", second)
	if n := strings.Count(logged.String(), "level=ERROR"); n != 1 {
		t.Errorf("reported %d times, want once:\n%s", n, logged.String())
	}
	if err := client.Del(t.Context(), first.key).Err(); err != nil {
		t.Fatal(err)
	}
	second.Check(t.Context())
	check("after the key was deleted", first)

	if err := client.Del(t.Context(), first.key).Err(); err != nil {
		t.Fatal(err)
	}
	if err := client.LPush(t.Context(), first.key, "of a wrong type").Err(); err != nil {
		t.Fatal(err)
	}
	check("while Redis does not answer", first)
	if NewOwner(client, "other", uuid.New(), log).Err() != nil || (*Owner)(nil).Err() != nil {
		t.Error("another installation owns the queues before any Check")
	}
}
