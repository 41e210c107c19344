// Package openapi reads an OpenAPI document for tests, and checks requests and responses against
// it. Nothing that it exports names a type of libopenapi: the compiler instantiates the generic
// types there for each package that sees them, which takes 15 s, and the API's tests change often.
package openapi

import (
	"bytes"
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

// Document is an OpenAPI document, ready to check requests and responses.
type Document interface {
	// Operations returns the document's operations, in its order.
	Operations() []Operation
	// Members returns the names of the members of all schemas.
	Members() []string
	// Enum returns the values of a schema that lists them.
	Enum(schema string) []string
	// Knows reports whether the request's path and method are described; HEAD is where GET is.
	Knows(req *http.Request) bool
	// CheckRequest returns what is wrong with a request.
	CheckRequest(req *http.Request, body string) []string
	// CheckResponse returns what is wrong with a response to a request.
	CheckResponse(req *http.Request, status int, header http.Header, body []byte) []string
}

type document struct {
	model     *v3.Document
	validator validator.Validator
	headers   validator.Validator // the same without the bodies, for HEAD
}

// Read reads a document. Every header, parameter and member that it does not declare is a fault,
// except the ignored headers.
func Read(text []byte, ignored ...string) (Document, error) {
	read, err := libopenapi.NewDocument(text)
	if err != nil {
		return nil, fmt.Errorf("read OpenAPI document: %w", err)
	}
	model, err := read.BuildV3Model()
	if err != nil {
		return nil, fmt.Errorf("read OpenAPI document: %w", err)
	}
	strict := func(options ...config.Option) validator.Validator {
		options = append(options,
			config.WithFormatAssertions(), config.WithStrictMode(),
			config.WithStrictIgnorePaths("$.body.**"), // overlooks a $ref beside properties; the schemas themselves are closed
			config.WithRejectUnsupportedBodyContent(), config.WithRejectUndeclaredRequestBody(),
			config.WithStrictIgnoredHeaders(ignored...))
		for _, text := range []string{"application/yaml", "text/csv", "text/event-stream", "text/html", "text/javascript", "text/css"} {
			options = append(options, config.WithBodyDecoder(text, content.TextDecoder()))
		}
		return validator.NewValidatorFromV3Model(&model.Model, options...)
	}
	return &document{model: &model.Model, validator: strict(), headers: strict(config.WithoutResponseBodyValidation())}, nil
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

// Operation is an operation of the document.
type Operation struct {
	Method, Path string
	IsOpen       bool // needs no access token
	Parameters   []Parameter
	Example      map[string]any // of its request; nil where it takes no body, or has no example
	Members      []string       // of its request
	Types        []string       // the media types of its 200
	HasBody      bool
}

// Parameter is a parameter of an operation.
type Parameter struct {
	Name, In string
	Value    string // one that it may have
}

func (d *document) Operations() (all []Operation) {
	for path, item := range d.model.Paths.PathItems.FromOldest() {
		for method, operation := range item.GetOperations().FromOldest() {
			o := Operation{
				Method: strings.ToUpper(method), Path: path,
				IsOpen: operation.Security != nil && len(operation.Security) == 0,
			}
			for _, parameter := range slices.Concat(item.Parameters, operation.Parameters) {
				o.Parameters = append(o.Parameters, Parameter{Name: parameter.Name, In: parameter.In, Value: valueOf(parameter)})
			}
			if operation.RequestBody != nil {
				readBody(&o, operation.RequestBody.Content.GetOrZero("application/json"))
			}
			if ok := operation.Responses.Codes.GetOrZero("200"); ok != nil && ok.Content != nil {
				o.Types = slices.Collect(ok.Content.KeysFromOldest())
			}
			all = append(all, o)
		}
	}
	return all
}

func readBody(o *Operation, content *v3.MediaType) {
	o.HasBody = true
	node := content.Example
	if node == nil && content.Examples != nil {
		node = content.Examples.Oldest().Value.Value
	}
	if node != nil {
		_ = node.Decode(&o.Example) // an example of another form is none
	}
	if properties := content.Schema.Schema().Properties; properties != nil {
		o.Members = slices.Collect(properties.KeysFromOldest())
	}
}

// valueOf returns a value that the parameter may have.
func valueOf(parameter *v3.Parameter) string {
	var value any = "x"
	schema := parameter.Schema.Schema()
	switch {
	case parameter.Example != nil:
		_ = parameter.Example.Decode(&value)
	case len(schema.Enum) > 0:
		_ = schema.Enum[0].Decode(&value)
	case schema.Default != nil:
		_ = schema.Default.Decode(&value)
	case schema.Minimum != nil:
		value = *schema.Minimum
	}
	return fmt.Sprint(value)
}

func (d *document) Members() (names []string) {
	for _, proxy := range d.model.Components.Schemas.FromOldest() {
		if schema := proxy.Schema(); schema != nil && schema.Properties != nil {
			names = slices.AppendSeq(names, schema.Properties.KeysFromOldest())
		}
	}
	return names
}

func (d *document) Enum(schema string) (values []string) {
	for _, node := range d.model.Components.Schemas.GetOrZero(schema).Schema().Enum {
		values = append(values, node.Value)
	}
	return values
}

func (d *document) Knows(req *http.Request) bool {
	if strings.HasSuffix(req.URL.Path, "/") || strings.Contains(req.URL.Path, "//") { // the validator overlooks it, routes don't
		return false
	}
	_, faults := d.validator.GetRequestBodyValidator().ValidateRequestBody(asGet(req, ""))
	return !slices.ContainsFunc(faults, func(fault *errors.ValidationError) bool {
		return fault.IsPathMissingError() || fault.IsOperationMissingError()
	})
}

func (d *document) CheckRequest(req *http.Request, body string) []string {
	clone := asGet(req, body)
	if body == "" {
		clone.Body = http.NoBody
	}
	_, faults := d.validator.ValidateHttpRequestSync(clone)
	return texts("request", faults)
}

func (d *document) CheckResponse(req *http.Request, status int, header http.Header, body []byte) []string {
	v := d.validator
	if req.Method == http.MethodHead {
		v = d.headers
	}
	_, faults := v.ValidateHttpResponse(asGet(req, ""), &http.Response{
		StatusCode: status, Header: header, Body: io.NopCloser(bytes.NewReader(body)),
	})
	found := texts("response", faults)
	if status == http.StatusNoContent && len(body) > 0 {
		found = append(found, "response: a body with 204")
	}
	return found
}

// asGet returns the request with its body to be read again, and GET in place of HEAD.
func asGet(req *http.Request, body string) *http.Request {
	clone := req.Clone(req.Context())
	clone.Body = io.NopCloser(strings.NewReader(body))
	if clone.Method == http.MethodHead {
		clone.Method = http.MethodGet
	}
	return clone
}

func texts(what string, faults []*errors.ValidationError) (found []string) {
	for _, fault := range faults {
		parts := []string{fmt.Sprintf("%s: %s: %s", what, fault.Message, fault.Reason)}
		for _, schema := range fault.SchemaValidationErrors {
			parts = append(parts, fmt.Sprintf("%s: %s", schema.FieldPath, schema.Reason))
		}
		found = append(found, strings.Join(parts, "; "))
	}
	return found
}
