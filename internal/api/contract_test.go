package api

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	"github.com/pb33f/libopenapi-validator/config"
	"github.com/pb33f/libopenapi-validator/content"
	"github.com/pb33f/libopenapi-validator/errors"
	"github.com/pb33f/libopenapi/datamodel/high/v3"
)

// contract is openapi.yaml, ready to hold requests and responses against.
type contract struct {
	model     *v3.Document
	validator validator.Validator
	headers   validator.Validator // the same without the bodies, for HEAD
}

// Responses that belong to no path are held against one of the test's own.
const nowherePath = `paths:
  /nowhere:
    get:
      security: []
      responses:
        default:
          description: Nothing is here.
          headers:
            X-Request-Id: { $ref: '#/components/headers/X-Request-Id' }
            Allow: { schema: { type: string, pattern: '^[A-Z]+(, [A-Z]+)*$' } }
            WWW-Authenticate: { schema: { type: string, const: Bearer } }
          content:
            application/problem+json:
              schema: { $ref: '#/components/schemas/Problem' }
`

var theContract = sync.OnceValues(func() (*contract, error) {
	text := bytes.Replace(openAPIYAML, []byte("\npaths:\n"), []byte("\n"+nowherePath), 1)
	document, err := libopenapi.NewDocument(text)
	if err != nil {
		return nil, err
	}
	model, err := document.BuildV3Model()
	if err != nil {
		return nil, err
	}
	strict := func(more ...config.Option) validator.Validator {
		return validator.NewValidatorFromV3Model(&model.Model, append(more,
			config.WithFormatAssertions(), config.WithStrictMode(),
			config.WithStrictIgnorePaths("$.body.**"), // overlooks a $ref beside properties; the schemas themselves are closed
			config.WithBodyDecoder("application/yaml", content.TextDecoder()),
			config.WithBodyDecoder("text/csv", content.TextDecoder()),
			config.WithBodyDecoder("text/event-stream", content.TextDecoder()),
			config.WithBodyDecoder("text/html", content.TextDecoder()),
			config.WithBodyDecoder("text/javascript", content.TextDecoder()),
			config.WithBodyDecoder("text/css", content.TextDecoder()),
			config.WithRejectUnsupportedBodyContent(), config.WithRejectUndeclaredRequestBody(),
			config.WithStrictIgnoredHeaders(
				"Accept", "Authorization", "Connection", "Content-Length", "Content-Type", "Date", "Keep-Alive", "X-Forwarded-For", "X-Request-Id",
				"Cache-Control", "X-Content-Type-Options", // which checkCommon checks
				// What attacks send, and the API does not look at.
				"Origin", "Referer", "Cookie", "X-Forwarded-Host", "X-Forwarded-Proto", "Forwarded", "X-Original-Url", "X-Rewrite-Url", "X-Host",
				"X-Http-Method-Override", "X-Http-Method", "X-Method-Override"))...)
	}
	return &contract{model: &model.Model, validator: strict(), headers: strict(config.WithoutResponseBodyValidation())}, nil
})

// againstContract returns what is wrong with an answer, and with the request, if
// it was not refused. req is nil where what was sent may be no request.
func againstContract(t *testing.T, req *http.Request, sent string, a answer) []string {
	t.Helper()
	c, err := theContract()
	if err != nil {
		t.Fatal(err)
	}
	faults := checkCommon(req, a)
	if req == nil || !c.knows(req) || isOfAnyRoute(req, a) {
		if a.status < http.StatusBadRequest {
			return []string{"an answer to what is not described"}
		}
		nowhere, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://test/nowhere", nil)
		if err != nil {
			t.Fatal(err)
		}
		return append(faults, c.checkResponse(nowhere, a)...)
	}
	faults = append(faults, c.checkResponse(req, a)...)
	if a.status < http.StatusBadRequest || a.status == http.StatusConflict || a.status == http.StatusTooManyRequests {
		faults = append(faults, c.checkRequest(req, sent)...)
	}
	return faults
}

// isOfAnyRoute reports whether the server refuses the request before it looks for a route, as the
// description of the contract says.
func isOfAnyRoute(req *http.Request, a answer) bool {
	takesNoBody := req.Method == http.MethodGet || req.Method == http.MethodHead
	return a.status == http.StatusRequestHeaderFieldsTooLarge || a.status == http.StatusRequestEntityTooLarge && takesNoBody
}

// checkCommon checks the headers that every answer has.
func checkCommon(req *http.Request, a answer) (faults []string) {
	want := []string{"no-store"}
	if req != nil && a.status < http.StatusBadRequest && isDocument(req.URL.Path) {
		want = []string{"no-cache"} // with an ETag
	}
	if got := a.header.Values("Cache-Control"); !slices.Equal(got, want) {
		faults = append(faults, fmt.Sprintf("Cache-Control: %q, want %q", got, want))
	}
	if got := a.header.Values("X-Content-Type-Options"); !slices.Equal(got, []string{"nosniff"}) {
		faults = append(faults, fmt.Sprintf("X-Content-Type-Options: %q, want nosniff", got))
	}
	return faults
}

// isDocument reports whether the path is of the contract or of the page that shows it.
func isDocument(path string) bool {
	return strings.HasPrefix(path, "/openapi.") || path == "/docs" || strings.HasPrefix(path, "/docs/")
}

// knows reports whether the request's path and method are described; HEAD is
// where GET is.
func (c *contract) knows(req *http.Request) bool {
	if strings.HasSuffix(req.URL.Path, "/") || strings.Contains(req.URL.Path, "//") { // the validator overlooks it, routes don't
		return false
	}
	_, faults := c.validator.GetRequestBodyValidator().ValidateRequestBody(asGet(req, ""))
	return !slices.ContainsFunc(faults, func(fault *errors.ValidationError) bool {
		return fault.IsPathMissingError() || fault.IsOperationMissingError()
	})
}

func asGet(req *http.Request, sent string) *http.Request {
	clone := req.Clone(req.Context())
	clone.Body = io.NopCloser(strings.NewReader(sent))
	if clone.Method == http.MethodHead {
		clone.Method = http.MethodGet
	}
	return clone
}

func (c *contract) checkRequest(req *http.Request, sent string) []string {
	clone := asGet(req, sent)
	if sent == "" {
		clone.Body = http.NoBody
	}
	_, faults := c.validator.ValidateHttpRequestSync(clone)
	return texts("request", faults)
}

func (c *contract) checkResponse(req *http.Request, a answer) []string {
	v := c.validator
	if req.Method == http.MethodHead {
		v = c.headers
	}
	_, faults := v.ValidateHttpResponse(asGet(req, ""), &http.Response{
		StatusCode: a.status, Header: a.header, Body: io.NopCloser(bytes.NewReader(a.body)),
	})
	found := texts("response", faults)
	if a.status == http.StatusNoContent && len(a.body) > 0 {
		found = append(found, "response: a body with 204")
	}
	return found
}

func texts(what string, faults []*errors.ValidationError) (found []string) {
	for _, fault := range faults {
		text := fmt.Sprintf("%s: %s: %s", what, fault.Message, fault.Reason)
		for _, schema := range fault.SchemaValidationErrors {
			text += fmt.Sprintf("; %s: %s", schema.FieldPath, schema.Reason)
		}
		found = append(found, text)
	}
	return found
}
