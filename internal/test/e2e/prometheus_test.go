package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/passbook/passbook/internal/test/testenv"
)

// opsReadToken is enough for Prometheus to read the metrics.
const opsReadToken = "a-token-for-the-test"

// What an operator is shown: docs/metrics.md, the dashboards and the alerts, against what api and worker
// really show to a Prometheus.
func TestPrometheus(t *testing.T) {
	t.Parallel()
	s, admin := newServedSystem(t, 0, 0)
	s.reach = func(string, int) []string { return []string{"OPS_READ_TOKEN=" + opsReadToken} }
	s.apis = append(s.apis, startVariant(t, s.build, "api", s.envOf("api", 0)))
	s.workers = append(s.workers, startVariant(t, s.build, "worker", s.envOf("worker", 0)))
	c := newClient(t, s)
	stop := depositSteadily(c)
	t.Run("Document", func(t *testing.T) { checkMetricsDocument(t, s) })
	p := startPrometheus(t, opsReadToken, map[string][]string{
		"passbook-api": {s.apis[0].opsAddr}, "passbook-worker": {s.workers[0].opsAddr},
	})
	t.Run("Dashboards", func(t *testing.T) { checkDashboards(t, p) })
	t.Run("Alerts", func(t *testing.T) { checkAlerts(t, p) })
	stop()
	t.Run("Faults", func(t *testing.T) {
		// Its owner's, because apply_job runs as the owner.
		if _, err := admin.Exec(t.Context(), `REVOKE INSERT ON transactions FROM passbook_owner`); err != nil {
			t.Fatal(err)
		}
		if _, err := c.settle(0, jobRequest{c.open(0).Number, "deposits", 1, "refused"}); err != nil {
			t.Fatal(err)
		}
		p.awaitAlert(t, "PassbookAppliesFail")
		p.awaitAlert(t, "PassbookCheckFails")
		if err := s.redis.Kill(); err != nil {
			t.Fatal(err)
		}
		p.awaitAlert(t, "PassbookRedisDown")
		if err := s.postgres.Kill(); err != nil {
			t.Fatal(err)
		}
		p.awaitAlert(t, "PassbookPostgresDown")
		s.workers[0].kill()
		p.awaitAlert(t, "PassbookWorkerGone")
	})
}

// depositSteadily makes one deposit after another, at most ten a second, and waits for each, until stop.
func depositSteadily(c *client) (stop func()) {
	c.t.Helper()
	account := c.open(0)
	ctx, cancel := context.WithCancel(c.t.Context())
	var group errgroup.Group
	group.Go(func() error {
		for n := 0; ctx.Err() == nil; n++ {
			job, err := c.settle(0, jobRequest{account.Number, "deposits", 1, fmt.Sprint("steady-", n)}) //nolint:contextcheck // a client has its test's context
			if err != nil {
				return err
			}
			status, answer, err := c.request(ctx, c.system.api(0), http.MethodGet, "/v1/jobs/"+job.ID+"?wait=5", "", nil)
			if ctx.Err() == nil && (err != nil || status != http.StatusOK) {
				return fmt.Errorf("%d %s %w", status, answer, err)
			}
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
		}
		return nil
	})
	c.t.Cleanup(func() { cancel(); _ = group.Wait() }) // stop has reported an error
	return func() {
		c.t.Helper()
		cancel()
		if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
			c.t.Fatal(err)
		}
	}
}

// rateInterval stands for Grafana's $__rate_interval: some scrapes.
const rateInterval = "10s"

// panelQuery is a query of a panel.
type panelQuery struct{ dashboard, panel, expression string }

// checkDashboards checks that each query of each panel returns data.
func checkDashboards(t *testing.T, p *prometheusServer) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(repository, "deploy", "grafana", "dashboards", "*.json"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("found no dashboard: %v", err)
	}
	var silent []panelQuery
	for _, path := range paths {
		silent = append(silent, panelQueries(t, path)...)
	}
	defer func() {
		for _, query := range silent {
			t.Errorf("%s: the panel %q has no data: %s", query.dashboard, query.panel, query.expression)
		}
	}()
	testenv.Eventually(t, "each panel has data", func() bool {
		silent = slices.DeleteFunc(silent, func(query panelQuery) bool { return len(p.query(query.expression)) > 0 })
		return len(silent) == 0
	})
}

func panelQueries(t *testing.T, path string) (queries []panelQuery) {
	t.Helper()
	var dashboard struct {
		Panels []struct {
			ID      int    `json:"id"`
			Type    string `json:"type"`
			Title   string `json:"title"`
			Targets []struct {
				Expr string `json:"expr"`
			} `json:"targets"`
		} `json:"panels"`
	}
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, &dashboard)
	}
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	ids := map[int]bool{}
	for _, panel := range dashboard.Panels {
		if ids[panel.ID] {
			t.Errorf("%s: two panels have the id %d", path, panel.ID)
		}
		ids[panel.ID] = true
		if panel.Type != "row" && len(panel.Targets) == 0 {
			t.Errorf("%s: the panel %q asks nothing", path, panel.Title)
		}
		for _, target := range panel.Targets {
			expression := strings.ReplaceAll(target.Expr, "$__rate_interval", rateInterval)
			queries = append(queries, panelQuery{filepath.Base(path), panel.Title, expression})
		}
	}
	return queries
}

// checkAlerts checks that Prometheus evaluates each alert, that each metric in it exists, and that none
// fires but those of speed, for which this machine may be too slow.
func checkAlerts(t *testing.T, p *prometheusServer) {
	t.Helper()
	names := regexp.MustCompile(`\b(?:passbook|process|go)_[a-z_]*[a-z]\b`)
	for _, alert := range p.alerts() {
		if alert.Health != "ok" {
			t.Errorf("%s: %s %s", alert.Name, alert.Health, alert.LastError)
		}
		for _, name := range names.FindAllString(alert.Expression, -1) {
			if len(p.query("count("+name+")")) == 0 {
				t.Errorf("%s is on %s, which no process shows", alert.Name, name)
			}
		}
		if strings.Contains(alert.Expression, "rate(") {
			continue
		}
		testenv.Eventually(t, alert.Name+" is silent", func() bool { return len(p.query(alert.Expression)) == 0 })
	}
}

// awaitAlert waits until an alert's expression has a result. It then fires after the alert's "for".
func (p *prometheusServer) awaitAlert(t *testing.T, name string) {
	t.Helper()
	alert, there := p.alerts()[name]
	if !there {
		t.Fatalf("there is no alert %s", name)
	}
	testenv.Eventually(t, name, func() bool { return len(p.query(alert.Expression)) > 0 })
}
