package fuzz

import (
	"encoding/json"
	"io"
	"slices"
	"strings"
)

// A tree is a JSON value: an object, []any, string, json.Number, bool or nil, or a literal.

// object is a JSON object with its members in order. A name may be there twice.
type object []member

type member struct {
	name  string
	value any
}

// literal is written as it is. It may be no JSON.
type literal string

func encode(tree any) string {
	var b strings.Builder
	write(&b, tree)
	return b.String()
}

func write(b *strings.Builder, tree any) {
	switch tree := tree.(type) {
	case object:
		b.WriteByte('{')
		for i, m := range tree {
			if i > 0 {
				b.WriteByte(',')
			}
			write(b, m.name)
			b.WriteByte(':')
			write(b, m.value)
		}
		b.WriteByte('}')
	case []any:
		b.WriteByte('[')
		for i, item := range tree {
			if i > 0 {
				b.WriteByte(',')
			}
			write(b, item)
		}
		b.WriteByte(']')
	case literal:
		b.WriteString(string(tree))
	default:
		var line strings.Builder
		encoder := json.NewEncoder(&line)
		encoder.SetEscapeHTML(false)
		_ = encoder.Encode(tree) // a scalar, and a Builder: no error
		b.WriteString(strings.TrimSuffix(line.String(), "\n"))
	}
}

// parse returns the tree of a text; nil where it is no JSON value, or null.
func parse(text string) any {
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()
	tree, err := parseValue(decoder)
	if err != nil {
		return nil
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil
	}
	return tree
}

func parseValue(decoder *json.Decoder) (any, error) {
	token, err := decoder.Token()
	if err != nil {
		return nil, err
	}
	switch token {
	case json.Delim('{'):
		tree := object{}
		for decoder.More() {
			name, err := decoder.Token()
			if err != nil {
				return nil, err
			}
			value, err := parseValue(decoder)
			if err != nil {
				return nil, err
			}
			text, _ := name.(string) // it is one
			tree = append(tree, member{text, value})
		}
		_, err := decoder.Token()
		return tree, err
	case json.Delim('['):
		tree := []any{}
		for decoder.More() {
			item, err := parseValue(decoder)
			if err != nil {
				return nil, err
			}
			tree = append(tree, item)
		}
		_, err := decoder.Token()
		return tree, err
	}
	return token, nil
}

func cloneTree(tree any) any {
	switch tree := tree.(type) {
	case object:
		clone := slices.Clone(tree)
		for i := range clone {
			clone[i].value = cloneTree(clone[i].value)
		}
		return clone
	case []any:
		clone := slices.Clone(tree)
		for i := range clone {
			clone[i] = cloneTree(clone[i])
		}
		return clone
	}
	return tree
}

// slots returns every place of a tree that holds a value, the whole tree first.
func slots(tree *any) []*any {
	all := []*any{tree}
	switch t := (*tree).(type) {
	case object:
		for i := range t {
			all = append(all, slots(&t[i].value)...)
		}
	case []any:
		for i := range t {
			all = append(all, slots(&t[i])...)
		}
	}
	return all
}

// scalars calls visit with every string, number and boolean of a tree and the name of the member
// that holds it.
func scalars(name string, tree any, visit func(name string, value any)) {
	switch t := tree.(type) {
	case object:
		for _, m := range t {
			scalars(m.name, m.value, visit)
		}
	case []any:
		for _, item := range t {
			scalars(name, item, visit)
		}
	case string, json.Number, bool:
		visit(name, t)
	}
}
