package docs_test

import (
	"regexp"
	"strings"
	"testing"
)

// givenUp are the words that the glossary (docs/architecture.md) has others for, and what
// stands in a sentence that does not name its actor. words makes words of names.
var givenUp = regexp.MustCompile(`\b(` + strings.Join([]string{
	"ring|rings|ringing|rang|rung|ringer|bells?", // notify, notification, wake-up
	"tickets?",                       // task
	"suspects?",                      // stalled account
	"(back|put) in line",             // queued; pending, active, retry
	"turnstiles?",                    // connect limiter
	"(take|takes|took|taking) leave", // abandon
	"mend|mends|mended|mending",      // fix
	"strikes?|struck|striking",       // inject
	"scenes?",                        // environment
	"(bring|brings|brought|bringing) on|all the same", // plain English
	"nobody|somebody|whoever|everybody",               // the client, the worker, Postgres
}, "|") + `)\b`)

// givenUpNames are states of a task: pending, active, retry.
var givenUpNames = regexp.MustCompile(`\b\w*(InLine|InHand|PutOff)\b`)

var humps = regexp.MustCompile(`([a-z0-9])([A-Z])`)

// notActors are what looks like a word that was given up: the name of a Unix user.
var notActors = strings.NewReplacer(`"nobody"`, "", "redis, nobody", "")

// words are a line's, in lower case.
func words(line string) string {
	line = humps.ReplaceAllString(notActors.Replace(line), "$1 $2")
	return strings.ToLower(strings.ReplaceAll(line, "_", " "))
}

// The words that were given up stay out of code and documents.
func TestGlossary(t *testing.T) {
	t.Parallel()
	const itself = "internal/test/docs/glossary_test.go"
	for path, text := range repository(t) {
		if path == itself {
			continue
		}
		for n, line := range strings.Split(text, "\n") {
			if word := givenUp.FindString(words(line)) + givenUpNames.FindString(line); word != "" {
				t.Errorf("%s:%d: %q is a word that was given up: %s", path, n+1, word, strings.TrimSpace(line))
			}
		}
	}
}
