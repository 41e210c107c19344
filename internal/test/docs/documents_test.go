// Package docs_test checks the documents against the repository: every link leads somewhere,
// and every target, variable, command, metric, test and file that a document names exists.
package docs_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// root is the repository's, from here.
const root = "../../.."

// document is a Markdown file.
type document struct {
	path string // from the root
	text string
}

// documents are all of the repository.
func documents(t *testing.T) (all []document) {
	t.Helper()
	for path, text := range repository(t) {
		if filepath.Ext(path) == ".md" {
			all = append(all, document{path, text})
		}
	}
	if len(all) == 0 {
		t.Fatal("found no document")
	}
	return all
}

// repository is the text of its files that people write, by their paths from the root.
func repository(t *testing.T) map[string]string {
	t.Helper()
	texts, err := readRepository()
	if err != nil {
		t.Fatal(err)
	}
	return texts
}

var readRepository = sync.OnceValues(func() (map[string]string, error) {
	texts := map[string]string{}
	extensions := []string{".go", ".md", ".sh", ".sql", ".yaml", ".yml"}
	unversioned := []string{".git", ".local", "node_modules"}
	err := fs.WalkDir(os.DirFS(root), ".", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && slices.Contains(unversioned, entry.Name()):
			return fs.SkipDir
		case !entry.IsDir() && (slices.Contains(extensions, filepath.Ext(path)) || path == "Makefile"):
			text, err := os.ReadFile(filepath.Join(root, path))
			texts[path] = string(text)
			return err
		}
		return nil
	})
	return texts, err
})

// sources is the text of all files whose paths match a pattern.
func sources(t *testing.T, pattern string) string {
	t.Helper()
	match := regexp.MustCompile(pattern)
	var all strings.Builder
	for path, text := range repository(t) {
		if match.MatchString(path) {
			all.WriteString(text)
		}
	}
	return all.String()
}

var (
	fence = regexp.MustCompile("(?ms)^ *```[a-z]*\n(.*?)^ *```$")
	span  = regexp.MustCompile("`([^`\n]+)`")
)

// prose is the document without its code.
func (d document) prose() string {
	return span.ReplaceAllString(fence.ReplaceAllString(d.text, ""), "")
}

// code is what the document shows as code: the lines of its blocks, and its spans.
func (d document) code() (code []string) {
	for _, block := range fence.FindAllStringSubmatch(d.text, -1) {
		code = append(code, strings.Split(block[1], "\n")...)
	}
	return append(code, d.spans()...)
}

func (d document) spans() (spans []string) {
	for _, match := range span.FindAllStringSubmatch(fence.ReplaceAllString(d.text, ""), -1) {
		spans = append(spans, match[1])
	}
	return spans
}

// all returns a pattern's first groups in a text.
func all(pattern, text string) (groups []string) {
	for _, match := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		groups = append(groups, match[1])
	}
	return groups
}
