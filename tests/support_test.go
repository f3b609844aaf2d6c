package tests

import (
	"cmp"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vitrine-vmi/vitrine/internal/testvm"
)

var update = flag.Bool("update", false, "write docs/support-matrix.md anew")

const supportMatrix = "../docs/support-matrix.md"

// areas are what the tests of a package on real guests cover, in the order of the page's columns.
var areas = []struct{ pkg, what string }{
	{"kernel", "kernel identified"},
	{"osi/linux", "processes, modules, memory, files"},
	{"tests", "everything read, compared with /proc"},
	{"syscalls", "system call tables"},
	{"probe", "functions hooked"},
	{"trace", "system calls traced"},
	{"tests/cli", "the program"},
}

// usage is what the tests of one package boot.
type usage struct {
	kernels, skips map[string]bool
	wished         map[string]string // kernels that are booted when a variable of the environment is set: its name
}

// The page of supported guests says what the tests boot, no more and no less: it is made from their sources. A kernel that
// a test is taken off disappears from it.
func TestSupportMatrixIsWhatTestsBoot(t *testing.T) {
	want := supportPage(t)
	if *update {
		if err := os.WriteFile(supportMatrix, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(supportMatrix)
	if err != nil || string(got) != want {
		t.Errorf("docs/support-matrix.md is not what the tests boot (%v): go test ./tests -run SupportMatrix -update", err)
	}
}

func supportPage(t *testing.T) string {
	var b strings.Builder
	b.WriteString("# Guests that are tested\n\nMade from the sources of the tests by `go test ./tests -run SupportMatrix -update`; `make test` boots these under QEMU\nwith TCG; where a variable is named, only when that is set in the environment (to 1). What is not listed may work: nothing\nis decided by a version.\n\nKernels are Debian's, with KASLR on; x86-64 ones but for those that are named arm64, which run on a Cortex-A72 or what QEMU calls max.\n\n| kernel |")
	for _, a := range areas {
		b.WriteString(" " + a.what + " |")
	}
	b.WriteString("\n|---|" + strings.Repeat(":-:|", len(areas)) + "\n")
	used := map[string]usage{}
	for _, a := range areas {
		used[a.pkg] = booted(t, a.pkg)
	}
	for _, k := range kernelsInOrder() {
		row := "| " + k + " |"
		for _, a := range areas {
			row += used[a.pkg].cell(k)
		}
		if strings.ContainsAny(row, "y`") {
			b.WriteString(row + "\n")
		}
	}
	b.WriteString("\nThe matrix of everything read, one guest a line:\n\n| kernel | CPU | vCPUs | machine | RAM | MiB |\n|---|---|---|---|---|---|\n")
	for _, o := range matrix {
		ram := cmp.Or(string(o.RAM), "private")
		fmt.Fprintf(&b, "| %s | %s | %d | %s | %s | %d |\n", o.Kernel, o.CPU, o.CPUs, o.Machine, ram, cmp.Or(o.Memory, 512))
	}
	b.WriteString("\nTests that can be left out, with the reason they give:\n\n")
	for _, a := range areas {
		for _, s := range sorted(used[a.pkg].skips) {
			fmt.Fprintf(&b, "* `%s`: %s\n", a.pkg, s)
		}
	}
	return b.String()
}

// cell tells of one kernel.
func (u usage) cell(kernel string) string {
	switch {
	case u.kernels[kernel]:
		return " yes |"
	case u.wished[kernel] != "":
		return " `" + u.wished[kernel] + "` |"
	}
	return " |"
}

// kernelsInOrder returns the names of the known kernels, oldest first.
func kernelsInOrder() []string {
	names := testvm.KernelNames()
	number := func(s string) int {
		major, minor, _ := strings.Cut(strings.SplitN(s, "-", 2)[0], ".")
		a, _ := strconv.Atoi(major)
		b, _ := strconv.Atoi(minor)
		return a*1000 + b
	}
	slices.SortStableFunc(names, func(a, b string) int { return cmp.Or(cmp.Compare(number(a), number(b)), cmp.Compare(a, b)) })
	return names
}

// booted reads a package's tests for the kernels that they name, or leave to testvm.Options' default.
func booted(t *testing.T, pkg string) usage {
	t.Helper()
	u := usage{kernels: map[string]bool{}, skips: map[string]bool{}, wished: map[string]string{}}
	files, err := filepath.Glob(filepath.Join("..", pkg, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	var sources []*ast.File
	onWish := map[string]string{} // package-level variables by name, and what must be set for them to be used
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		if importsTestVM(f) && filepath.Base(file) != "support_test.go" {
			sources = append(sources, f)
			ast.Inspect(f, func(n ast.Node) bool { return noteWishes(n, onWish) })
		}
	}
	for _, f := range sources {
		ast.Inspect(f, func(n ast.Node) bool {
			v, ok := n.(*ast.ValueSpec)
			if !ok || onWish[v.Names[0].Name] == "" {
				return u.visit(n)
			}
			extra := usage{kernels: map[string]bool{}, skips: u.skips}
			ast.Inspect(v, extra.visit)
			for k := range extra.kernels {
				u.wished[k] = onWish[v.Names[0].Name]
			}
			return false
		})
	}
	return u
}

// noteWishes notes the names in what is done only if a variable of the environment is set: if os.Getenv("X") != "".
func noteWishes(n ast.Node, names map[string]string) bool {
	branch, ok := n.(*ast.IfStmt)
	if !ok {
		return true
	}
	cond, ok := branch.Cond.(*ast.BinaryExpr)
	if !ok || cond.Op != token.NEQ {
		return true
	}
	call, ok := cond.X.(*ast.CallExpr)
	if !ok || len(call.Args) != 1 {
		return true
	}
	sel, ok := call.Fun.(*ast.SelectorExpr)
	lit, ok2 := call.Args[0].(*ast.BasicLit)
	if !ok || !ok2 || !isName(sel.X, "os") || sel.Sel.Name != "Getenv" {
		return true
	}
	ast.Inspect(branch.Body, func(n ast.Node) bool {
		if id, ok := n.(*ast.Ident); ok {
			names[id.Name], _ = strconv.Unquote(lit.Value)
		}
		return true
	})
	return true
}

func importsTestVM(f *ast.File) bool {
	return slices.ContainsFunc(f.Imports, func(i *ast.ImportSpec) bool {
		return strings.Contains(i.Path.Value, "/internal/testvm")
	})
}

func (u usage) visit(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.KeyValueExpr:
		if isName(n.Key, "Kernel") {
			u.kernel(n.Value)
		}
	case *ast.CompositeLit:
		if _, list := n.Type.(*ast.ArrayType); list { // of names to loop over
			for _, e := range n.Elts {
				u.kernel(e)
			}
		}
		if sel, ok := n.Type.(*ast.SelectorExpr); ok && sel.Sel.Name == "Options" && isName(sel.X, "testvm") && !names(n, "Kernel", "Firmware", "Script") {
			u.kernels["6.1-cloud"] = true // the default
		}
	case *ast.CallExpr:
		u.skip(n)
	}
	return true
}

// kernel notes a literal that is a kernel's name.
func (u usage) kernel(e ast.Expr) {
	lit, ok := e.(*ast.BasicLit)
	if !ok {
		return
	}
	if s, err := strconv.Unquote(lit.Value); err == nil && slices.Contains(testvm.KernelNames(), s) {
		u.kernels[s] = true
	}
}

// skip notes a call of vmtest.Skip whose words are plain.
func (u usage) skip(c *ast.CallExpr) {
	sel, ok := c.Fun.(*ast.SelectorExpr)
	if !ok || !isName(sel.X, "vmtest") || sel.Sel.Name != "Skip" || len(c.Args) != 3 {
		return
	}
	reason, ok1 := c.Args[1].(*ast.BasicLit)
	when, ok2 := c.Args[2].(*ast.BasicLit)
	if ok1 && ok2 {
		r, _ := strconv.Unquote(reason.Value)
		w, _ := strconv.Unquote(when.Value)
		u.skips[r+"; it runs "+w] = true
	}
}

func isName(e ast.Expr, name string) bool {
	id, ok := e.(*ast.Ident)
	return ok && id.Name == name
}

// names reports whether the literal sets one of the fields.
func names(c *ast.CompositeLit, fields ...string) bool {
	return slices.ContainsFunc(c.Elts, func(e ast.Expr) bool {
		kv, ok := e.(*ast.KeyValueExpr)
		return ok && slices.ContainsFunc(fields, func(f string) bool { return isName(kv.Key, f) })
	})
}

func sorted(set map[string]bool) []string {
	var out []string
	for s := range set {
		out = append(out, s)
	}
	slices.Sort(out)
	return out
}
