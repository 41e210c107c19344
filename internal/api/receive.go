package api

import (
	"bytes"
	"io"
	"strconv"

	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"
)

// maxHeaders bounds the number of a request's headers: until a connection ends, fasthttp keeps
// memory for the largest number that it has had.
const maxHeaders = 100

// received reads a request's body before next handles the request. It answers a body that can't be
// read with an error and closes the connection: where the next request begins is unknown.
func (a *API) received(next fasthttp.RequestHandler) fasthttp.RequestHandler {
	return func(c *fasthttp.RequestCtx) {
		body, err := receive(&c.Request)
		if err != nil {
			a.app.Server().ErrorHandler(c, err)
			c.SetConnectionClose()
			return
		}
		c.Request.SetBodyRaw(body)
		next(c)
	}
}

// receive reads the body, maxBody bytes at most. Its memory grows as the body arrives; fasthttp
// itself would allocate at once what the client announces.
func receive(request *fasthttp.Request) ([]byte, error) {
	if bytes.Count(request.Header.RawHeaders(), []byte("\n")) > maxHeaders+1 { // and the empty line
		return nil, &fasthttp.ErrSmallBuffer{}
	}
	length := request.Header.ContentLength()
	if length == 0 && announced(&request.Header) > maxBody {
		return nil, fasthttp.ErrBodyTooLarge
	}
	stream := request.BodyStream()
	if stream == nil {
		return nil, nil
	}
	body, err := io.ReadAll(io.LimitReader(stream, maxBody+1))
	switch {
	case err != nil:
		return nil, err
	case len(body) > maxBody:
		return nil, fasthttp.ErrBodyTooLarge
	case len(body) < length: // the client has closed the connection, which fasthttp's stream does not report
		return nil, io.ErrUnexpectedEOF
	}
	return body, nil
}

// refuseAnnounced makes fasthttp neither request nor read a body with a Content-Length above
// maxBody. receive then refuses it by its headers alone.
func refuseAnnounced(header *fasthttp.RequestHeader) fasthttp.RequestConfig {
	if header.ContentLength() > maxBody {
		header.Del(fiber.HeaderExpect)
		header.SetContentLength(0)
	}
	return fasthttp.RequestConfig{}
}

// announced returns the Content-Length that the client sent, which refuseAnnounced may have
// replaced; 0 where there is none.
func announced(header *fasthttp.RequestHeader) int {
	for line := range bytes.SplitSeq(header.RawHeaders(), []byte("\r\n")) {
		name, value, _ := bytes.Cut(line, []byte(":"))
		if bytes.EqualFold(name, []byte(fiber.HeaderContentLength)) {
			length, _ := strconv.Atoi(string(bytes.TrimSpace(value))) // fasthttp has read it
			return length
		}
	}
	return 0
}
