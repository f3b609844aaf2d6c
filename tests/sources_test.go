package tests

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

const module = "github.com/vitrine-vmi/vitrine"

// root is the module's directory, from that of this test.
const root = ".."

// source is one Go file of the module.
type source struct {
	file string // path below root, with slashes
	pkg  string // folder below root, "." for the root
	test bool
	text []byte
	ast  *ast.File
	fset *token.FileSet
}

// imports returns the import paths, those of the module as folders below root and "./" in front.
func (s *source) imports(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, i := range s.ast.Imports {
		p, err := strconv.Unquote(i.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		if p == module {
			p = "."
		} else if rest, ok := strings.CutPrefix(p, module+"/"); ok {
			p = "./" + rest
		}
		all = append(all, p)
	}
	return all
}

// sources parses every Go file of the module. It reads the files themselves: a test that asks the go command is served
// stale from the test cache.
func sources(t *testing.T) []*source {
	t.Helper()
	all, err := parsed()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 50 {
		t.Fatalf("only %d Go files found below %s", len(all), root)
	}
	return all
}

var parsed = sync.OnceValues(parseAll)

func parseAll() (all []*source, err error) {
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return skipFolder(p, d)
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		s, err := parse(p)
		if err != nil {
			return err
		}
		all = append(all, s)
		return nil
	})
	return all, err
}

// skipFolder leaves out what is not of this module.
func skipFolder(p string, d fs.DirEntry) error {
	name := d.Name()
	if p == root {
		return nil
	}
	if name == "testdata" || name == "vendor" || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") {
		return fs.SkipDir
	}
	if _, err := os.Stat(filepath.Join(p, "go.mod")); err == nil {
		return fs.SkipDir // another module
	}
	return nil
}

func parse(p string) (*source, error) {
	text, err := os.ReadFile(p)
	if err != nil {
		return nil, err
	}
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, p, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	rel, err := filepath.Rel(root, p)
	if err != nil {
		return nil, err
	}
	rel = filepath.ToSlash(rel)
	return &source{file: rel, pkg: path.Dir(rel), test: strings.HasSuffix(rel, "_test.go"), text: text, ast: f, fset: fset}, nil
}

// packages groups files that are not tests by their folder.
func packages(all []*source) map[string][]*source {
	byPkg := map[string][]*source{}
	for _, s := range all {
		if !s.test {
			byPkg[s.pkg] = append(byPkg[s.pkg], s)
		}
	}
	return byPkg
}

// isStandard tells the standard library by the first element of the path, which has no dot there.
func isStandard(importPath string) bool {
	first, _, _ := strings.Cut(importPath, "/")
	return !strings.Contains(first, ".")
}

// covers says whether one of the patterns is the path, or ends in "/*" and leads to it.
func covers(patterns []string, p string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		if pattern == p {
			return true
		}
		folder, ok := strings.CutSuffix(pattern, "/*")
		return ok && strings.HasPrefix(p, folder+"/")
	})
}
