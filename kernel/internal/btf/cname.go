package btf

import (
	"fmt"
	"strings"
)

// maxWords bounds how many types one name may be made of.
const maxWords = 128

// typeName writes a type as C does, without the name that it declares. Parts
// beyond what a name may hold are dots.
func (s *Spec) typeName(i id) string {
	n := namer{s: s, budget: maxWords}
	return n.name(i)
}

// namer writes one name.
type namer struct {
	s      *Spec
	budget int
}

func (n *namer) name(i id) string {
	if n.budget--; n.budget < 0 {
		return "..."
	}
	t := n.s.at(i)
	switch t.kind {
	case 0:
		return "void"
	case kindPointer:
		return n.pointer(t)
	case kindArray:
		elem, count := t.array()
		return fmt.Sprintf("%s[%d]", n.name(elem), count)
	case kindConst:
		if p := n.s.at(t.to()); p.kind == kindPointer {
			return n.pointer(p) + " const"
		}
		return "const " + n.name(t.to())
	case kindVolatile:
		return "volatile " + n.name(t.to())
	case kindRestrict, kindTypeTag:
		return n.name(t.to())
	case kindFuncProto:
		return n.function(t, "")
	}
	return n.word(t) + n.own(t)
}

// word is what C writes before the name of a type.
func (n *namer) word(t typ) string {
	switch {
	case t.kind == kindStruct, t.kind == kindForward && !t.flag:
		return "struct "
	case t.kind == kindUnion, t.kind == kindForward:
		return "union "
	case t.kind == kindEnum || t.kind == kindEnum64:
		return "enum "
	}
	return ""
}

// own is the name that a type has itself.
func (n *namer) own(t typ) string {
	if name := n.s.text(t.name); len(name) > 0 {
		return string(name)
	}
	return "{...}"
}

func (n *namer) pointer(p typ) string {
	to := p.to()
	for range maxDepth { // tags such as __user stand between a pointer and its target
		tag := n.s.at(to)
		if tag.kind != kindTypeTag {
			break
		}
		to = tag.to()
	}
	if f := n.s.at(to); f.kind == kindFuncProto {
		return n.function(f, "*")
	}
	name := n.name(to)
	if strings.HasSuffix(name, "*") {
		return name + "*"
	}
	return name + " *"
}

func (n *namer) function(f typ, star string) string {
	var params []string
	for i := range f.n {
		if n.budget <= 0 {
			params = append(params, "...")
			break
		}
		params = append(params, n.name(id(f.word(2*i+1))))
	}
	ret := n.name(f.to())
	if star == "" {
		return fmt.Sprintf("%s (%s)", ret, strings.Join(params, ", "))
	}
	return fmt.Sprintf("%s (%s)(%s)", ret, star, strings.Join(params, ", "))
}
