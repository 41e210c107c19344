package fuzz

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// schema is a JSON Schema, or any other object of the document, with its reference followed.
type schema map[string]any

// resolve follows a reference. What stands beside the reference wins, as in JSON Schema 2020-12.
func (s *Source) resolve(node any) schema {
	found, _ := node.(map[string]any)
	reference, ok := found["$ref"].(string)
	if !ok {
		return found
	}
	var target any = s.document
	for name := range strings.SplitSeq(strings.TrimPrefix(reference, "#/"), "/") {
		parent, _ := target.(map[string]any)
		target = parent[strings.NewReplacer("~1", "/", "~0", "~").Replace(name)]
	}
	merged := maps.Clone(s.resolve(target))
	for name, value := range found {
		if name != "$ref" {
			merged[name] = value
		}
	}
	return merged
}

func (s schema) list(name string) []any {
	list, _ := s[name].([]any)
	return list
}

func (s schema) text(name string) string {
	text, _ := s[name].(string)
	return text
}

// number returns a bound, or the other value where the schema has none.
func (s schema) number(name string, otherwise int64) int64 {
	number, ok := s[name].(json.Number)
	if !ok {
		return otherwise
	}
	value, err := number.Int64()
	if err != nil {
		return otherwise
	}
	return value
}

func (s schema) properties() (names []string, schemas map[string]any) {
	schemas, _ = s["properties"].(map[string]any)
	return slices.Sorted(maps.Keys(schemas)), schemas
}

// inWords are the values whose rules the document says in words only: the examples keep them.
var inWords = map[string]bool{"currency": true}

// value makes a value of a schema, most of the time one that an answer had under that name.
func (s *Source) value(name string, node any) any {
	schema := s.resolve(node)
	if s.spoil && s.chance(30) {
		if choices := s.outside(schema); len(choices) > 0 {
			s.spoil = false
			return pick(s, choices)
		}
	}
	if known, ok := s.known.pick(s, name); ok && s.chance(60) && !isNew(name) && schema.fits(known) {
		return known
	}
	for _, all := range []string{"anyOf", "oneOf"} {
		if choices := schema.list(all); len(choices) > 0 {
			return s.value(name, pick(s, choices))
		}
	}
	if parts := schema.list("allOf"); len(parts) > 0 {
		schema = maps.Clone(schema)
		for _, part := range parts {
			maps.Copy(schema, s.resolve(part))
		}
	}
	if constant, ok := schema["const"]; ok {
		return constant
	}
	if choices := schema.list("enum"); len(choices) > 0 {
		return pick(s, choices)
	}
	if examples := schema.list("examples"); len(examples) > 0 && (inWords[name] || s.chance(20)) && !isNew(name) {
		return pick(s, examples)
	}
	return s.made(name, schema)
}

// outside returns values that a schema just does not allow.
func (s *Source) outside(schema schema) (choices []any) {
	for _, all := range []string{"anyOf", "oneOf"} {
		if parts := schema.list(all); len(parts) > 0 {
			return s.outside(s.resolve(parts[0]))
		}
	}
	if schema["properties"] != nil || schema["items"] != nil {
		return nil
	}
	if least, ok := schema["minimum"].(json.Number); ok {
		choices = append(choices, literal(strconv.FormatInt(schema.number("minimum", 0)-1, 10)), literal(least+".0"), string(least))
	}
	if schema["maximum"] != nil {
		choices = append(choices, literal(strconv.FormatInt(schema.number("maximum", 0)+1, 10)))
	}
	if most := schema.number("maxLength", 0); most > 0 {
		choices = append(choices, strings.Repeat("x", int(most)+1), strings.Repeat("é", int(most)+1))
	}
	if least := schema.number("minLength", 0); least > 0 {
		choices = append(choices, strings.Repeat("x", int(least)-1))
	}
	if schema["enum"] != nil || schema["pattern"] != nil {
		choices = append(choices, "no such value\t", "")
	}
	return choices
}

// fits reports whether a value that was learned under a name is one that the schema may have: names
// have several meanings.
func (s schema) fits(value any) bool {
	text := fmt.Sprint(value)
	if choices := s.list("enum"); len(choices) > 0 {
		return slices.ContainsFunc(choices, func(choice any) bool { return fmt.Sprint(choice) == text })
	}
	if s["minimum"] != nil || s["maximum"] != nil {
		n, err := strconv.ParseInt(text, 10, 64)
		return err == nil && n >= s.number("minimum", math.MinInt64) && n <= s.number("maximum", math.MaxInt64)
	}
	length := int64(utf8.RuneCountInString(text))
	matched, err := regexp.MatchString(s.text("pattern"), text)
	return err == nil && matched && length >= s.number("minLength", 0) && length <= s.number("maxLength", math.MaxInt64)
}

// made makes a value of a schema's type.
func (s *Source) made(name string, schema schema) any {
	switch s.typeOf(schema) {
	case "object":
		return s.object(schema)
	case "array":
		least := schema.number("minItems", 0)
		count := least + s.small(schema.number("maxItems", least+8)-least)
		items := make([]any, count)
		for i := range items {
			items[i] = s.value(name, schema["items"])
		}
		return items
	case "integer", "number":
		return json.Number(strconv.FormatInt(s.integer(schema), 10))
	case "boolean":
		return s.chance(50)
	case "null":
		return nil
	}
	return s.text(name, schema)
}

func (s *Source) typeOf(schema schema) string {
	if choices := schema.list("type"); len(choices) > 0 {
		text, _ := pick(s, choices).(string)
		return text
	}
	if text := schema.text("type"); text != "" {
		return text
	}
	if schema["properties"] != nil {
		return "object"
	}
	return "string"
}

func (s *Source) object(schema schema) object {
	names, schemas := schema.properties()
	tree := object{}
	for _, name := range names {
		if slices.Contains(schema.list("required"), any(name)) || s.chance(50) {
			tree = append(tree, member{name, s.value(name, schemas[name])})
		}
	}
	s.rand.Shuffle(len(tree), func(i, j int) { tree[i], tree[j] = tree[j], tree[i] })
	return tree
}

// integer is a bound of the schema, or between them and more often small.
func (s *Source) integer(schema schema) int64 {
	least, most := schema.number("minimum", math.MinInt32), schema.number("maximum", math.MaxInt32)
	switch s.rand.IntN(10) {
	case 0:
		return least
	case 1:
		return most
	case 2:
		return least + s.rand.Int64N(most-least+1)
	}
	return least + s.small(most-least)
}

// small is from 0 to most, and seldom large.
func (s *Source) small(most int64) int64 {
	const few, some = 4, 1000
	return s.rand.Int64N(min(most, pick(s, []int64{few, some})) + 1)
}

const maxText = 40 // characters, of a text without a shorter bound

// text makes a string. Where the document says more in words than in the schema, it keeps that too.
func (s *Source) text(name string, schema schema) string {
	switch {
	case isKey(name) && s.chance(90):
		return s.NewKey()
	case schema.text("format") == "date-time":
		return s.time()
	case schema.text("format") == "idn-email":
		return s.email()
	}
	least, most := schema.number("minLength", 0), schema.number("maxLength", maxText)
	length := least + s.small(most-least)
	if s.chance(5) {
		length = most
	}
	text := s.plain(int(length))
	pattern := schema.text("pattern")
	if pattern == "" || regexp.MustCompile(pattern).MatchString(text) {
		return text
	}
	return s.matching(pattern, int(most))
}

// plainParts are characters that no rule in words forbids.
const plainParts = "abcdefghijklmnopqrstuvwxyzABCXYZ0123456789    -_.,;:+*/=@%&?!#'\"\\<>(){}[]|~^$`éüß예금한글日本🐖€"

func (s *Source) plain(length int) string {
	parts := []rune(plainParts)
	var b strings.Builder
	for range length {
		b.WriteRune(pick(s, parts))
	}
	return b.String()
}

// matching makes a string that matches, of at most so many characters.
func (s *Source) matching(pattern string, most int) string {
	generator := s.patterns[pattern]
	if generator == nil {
		generator = rapid.StringMatching(pattern)
		s.patterns[pattern] = generator
	}
	const tries = 20
	for range tries {
		if text := generator.Example(int(s.rand.Int64())); utf8.RuneCountInString(text) <= most {
			return text
		}
	}
	return ""
}

func (s *Source) time() string {
	if known, ok := s.known.pick(s, "created_at"); ok && s.chance(50) {
		return fmt.Sprint(known)
	}
	const span = 10 * 365 * 24 * time.Hour
	at := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(s.rand.Int64N(int64(span))))
	if s.chance(50) {
		at = at.In(time.FixedZone("", (s.rand.IntN(28)-14)*3600+s.rand.IntN(2)*1800))
	}
	return at.Format(pick(s, []string{time.RFC3339, time.RFC3339Nano, "2006-01-02T15:04:05.000000Z07:00"}))
}

func (s *Source) email() string {
	local := pick(s, []string{"", "ä", "예금", "O'Neil."})
	return fmt.Sprintf("%s%s@%s", local, s.NewKey(), pick(s, []string{"example.com", "EXAMPLE.com", "sub.example.org"}))
}
