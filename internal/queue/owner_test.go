package queue

import (
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/passbook/passbook/internal/test/testenv"
)

// The installation that comes first has the queues, also of a Redis that was emptied;
// the other one gets them when the key is deleted.
func TestOwner(t *testing.T) {
	t.Parallel()
	client := connect(t, testenv.Redis(t))
	var said strings.Builder
	log := slog.New(slog.NewTextHandler(&said, nil))
	first, second := NewOwner(client, "test", uuid.New(), log), NewOwner(client, "test", uuid.New(), log)
	check := func(when string, mixedUp *Owner) {
		t.Helper()
		for range 3 {
			first.Check(t.Context())
			second.Check(t.Context())
		}
		for _, o := range []*Owner{first, second} {
			if err := o.Err(); errors.Is(err, ErrOtherInstallation) != (o == mixedUp) {
				t.Errorf("%s: %v", when, err)
			}
		}
	}
	check("at first", second)
	if err := client.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	check("after FLUSHALL", second)
	if n := strings.Count(said.String(), "level=ERROR"); n != 1 {
		t.Errorf("reported %d times, want once:\n%s", n, said.String())
	}
	if err := client.Del(t.Context(), first.key).Err(); err != nil {
		t.Fatal(err)
	}
	second.Check(t.Context())
	check("once the key was deleted", first)

	if err := client.Del(t.Context(), first.key).Err(); err != nil {
		t.Fatal(err)
	}
	if err := client.LPush(t.Context(), first.key, "of a wrong type").Err(); err != nil {
		t.Fatal(err)
	}
	check("while Redis does not say it", first)
	if NewOwner(client, "other", uuid.New(), log).Err() != nil || (*Owner)(nil).Err() != nil {
		t.Error("queues are another's before that is known")
	}
}
