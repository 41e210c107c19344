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
	for _, path := range files(t, ".md") {
		all = append(all, document{path, read(t, path)})
	}
	if len(all) == 0 {
		t.Fatal("found no document")
	}
	return all
}

// files returns the paths, from the root, of the repository's files with an extension.
func files(t *testing.T, extensions ...string) (paths []string) {
	t.Helper()
	unversioned := []string{".git", ".local"}
	err := fs.WalkDir(os.DirFS(root), ".", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && slices.Contains(unversioned, entry.Name()):
			return fs.SkipDir
		case !entry.IsDir() && slices.Contains(extensions, filepath.Ext(path)):
			paths = append(paths, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// sources is the text of all files with an extension that match a pattern.
func sources(t *testing.T, pattern string, extensions ...string) string {
	t.Helper()
	match := regexp.MustCompile(pattern)
	var all strings.Builder
	for _, path := range files(t, extensions...) {
		if match.MatchString(path) {
			all.WriteString(read(t, path))
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
