package tests

import (
	"bytes"
	"go/ast"
	"go/build/constraint"
	"go/format"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestHouseFormatted(t *testing.T) {
	for _, s := range sources(t) {
		want, err := format.Source(s.text)
		if err != nil {
			t.Errorf("%s: %v", s.file, err)
		} else if !bytes.Equal(want, s.text) {
			t.Errorf("%s: not formatted (gofmt -w it)", s.file)
		}
	}
}

func TestHouseOnePackageComment(t *testing.T) {
	byPkg := packages(sources(t))
	for _, pkg := range slices.Sorted(maps.Keys(byPkg)) {
		var where []string
		for _, s := range byPkg[pkg] {
			if s.ast.Doc == nil {
				continue
			}
			where = append(where, s.file)
			start := "Package " + s.ast.Name.Name + " "
			if s.ast.Name.Name == "main" {
				start = "Command "
			}
			if !strings.HasPrefix(s.ast.Doc.Text(), start) {
				t.Errorf("%s: package comment must begin with %q", s.file, start)
			}
		}
		if len(where) != 1 {
			t.Errorf("package %s has %d package comments, want 1 %s", pkg, len(where), where)
		}
	}
}

func TestHouseExportedIsDocumented(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || s.ast.Name.Name == "main" {
			continue
		}
		for _, d := range s.ast.Decls {
			for _, name := range undocumented(d) {
				t.Errorf("%s: %s has no comment", s.file, name)
			}
		}
	}
}

// undocumented lists a declaration's exported names that have no comment. A comment on a group serves its members.
func undocumented(d ast.Decl) []string {
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Name.IsExported() && d.Doc == nil && exportedReceiver(d) {
			return []string{d.Name.Name}
		}
	case *ast.GenDecl:
		if d.Doc != nil {
			return nil
		}
		var names []string
		for _, spec := range d.Specs {
			switch spec := spec.(type) {
			case *ast.TypeSpec:
				if spec.Name.IsExported() && spec.Doc == nil {
					names = append(names, spec.Name.Name)
				}
			case *ast.ValueSpec:
				if spec.Doc == nil && spec.Comment == nil && spec.Names[0].IsExported() {
					names = append(names, spec.Names[0].Name)
				}
			}
		}
		return names
	}
	return nil
}

// exportedReceiver says whether the function is none of an unexported type's.
func exportedReceiver(f *ast.FuncDecl) bool {
	if f.Recv == nil || len(f.Recv.List) == 0 {
		return true
	}
	typ := f.Recv.List[0].Type
	for {
		switch x := typ.(type) {
		case *ast.StarExpr:
			typ = x.X
		case *ast.IndexExpr:
			typ = x.X
		case *ast.IndexListExpr:
			typ = x.X
		case *ast.Ident:
			return x.IsExported()
		default:
			return true
		}
	}
}

// guestFacing packages deal with the guest, which may be of another system and processor than the host.
var guestFacing = []string{".", "arch", "event", "internal/guestio", "kernel", "kernel/*", "osi", "osi/*", "syscalls", "syscalls/*", "probe", "probe/*", "trace", "vitrinetest"}

func TestHouseHostIsNotGuest(t *testing.T) {
	hostFile := regexp.MustCompile(`_(linux|windows|darwin|freebsd|amd64|arm64|386)\.go$`)
	hostWord := regexp.MustCompile(`\b(runtime\.GO(OS|ARCH)|uintptr|unsafe\.Sizeof|binary\.NativeEndian)\b`)
	for _, s := range sources(t) {
		if s.test || !covers(guestFacing, s.pkg) {
			continue
		}
		if hostFile.MatchString(s.file) {
			t.Errorf("%s: its name is a build constraint", s.file)
		}
		if slices.Contains(s.imports(t), "unsafe") {
			t.Errorf("%s: imports unsafe", s.file)
		}
		for _, g := range s.ast.Comments {
			for _, c := range g.List {
				if constraint.IsGoBuild(c.Text) && !strings.Contains(c.Text, "ignore") {
					t.Errorf("%s: has a build constraint", s.file)
				}
			}
		}
		if w := hostWord.Find(withoutComments(s)); w != nil {
			t.Errorf("%s: uses %s", s.file, w)
		}
	}
}

// withoutComments blanks the comments out.
func withoutComments(s *source) []byte {
	text := bytes.Clone(s.text)
	for _, g := range s.ast.Comments {
		from, to := s.fset.Position(g.Pos()).Offset, s.fset.Position(g.End()).Offset
		copy(text[from:to], bytes.Repeat([]byte{' '}, to-from))
	}
	return text
}

// ownFiles are packages that read files which the user names, and no guest.
var ownFiles = []string{"kernel/internal/vmlinux"}

// Guest memory must not reach parsers of the standard library that are not made for hostile input.
func TestHouseNoSoftParsersOnGuestMemory(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || !covers(guestFacing, s.pkg) || slices.Contains(ownFiles, s.pkg) {
			continue
		}
		for _, imported := range s.imports(t) {
			if imported == "debug/elf" || imported == "debug/pe" || imported == "debug/macho" {
				t.Errorf("%s: imports %s, which is not hardened against hostile input", s.file, imported)
			}
		}
	}
}

const maxLines = 500

func TestHouseFilesAreShort(t *testing.T) {
	for _, s := range sources(t) {
		if n := bytes.Count(s.text, []byte("\n")); n > maxLines && !s.test && !ast.IsGenerated(s.ast) {
			t.Errorf("%s: %d lines, want at most %d", s.file, n, maxLines)
		}
	}
}

// Nothing in the tree may depend on one machine: a mirror's host is taken from the machine's own configuration.
func TestHouseNamesNoMachine(t *testing.T) {
	bad := regexp.MustCompile(`(?i)(` + strings.Join([]string{"deb\\.debian" + "\\.org", "security\\.debian" + "\\.org", "proxy\\.golang" + "\\.org", "registry\\.npmjs" + "\\.org", "/work" + "/(wt|main|shared)", "snapshot\\.debian" + "\\.org"}, "|") + `)`)
	err := filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			if d != nil && p != root && strings.HasPrefix(d.Name(), ".git") {
				return filepath.SkipDir
			}
			return err
		}
		switch path.Ext(p) {
		case ".go", ".md", ".yaml", ".yml", ".mod", ".txt", ".sh", "":
		default:
			return nil
		}
		if strings.Contains(filepath.ToSlash(p), "/bin/") {
			return nil
		}
		text, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		if w := bad.Find(text); w != nil {
			t.Errorf("%s: names %s", p, w)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// pins are the versions that are known to build, verify and cross-build together. A dependency that is not among them
// is a decision: add it here with the commit that says why.
var pins = map[string]string{
	"github.com/anchore/go-lzo":       "v0.1.1",
	"github.com/cilium/ebpf":          "v0.22.0",
	"github.com/google/go-cmp":        "v0.7.0",
	"github.com/klauspost/compress":   "v1.20.3",
	"github.com/rogpeppe/go-internal": "v1.16.0",
	"github.com/spf13/cobra":          "v1.10.2",
	"github.com/spf13/pflag":          "",
	"github.com/u-root/u-root":        "v0.16.0",
	"go.uber.org/goleak":              "v1.3.0",
	"golang.org/x/arch":               "v0.32.0",
	"golang.org/x/sys":                "v0.49.0",
	"golang.org/x/term":               "v0.47.0",
	"pgregory.net/rapid":              "v1.3.0",
}

func TestHousePins(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	require := regexp.MustCompile(`(?m)^(?:require)?\s+(\S+) (v\S+)( // indirect)?$`)
	direct := 0
	for _, m := range require.FindAllStringSubmatch(string(text), -1) {
		if m[3] != "" {
			continue
		}
		direct++
		want, known := pins[m[1]]
		if !known || want != "" && want != m[2] {
			t.Errorf("go.mod requires %s %s, which is not pinned to be so (want %q)", m[1], m[2], want)
		}
	}
	if direct == 0 {
		t.Error("no requirement was found in go.mod")
	}
}
