package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

type param struct{ name, typ string }

// signature is one system call's arguments; arch is empty for all.
type signature struct {
	arch, name string
	params     []param
}

// loadSignatures reads the three lists and resolves aliases and "= OTHER".
func loadSignatures(dir string) ([]signature, error) {
	base, err := lines(filepath.Join(dir, "signatures.txt"))
	if err != nil {
		return nil, err
	}
	aliases, err := lines(filepath.Join(dir, "aliases.txt"))
	if err != nil {
		return nil, err
	}
	extra, err := lines(filepath.Join(dir, "extra.txt"))
	if err != nil {
		return nil, err
	}
	rename := map[string]string{}
	for _, l := range aliases {
		name, function, ok := strings.Cut(l, " ")
		if !ok {
			return nil, fmt.Errorf("aliases.txt: %q", l)
		}
		rename[strings.TrimSpace(function)] = name
	}
	var out []signature
	known := map[string][]param{}
	for _, l := range base {
		s, err := parseSignature(l)
		if err != nil {
			return nil, fmt.Errorf("signatures.txt: %w", err)
		}
		if n, ok := rename[s.name]; ok {
			s.name = n
		}
		known[s.name] = s.params
		out = append(out, s)
	}
	for _, l := range extra {
		s, err := parseExtra(l, known)
		if err != nil {
			return nil, fmt.Errorf("extra.txt: %w", err)
		}
		out = append(out, s)
	}
	return out, nil
}

func parseExtra(l string, known map[string][]param) (signature, error) {
	var arch string
	for _, a := range arches {
		if rest, ok := strings.CutPrefix(l, a+" "); ok {
			arch, l = a, rest
		}
	}
	if name, other, ok := strings.Cut(l, " = "); ok {
		p, ok := known[other]
		if !ok {
			return signature{}, fmt.Errorf("%s: no call %q", name, other)
		}
		return signature{arch, name, p}, nil
	}
	s, err := parseSignature(l)
	s.arch = arch
	return s, err
}

// parseSignature reads "name(type name, type name)".
func parseSignature(l string) (signature, error) {
	name, args, ok := strings.Cut(l, "(")
	args, closed := strings.CutSuffix(args, ")")
	if !ok || !closed {
		return signature{}, fmt.Errorf("%q is no signature", l)
	}
	s := signature{name: name}
	if args == "" {
		return s, nil
	}
	for _, a := range strings.Split(args, ", ") {
		i := strings.LastIndexByte(a, ' ')
		if i < 0 {
			return signature{}, fmt.Errorf("%s: argument %q has no type", name, a)
		}
		s.params = append(s.params, param{a[i+1:], a[:i]})
	}
	if len(s.params) > 6 {
		return signature{}, fmt.Errorf("%s: %d arguments", name, len(s.params))
	}
	return s, nil
}

// lines returns the lines of a file without comments and empty ones.
func lines(file string) (out []string, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	for l := range strings.Lines(string(text)) {
		if l = strings.TrimSpace(l); l != "" && !strings.HasPrefix(l, "#") {
			out = append(out, l)
		}
	}
	return out, nil
}
