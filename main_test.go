package kgroup

// What holds for the package as a whole: its tests leave no goroutine behind, and
// what it exports is written down in testdata/api.txt.

import (
	"bytes"
	"flag"
	"go/ast"
	"go/doc"
	"go/parser"
	"go/printer"
	"go/token"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	// go-metrics starts a ticker with sarama's first meter and never stops it.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/rcrowley/go-metrics.(*meterArbiter).tick"))
}

var update = flag.Bool("update", false, "write testdata/api.txt anew")

const (
	apiFile  = "testdata/api.txt"
	maxNames = 64
)

// Whoever adds, changes or removes an exported name sees it in a diff that is reviewed.
func TestAPI(t *testing.T) {
	a := readAPI(t)
	got := strings.Join(a.lines, "\n") + "\n"
	if *update {
		require.NoError(t, os.WriteFile(apiFile, []byte(got), 0o644))
	}
	want, err := os.ReadFile(apiFile)
	require.NoError(t, err)
	assert.Equal(t, string(want), got, "if this is meant: go test -run TestAPI -update . and commit %s", apiFile)
	assert.LessOrEqual(t, a.names, maxNames, "package-level names: is each of them needed?")
}

func TestEveryExportedNameIsDocumented(t *testing.T) {
	assert.Empty(t, readAPI(t).undocumented)
}

// An api is the exported surface of the package.
type api struct {
	lines        []string // one for each name, its type or signature included
	names        int      // of the package itself: no fields, no methods
	undocumented []string

	fset *token.FileSet
	doc  *doc.Package
}

func readAPI(t *testing.T) *api {
	t.Helper()
	a := &api{fset: token.NewFileSet()}
	entries, err := fs.Glob(os.DirFS("."), "*.go")
	require.NoError(t, err)
	var files []*ast.File
	for _, name := range entries {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(a.fset, name, nil, parser.ParseComments)
		require.NoError(t, err)
		files = append(files, file)
	}
	a.doc, err = doc.NewFromFiles(a.fset, files, "github.com/kgroup-go/kgroup")
	require.NoError(t, err)

	a.values(a.doc.Consts, "const")
	a.values(a.doc.Vars, "var")
	a.functions(a.doc.Funcs)
	for _, typ := range a.doc.Types {
		a.values(typ.Consts, "const")
		a.values(typ.Vars, "var")
		a.functions(typ.Funcs)
		a.typ(typ)
	}
	slices.Sort(a.lines)
	return a
}

// values adds constants and variables. In a group each needs a comment of its own.
func (a *api) values(values []*doc.Value, kind string) {
	for _, v := range values {
		for _, spec := range v.Decl.Specs {
			spec := spec.(*ast.ValueSpec) // constants and variables are nothing else
			for _, name := range spec.Names {
				if !name.IsExported() {
					continue
				}
				line := kind + " " + name.Name
				if spec.Type != nil {
					line += " " + a.print(spec.Type)
				}
				a.add(line, true, spec.Doc.Text()+spec.Comment.Text() != "" || len(v.Decl.Specs) == 1 && v.Doc != "")
			}
		}
	}
}

func (a *api) functions(functions []*doc.Func) {
	for _, f := range functions {
		f.Decl.Body, f.Decl.Doc = nil, nil
		// What Error and String do is said in their interfaces.
		ofInterface := f.Recv != "" && (f.Name == "Error" || f.Name == "String")
		a.add(a.print(f.Decl), f.Recv == "", f.Doc != "" || ofInterface)
	}
}

func (a *api) typ(typ *doc.Type) {
	spec := typ.Decl.Specs[0].(*ast.TypeSpec) // types are nothing else
	switch t := spec.Type.(type) {
	case *ast.StructType:
		a.add("type "+typ.Name+" struct", true, typ.Doc != "")
		for _, field := range t.Fields.List {
			if len(field.Names) == 0 {
				a.add("embeds "+typ.Name+" "+a.print(field.Type), false, true)
			}
			for _, name := range field.Names {
				if name.IsExported() {
					a.add("field "+typ.Name+"."+name.Name+" "+a.print(field.Type), false, true)
				}
			}
		}
	case *ast.InterfaceType:
		a.add("type "+typ.Name+" interface", true, typ.Doc != "")
		for _, method := range t.Methods.List {
			for _, name := range method.Names {
				a.add("field "+typ.Name+"."+name.Name+" "+a.print(method.Type), false, true)
			}
		}
	default:
		a.add("type "+typ.Name+" "+a.print(spec.Type), true, typ.Doc != "")
	}
	a.functions(typ.Methods)
}

func (a *api) add(line string, packageLevel, documented bool) {
	a.lines = append(a.lines, line)
	if packageLevel {
		a.names++
	}
	if !documented {
		a.undocumented = append(a.undocumented, line)
	}
}

func (a *api) print(node any) string {
	var b bytes.Buffer
	_ = printer.Fprint(&b, a.fset, node) // a bytes.Buffer takes everything
	return strings.Join(strings.Fields(b.String()), " ")
}
