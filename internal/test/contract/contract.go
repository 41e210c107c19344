// Package contract checks requests and answers against an OpenAPI document.
package contract

import (
	"bytes"
	stderrors "errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	"github.com/pb33f/libopenapi-validator/config"
	"github.com/pb33f/libopenapi-validator/content"
	"github.com/pb33f/libopenapi-validator/errors"
	"github.com/pb33f/libopenapi/datamodel/high/v3"
)

// Contract is an OpenAPI document, ready to check requests and answers.
type Contract struct {
	Document *v3.Document
	Routes   []Route // every operation, in the document's order
	whole    validator.Validator
	heads    validator.Validator // the same without bodies, for answers to HEAD
	nowhere  Route               // describes the answers that belong to no operation
}

// Answer is a response that has been read.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

func (a Answer) String() string {
	return fmt.Sprintf("%d %v\n%s", a.Status, a.Header, a.Body)
}

// nowherePath is the path that describes the answers which belong to no operation.
const nowherePath = "/nowhere"

const nowhere = `paths:
  ` + nowherePath + `:
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

// undeclared are the headers that no operation needs to declare.
var undeclared = []string{
	"Accept", "Authorization", "Connection", "Content-Length", "Content-Type", "Date", "Keep-Alive", "X-Request-Id",
	"X-Forwarded-For",        // of proxies
	headerCache, headerSniff, // checkCommon checks them
}

const (
	headerCache = "Cache-Control"
	headerSniff = "X-Content-Type-Options"
)

// New reads a document. Every parameter and member that it does not declare is a fault, and so is
// every header, except those that no operation needs to declare and the ignored ones.
func New(document []byte, ignored ...string) (*Contract, error) {
	text := bytes.Replace(document, []byte("\npaths:\n"), []byte("\n"+nowhere), 1)
	read, err := libopenapi.NewDocument(text)
	if err != nil {
		return nil, fmt.Errorf("read OpenAPI document: %w", err)
	}
	model, err := read.BuildV3Model()
	if err != nil {
		return nil, fmt.Errorf("read OpenAPI document: %w", err)
	}
	c := &Contract{Document: &model.Model}
	for path, item := range c.Document.Paths.PathItems.FromOldest() {
		for method, operation := range item.GetOperations().FromOldest() {
			route := Route{Method: strings.ToUpper(method), Path: path, Item: item, Operation: operation}
			if path == nowherePath {
				c.nowhere = route
			} else {
				c.Routes = append(c.Routes, route)
			}
		}
	}
	if c.nowhere.Item == nil {
		return nil, stderrors.New("read OpenAPI document: no line \"paths:\"")
	}
	ignored = slices.Concat(ignored, undeclared)
	c.whole, c.heads = c.strict(ignored), c.strict(ignored, config.WithoutResponseBodyValidation())
	return c, nil
}

// Validate returns what is wrong with the text of a document.
func Validate(text []byte) (faults []string, err error) {
	read, err := libopenapi.NewDocument(text)
	if err != nil {
		return nil, fmt.Errorf("read OpenAPI document: %w", err)
	}
	v, errs := validator.NewValidator(read)
	if len(errs) > 0 {
		return nil, fmt.Errorf("read OpenAPI document: %v", errs)
	}
	_, found := v.ValidateDocument()
	return texts("document", found), nil
}

func (c *Contract) strict(ignored []string, more ...config.Option) validator.Validator {
	options := append(more,
		config.WithFormatAssertions(), config.WithStrictMode(),
		config.WithStrictIgnorePaths("$.body**"), // the strict check overlooks a $ref beside properties; the schemas themselves are closed
		config.WithRejectUnsupportedBodyContent(), config.WithRejectUndeclaredRequestBody(),
		config.WithStrictIgnoredHeaders(ignored...))
	for _, text := range []string{"application/yaml", "text/csv", "text/html", "text/javascript", "text/css", "text/event-stream"} {
		options = append(options, config.WithBodyDecoder(text, content.TextDecoder()))
	}
	return validator.NewValidatorFromV3Model(c.Document, options...)
}

// Route is an operation of the document.
type Route struct {
	Method, Path string // the path with {parameters}
	Item         *v3.PathItem
	Operation    *v3.Operation
}

func (r Route) String() string { return r.Method + " " + r.Path }

// Find returns the operation that a method and an escaped path name, as the API routes requests: to
// the letter. HEAD is where GET is.
func (c *Contract) Find(method, escapedPath string) (Route, bool) {
	if method == http.MethodHead {
		method = http.MethodGet
	}
	for _, route := range c.Routes {
		if route.Method == method && matches(route.Path, escapedPath) {
			return route, true
		}
	}
	return Route{}, false
}

func matches(template, path string) bool {
	want, got := strings.Split(template, "/"), strings.Split(path, "/")
	return len(want) == len(got) && !slices.ContainsFunc(want, func(segment string) bool {
		one := got[0]
		got = got[1:]
		return segment != one && (!strings.HasPrefix(segment, "{") || one == "")
	})
}

// CheckRequest returns what is wrong with a request for the route.
func (c *Contract) CheckRequest(route Route, req *http.Request, body string) []string {
	return texts("request", c.requestFaults(route, req, body))
}

// CheckValidity is CheckRequest without the headers that the operation does not know: HTTP lets a
// client send them.
func (c *Contract) CheckValidity(route Route, req *http.Request, body string) []string {
	return texts("request", slices.DeleteFunc(c.requestFaults(route, req, body), func(fault *errors.ValidationError) bool {
		return fault.ValidationSubType == errors.StrictSubTypeHeader || fault.ValidationSubType == errors.StrictSubTypeCookie
	}))
}

func (c *Contract) requestFaults(route Route, req *http.Request, body string) []*errors.ValidationError {
	_, faults := c.whole.ValidateHttpRequestSyncWithPathItem(asGet(req, body), route.Item, route.Path)
	return faults
}

// CheckAnswer returns what is wrong with the route's answer to a request.
func (c *Contract) CheckAnswer(route Route, req *http.Request, a Answer) []string {
	v := c.whole
	if req.Method == http.MethodHead {
		v = c.heads
	}
	_, faults := v.GetResponseBodyValidator().ValidateResponseBodyWithPathItem(asGet(req, ""), &http.Response{
		StatusCode: a.Status, Header: a.Header, Body: io.NopCloser(bytes.NewReader(a.Body)),
	}, route.Item, route.Path)
	found := append(texts("response", faults), checkCommon(route, a)...)
	if len(a.Body) > 0 && (a.Status == http.StatusNoContent || a.Status == http.StatusNotModified || req.Method == http.MethodHead) {
		found = append(found, "response: a body where there can be none")
	}
	return found
}

// CheckRefusal returns what is wrong with an answer that belongs to no operation. Of the request only
// the method counts.
func (c *Contract) CheckRefusal(method string, a Answer) []string {
	if a.Status < http.StatusBadRequest {
		return []string{"response: an answer to what is not described"}
	}
	if method != http.MethodHead {
		method = http.MethodGet
	}
	req, err := http.NewRequest(method, "http://test"+nowherePath, nil) //nolint:noctx // it is never sent
	if err != nil {
		return []string{err.Error()}
	}
	return c.CheckAnswer(c.nowhere, req, a)
}

// checkCommon checks the headers that every answer has. Caches may keep the document and the page
// that shows it, and must ask whether they have changed.
func checkCommon(route Route, a Answer) (found []string) {
	cache := "no-store"
	if a.Status < http.StatusBadRequest && isDocument(route.Path) {
		cache = "no-cache" // with an ETag
	}
	for header, want := range map[string]string{headerCache: cache, headerSniff: "nosniff"} {
		if got := a.Header.Values(header); !slices.Equal(got, []string{want}) {
			found = append(found, fmt.Sprintf("response: %s: %q, want %s", header, got, want))
		}
	}
	return found
}

func isDocument(path string) bool {
	return strings.HasPrefix(path, "/openapi.") || path == "/docs" || strings.HasPrefix(path, "/docs/")
}

// asGet returns the request with its body to be read again, and GET in place of HEAD.
func asGet(req *http.Request, body string) *http.Request {
	clone := req.Clone(req.Context())
	clone.Body = http.NoBody
	if body != "" {
		clone.Body = io.NopCloser(strings.NewReader(body))
	}
	if clone.Method == http.MethodHead {
		clone.Method = http.MethodGet
	}
	return clone
}

func texts(what string, faults []*errors.ValidationError) (found []string) {
	for _, fault := range faults {
		parts := []string{fmt.Sprintf("%s: %s: %s", what, fault.Message, fault.Reason)}
		for _, schema := range fault.SchemaValidationErrors {
			parts = append(parts, schema.FieldPath+": "+schema.Reason)
		}
		found = append(found, strings.Join(parts, "; "))
	}
	return found
}
