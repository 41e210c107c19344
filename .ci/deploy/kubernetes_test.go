package deploy

import (
	"os"
	"path/filepath"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// manifests are the resources of an installation.
type manifests struct {
	deployments []*appsv1.Deployment
	jobs        []*batchv1.Job
	services    []*corev1.Service
	secrets     map[string]*corev1.Secret
	configMaps  map[string]*corev1.ConfigMap
	budgets     []*policyv1.PodDisruptionBudget
	scalers     []*autoscalingv2.HorizontalPodAutoscaler
	policies    []*networkingv1.NetworkPolicy
	accounts    map[string]*corev1.ServiceAccount
	namespaces  []*corev1.Namespace
}

// render is the installation of deploy/kubernetes/example, as kustomize makes it and Kubernetes reads it.
func render(t *testing.T) manifests {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "kubernetes")
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(root, "kubernetes"))); err != nil {
		t.Fatal(err)
	}
	for folder, names := range map[string][]string{
		"example/secrets":         {"database-url", "redis-url", "jwt-keys", "ops-token", "ops-read-token"},
		"example/migrate/secrets": {"owner-database-url"},
	} {
		for _, name := range names {
			path := filepath.Join(dir, folder, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte("secret"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	m := manifests{secrets: map[string]*corev1.Secret{}, configMaps: map[string]*corev1.ConfigMap{}, accounts: map[string]*corev1.ServiceAccount{}}
	for _, folder := range []string{"example", "example/migrate"} {
		m.read(t, filepath.Join(dir, folder))
	}
	return m
}

// read decodes strictly: a field that Kubernetes does not know is an error.
func (m *manifests) read(t *testing.T, folder string) {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		appsv1.AddToScheme, autoscalingv2.AddToScheme, batchv1.AddToScheme, corev1.AddToScheme, networkingv1.AddToScheme, policyv1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	made, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), folder)
	if err != nil {
		t.Fatalf("%s: %v", folder, err)
	}
	for _, resource := range made.Resources() {
		text, err := resource.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		object, _, err := decoder.Decode(text, nil, nil)
		if err != nil {
			t.Errorf("%s: %v", resource.CurId(), err)
			continue
		}
		m.add(t, object)
	}
}

func (m *manifests) add(t *testing.T, object runtime.Object) {
	t.Helper()
	switch o := object.(type) {
	case *appsv1.Deployment:
		m.deployments = append(m.deployments, o)
	case *batchv1.Job:
		m.jobs = append(m.jobs, o)
	case *corev1.Service:
		m.services = append(m.services, o)
	case *corev1.Secret:
		m.secrets[o.Name] = o
	case *corev1.ConfigMap:
		m.configMaps[o.Name] = o
	case *corev1.ServiceAccount:
		m.accounts[o.Name] = o
	case *corev1.Namespace:
		m.namespaces = append(m.namespaces, o)
	case *policyv1.PodDisruptionBudget:
		m.budgets = append(m.budgets, o)
	case *autoscalingv2.HorizontalPodAutoscaler:
		m.scalers = append(m.scalers, o)
	case *networkingv1.NetworkPolicy:
		m.policies = append(m.policies, o)
	default:
		t.Errorf("a resource of an unknown kind: %T", object)
	}
}

func TestKubernetes_Pods(t *testing.T) {
	m := render(t)
	if len(m.deployments) != 2 || len(m.jobs) != 1 {
		t.Fatalf("%d deployments and %d jobs", len(m.deployments), len(m.jobs))
	}
	if len(m.namespaces) != 1 || m.namespaces[0].Labels["pod-security.kubernetes.io/enforce"] != "restricted" {
		t.Errorf("%d namespaces, want one of the level restricted", len(m.namespaces))
	}
	for _, d := range m.deployments {
		t.Run(d.Name, func(t *testing.T) {
			if !selects(t, d.Spec.Selector, d.Spec.Template.Labels) {
				t.Error("it does not select its own pods")
			}
			m.checkPod(t, d.Spec.Template.Spec)
			for _, c := range d.Spec.Template.Spec.Containers {
				if c.LivenessProbe == nil || c.ReadinessProbe == nil {
					t.Errorf("%s has no probes", c.Name)
					continue
				}
				for _, probe := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe} {
					if !hasPort(c, probe.HTTPGet.Port) {
						t.Errorf("%s has no port %s", c.Name, probe.HTTPGet.Port.String())
					}
				}
			}
		})
	}
	t.Run(m.jobs[0].Name, func(t *testing.T) { m.checkPod(t, m.jobs[0].Spec.Template.Spec) })
}

// checkPod checks that the pod may run in a namespace of the level restricted, and that what it
// mounts is there.
func (m *manifests) checkPod(t *testing.T, pod corev1.PodSpec) {
	t.Helper()
	if s := pod.SecurityContext; s == nil || s.RunAsNonRoot == nil || !*s.RunAsNonRoot || s.SeccompProfile == nil || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Error("it may run as root, or without seccomp")
	}
	if pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken {
		t.Error("it gets a token of Kubernetes")
	}
	if name := pod.ServiceAccountName; name != "" && m.accounts[name] == nil {
		t.Errorf("there is no service account %s", name)
	}
	files := map[string]bool{} // that secrets make
	for _, volume := range pod.Volumes {
		secret := m.secrets[volume.Secret.SecretName]
		if secret == nil {
			t.Fatalf("there is no secret %s", volume.Secret.SecretName)
		}
		if mode := volume.Secret.DefaultMode; mode == nil || *mode != 0o440 {
			t.Errorf("the files of %s have another mode than 0440", volume.Secret.SecretName)
		}
		for key := range secret.Data {
			files[key] = true
		}
	}
	for _, c := range pod.Containers {
		s := c.SecurityContext
		if s == nil || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation ||
			s.Capabilities == nil || len(s.Capabilities.Drop) != 1 || s.Capabilities.Drop[0] != "ALL" {
			t.Errorf("%s keeps privileges", c.Name)
		}
		if c.Resources.Limits.Memory().IsZero() || c.Resources.Requests.Cpu().IsZero() || c.Resources.Requests.Memory().IsZero() {
			t.Errorf("%s has no limit of memory, or no requests", c.Name)
		}
		if c.Image == "passbook" {
			t.Errorf("%s has no image of the installation", c.Name)
		}
		for _, e := range c.EnvFrom {
			if m.configMaps[e.ConfigMapRef.Name] == nil {
				t.Errorf("there is no config map %s", e.ConfigMapRef.Name)
				continue
			}
			for variable := range m.configMaps[e.ConfigMapRef.Name].Data {
				checkVariable(t, variable)
			}
		}
		used := map[string]bool{}
		for _, e := range c.Env {
			checkVariable(t, e.Name)
			if dir, name := filepath.Split(e.Value); dir == "/etc/passbook/" {
				used[name] = true
				if !files[name] {
					t.Errorf("%s names %s, which no secret has", e.Name, e.Value)
				}
			}
		}
		for name := range files {
			if !used[name] {
				t.Errorf("%s does not read the secret %s", c.Name, name)
			}
		}
	}
}

func TestKubernetes_Names(t *testing.T) {
	m := render(t)
	for _, s := range m.services {
		found := 0
		for _, d := range m.deployments {
			if !labels.SelectorFromSet(s.Spec.Selector).Matches(labels.Set(d.Spec.Template.Labels)) {
				continue
			}
			found++
			for _, port := range s.Spec.Ports {
				if !hasPort(d.Spec.Template.Spec.Containers[0], port.TargetPort) {
					t.Errorf("service %s: %s has no port %s", s.Name, d.Name, port.TargetPort.String())
				}
			}
		}
		if found != 1 {
			t.Errorf("service %s selects %d deployments", s.Name, found)
		}
	}
	for _, d := range m.deployments {
		budgets, scalers, allowed := 0, 0, 0
		for _, b := range m.budgets {
			if selects(t, b.Spec.Selector, d.Spec.Template.Labels) {
				budgets++
			}
		}
		for _, h := range m.scalers {
			if h.Spec.ScaleTargetRef.Name == d.Name && h.Spec.ScaleTargetRef.Kind == "Deployment" {
				scalers++
			}
		}
		for _, p := range m.policies {
			if selects(t, &p.Spec.PodSelector, d.Spec.Template.Labels) {
				allowed++
				for _, rule := range p.Spec.Ingress {
					for _, port := range rule.Ports {
						if !hasPort(d.Spec.Template.Spec.Containers[0], *port.Port) {
							t.Errorf("policy %s: %s has no port %s", p.Name, d.Name, port.Port.String())
						}
					}
				}
			}
		}
		if budgets != 1 || scalers != 1 || allowed < 2 {
			t.Errorf("%s has %d budgets, %d scalers and %d network policies", d.Name, budgets, scalers, allowed)
		}
	}
	for _, j := range m.jobs {
		isolated := false
		for _, p := range m.policies {
			isolated = isolated || selects(t, &p.Spec.PodSelector, j.Spec.Template.Labels)
		}
		if !isolated {
			t.Errorf("no network policy is for %s", j.Name)
		}
	}
}

func selects(t *testing.T, selector *metav1.LabelSelector, set map[string]string) bool {
	t.Helper()
	s, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		t.Fatal(err)
	}
	return s.Matches(labels.Set(set))
}

func hasPort(c corev1.Container, port intstr.IntOrString) bool {
	for _, p := range c.Ports {
		if p.Name == port.StrVal || p.ContainerPort == port.IntVal {
			return true
		}
	}
	return false
}
