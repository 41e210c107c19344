package report

import (
	"bytes"
	"embed"
	"fmt"
	"html/template"
	"math"
	"strings"
)

//go:embed *.svg.tmpl
var chartFiles embed.FS

var chartTemplates = template.Must(template.ParseFS(chartFiles, "*.svg.tmpl"))

// The chart's measures, in its own units.
const (
	chartLeft  = 372 // where bars begin
	chartUnit  = 180 // of a bar that is at its target
	chartMost  = 2   // targets that a bar is long, before it is cut off
	chartRow   = 30
	chartTitle = 74 // above the first row
	chartGap   = 44 // above the second group
)

// chartGroup is one group of bars: those that should pass the line, or stay before it.
type chartGroup struct {
	Title string
	Y     int
	Line  chartLine
	Rows  []chartBar
}

type chartLine struct{ X, Top, Bottom int }

type chartBar struct {
	Label, Value, Target string
	Y                    int
	Length               float64
	Low, High            float64 // of the whisker
	Reached, Cut         bool
}

// Chart draws each target's figure as a share of the target.
func (r Result) Chart() ([]byte, error) {
	data := struct {
		Height, Left, Right int
		Subtitle            string
		Groups              []chartGroup
	}{
		Left: chartLeft, Right: chartLeft + chartMost*chartUnit, Subtitle: r.subtitle(),
	}
	y := chartTitle
	for _, atLeast := range []bool{true, false} {
		group := chartGroup{Title: "to pass the line", Y: y}
		if !atLeast {
			group.Title = "to stay before it"
		}
		y += chartRow / 2
		top := y
		for _, t := range r.Targets {
			if t.target.AtLeast == atLeast {
				y += chartRow
				group.Rows = append(group.Rows, t.bar(y))
			}
		}
		if len(group.Rows) == 0 {
			continue
		}
		group.Line = chartLine{X: chartLeft + chartUnit, Top: top, Bottom: y + chartRow/2}
		data.Groups = append(data.Groups, group)
		y += chartGap
	}
	data.Height = y
	return draw("chart.svg.tmpl", data)
}

func (r Result) subtitle() string {
	return fmt.Sprintf("medians, with lines from the least to the most (rounds: %d); %s, %d CPUs, everything and the load on one machine",
		r.Rounds, r.TakenAt.Format("2 January 2006"), r.Machine.CPUs)
}

func draw(name string, data any) ([]byte, error) {
	var out bytes.Buffer
	if err := chartTemplates.ExecuteTemplate(&out, name, data); err != nil {
		return nil, fmt.Errorf("draw a chart: %w", err)
	}
	return out.Bytes(), nil
}

func (t TargetResult) bar(y int) chartBar {
	at := func(value float64) float64 {
		return math.Round(10*min(value/t.target.Bound, chartMost)*chartUnit) / 10
	}
	return chartBar{
		Label:   t.Label,
		Value:   strings.TrimSpace(Number(t.Median) + " " + t.Unit),
		Target:  t.Target,
		Y:       y,
		Length:  at(t.Median),
		Low:     chartLeft + at(t.Min),
		High:    chartLeft + at(t.Max),
		Reached: t.Reached,
		Cut:     t.Median/t.target.Bound > chartMost,
	}
}
