package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strconv"
	"strings"
)

// described is one entry of an errno or signal list.
type described struct {
	value      uint64
	name, text string
}

// constants holds what golang.org/x/sys knows of each architecture.
type constants struct {
	values  map[string]map[string]uint64 // arch, name
	errnos  map[string][]described       // arch
	signals map[string][]described
}

func loadConstants(dir string) (*constants, error) {
	c := &constants{
		values:  map[string]map[string]uint64{},
		errnos:  map[string][]described{},
		signals: map[string][]described{},
	}
	for _, a := range arches {
		c.values[a] = map[string]uint64{}
		for _, f := range []string{"zerrors_linux", "ztypes_linux", "zerrors_linux_" + a, "ztypes_linux_" + a, "zsysnum_linux_" + a} {
			if err := c.load(a, filepath.Join(dir, f+".go")); err != nil {
				return nil, err
			}
		}
	}
	return c, nil
}

func (c *constants) load(arch, path string) error {
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		return fmt.Errorf("parse %s: %w", path, err)
	}
	for _, d := range f.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok {
			continue
		}
		for _, s := range g.Specs {
			v, ok := s.(*ast.ValueSpec)
			if !ok || len(v.Names) != len(v.Values) {
				continue
			}
			for i, name := range v.Names {
				c.add(arch, name.Name, v.Values[i])
			}
		}
	}
	return nil
}

func (c *constants) add(arch, name string, x ast.Expr) {
	switch name {
	case "errorList":
		c.errnos[arch] = list(x)
	case "signalList":
		c.signals[arch] = list(x)
	default:
		if v, ok := number(x); ok {
			c.values[arch][name] = v
		}
	}
}

// number evaluates a literal, also negated or converted to a type.
func number(x ast.Expr) (uint64, bool) {
	switch x := x.(type) {
	case *ast.BasicLit:
		v, err := strconv.ParseUint(x.Value, 0, 64)
		return v, err == nil
	case *ast.UnaryExpr:
		v, ok := number(x.X)
		return -v, ok && x.Op == token.SUB
	case *ast.CallExpr:
		if len(x.Args) == 1 {
			return number(x.Args[0])
		}
	}
	return 0, false
}

// list reads a composite literal of {number, "NAME", "text"}.
func list(x ast.Expr) (out []described) {
	lit, ok := x.(*ast.CompositeLit)
	if !ok {
		return nil
	}
	for _, e := range lit.Elts {
		e, ok := e.(*ast.CompositeLit)
		if !ok || len(e.Elts) != 3 {
			continue
		}
		v, _ := number(e.Elts[0])
		name := text(e.Elts[1])
		if name == "ENOTSUP" { // the same number; system calls return the other
			name = "EOPNOTSUPP"
		}
		out = append(out, described{v, name, text(e.Elts[2])})
	}
	return out
}

func text(x ast.Expr) string {
	lit, ok := x.(*ast.BasicLit)
	if !ok {
		return ""
	}
	s, _ := strconv.Unquote(lit.Value)
	return s
}

// numbers returns the system calls of an architecture by number.
func (c *constants) numbers(arch string) map[uint64]string {
	out := map[uint64]string{}
	for name, v := range c.values[arch] {
		if s, ok := strings.CutPrefix(name, "SYS_"); ok && s != "ARCH_SPECIFIC_SYSCALL" { // the start of a range
			out[v] = strings.ToLower(s)
		}
	}
	return out
}
