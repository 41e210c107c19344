package api

import (
	"embed"
	"fmt"
	"path"

	"github.com/gofiber/fiber/v2"
)

// The page and Swagger UI, which make docs-assets renews from npm.
//
//go:embed docs
var docsFiles embed.FS

// docsPolicy lets the page load files and send requests to this API alone. Swagger UI's
// icons are data: URLs in its style sheet.
const docsPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// docsRoutes serve the page at /docs and the files that it loads.
func docsRoutes() (routes []route, err error) {
	for _, file := range []struct{ path, name, contentType string }{
		{"/docs", "index.html", "text/html; charset=utf-8"},
		{"/docs/start.js", "start.js", "text/javascript; charset=utf-8"},
		{"/docs/swagger-ui-bundle.js", "swagger-ui/swagger-ui-bundle.js", "text/javascript; charset=utf-8"},
		{"/docs/swagger-ui.css", "swagger-ui/swagger-ui.css", "text/css; charset=utf-8"},
	} {
		content, err := docsFiles.ReadFile(path.Join("docs", file.name))
		if err != nil {
			return nil, fmt.Errorf("read file of /docs: %w", err)
		}
		serve := static(file.contentType, content)
		routes = append(routes, route{
			method: fiber.MethodGet, path: file.path, open: true, noOutcome: true,
			handle: func(c *fiber.Ctx, q *query) error {
				c.Set(fiber.HeaderContentSecurityPolicy, docsPolicy)
				return serve(c, q)
			},
		})
	}
	return routes, nil
}
