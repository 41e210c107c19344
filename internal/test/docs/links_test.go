package docs_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every relative link leads to a file or a folder, and every anchor to a heading.
func TestLinks(t *testing.T) {
	t.Parallel()
	const external = `^[a-z]+:`
	for _, d := range documents(t) {
		for _, link := range all(`\]\(([^)\s]+)\)`, d.prose()) {
			if regexp.MustCompile(external).MatchString(link) {
				continue
			}
			if err := d.follow(link); err != nil {
				t.Errorf("%s links to %s: %v", d.path, link, err)
			}
		}
	}
}

func (d document) follow(link string) error {
	path, anchor, hasAnchor := strings.Cut(link, "#")
	target := filepath.Join(root, d.path)
	if path != "" {
		target = filepath.Join(root, filepath.Dir(d.path), path)
	}
	if _, err := os.Stat(target); err != nil || !hasAnchor {
		return err
	}
	text, err := os.ReadFile(target)
	if err != nil {
		return err
	}
	if !(document{text: string(text)}).anchors()[anchor] {
		return fmt.Errorf("no heading has the anchor %q", anchor)
	}
	return nil
}

// anchors are those that GitHub gives to the headings.
func (d document) anchors() map[string]bool {
	anchors := map[string]bool{}
	for _, heading := range all(`(?m)^#{1,6} +(.*)$`, fence.ReplaceAllString(d.text, "")) {
		slug := regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(strings.ToLower(heading), "")
		slug = strings.ReplaceAll(slug, " ", "-")
		unique := slug
		for n := 1; anchors[unique]; n++ { // each adds one, so it ends
			unique = fmt.Sprintf("%s-%d", slug, n)
		}
		anchors[unique] = true
	}
	return anchors
}
