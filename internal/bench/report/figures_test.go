package report

import (
	"testing"
	"time"
)

func TestSpread(t *testing.T) {
	t.Parallel()
	tests := []struct {
		values           []float64
		median, min, max float64
	}{
		{[]float64{3}, 3, 3, 3},
		{[]float64{5, 1, 3}, 3, 1, 5},
		{[]float64{4, 1, 2, 9}, 3, 1, 9},
	}
	for _, test := range tests {
		if got := spreadOf(test.values); got.Median != test.median || got.Min != test.min || got.Max != test.max {
			t.Errorf("%v: got %+v", test.values, got)
		}
	}
}

func TestMean(t *testing.T) {
	t.Parallel()
	if got := Mean([]float64{1, 2, 6}); got != 3 {
		t.Errorf("got %v, want 3", got)
	}
}

func TestQuantiles(t *testing.T) {
	t.Parallel()
	var times []time.Duration
	for i := range 100 {
		times = append(times, time.Duration(100-i)*time.Millisecond)
	}
	if got := QuantilesOf(times); got != (Quantiles{P50: 50, P99: 99}) {
		t.Errorf("got %+v", got)
	}
}

// A ratio is of one round's figures, and its median decides.
func TestTargets(t *testing.T) {
	t.Parallel()
	rounds := []Figures{
		{"end-to-end/applied": 260, "peer/applied": 100, "light/seen-p50": 5},
		{"end-to-end/applied": 120, "peer/applied": 100, "light/seen-p50": 5},
		{"end-to-end/applied": 17, "peer/applied": 10, "light/seen-p50": 4},
	}
	got := Summarize(rounds, Catalogue, Targets).Targets
	if len(got) != 2 {
		t.Fatalf("got %+v", got)
	}
	if ratio := got[0]; ratio.Median != 1.7 || ratio.Min != 1.2 || ratio.Max != 2.6 || !ratio.Reached {
		t.Errorf("ratio: got %+v", ratio)
	}
	if under := got[1]; under.Median != 5 || under.Reached || under.Target != "under 5 ms" {
		t.Errorf("under: got %+v", under)
	}
}

func TestNumber(t *testing.T) {
	t.Parallel()
	for value, want := range map[float64]string{0: "0", 0.123: "0.12", 3: "3", 12.34: "12.3", 123.4: "123", 1234.5: "1,235", 1000000: "1,000,000"} {
		if got := Number(value); got != want {
			t.Errorf("%v: got %s, want %s", value, got, want)
		}
	}
}
