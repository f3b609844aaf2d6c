package vmlinux

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vitrine-vmi/vitrine/kernel/internal/isf"
)

// small is compiled from testdata/small.c, where the command stands.
const small = "testdata/small"

func TestOpen(t *testing.T) {
	f, err := Open(small)
	if err != nil {
		t.Fatal(err)
	}
	if f.Banner() != "Linux version 9.9.9 (test) #1" {
		t.Errorf("banner %q", f.Banner())
	}
	for path, want := range map[string]isf.Place{
		"state": {Offset: 0, Size: 4, Type: "long int"}, "uid": {Offset: 4, Size: 4, Type: "struct kuid_t"}, "uid.val": {Offset: 4, Size: 4, Type: "unsigned int"},
		"flag": {Offset: 8, BitOffset: 3, BitSize: 2, Size: 4, Type: "unsigned int"}, "on_rq": {Offset: 8, BitSize: 3, Size: 4, Type: "unsigned int"},
		"rcu.prev": {Offset: 16, Size: 4, Type: "struct list_head *"}, "one": {Offset: 12, Size: 4, Type: "int"}, "two": {Offset: 16, Size: 8, Type: "long long int"},
		"comm": {Offset: 24, Size: 16, Type: "char[16]"}, "links[1].next": {Offset: 48, Size: 4, Type: "struct list_head *"},
		"mm": {Offset: 56, Size: 4, Type: "struct mm_struct *"}, "s": {Offset: 60, Size: 4, Type: "enum system_states"},
		"nameless.inner": {Offset: 64, Size: 2, Type: "short int"}, "tail": {Offset: 72, Type: "int[0]"},
	} {
		got, ok := f.Field("task_struct", path)
		if diff := cmp.Diff(want, got); !ok || diff != "" {
			t.Errorf("%s: %v\n%s", path, ok, diff)
		}
	}
	if p, ok := f.Field("mm_struct", "pgd"); !ok || p.Type != "pgd_t *" {
		t.Errorf("pgd: %+v, %v", p, ok)
	}
	for name, want := range map[string]uint64{"task_struct": 72, "kuid_t": 4} {
		if n, ok := f.Size(name); n != want || !ok {
			t.Errorf("size of %s: %d, %v, want %d", name, n, ok, want)
		}
	}
	if v, ok := f.Enum("system_states", "SYSTEM_RUNNING"); v != 3 || !ok {
		t.Errorf("SYSTEM_RUNNING: %d, %v", v, ok)
	}
	for _, absent := range [][2]string{{"task_struct", "nothing"}, {"nothing", "comm"}} {
		if p, ok := f.Field(absent[0], absent[1]); ok {
			t.Errorf("%v: %+v", absent, p)
		}
	}
}

// What was asked for makes an ISF that says the same.
func TestEncode(t *testing.T) {
	f, err := Open(small)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := f.Size("task_struct"); !ok {
		t.Fatal("no task_struct")
	}
	var b bytes.Buffer
	if err := f.Encode(&b); err != nil {
		t.Fatal(err)
	}
	g, err := isf.Parse(b.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"state", "flag", "rcu.prev", "two", "comm[5]", "links[1].next", "mm", "nameless.inner"} {
		want, ok1 := f.Field("task_struct", path)
		got, ok2 := g.Field("task_struct", path)
		if diff := cmp.Diff(want, got); !ok1 || !ok2 || diff != "" {
			t.Errorf("%s: %v, %v\n%s", path, ok1, ok2, diff)
		}
	}
	if g.Banner() != f.Banner() {
		t.Errorf("banner %q", g.Banner())
	}
}

func TestConcurrent(t *testing.T) {
	f, err := Open(small)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for _, name := range []string{"task_struct", "mm_struct", "list_head"} {
				if _, ok := f.Size(name); !ok {
					t.Error(name)
				}
			}
		})
	}
	wg.Wait()
}

func TestRefused(t *testing.T) {
	whole, err := os.ReadFile(small)
	if err != nil {
		t.Fatal(err)
	}
	write := func(b []byte) string {
		name := filepath.Join(t.TempDir(), "vmlinux")
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	for name, b := range map[string][]byte{"empty": {}, "no ELF": []byte("MZ and more"), "header": whole[:52], "cut": whole[:len(whole)/2],
		"stripped": bytes.ReplaceAll(whole, []byte(".debug_info"), []byte(".gebug_info"))} {
		if f, err := Open(write(b)); !errors.Is(err, ErrFormat) || f != nil {
			t.Errorf("%s: %v, %v, want ErrFormat", name, f, err)
		}
	}
	// Damage anywhere is an error or a file that answers.
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		b := bytes.Clone(whole)
		for range 1 + r.IntN(8) {
			b[r.IntN(len(b))] = byte(r.IntN(256))
		}
		f, err := Open(write(b))
		if (f == nil) == (err == nil) {
			t.Fatalf("Open = %v, %v", f, err)
		}
		if err == nil {
			_, _ = f.Field("task_struct", "links[1].next")
			f.Size("mm_struct")
			f.Banner()
		}
	}
}
