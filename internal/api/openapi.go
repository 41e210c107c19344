package api

import (
	_ "embed"
	"fmt"

	"github.com/goccy/go-yaml"
	"github.com/gofiber/fiber/v2"
)

//go:embed openapi.yaml
var openAPIYAML []byte

// openAPI is the contract in both of its forms.
func openAPI() (asYAML, asJSON []byte, err error) {
	asJSON, err = yaml.YAMLToJSON(openAPIYAML)
	if err != nil {
		return nil, nil, fmt.Errorf("read openapi.yaml: %w", err)
	}
	return openAPIYAML, asJSON, nil
}

func static(contentType string, content []byte) func(*fiber.Ctx, *query) error {
	return func(c *fiber.Ctx, _ *query) error {
		c.Set(fiber.HeaderContentType, contentType)
		return c.Send(content)
	}
}
