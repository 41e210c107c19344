// Package openapi is package contract for the API's tests. Nothing that it exports names a type of
// libopenapi: the compiler instantiates the generic types there for each package that sees them,
// which takes 15 s, and the API's tests change often.
package openapi

import (
	"fmt"
	"net/http"
	"slices"

	"github.com/pb33f/libopenapi/datamodel/high/v3"

	"github.com/passbook/passbook/internal/test/contract"
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
	// CheckRequest returns what is wrong with a request that the document describes.
	CheckRequest(req *http.Request, body string) []string
	// CheckResponse returns what is wrong with the response to such a request.
	CheckResponse(req *http.Request, status int, header http.Header, body []byte) []string
	// CheckRefusal returns what is wrong with a response that belongs to no operation.
	CheckRefusal(method string, status int, header http.Header, body []byte) []string
}

type document struct {
	*contract.Contract
}

// Read reads a document. Every header, parameter and member that it does not declare is a fault,
// except the ignored headers.
func Read(text []byte, ignored ...string) (Document, error) {
	c, err := contract.New(text, ignored...)
	if err != nil {
		return nil, err
	}
	return document{c}, nil
}

// Validate returns what is wrong with the text of a document.
func Validate(text []byte) (faults []string, err error) { return contract.Validate(text) }

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

func (d document) Operations() (all []Operation) {
	for _, route := range d.Routes {
		operation := route.Operation
		o := Operation{
			Method: route.Method, Path: route.Path,
			IsOpen: operation.Security != nil && len(operation.Security) == 0,
		}
		for _, parameter := range slices.Concat(route.Item.Parameters, operation.Parameters) {
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

func (d document) Members() (names []string) {
	for _, proxy := range d.Document.Components.Schemas.FromOldest() {
		if schema := proxy.Schema(); schema != nil && schema.Properties != nil {
			names = slices.AppendSeq(names, schema.Properties.KeysFromOldest())
		}
	}
	return names
}

func (d document) Enum(schema string) (values []string) {
	for _, node := range d.Document.Components.Schemas.GetOrZero(schema).Schema().Enum {
		values = append(values, node.Value)
	}
	return values
}

func (d document) Knows(req *http.Request) bool {
	_, known := d.Find(req.Method, req.URL.EscapedPath())
	return known
}

func (d document) CheckRequest(req *http.Request, body string) []string {
	route, _ := d.Find(req.Method, req.URL.EscapedPath())
	return d.Contract.CheckRequest(route, req, body)
}

func (d document) CheckResponse(req *http.Request, status int, header http.Header, body []byte) []string {
	route, _ := d.Find(req.Method, req.URL.EscapedPath())
	return d.CheckAnswer(route, req, contract.Answer{Status: status, Header: header, Body: body})
}

func (d document) CheckRefusal(method string, status int, header http.Header, body []byte) []string {
	return d.Contract.CheckRefusal(method, contract.Answer{Status: status, Header: header, Body: body})
}
