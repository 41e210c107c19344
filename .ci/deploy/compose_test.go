// Package deploy checks the files that operators take against the readers that will read them:
// compose's own loader, kustomize, and Kubernetes' own types.
package deploy

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
)

// root is the folder of what is checked, from here.
const root = "../../deploy"

func loadCompose(t *testing.T) *types.Project {
	t.Helper()
	options, err := cli.NewProjectOptions([]string{filepath.Join(root, "compose.yaml")}, cli.WithProfiles([]string{"*"}), cli.WithoutEnvironmentResolution)
	if err != nil {
		t.Fatal(err)
	}
	project, err := options.LoadProject(t.Context()) // checks the schema, and that all names are known
	if err != nil {
		t.Fatal(err)
	}
	return project
}

func TestCompose(t *testing.T) {
	project := loadCompose(t)
	for name, service := range project.Services {
		t.Run(name, func(t *testing.T) {
			if !service.ReadOnly {
				t.Error("its file system can be written to")
			}
			if !slices.Contains(service.CapDrop, "ALL") || !slices.Contains(service.SecurityOpt, "no-new-privileges:true") {
				t.Error("it keeps privileges")
			}
			if service.Restart != "no" && service.HealthCheck == nil {
				t.Error("it has no health check")
			}
			if service.Deploy == nil || service.Deploy.Resources.Limits == nil {
				t.Fatal("it has no limits")
			}
			if limits := service.Deploy.Resources.Limits; limits.MemoryBytes == 0 || limits.NanoCPUs == 0 || limits.Pids == 0 {
				t.Errorf("it lacks a limit: %+v", limits)
			}
			for _, port := range service.Ports {
				if port.HostIP != "127.0.0.1" {
					t.Errorf("port %s is open to other machines", port.Published)
				}
			}
			checkComposeSecrets(t, service)
			for _, volume := range service.Volumes {
				if volume.Type == types.VolumeTypeBind {
					if _, err := os.Stat(volume.Source); err != nil {
						t.Error(err)
					}
				}
			}
			if service.Image == "passbook" {
				for variable := range service.Environment {
					checkVariable(t, variable)
				}
			}
		})
	}
	scrapes, err := os.ReadFile(filepath.Join(root, "prometheus", "prometheus.yml"))
	if err != nil || !strings.Contains(string(scrapes), readOf["prometheus"]) {
		t.Errorf("prometheus.yml does not read %s: %v", readOf["prometheus"], err)
	}
	for _, name := range []string{"api", "worker"} {
		if replicas := project.Services[name].Deploy.Replicas; replicas == nil || *replicas != 2 {
			t.Errorf("%s does not run twice", name)
		}
	}
}

// checkVariable checks that the documents know a variable: a process ignores one that it does not know.
func checkVariable(t *testing.T, name string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "..", "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "`"+name+"`") {
		t.Errorf("docs/operations.md does not know the variable %s", name)
	}
}

// checkComposeSecrets checks that each file that a variable names is a secret of the service, and
// that each secret is used.
func checkComposeSecrets(t *testing.T, service types.ServiceConfig) {
	t.Helper()
	mounted := map[string]bool{} // by path; true once it is used
	for _, secret := range service.Secrets {
		path := secret.Target
		if !filepath.IsAbs(path) {
			path = filepath.Join("/run/secrets", filepath.Base(secret.Source))
		}
		mounted[path] = false
	}
	text := strings.Join(append(slices.Clone(service.Entrypoint), service.Command...), " ")
	for variable, value := range service.Environment {
		if value == nil || !strings.HasPrefix(*value, "/run/secrets/") {
			continue
		}
		if _, ok := mounted[*value]; !ok {
			t.Errorf("%s names %s, which is no secret of the service", variable, *value)
		}
		text += " " + *value
	}
	for path := range mounted {
		isRead := strings.Contains(text, path) || strings.Contains(readOf[service.Name], path)
		if !isRead {
			t.Errorf("nothing reads %s", path)
		}
	}
}

// readOf is what services read by files that are mounted, and not by their environment.
var readOf = map[string]string{
	"redis":      "/run/secrets/redis_users",
	"prometheus": "/etc/prometheus/passbook_ops_token",
	"roles":      "/run/secrets/owner_password /run/secrets/serving_password /run/secrets/operator_password",
	"grants":     "/run/secrets/owner_password /run/secrets/serving_password /run/secrets/operator_password",
}
