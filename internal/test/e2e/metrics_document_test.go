package e2e_test

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/passbook/passbook/internal/test/testenv"
)

var writeMetrics = flag.Bool("metrics.write", false, "write docs/metrics.md in place of comparing it")

// families are metrics by name.
type families map[string]*dto.MetricFamily

// checkMetricsDocument compares docs/metrics.md with what both processes show, once they show every
// metric of the sources.
func checkMetricsDocument(t *testing.T, s *system) {
	t.Helper()
	var api, worker families
	missing := append(metricsInSources(t), "asynq_queue_size") // Asynq's metrics are there once a task was
	defer func() {
		for _, name := range missing {
			t.Errorf("no process shows %s", name)
		}
	}()
	testenv.Eventually(t, "the processes show every metric of the sources", func() bool {
		api, worker = scrape(t, s.apis[0]), scrape(t, s.workers[0])
		missing = slices.DeleteFunc(missing, func(name string) bool { return api[name] != nil || worker[name] != nil })
		return len(missing) == 0
	})
	checkChecks(t, api, worker)
	path := filepath.Join(repository, "docs", "metrics.md")
	got := metricsDocument(api, worker)
	if *writeMetrics {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not what the processes show (- is the document): run make metrics\n%s", path, differences(string(want), string(got)))
	}
}

// checkChecks checks that docs/operations.md has a line for each check that the processes show.
func checkChecks(t *testing.T, shown ...families) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(repository, "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, all := range shown {
		for _, metric := range all["passbook_check_up"].GetMetric() {
			if name := metric.GetLabel()[0].GetValue(); !strings.Contains(string(text), "\n| `"+name+"` | ") {
				t.Errorf("docs/operations.md does not know the check %s", name)
			}
		}
	}
}

// notMetrics are names in the sources that look like a metric's.
var notMetrics = []string{"passbook_schema_version"}

// metricsInSources are the names in the product's sources.
func metricsInSources(t *testing.T) []string {
	t.Helper()
	names := map[string]bool{}
	literal := regexp.MustCompile(`"(passbook_[a-z0-9_]*[a-z0-9])"`)
	for _, folder := range []string{"cmd", "internal"} {
		err := filepath.WalkDir(filepath.Join(repository, folder), func(path string, entry fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case entry.IsDir() && (path == filepath.Join(repository, "internal", "test") || path == filepath.Join(repository, "internal", "bench")):
				return fs.SkipDir
			case entry.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go"):
				return nil
			}
			text, err := os.ReadFile(path)
			for _, found := range literal.FindAllStringSubmatch(string(text), -1) {
				names[found[1]] = true
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range notMetrics {
		delete(names, name)
	}
	return slices.Sorted(maps.Keys(names))
}

// scrape reads the metrics of a process.
func scrape(t testing.TB, p *process) families {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.operator()+"/metrics", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+opsReadToken)
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // it was read to its end
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %d %s %v", req.URL, resp.StatusCode, text, err)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	parsed, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		t.Fatalf("%s: %v", req.URL, err)
	}
	return parsed
}

const metricsHead = `# Metrics

` + "`make metrics`" + ` writes this page from what api and worker show on the operator's port under ` + "`/metrics`" + `, and a test compares the two.
[The run-book](runbook.md) has the alerts, and [What to watch](operations.md#what-to-watch) where to begin.

A gauge whose source the process could not read lately is missing from ` + "`/metrics`" + `: it never keeps an old value. A histogram ` + "`NAME`" + ` has
the series ` + "`NAME_bucket`, `NAME_sum` and `NAME_count`" + `. ` + "`passbook_job_duration_seconds`" + ` has native buckets too, for a scraper that asks for
them.
`

// metricsDocument is docs/metrics.md.
func metricsDocument(api, worker families) []byte {
	both, onlyAPI, onlyWorker, runtime := families{}, families{}, families{}, families{}
	for _, all := range []families{api, worker} {
		for name, family := range all {
			switch {
			case !strings.HasPrefix(name, "passbook_") && !strings.HasPrefix(name, "asynq_"):
				runtime[name] = family
			case api[name] != nil && worker[name] != nil:
				both[name] = family
			case api[name] != nil:
				onlyAPI[name] = family
			default:
				onlyWorker[name] = family
			}
		}
	}
	var page bytes.Buffer
	page.WriteString(metricsHead)
	for _, section := range []struct {
		title string
		families
	}{{"API", onlyAPI}, {"Worker", onlyWorker}, {"Both", both}, {"Go, the process and the operator's port, on both", runtime}} {
		fmt.Fprintf(&page, "\n## %s\n\n| metric | type | labels | counts or shows |\n| --- | --- | --- | --- |\n", section.title)
		for _, name := range slices.Sorted(maps.Keys(section.families)) {
			family := section.families[name]
			fmt.Fprintf(&page, "| `%s` | %s | %s | %s |\n", name, strings.ToLower(family.GetType().String()),
				strings.Join(labelsOf(family), ", "), strings.ReplaceAll(family.GetHelp(), "|", `\|`))
		}
	}
	return page.Bytes()
}

// labelsOf are the names of a family's labels, as code.
func labelsOf(family *dto.MetricFamily) []string {
	names := map[string]bool{}
	for _, metric := range family.GetMetric() {
		for _, label := range metric.GetLabel() {
			names["`"+label.GetName()+"`"] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// differences are the lines that only one of two texts has.
func differences(want, got string) string {
	var lines strings.Builder
	for _, side := range []struct{ sign, text, other string }{{"-", want, got}, {"+", got, want}} {
		others := strings.Split(side.other, "\n")
		for line := range strings.SplitSeq(side.text, "\n") {
			if !slices.Contains(others, line) {
				fmt.Fprintln(&lines, side.sign, line)
			}
		}
	}
	return lines.String()
}
