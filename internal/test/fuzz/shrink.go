package fuzz

import (
	"encoding/json"
	"iter"
	"slices"
	"strings"
)

// maxShrinks bounds the requests that Shrink tries.
const maxShrinks = 400

// Shrink returns the smallest request that it finds for which fails still holds, as it does for r.
func Shrink(r Request, fails func(Request) bool) Request {
	for tries := 0; tries < maxShrinks; {
		shrunk := false
		for smaller := range r.smaller() {
			tries++
			if fails(smaller) {
				r, shrunk = smaller, true
				break
			}
			if tries == maxShrinks {
				break
			}
		}
		if !shrunk {
			return r
		}
	}
	return r
}

// smaller returns requests that are a step smaller than r, the largest steps first.
func (r Request) smaller() iter.Seq[Request] {
	return func(yield func(Request) bool) {
		for _, steps := range []iter.Seq[Request]{r.fewerParts(), r.fewerMembers(), r.shorterTexts()} {
			for smaller := range steps {
				if !yield(smaller) {
					return
				}
			}
		}
	}
}

// fewerParts leaves out the query, a parameter, a header, the chunks or the body.
func (r Request) fewerParts() iter.Seq[Request] {
	return func(yield func(Request) bool) {
		if r.Raw != "" {
			return
		}
		path, pairs := r.parameters()
		var all []Request
		if pairs != nil {
			smaller := r.clone()
			smaller.Target = path
			all = append(all, smaller)
		}
		for i := range pairs {
			smaller := r.clone()
			smaller.setParameters(path, slices.Delete(slices.Clone(pairs), i, i+1))
			all = append(all, smaller)
		}
		if r.Body != "" {
			smaller := r.clone()
			smaller.Body, smaller.tree, smaller.Chunk = "", nil, 0
			all = append(all, smaller)
		}
		if r.Chunk > 0 {
			smaller := r.clone()
			smaller.Chunk = 0
			all = append(all, smaller)
		}
		for i := range r.Headers {
			smaller := r.clone()
			smaller.Headers = slices.Delete(smaller.Headers, i, i+1)
			all = append(all, smaller)
		}
		for _, smaller := range all {
			if !yield(smaller) {
				return
			}
		}
	}
}

// fewerMembers leaves out a member of the body's JSON, or halves one of its strings.
func (r Request) fewerMembers() iter.Seq[Request] {
	return func(yield func(Request) bool) {
		if r.Raw != "" || r.tree == nil || encode(r.tree) != r.Body && parse(r.Body) == nil {
			return
		}
		for n := range slots(&r.tree) {
			smaller := r.clone()
			slot := slots(&smaller.tree)[n]
			for _, value := range simpler(*slot) {
				*slot = value
				smaller.Body = encode(smaller.tree)
				if !yield(smaller.clone()) {
					return
				}
			}
		}
	}
}

// simpler returns the values that are a step simpler than a value.
func simpler(value any) (all []any) {
	switch tree := value.(type) {
	case object:
		for i := range tree {
			all = append(all, slices.Delete(slices.Clone(tree), i, i+1))
		}
	case []any:
		if len(tree) > 2 {
			all = append(all, tree[:len(tree)/2], tree[len(tree)/2:])
		}
		for i := range tree {
			all = append(all, slices.Delete(slices.Clone(tree), i, i+1))
		}
	case string:
		if runes := []rune(tree); len(runes) > 1 {
			all = append(all, string(runes[:len(runes)/2]), string(runes[len(runes)/2:]))
		}
	case json.Number:
		if len(tree) > 1 {
			all = append(all, json.Number("1"))
		}
	}
	return all
}

// shorterTexts cuts lines and then ever smaller pieces out of what is left as text.
func (r Request) shorterTexts() iter.Seq[Request] {
	return func(yield func(Request) bool) {
		text := r.Body
		if r.Raw != "" {
			text = r.Raw
			lines := strings.SplitAfter(strings.TrimSuffix(text, "\n"), "\n")
			for i := range lines {
				smaller := r.clone()
				if smaller.Raw = strings.Join(slices.Delete(slices.Clone(lines), i, i+1), ""); smaller.Raw != "" && !yield(smaller) {
					return
				}
			}
		}
		for size := len(text) / 2; size > 0; size /= 2 {
			for at := 0; at+size <= len(text); at += size {
				smaller := r.clone()
				cut := text[:at] + text[at+size:]
				if r.Raw != "" {
					smaller.Raw = cut
				} else {
					smaller.Body, smaller.tree = cut, parse(cut)
				}
				if cut != "" && !yield(smaller) {
					return
				}
			}
		}
	}
}
