package api

import (
	"github.com/gofiber/fiber/v2"

	"github.com/passbook/passbook/internal/ops"
)

func (a *API) livez(c *fiber.Ctx, _ *query) error {
	return c.JSON(map[string]string{"status": "ok"})
}

func (a *API) readyz(c *fiber.Ctx, _ *query) error {
	readiness := a.cfg.Checks.Readiness()
	if a.isStopping() {
		readiness.Status = ops.ShuttingDown
	}
	return c.Status(readiness.HTTPStatus()).JSON(readiness)
}
