package api

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/gofiber/fiber/v2"

	"github.com/passbook/passbook/internal/ledger"
)

// body holds the JSON object of a request and collects its faults. Each read removes a field, so
// the fields that remain at the end are unknown.
type body struct {
	at     string // the JSON pointer of the object; empty for the whole body
	fields map[string]jsontext.Value
	faults []fault

	hasUnread bool // it has more than maxFields fields
}

// readBody reads the object. It returns a 415 for another content type or a content coding, and a
// 400 for a body that is not JSON, repeats a name or has more data after the object.
func readBody(c *fiber.Ctx) (*body, error) {
	mediaType, _, err := mime.ParseMediaType(c.Get(fiber.HeaderContentType))
	if err != nil || mediaType != fiber.MIMEApplicationJSON {
		return nil, newProblem(http.StatusUnsupportedMediaType, "unsupported_media_type", "Send Content-Type: application/json.")
	}
	if coding := c.Get(fiber.HeaderContentEncoding); coding != "" && !strings.EqualFold(coding, "identity") {
		return nil, newProblem(http.StatusUnsupportedMediaType, "unsupported_media_type", "Send the body without a Content-Encoding.")
	}
	// Not Body, which decodes content codings without a bound.
	b, err := parseBody(c.BodyRaw())
	if err != nil {
		return nil, newProblem(http.StatusBadRequest, "malformed_body",
			"The body must be one JSON object in UTF-8, with no name twice and nothing after it.")
	}
	return b, nil
}

var errTrailing = errors.New("data after the value")

func parseBody(data []byte) (*body, error) {
	// The decoder refuses invalid UTF-8 and repeated names.
	decoder := jsontext.NewDecoder(bytes.NewReader(data))
	value, err := decoder.ReadValue()
	if err != nil {
		return nil, err
	}
	value = value.Clone()
	if _, err := decoder.ReadToken(); !errors.Is(err, io.EOF) {
		return nil, errTrailing
	}
	b := &body{fields: map[string]jsontext.Value{}}
	if value.Kind() != '{' {
		b.faultAt("", "invalid_type", "must be a JSON object")
		return b, nil
	}
	return b, b.split(value)
}

func (b *body) split(object jsontext.Value) error {
	decoder := jsontext.NewDecoder(bytes.NewReader(object))
	if _, err := decoder.ReadToken(); err != nil { // the brace
		return err
	}
	for decoder.PeekKind() != '}' {
		name, err := decoder.ReadToken()
		if err != nil {
			return err
		}
		key := name.String()
		value, err := decoder.ReadValue()
		if err != nil {
			return err
		}
		if len(b.fields) == maxFields {
			b.hasUnread = true
			b.faultAt(b.at, "too_many_fields", "must have at most "+strconv.Itoa(maxFields)+" fields")
			return nil
		}
		b.fields[key] = value.Clone()
	}
	return nil
}

const (
	// maxFields is how many fields of a body are read, far more than any route takes.
	maxFields = 64
	// maxFaults is how many faults an answer names: thousands would slow the other requests down.
	maxFaults = 20
)

// pointers escapes a name for a JSON pointer (RFC 6901, section 3).
var pointers = strings.NewReplacer("~", "~0", "/", "~1")

func (b *body) fault(name, code, detail string) {
	b.faultAt(b.at+"/"+pointers.Replace(name), code, detail)
}

// missing adds the fault of a required field that is absent. It may be one of those that were not read.
func (b *body) missing(name string) {
	if !b.hasUnread {
		b.fault(name, "required", "is required")
	}
}

func (b *body) faultAt(pointer, code, detail string) {
	b.faults = append(b.faults, fault{Pointer: &pointer, Code: code, Detail: detail})
}

// err returns a problem with every fault, maxFaults at most, or nil.
func (b *body) err() error {
	b.refuseUnknown()
	if len(b.faults) == 0 {
		return nil
	}
	return invalid(http.StatusUnprocessableEntity, codeInvalidRequest, "The body has faults; errors names each.", firstFaults(b.faults))
}

// refuseUnknown adds a fault for each field that no read has removed.
func (b *body) refuseUnknown() {
	for _, name := range slices.Sorted(maps.Keys(b.fields)) {
		b.fault(name, "unknown_field", "is not known here")
	}
}

func firstFaults(faults []fault) []fault { return faults[:min(len(faults), maxFaults)] }

// take removes a field and returns its value; nil where it is absent or null, which mean the same.
func (b *body) take(name string) jsontext.Value {
	value := b.fields[name]
	delete(b.fields, name)
	if value.Kind() == 'n' {
		return nil
	}
	return value
}

// text reads a required string.
func (b *body) text(name string) string {
	text := b.optionalText(name)
	if text == nil {
		if !b.hasFault(name) {
			b.missing(name)
		}
		return ""
	}
	return *text
}

// optionalText reads a string; nil where it is absent.
func (b *body) optionalText(name string) *string {
	value := b.take(name)
	if value == nil {
		return nil
	}
	if value.Kind() != '"' {
		b.fault(name, "invalid_type", "must be a string")
		return nil
	}
	unquoted, err := jsontext.AppendUnquote(nil, value)
	if err != nil {
		b.fault(name, "invalid_value", "must be valid Unicode")
		return nil
	}
	text := string(unquoted)
	return &text
}

func (b *body) hasFault(name string) bool {
	return slices.ContainsFunc(b.faults, func(f fault) bool { return *f.Pointer == b.at+"/"+name })
}

// amount reads required minor units, from 1 to ledger.MaxAmount, written as a JSON integer:
// "100", 1.0 and 1e2 are faults.
func (b *body) amount(name string) int64 {
	amount := b.optionalAmount(name)
	if amount == 0 && !b.hasFault(name) {
		b.missing(name)
	}
	return amount
}

// optionalAmount reads minor units; 0 where the field is absent.
func (b *body) optionalAmount(name string) int64 {
	value := b.take(name)
	if value == nil {
		return 0
	}
	literal := string(value)
	if value.Kind() != '0' || strings.ContainsAny(literal, ".eE") {
		b.fault(name, "invalid_type", "must be a whole number of minor units, written without quotes, fraction or exponent")
		return 0
	}
	amount, err := strconv.ParseInt(literal, 10, 64)
	if err != nil || amount < 1 || amount > ledger.MaxAmount {
		b.fault(name, "out_of_range", "must be from 1 to "+strconv.FormatInt(ledger.MaxAmount, 10))
		return 0
	}
	return amount
}

// each calls read for each object of a required list, which has from 1 to most objects. It adds
// the faults of the objects to those of b.
func (b *body) each(name string, most int, read func(i int, item *body)) {
	list := b.take(name)
	switch {
	case list == nil:
		b.missing(name)
		return
	case list.Kind() != '[':
		b.fault(name, "invalid_type", "must be a list of objects")
		return
	}
	decoder := jsontext.NewDecoder(bytes.NewReader(list))
	_, _ = decoder.ReadToken() // the bracket; parseBody has read all of the value, so no read here fails
	var faults []fault         // of the objects; those of the list come first, or they might be left out
	i := 0
	for ; decoder.PeekKind() != ']' && i < most; i++ {
		value, err := decoder.ReadValue()
		item := &body{at: fmt.Sprintf("%s/%s/%d", b.at, name, i), fields: map[string]jsontext.Value{}}
		if err != nil || value.Kind() != '{' || item.split(value) != nil {
			item.faultAt(item.at, "invalid_type", "must be an object")
		} else {
			read(i, item)
			item.refuseUnknown()
		}
		faults = append(faults, item.faults...)
	}
	if i == 0 || decoder.PeekKind() != ']' {
		b.fault(name, "out_of_range", fmt.Sprintf("must have from 1 to %d objects", most))
	}
	b.faults = append(b.faults, faults...)
}

// oneOf reads a required string that is one of a few.
func (b *body) oneOf(name string, values ...string) string {
	text := b.text(name)
	if !b.hasFault(name) && !slices.Contains(values, text) {
		b.fault(name, "invalid_value", "must be one of "+strings.Join(values, ", "))
	}
	return text
}

const maxDescription = 140

// description reads the optional text of a job.
func (b *body) description() *string {
	text := b.optionalText("description")
	if text == nil {
		return nil
	}
	if utf8.RuneCountInString(*text) > maxDescription {
		b.fault("description", "too_long", "must have at most "+strconv.Itoa(maxDescription)+" characters")
	}
	if strings.ContainsFunc(*text, isControl) {
		b.fault("description", "invalid_value", "must have no control characters, line separators or changes of direction")
	}
	return text
}

// isControl reports whether r changes how the text around it is shown: controls, line and
// paragraph separators, and bidirectional embeddings, overrides and isolates (Unicode Standard
// Annex 9, section 2), which can show an amount in a description backwards.
func isControl(r rune) bool {
	return unicode.IsControl(r) || unicode.In(r, unicode.Zl, unicode.Zp) ||
		r >= '\u202a' && r <= '\u202e' || r >= '\u2066' && r <= '\u2069'
}
