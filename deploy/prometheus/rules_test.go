// Package prometheus_test checks the alerts: with promtool, against the cases of rules_test.yml, and
// against the run-book.
package prometheus_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

const (
	runbook    = "../../docs/runbook.md"
	runbookURL = "https://github.com/passbook/passbook/blob/main/docs/runbook.md#"
)

type alert struct {
	Alert       string            `yaml:"alert"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

func readYAML(t *testing.T, path string, into any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err == nil {
		err = yaml.Unmarshal(text, into)
	}
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// alerts are those of rules.yml, which must have one at least.
func alerts(t *testing.T) (all []alert) {
	t.Helper()
	var file struct {
		Groups []struct {
			Rules []alert `yaml:"rules"`
		} `yaml:"groups"`
	}
	readYAML(t, "rules.yml", &file)
	for _, group := range file.Groups {
		all = append(all, group.Rules...)
	}
	if len(all) == 0 {
		t.Fatal("found no alert")
	}
	return all
}

// promtool accepts the configuration and the rules, and each case of rules_test.yml holds.
func TestPromtool(t *testing.T) {
	t.Parallel()
	for _, arguments := range [][]string{
		{"check", "config", "--syntax-only", "prometheus.yml"}, // the token's file is not here
		{"check", "rules", "rules.yml"},
		{"test", "rules", "rules_test.yml"},
	} {
		if out, err := exec.CommandContext(t.Context(), "promtool", arguments...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(arguments, " "), err, out)
		}
	}
}

// Each alert has a case in which it fires, and one in which it does not: the installation in good health.
func TestEachAlertHasTwoCases(t *testing.T) {
	t.Parallel()
	var file struct {
		Tests []struct {
			Name   string `yaml:"name"`
			Expect []struct {
				Alertname string `yaml:"alertname"`
				Alerts    []any  `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		} `yaml:"tests"`
	}
	readYAML(t, "rules_test.yml", &file)
	fires, silent := map[string]bool{}, map[string]bool{}
	for _, test := range file.Tests {
		for _, expect := range test.Expect {
			fires[expect.Alertname] = fires[expect.Alertname] || len(expect.Alerts) > 0
			silent[expect.Alertname] = silent[expect.Alertname] || len(expect.Alerts) == 0 && test.Name == "in good health"
		}
	}
	for _, alert := range alerts(t) {
		if !fires[alert.Alert] || !silent[alert.Alert] {
			t.Errorf("%s: a case in which it fires: %t, and in which it does not: %t", alert.Alert, fires[alert.Alert], silent[alert.Alert])
		}
	}
}

// Each alert has its section in the run-book, each section its alert, and each section all its parts.
func TestRunbook(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.FromSlash(runbook))
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]string{}
	for _, section := range strings.Split(string(text), "\n## ")[1:] {
		name, body, _ := strings.Cut(section, "\n")
		sections[name] = body
	}
	for _, alert := range alerts(t) {
		if want := runbookURL + strings.ToLower(alert.Alert); alert.Annotations["runbook_url"] != want {
			t.Errorf("%s: its run-book is %q, want %q", alert.Alert, alert.Annotations["runbook_url"], want)
		}
		if severity := alert.Labels["severity"]; severity != "critical" && severity != "warning" {
			t.Errorf("%s: severity %q", alert.Alert, severity)
		}
		body, there := sections[alert.Alert]
		if !there {
			t.Errorf("%s has no section in %s", alert.Alert, runbook)
		}
		checkSection(t, alert.Alert, body)
		delete(sections, alert.Alert)
	}
	for name := range sections {
		t.Errorf("the section %s of %s belongs to no alert", name, runbook)
	}
}

func checkSection(t *testing.T, name, body string) {
	t.Helper()
	var parts []string
	for _, part := range regexp.MustCompile(`(?m)^- \*\*(.+?)\*\*: \S`).FindAllStringSubmatch(body, -1) {
		parts = append(parts, part[1])
	}
	if want := []string{"Means", "Clients notice", "First look", "Causes", "Cure"}; !slices.Equal(parts, want) {
		t.Errorf("the section %s has %q, want %q", name, parts, want)
	}
}
