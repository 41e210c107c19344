package e2e_test

import (
	"context"
	"encoding/json"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/passbook/passbook/internal/test/testenv"
)

// prometheusServer is Debian's Prometheus with deploy/prometheus, made faster.
type prometheusServer struct {
	t    testing.TB
	http *http.Client
	url  string
}

// scrapeEvery is the test's scrape_interval. A slow machine answers a scrape within it.
const scrapeEvery = "1s"

// startPrometheus starts a Prometheus that scrapes targets, by the job that they are of, with a token.
// Another program may take the port first; then it tries again on another one.
func startPrometheus(t testing.TB, token string, targets map[string][]string) *prometheusServer {
	t.Helper()
	dir := t.TempDir()
	config := prometheusConfig(t, dir, token, targets)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	const attempts = 5
	for range attempts {
		p := &prometheusServer{t: t, http: &http.Client{Transport: transport, Timeout: patience}, url: "http://" + freeAddress(t)}
		if p.begin(dir, config) {
			return p
		}
	}
	log, _ := os.ReadFile(filepath.Join(dir, "log"))
	t.Fatalf("Prometheus did not start:\n%s", log)
	return nil
}

// begin reports whether Prometheus got ready.
func (p *prometheusServer) begin(dir, config string) bool {
	p.t.Helper()
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		p.t.Fatal(err)
	}
	defer log.Close() //nolint:errcheck // Prometheus writes to its own copy
	cmd := exec.CommandContext(context.WithoutCancel(p.t.Context()), "prometheus", "--config.file="+config,
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+p.url[len("http://"):],
		"--enable-feature=exemplar-storage", "--log.level=warn")
	cmd.Stdout, cmd.Stderr = log, log
	if err := startCommand(cmd); err != nil {
		p.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cmd.Wait() // it ends by a signal
	}()
	ended := func() bool {
		select {
		case <-done:
			return true
		default:
			return false
		}
	}
	p.t.Cleanup(func() {
		_ = cmd.Process.Kill() // an error says that it has ended
		<-done
	})
	testenv.Eventually(p.t, "Prometheus is ready", func() bool { return ended() || p.ready() })
	return !ended()
}

func (p *prometheusServer) ready() bool {
	req, err := http.NewRequestWithContext(p.t.Context(), http.MethodGet, p.url+"/-/ready", http.NoBody)
	if err != nil {
		return false
	}
	resp, err := p.http.Do(req)
	if err != nil {
		return false
	}
	return resp.Body.Close() == nil && resp.StatusCode == http.StatusOK
}

func freeAddress(t testing.TB) string {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close() //nolint:errcheck // only its address is needed
	return listener.Addr().String()
}

// prometheusConfig writes the configuration of deploy/prometheus with other targets, another file of
// the token, and shorter intervals.
func prometheusConfig(t testing.TB, dir, token string, targets map[string][]string) (path string) {
	t.Helper()
	source, err := filepath.Abs(filepath.Join(repository, "deploy", "prometheus"))
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Global  map[string]any   `yaml:"global"`
		Rules   []string         `yaml:"rule_files"`
		Scrapes []map[string]any `yaml:"scrape_configs"`
	}
	text, err := os.ReadFile(filepath.Join(source, "prometheus.yml"))
	if err == nil {
		err = yaml.Unmarshal(text, &config)
	}
	if err != nil {
		t.Fatal(err)
	}
	tokenFile := filepath.Join(dir, "token")
	for _, setting := range []string{"scrape_interval", "scrape_timeout", "evaluation_interval"} {
		config.Global[setting] = scrapeEvery
	}
	for i := range config.Rules {
		config.Rules[i] = filepath.Join(source, config.Rules[i])
	}
	for _, scrape := range config.Scrapes {
		delete(scrape, "dns_sd_configs")
		job, _ := scrape["job_name"].(string)
		scrape["static_configs"] = []any{map[string]any{"targets": targets[job]}}
		authorization, _ := scrape["authorization"].(map[string]any)
		authorization["credentials_file"] = tokenFile
	}
	made, err := yaml.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(dir, "prometheus.yml")
	for name, content := range map[string][]byte{tokenFile: []byte(token), path: made} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// query returns the values of an expression's series, without those that are no number.
func (p *prometheusServer) query(expression string) (values []float64) {
	p.t.Helper()
	var answer struct {
		Result []struct {
			Value [2]any `json:"value"`
		} `json:"result"`
	}
	p.call("/api/v1/query?"+url.Values{"query": {expression}}.Encode(), &answer)
	for _, series := range answer.Result {
		text, _ := series.Value[1].(string)
		value, err := strconv.ParseFloat(text, 64)
		if err != nil {
			p.t.Fatalf("%s: %v", expression, err)
		}
		if !math.IsNaN(value) {
			values = append(values, value)
		}
	}
	return values
}

// rule is an alert as Prometheus has it.
type rule struct {
	Name       string `json:"name"`
	Expression string `json:"query"`
	Health     string `json:"health"`
	LastError  string `json:"lastError"`
	State      string `json:"state"`
}

// alerts are all alerts by name. Each must have been evaluated, without an error.
func (p *prometheusServer) alerts() map[string]rule {
	p.t.Helper()
	alerts := map[string]rule{}
	testenv.Eventually(p.t, "Prometheus has evaluated each alert", func() bool {
		var answer struct {
			Groups []struct {
				Rules []rule `json:"rules"`
			} `json:"groups"`
		}
		p.call("/api/v1/rules?type=alert", &answer)
		unknown := 0
		for _, group := range answer.Groups {
			for _, r := range group.Rules {
				if alerts[r.Name] = r; r.Health == "unknown" {
					unknown++
				}
			}
		}
		return len(alerts) > 0 && unknown == 0
	})
	return alerts
}

func (p *prometheusServer) call(path string, data any) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+path, http.NoBody)
	if err != nil {
		p.t.Fatal(err)
	}
	resp, err := p.http.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // it was read to its end
	answer := struct {
		Status string `json:"status"`
		Error  string `json:"error"`
		Data   any    `json:"data"`
	}{Data: data}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || answer.Status != "success" {
		p.t.Fatalf("%s: %s %v", path, answer.Error, err)
	}
}
