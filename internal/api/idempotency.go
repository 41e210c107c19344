package api

import (
	"net/http"
	"strings"

	"github.com/gofiber/fiber/v2"
)

const (
	headerKey    = "Idempotency-Key"
	headerReplay = "Idempotent-Replayed"
	fieldKey     = "idempotency_key" // in bodies and queries
	maxKey       = 255
)

// idempotencyKey reads the header; empty where it is absent.
func idempotencyKey(c *fiber.Ctx) (string, error) {
	values := c.Request().Header.PeekAll(headerKey)
	if len(values) == 0 {
		return "", nil
	}
	key, ok := parseKey(string(values[0]))
	if !ok { // framing.go refuses a second header
		return "", newProblem(http.StatusBadRequest, "idempotency_key_invalid",
			"Idempotency-Key is 1 to 255 visible ASCII characters, bare or as a quoted string, in one header.")
	}
	return key, nil
}

// requiredKey reads the header where it is required.
func requiredKey(c *fiber.Ctx) (string, error) {
	key, err := idempotencyKey(c)
	if err == nil && key == "" {
		return "", newProblem(http.StatusBadRequest, "idempotency_key_missing",
			"Send an Idempotency-Key: a fresh UUID for each thing you want done, the same one when you ask again.")
	}
	return key, err
}

const badKey = "is 1 to 255 visible ASCII characters, bare or as a quoted string"

// key reads the key of a job in a batch: the text that a deposit has in its header.
func (b *body) key() string {
	text := b.text(fieldKey)
	if b.hasFault(fieldKey) {
		return ""
	}
	key, ok := parseKey(text)
	if !ok {
		b.fault(fieldKey, "invalid_value", badKey)
	}
	return key
}

// key reads the required key that jobs are looked for by.
func (q *query) key() string {
	text, given := q.values[fieldKey]
	key, ok := parseKey(text)
	switch {
	case !given:
		q.fault(fieldKey, "required", "is required")
	case !ok:
		q.fault(fieldKey, "invalid_value", badKey)
	}
	return key
}

// parseKey reads a key, bare or as a structured-field string (RFC 8941, section 3.3.3): "abc" and
// abc are the same key.
func parseKey(text string) (key string, ok bool) {
	key = text
	if strings.HasPrefix(text, `"`) {
		if key, ok = unquoteKey(text); !ok {
			return "", false
		}
	}
	if key == "" || len(key) > maxKey {
		return "", false
	}
	for _, b := range []byte(key) {
		if b < '!' || b > '~' {
			return "", false
		}
	}
	return key, true
}

func unquoteKey(text string) (key string, ok bool) {
	var unquoted strings.Builder
	for i := 1; i < len(text); i++ {
		switch text[i] {
		case '"':
			return unquoted.String(), i == len(text)-1
		case '\\':
			i++
			if i == len(text) || text[i] != '"' && text[i] != '\\' {
				return "", false
			}
		}
		unquoted.WriteByte(text[i])
	}
	return "", false
}
