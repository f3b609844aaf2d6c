package tests

import (
	"go/ast"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// markdown returns the text of each Markdown file of the module by its path.
func markdown(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return skipFolder(p, d)
		}
		if filepath.Ext(p) != ".md" {
			return nil
		}
		text, err := os.ReadFile(p)
		all[p] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 10 {
		t.Fatalf("only %d Markdown files found below %s", len(all), root)
	}
	return all
}

// A link or picture of Markdown, to its target without anchor.
var markdownLink = regexp.MustCompile(`\]\(([^)#\s]+)(?:#[^)\s]*)?\)`)

func TestHouseLinksLeadSomewhere(t *testing.T) {
	seen := 0
	for file, text := range markdown(t) {
		for _, m := range markdownLink.FindAllStringSubmatch(text, -1) {
			if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
				continue
			}
			seen++
			if _, err := os.Stat(filepath.Join(filepath.Dir(file), filepath.FromSlash(m[1]))); err != nil {
				t.Errorf("%s: dead link to %s", file, m[1])
			}
		}
	}
	if seen == 0 {
		t.Error("no link was found")
	}
}

// mentioned are files that texts name in code quotes, as docs/architecture.md.
var mentioned = regexp.MustCompile("`((?:docs|tests|examples|scripts|internal)/[\\w./-]+\\.(?:md|go|sh))`")

func TestHouseMentionedFilesExist(t *testing.T) {
	for file, text := range markdown(t) {
		for _, m := range mentioned.FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join(root, filepath.FromSlash(m[1]))); err != nil {
				t.Errorf("%s: names %s, which does not exist", file, m[1])
			}
		}
	}
}

// A test that does not run says why: it must not look like one that passed.
func TestHouseSkipsSayWhy(t *testing.T) {
	for _, s := range sources(t) {
		ast.Inspect(s.ast, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			sel, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			x, ok := sel.X.(*ast.Ident)
			if !ok || !slices.Contains([]string{"t", "b", "tb", "f"}, x.Name) {
				return true
			}
			silent := sel.Sel.Name == "SkipNow" || (sel.Sel.Name == "Skip" || sel.Sel.Name == "Skipf") && len(call.Args) == 0
			if silent {
				t.Errorf("%s:%d: skips without a reason", s.file, s.fset.Position(call.Pos()).Line)
			}
			return true
		})
	}
}
