package api

import (
	"crypto/sha256"
	_ "embed"
	"fmt"
	"strings"
	"sync"

	"github.com/goccy/go-yaml"
	"github.com/gofiber/fiber/v2"
)

//go:embed openapi.yaml
var openAPIYAML []byte

// openAPIJSON serves openapi.yaml as JSON. The first request of the process makes it, which takes
// longer than the rest of an API's start.
func openAPIJSON(c *fiber.Ctx, q *query) error {
	serve, err := makeOpenAPIJSON()
	if err != nil {
		return err
	}
	return serve(c, q)
}

var makeOpenAPIJSON = sync.OnceValues(func() (func(*fiber.Ctx, *query) error, error) {
	asJSON, err := yaml.YAMLToJSON(openAPIYAML)
	if err != nil {
		return nil, fmt.Errorf("read openapi.yaml: %w", err)
	}
	return static(fiber.MIMEApplicationJSON, asJSON), nil
})

// hasETag returns whether If-None-Match names the tag (RFC 9110, section 13.1.2). Fiber's Fresh does not
// for a request with Cache-Control: no-cache, and fetch adds that to each with an If-None-Match.
func hasETag(c *fiber.Ctx, etag string) bool {
	for tag := range strings.SplitSeq(c.Get(fiber.HeaderIfNoneMatch), ",") {
		if tag = strings.TrimSpace(tag); tag == "*" || strings.TrimPrefix(tag, "W/") == etag {
			return true
		}
	}
	return false
}

// static serves content that changes only with the build. A client that has it already
// gets a 304.
func static(contentType string, content []byte) func(*fiber.Ctx, *query) error {
	etag := fmt.Sprintf(`"%x"`, sha256.Sum256(content))
	return func(c *fiber.Ctx, _ *query) error {
		c.Set(fiber.HeaderCacheControl, "no-cache") // which means: ask whether it has changed
		c.Set(fiber.HeaderETag, etag)
		if hasETag(c, etag) {
			c.Status(fiber.StatusNotModified)
			return nil
		}
		c.Set(fiber.HeaderContentType, contentType)
		return c.Send(content)
	}
}
