package main

import "testing"

func TestBind(t *testing.T) {
	t.Parallel()
	got, err := bind(`SELECT $2::text, $1, $2`, []string{"1", "'a'"})
	if want := `SELECT 'a'::text, 1, 'a'`; err != nil || got != want {
		t.Errorf("got %q, %v", got, err)
	}
	for _, params := range [][]string{{"1"}, {"1", "2", "3"}} {
		if got, err := bind(`SELECT $1, $2`, params); err == nil {
			t.Errorf("%d parameters: got %q, want an error", len(params), got)
		}
	}
}
