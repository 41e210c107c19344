package report

import (
	"fmt"
	"math"
	"strings"
)

// Measures of the two charts that a user chooses by, in their own units.
const (
	speedsLeft   = 372 // where bars begin
	speedsLength = 480 // of the longest
	speedsTop    = 104 // middle of the first bar
	speedsBar    = 18  // from one to the next
	speedsGap    = 12  // more between groups

	latencyLeft   = 72
	latencyRight  = 860
	latencyTop    = 76
	latencyBottom = 316
	latencyLines  = 5 // at most, above 0
)

// runner is one of the systems that are compared, and how its bars are drawn.
type runner struct {
	Label, Class string
	X            int // in the legend
	key          func(comparison) string
}

var runners = []runner{
	{"Passbook", "first", 16, func(c comparison) string { return c.passbook }},
	{"synchronous handler", "second", 116, func(c comparison) string { return c.peer }},
	{"pgbench, no HTTP", "third", 284, func(c comparison) string { return c.pgbench }},
}

// speedsGroup is the bars of one load, one for each system that was measured.
type speedsGroup struct {
	Label string
	Y     float64
	Bars  []speedsBarOf
}

type speedsBarOf struct {
	Class, Value           string
	Y                      int
	Length, Low, High, End float64
}

// speedsChart draws the jobs a second of each load, side by side.
func (r Result) speedsChart() ([]byte, error) {
	data := struct {
		Height, Left int
		Subtitle     string
		Legend       []runner
		Groups       []speedsGroup
	}{Left: speedsLeft, Subtitle: r.subtitle(), Legend: runners}
	unit := speedsLength / r.fastest()
	y := speedsTop
	for _, c := range speeds {
		if _, ok := r.find(c.passbook); !ok {
			continue
		}
		group := speedsGroup{Label: c.label}
		for _, system := range runners {
			found, ok := r.find(system.key(c))
			if !ok {
				continue
			}
			at := func(value float64) float64 { return tenths(value * unit) }
			group.Bars = append(group.Bars, speedsBarOf{
				Class: system.Class, Value: Number(found.Median), Y: y, Length: at(found.Median),
				Low: speedsLeft + at(found.Min), High: speedsLeft + at(found.Max), End: speedsLeft + at(found.Max),
			})
			y += speedsBar
		}
		group.Y = float64(group.Bars[0].Y+y-speedsBar) / 2
		data.Groups = append(data.Groups, group)
		y += speedsGap
	}
	data.Height = y
	return draw("speeds.svg.tmpl", data)
}

// fastest is the highest rate of the chart, and never 0.
func (r Result) fastest() float64 {
	highest := 1.0
	for _, c := range speeds {
		for _, system := range runners {
			if found, ok := r.find(system.key(c)); ok {
				highest = max(highest, found.Max)
			}
		}
	}
	return highest
}

// hasLatency is true where latency was measured at each share of the peak.
func (r Result) hasLatency() bool {
	for _, share := range Shares {
		if _, ok := r.find(fmt.Sprintf("latency/%d-p99", share)); !ok {
			return false
		}
	}
	return true
}

type latencyCurve struct {
	Label, Class, Points string
	End                  float64
	Dots                 []latencyDot
}

type latencyDot struct {
	X, Y, Low, High float64
	Value           string
}

// latencyMark is a line of the grid, or a share of the peak.
type latencyMark struct {
	X, Y  float64
	Label string
}

// latencyChart draws how long jobs take, by the share of the peak rate that is offered.
func (r Result) latencyChart() ([]byte, error) {
	data := struct {
		Height, Left, Right, Bottom int
		Subtitle                    string
		Grid, Shares                []latencyMark
		Curves                      []latencyCurve
	}{Height: latencyBottom + 44, Left: latencyLeft, Right: latencyRight, Bottom: latencyBottom, Subtitle: r.subtitle()}
	step, lines := r.latencyGrid()
	top := step * float64(lines)
	for n := range lines + 1 {
		value := step * float64(n)
		data.Grid = append(data.Grid, latencyMark{Y: latencyY(value, top), Label: Number(value)})
	}
	for n, share := range Shares {
		data.Shares = append(data.Shares, latencyMark{X: latencyX(n), Label: fmt.Sprintf("%d %%", share)})
	}
	for _, c := range []struct{ name, class string }{{"p99", "second"}, {"p50", "first"}} {
		data.Curves = append(data.Curves, r.latencyCurve(c.name, c.class, top))
	}
	return draw("latency.svg.tmpl", data)
}

func (r Result) latencyCurve(name, class string, top float64) latencyCurve {
	curve := latencyCurve{Label: name, Class: class}
	var points []string
	for n, share := range Shares {
		found, _ := r.find(fmt.Sprintf("latency/%d-%s", share, name))
		dot := latencyDot{
			X: latencyX(n), Y: latencyY(found.Median, top), Low: latencyY(found.Min, top), High: latencyY(found.Max, top),
			Value: Number(found.Median),
		}
		curve.Dots = append(curve.Dots, dot)
		points = append(points, fmt.Sprintf("%g,%g", dot.X, dot.Y))
		curve.End = dot.Y
	}
	curve.Points = strings.Join(points, " ")
	return curve
}

// latencyGrid is the distance of the chart's lines, 1, 2 or 5 times a power of ten, and
// how many above 0 hold the slowest job.
func (r Result) latencyGrid() (step float64, lines int) {
	highest := 0.0
	for _, share := range Shares {
		found, _ := r.find(fmt.Sprintf("latency/%d-p99", share))
		highest = max(highest, found.Max)
	}
	least := max(highest/latencyLines, 0.1)
	power := math.Pow(10, math.Floor(math.Log10(least)))
	step = 10 * power
	for _, times := range []float64{5, 2, 1} {
		if power*times >= least {
			step = power * times
		}
	}
	return step, max(1, int(math.Ceil(highest/step)))
}

func latencyX(n int) float64 {
	inner := float64(latencyRight-latencyLeft) / float64(len(Shares))
	return tenths(latencyLeft + inner*(float64(n)+0.5))
}

func latencyY(value, top float64) float64 {
	return tenths(latencyBottom - (latencyBottom-latencyTop)*value/top)
}

func tenths(value float64) float64 { return math.Round(10*value) / 10 }
