package api

import (
	"bytes"
	"encoding/base64"
	"errors"
	"math"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

func TestInvalidCursor(t *testing.T) {
	t.Parallel()
	s := start(t)
	c, stranger := s.user(t), s.user(t)
	account, other := c.open(100), c.open(100)
	for _, a := range []accountJSON{account, other} {
		for range 3 {
			s.apply(t, c.ask(a, "deposits", 1).ID)
			s.apply(t, c.ask(a, "withdrawals", 1).ID)
		}
	}
	stranger.open(0)
	stranger.open(0)
	cursor := func(c client, target string) string {
		t.Helper()
		page := decode[pageJSON[any]](c.get(target).want(http.StatusOK))
		if page.NextCursor == nil {
			t.Fatalf("%s has one page", target)
		}
		return *page.NextCursor
	}
	var (
		history = jobsOf(account, "transactions") + "?limit=1"
		jobs    = jobsOf(account, "jobs") + "?limit=1"
		mine    = cursor(c, history)
		flipped = []byte(mine)
	)
	flipped[3] ^= 1
	padded := mine + "="
	tests := map[string]struct{ target, cursor string }{
		"OK":                  {history, mine},
		"OK/OtherLimit":       {history + "0", mine},
		"OK/Spelled":          {history + "&order=desc&type=all", mine},
		"Empty":               {history, ""},
		"Forged":              {history, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"},
		"NotBase64":           {history, "!"},
		"Flipped":             {history, string(flipped)},
		"Truncated":           {history, mine[:len(mine)-1]},
		"TruncatedByFour":     {history, mine[:len(mine)-4]},
		"Longer":              {history, mine + "AAAA"},
		"Padded":              {history, padded},
		"LineBreak":           {history, mine[:5] + "\n" + mine[5:]},
		"VeryLong":            {history, strings.Repeat("A", 8000)},
		"OtherOrder":          {history + "&order=asc", mine},
		"OtherType":           {history + "&type=deposit", mine},
		"From":                {history + "&from=2020-01-01T00:00:00Z", mine},
		"To":                  {history + "&to=2100-01-01T00:00:00Z", mine},
		"OtherAccount":        {jobsOf(other, "transactions"), mine},
		"OtherList":           {jobs, mine},
		"Jobs/OK":             {jobs, cursor(c, jobs)},
		"Jobs/OtherStatus":    {jobs + "&status=succeeded", cursor(c, jobs)},
		"Jobs/NoStatus":       {jobs, cursor(c, jobs+"&status=succeeded")},
		"Jobs/OtherOrder":     {jobs + "&order=asc", cursor(c, jobs)},
		"Jobs/OtherAccount":   {jobsOf(other, "jobs"), cursor(c, jobs)},
		"Jobs/OtherList":      {history, cursor(c, jobs)},
		"Accounts/OK":         {"/v1/accounts?limit=1", cursor(c, "/v1/accounts?limit=1")},
		"Accounts/OtherUser":  {"/v1/accounts?limit=1", cursor(stranger, "/v1/accounts?limit=1")},
		"Accounts/OtherList":  {"/v1/accounts?limit=1", mine},
		"History/FromAccount": {history, cursor(c, "/v1/accounts?limit=1")},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mark := "&"
			if !strings.Contains(test.target, "?") {
				mark = "?"
			}
			a := c.in(t).get(test.target + mark + "cursor=" + url.QueryEscape(test.cursor))
			if strings.Contains(name, "OK") {
				a.want(http.StatusOK)
				return
			}
			a.problem(http.StatusBadRequest, "invalid_cursor")
		})
	}
}

// A cursor outlives the change of keys that retires no key, and no other.
func TestCursors_Keys(t *testing.T) {
	t.Parallel()
	oldKey, newKey := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	cursor := newCursors([][]byte{oldKey}).encode("list", 7)
	if place, err := newCursors([][]byte{newKey, oldKey}).decode("list", cursor); err != nil || place != 7 {
		t.Errorf("both keys live: %d, %v", place, err)
	}
	if _, err := newCursors([][]byte{newKey}).decode("list", cursor); err == nil {
		t.Error("a retired key's cursor was taken")
	}
}

// A cursor of ours says in its list where it ended and nothing elsewhere; any
// other text is none. An accident that hits the seal is one in 2^128.
func FuzzCursor(f *testing.F) {
	ours, others := newCursors([][]byte{firstKey.Secret}), newCursors([][]byte{secondKey.Secret})
	const mine, another = "transactions of 1", "transactions of 2"
	for _, place := range []int64{0, 1, 1 << 40, -1, math.MaxInt64, math.MinInt64} {
		text := ours.encode(mine, place)
		for _, seed := range []string{text, text[:len(text)-1] + "A", "B" + text[1:], others.encode(mine, place), text[:5] + "\n" + text[5:], text + "=", ""} {
			f.Add(mine, another, place, seed)
		}
	}
	f.Add("", "\x00", int64(7), base64.RawURLEncoding.EncodeToString(make([]byte, positionBytes+macBytes)))
	f.Fuzz(func(t *testing.T, list, other string, place int64, text string) {
		cursor := ours.encode(list, place)
		if got, err := ours.decode(list, cursor); err != nil || got != place {
			t.Errorf("%q of %q: %d, %v; want %d", cursor, list, got, err, place)
		}
		if got, err := ours.decode(other, cursor); other != list && !isInvalidCursor(err) {
			t.Errorf("%q of %q was taken in %q as %d, %v", cursor, list, other, got, err)
		}
		if got, err := others.decode(list, cursor); !isInvalidCursor(err) {
			t.Errorf("another's key took %q as %d, %v", cursor, got, err)
		}
		got, err := ours.decode(list, text)
		switch {
		case err == nil && text != ours.encode(list, got):
			t.Errorf("took %q as %d", text, got)
		case err != nil && (!isInvalidCursor(err) || got != 0):
			t.Errorf("refused %q with %d, %v", text, got, err)
		}
	})
}

func isInvalidCursor(err error) bool {
	p, ok := errors.AsType[*problem](err)
	return ok && p.Status == http.StatusBadRequest && p.Code == "invalid_cursor"
}

func BenchmarkCursorEncode(b *testing.B) {
	cursors := newCursors([][]byte{firstKey.Secret})
	b.ReportAllocs()
	for b.Loop() {
		cursors.encode("transactions of 1", 12345)
	}
}

func BenchmarkCursorDecode(b *testing.B) {
	cursors := newCursors([][]byte{firstKey.Secret})
	text := cursors.encode("transactions of 1", 12345)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := cursors.decode("transactions of 1", text); err != nil {
			b.Fatal(err)
		}
	}
}
