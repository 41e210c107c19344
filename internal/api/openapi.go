package api

import (
	"crypto/sha256"
	_ "embed"
	"fmt"
	"sync"

	"github.com/goccy/go-yaml"
	"github.com/gofiber/fiber/v2"
)

//go:embed openapi.yaml
var openAPIYAML []byte

// openAPIJSON is openapi.yaml as JSON. It is made once a process: a process of tests makes many APIs.
var openAPIJSON = sync.OnceValues(func() ([]byte, error) {
	asJSON, err := yaml.YAMLToJSON(openAPIYAML)
	if err != nil {
		return nil, fmt.Errorf("read openapi.yaml: %w", err)
	}
	return asJSON, nil
})

// static serves content that changes only with the build. A client that has it already
// gets a 304.
func static(contentType string, content []byte) func(*fiber.Ctx, *query) error {
	etag := fmt.Sprintf(`"%x"`, sha256.Sum256(content))
	return func(c *fiber.Ctx, _ *query) error {
		c.Set(fiber.HeaderCacheControl, "no-cache") // which means: ask whether it has changed
		c.Set(fiber.HeaderETag, etag)
		if c.Get(fiber.HeaderIfNoneMatch) == etag {
			c.Status(fiber.StatusNotModified)
			return nil
		}
		c.Set(fiber.HeaderContentType, contentType)
		return c.Send(content)
	}
}
