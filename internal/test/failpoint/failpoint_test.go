package failpoint_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"testing"

	"github.com/passbook/passbook/internal/test/failpoint"
)

// A point that Points does not list would need no row in the table of crashes.
func TestPointsListsEveryPoint(t *testing.T) {
	t.Parallel()
	var declared []failpoint.Point
	file, err := parser.ParseFile(token.NewFileSet(), "failpoint.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(node ast.Node) bool {
		spec, isValue := node.(*ast.ValueSpec)
		if !isValue {
			return true
		}
		if kind, isNamed := spec.Type.(*ast.Ident); !isNamed || kind.Name != "Point" {
			return true
		}
		for _, value := range spec.Values {
			name, err := strconv.Unquote(value.(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			declared = append(declared, failpoint.Point(name))
		}
		if spec.Doc == nil {
			t.Errorf("%s does not say between which steps it stands", spec.Names[0])
		}
		return false
	})
	if len(declared) == 0 || !slices.Equal(declared, failpoint.Points) {
		t.Errorf("Points lists %v, declared are %v", failpoint.Points, declared)
	}
}
