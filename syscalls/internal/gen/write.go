package main

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"
)

func writeCommon(b *bytes.Buffer, set *constants, fams []*family) {
	b.WriteString("const (\n\tfamNone family = iota\n")
	for _, f := range fams {
		fmt.Fprintf(b, "\t%s\n", f.id())
	}
	b.WriteString("\tfamCount\n)\n\n")
	b.WriteString("var families = [famCount]familyInfo{\n")
	for _, f := range fams {
		fmt.Fprintf(b, "\t%s: {%q, %q, %v, %#x},\n", f.id(), f.name, f.zero, f.kind == "flags", f.mask)
	}
	b.WriteString("}\n\n// commonConst holds the families that are the same everywhere.\n")
	writeFamilies(b, "commonConst", arches[0], fams, true)
	writeDescribed(b, "errnos", set.errnos)
	writeDescribed(b, "signals", set.signals)
}

func (f *family) id() string {
	r := []rune(f.name)
	r[0] = unicode.ToUpper(r[0])
	return "fam" + string(r)
}

func writeFamilies(b *bytes.Buffer, v, arch string, fams []*family, common bool) {
	fmt.Fprintf(b, "var %s = [famCount][]constant{\n", v)
	for _, f := range fams {
		if f.common() != common {
			continue
		}
		fmt.Fprintf(b, "\t%s: {\n", f.id())
		for _, c := range f.of[arch] {
			fmt.Fprintf(b, "\t\t{%#x, %q},\n", c.value, c.name)
		}
		b.WriteString("\t},\n")
	}
	b.WriteString("}\n\n")
}

// writeDescribed writes a list that has to be the same on all architectures.
func writeDescribed(b *bytes.Buffer, v string, of map[string][]described) {
	for _, a := range arches[1:] {
		if !slices.Equal(of[a], of[arches[0]]) {
			panic(v + " of " + a + " differ: they can no longer be shared")
		}
	}
	fmt.Fprintf(b, "var %s = [...]described{\n", v)
	for _, d := range of[arches[0]] {
		fmt.Fprintf(b, "\t%d: {%q, %q},\n", d.value, d.name, sentence(d.text))
	}
	b.WriteString("}\n\n")
}

// sentence undoes the lower case that Go gives to error texts.
func sentence(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

func writeArch(b *bytes.Buffer, arch string, set *constants, fams []*family) {
	v := arch
	if v == "386" {
		v = "i386"
	}
	fmt.Fprintf(b, "// %sNumbers are the names of the system calls by number.\n", v)
	fmt.Fprintf(b, "var %sNumbers = [...]string{\n", v)
	nr := set.numbers(arch)
	for _, n := range slices.Sorted(maps.Keys(nr)) {
		fmt.Fprintf(b, "\t%d: %q,\n", n, nr[n])
	}
	fmt.Fprintf(b, "}\n\n// %sConst holds the families that differ between architectures.\n", v)
	writeFamilies(b, v+"Const", arch, fams, false)
}

func writeSignatures(b *bytes.Buffer, sigs []signature) {
	for _, a := range append([]string{""}, arches...) {
		v, of := "commonSignatures", "every architecture that has the call"
		if a != "" {
			v, of = "signatures"+strings.ToUpper(a), a+" alone"
		}
		fmt.Fprintf(b, "// %s are those of %s.\nvar %s = [...]Signature{\n", v, of, v)
		for _, s := range sigs {
			if s.arch != a {
				continue
			}
			fmt.Fprintf(b, "\t{%q, []Param{", s.name)
			for i, p := range s.params {
				if i > 0 {
					b.WriteString(", ")
				}
				fmt.Fprintf(b, "{%q, %q}", p.name, p.typ)
			}
			b.WriteString("}},\n")
		}
		b.WriteString("}\n\n")
	}
}
