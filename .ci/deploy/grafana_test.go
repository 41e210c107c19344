package deploy

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

// Grafana's own types, made from the schemas of Grafana and of its panels, know every field of the dashboards.
func TestDashboards(t *testing.T) {
	plugins.RegisterDefaultPlugins()
	paths, err := filepath.Glob(filepath.Join(root, "grafana", "dashboards", "*.json"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("found the dashboards %v, and %v", paths, err)
	}
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var board dashboard.Dashboard
			// The package returns no faults as an error that is not nil: a list of none.
			if err := board.UnmarshalJSONStrict(text); err != nil && err.Error() != "" {
				t.Fatal(err)
			}
			if err := board.Validate(); err != nil && err.Error() != "" {
				t.Error(err)
			}
			if len(board.Panels) == 0 {
				t.Error("it has no panels")
			}
		})
	}
}
