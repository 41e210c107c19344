package api

import (
	"bytes"
	"slices"

	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"
)

// once are the headers that may occur once: a proxy could read a second one, or one in the
// trailer, in another way than the API.
var once = [...]string{
	fiber.HeaderHost, fiber.HeaderContentLength, fiber.HeaderTransferEncoding,
	fiber.HeaderAuthorization, fiber.HeaderContentType, headerKey,
}

// isFramed reports whether every proxy reads the same request from these bytes: no bare CR or LF,
// no folded header, each header of once at most once, not in the trailer, and no fragment in the
// target, which fasthttp drops and a proxy may read as a part of the path. fasthttp checks
// everything else.
func isFramed(c *fasthttp.RequestCtx) bool {
	header := &c.Request.Header
	version := string(header.Protocol())
	if version != "HTTP/1.1" && (version != "HTTP/1.0" || len(header.Peek(fiber.HeaderTransferEncoding)) > 0) {
		return false
	}
	if bytes.ContainsFunc(header.RequestURI(), func(c rune) bool { return c <= ' ' || c == '#' || c == '\x7f' }) {
		return false
	}
	var counts [len(once)]int // by index in once
	for line := range bytes.SplitSeq(header.RawHeaders(), []byte("\r\n")) {
		if len(line) == 0 {
			continue
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		if bytes.ContainsAny(line, "\r\n\x00") || bytes.ContainsAny(name, " \t") {
			return false
		}
		for i, single := range once {
			if !bytes.EqualFold(name, []byte(single)) {
				continue
			}
			counts[i]++
			if single == fiber.HeaderHost && bytes.ContainsAny(bytes.TrimSpace(value), " \t,/@") {
				return false
			}
			if single == fiber.HeaderTransferEncoding && !bytes.EqualFold(bytes.TrimSpace(value), []byte("chunked")) {
				return false
			}
		}
	}
	count := func(name string) int { return counts[slices.Index(once[:], name)] }
	for i, name := range once {
		if counts[i] > 1 || counts[i] == 0 && len(header.Peek(name)) > 0 && name != fiber.HeaderContentLength {
			return false
		}
	}
	if count(fiber.HeaderTransferEncoding) > 0 && (count(fiber.HeaderContentLength) > 0 ||
		len(header.PeekAll(headerKey)) > 1) { // one of them in the trailer; fasthttp refuses the other headers there
		return false
	}
	return count(fiber.HeaderHost) == 1 || version == "HTTP/1.0"
}
