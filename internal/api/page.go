package api

import (
	"fmt"
	"net/url"
	"time"

	"github.com/gofiber/fiber/v2"
)

// pageBody is a page of any list.
type pageBody[T any] struct {
	Data       []T     `json:"data"`
	HasMore    bool    `json:"has_more"`
	NextCursor *string `json:"next_cursor"`
}

// sendPage answers with up to limit items. One item more than limit means that there is a next
// page. position returns an item's position in the list.
func sendPage[I, B any](c *fiber.Ctx, cursors cursors, list string, limit int, items []I, toBody func(I) B, position func(I) int64) error {
	page := pageBody[B]{Data: make([]B, 0, limit)}
	if len(items) > limit {
		items = items[:limit]
		next := cursors.encode(list, position(items[limit-1]))
		page.HasMore, page.NextCursor = true, &next
		c.Set(fiber.HeaderLink, fmt.Sprintf(`<%s>; rel="next"`, withCursor(c, next)))
	}
	for _, item := range items {
		page.Data = append(page.Data, toBody(item))
	}
	return c.JSON(page)
}

// withCursor returns the request's path and query with the cursor of the next page.
func withCursor(c *fiber.Ctx, cursor string) string {
	values := url.Values{}
	for key, value := range c.Request().URI().QueryArgs().All() {
		values.Set(string(key), string(value))
	}
	values.Set("cursor", cursor)
	return c.Path() + "?" + values.Encode()
}

// timestamp is a time as the contract writes it: RFC 3339, UTC, microseconds.
type timestamp time.Time

func (t timestamp) String() string {
	return time.Time(t).UTC().Format("2006-01-02T15:04:05.000000Z")
}

// MarshalText writes the time.
func (t timestamp) MarshalText() ([]byte, error) {
	return []byte(t.String()), nil
}
