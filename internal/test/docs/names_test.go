package docs_test

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Every `make target` exists, and every variable that is given to one.
func TestMakeTargets(t *testing.T) {
	t.Parallel()
	makefile := repository(t)["Makefile"]
	targets := all(`(?m)^([a-z][a-z-]*):`, makefile)
	variables := slices.Concat(makeVariables(makefile), environment(t))
	target, variable := regexp.MustCompile(`^[a-z][a-z-]*$`), regexp.MustCompile(`^([A-Z_]+)=`)
	for _, d := range documents(t) {
		for _, arguments := range all(`\bmake ([^#|\n]*)`, strings.Join(d.code(), "\n")) {
			for argument := range strings.FieldsSeq(arguments) {
				assigned := variable.FindStringSubmatch(argument)
				switch {
				case assigned != nil && !slices.Contains(variables, assigned[1]):
					t.Errorf("%s names the variable %s, which neither the Makefile nor a process knows", d.path, assigned[1])
				case target.MatchString(argument) && !slices.Contains(targets, argument):
					t.Errorf("%s names make %s, which is no target", d.path, argument)
				}
				if assigned == nil && !target.MatchString(argument) {
					break // it is another command's
				}
			}
		}
	}
}

func makeVariables(makefile string) []string {
	return all(`(?m)^(?:[a-z-]+: )?([A-Z_]+) :?=`, makefile)
}

// environment are the variables that the processes, make run and builds for tests read.
func environment(t *testing.T) []string {
	t.Helper()
	return append(all(`"([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)[",]`, sources(t, `^(internal/config|deploy/local)/.*\.go$`)),
		all(`Variable = "([A-Z]+)"`, sources(t, `^internal/test/failpoint/`))...)
}

// serverVariables are those that choose the servers of tests, and those that Patroni reads.
func serverVariables(t *testing.T) []string {
	t.Helper()
	return append(all(`const [A-Za-z]+ = "([A-Z_]+)"`, sources(t, `^internal/test/local/find\.go$`)),
		all(`"(PATRONI_[A-Z0-9_]+)["=]`, sources(t, `^internal/test/local/`))...)
}

// Every environment variable that a document names exists. ON_ERROR_STOP is psql's.
func TestVariables(t *testing.T) {
	t.Parallel()
	known := slices.Concat(makeVariables(repository(t)["Makefile"]), environment(t), serverVariables(t), []string{"ON_ERROR_STOP"})
	for _, d := range documents(t) {
		for _, name := range all(`\b([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)\b`, d.text) {
			if !slices.Contains(known, name) {
				t.Errorf("%s names the variable %s, which nothing reads", d.path, name)
			}
		}
		for _, name := range all(`(?m)^([A-Z]+)=`, strings.Join(d.spans(), "\n")) {
			if !slices.Contains(known, name) && !strings.HasPrefix(name, "GO") {
				t.Errorf("%s names the variable %s, which nothing reads", d.path, name)
			}
		}
	}
}

// docs/operations.md names every variable.
func TestConfigurationVariables(t *testing.T) {
	t.Parallel()
	operations := repository(t)["docs/operations.md"]
	for _, name := range environment(t) {
		if !strings.Contains(operations, "`"+name+"`") && name != "FAILPOINT" {
			t.Errorf("docs/operations.md does not name %s", name)
		}
	}
}

// Every command of api and worker that a document names stands in the comment of that program.
func TestCommands(t *testing.T) {
	t.Parallel()
	usages := map[string][]string{}
	for _, program := range []string{"api", "worker"} {
		usages[program] = all(`(?m)^//\t`+program+` ([a-z].*)$`, sources(t, `^cmd/`+program+`/main\.go$`))
		if len(usages[program]) == 0 {
			t.Fatalf("found no usage of %s", program)
		}
	}
	for _, d := range documents(t) {
		for _, program := range []string{"api", "worker"} {
			for _, command := range all(`(?m)^`+program+` ([a-z]+(?: [a-z]+)*(?: --[a-z]+)?)\b`, strings.Join(d.code(), "\n")) {
				known := slices.ContainsFunc(usages[program], func(usage string) bool { return strings.HasPrefix(usage, command) })
				if !known {
					t.Errorf("%s names %s %s, which is not in its comment", d.path, program, command)
				}
			}
		}
	}
}

// Every metric and role that a document names is in the sources, or in the list of metrics, which
// TestPrometheus compares with the processes.
func TestMetrics(t *testing.T) {
	t.Parallel()
	known := all(`\b(passbook_[a-z_]*[a-z])\b`,
		sources(t, `^(cmd|internal|deploy|migrations)/.*\.(go|sql)$`)+repository(t)["docs/metrics.md"])
	for _, d := range documents(t) {
		for _, name := range all(`\b(passbook_[a-z_]*[a-z])\b`, d.text) {
			if !slices.Contains(known, name) {
				t.Errorf("%s names %s, which no source has", d.path, name)
			}
		}
	}
}

// Every test and benchmark that a document or the Makefile names exists; TestSweep… stands for several.
func TestTests(t *testing.T) {
	t.Parallel()
	known := all(`(?m)^func ((?:Test|Benchmark|Fuzz)\w+)\(`, sources(t, `_test\.go$`))
	for _, d := range append(documents(t), document{"Makefile", repository(t)["Makefile"]}) {
		for _, name := range all(`\b((?:Test|Benchmark|Fuzz)[A-Z]\w*…?)`, d.text) {
			prefix, several := strings.CutSuffix(name, "…")
			if !slices.ContainsFunc(known, func(test string) bool { return test == name || several && strings.HasPrefix(test, prefix) }) {
				t.Errorf("%s names %s, which is no test", d.path, name)
			}
		}
	}
}

// Every file that a document names as code exists: from the root, from internal, or from
// the document's own folder.
func TestFiles(t *testing.T) {
	t.Parallel()
	for _, d := range documents(t) {
		for _, name := range all(`(?m)^([\w./-]+/[\w.*-]+\.(?:go|sql|md|ya?ml|json|sh))$`, strings.Join(d.spans(), "\n")) {
			found := 0
			for _, folder := range []string{"", "internal", filepath.Dir(d.path)} {
				paths, err := filepath.Glob(filepath.Join(root, folder, name))
				if err != nil {
					t.Fatal(err)
				}
				found += len(paths)
			}
			if found == 0 {
				t.Errorf("%s names the file %s, which is not there", d.path, name)
			}
		}
	}
}
