package kallsyms

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	kt "github.com/vitrine-vmi/vitrine/kernel/internal/kallsymstest"
)

const (
	testBase = 0xffff_ffff_a320_0000
	testVA   = testBase + 0x1174000
)

func all(t *Table) []kt.Symbol {
	var out []kt.Symbol
	for i := range t.Len() {
		out = append(out, kt.Symbol{Addr: t.Addr(i), Type: t.Type(i), Name: t.Name(i)})
	}
	return out
}

func TestFindAllLayouts(t *testing.T) {
	for _, l := range kt.Layouts {
		for _, n := range []int{minSymbols, 5000, 256 * 20, 256*20 + 1} {
			want := kt.Many(l, testBase, n)
			b := kt.Build(l, testVA, testBase, want)
			got, err := Find(b, testVA, testBase)
			if err != nil {
				t.Errorf("%s, %d symbols: %v", l, n, err)
				continue
			}
			if diff := cmp.Diff(want, all(got)); diff != "" {
				t.Errorf("%s, %d symbols (-want +got):\n%.2000s", l, n, diff)
			}
		}
	}
}

// Tables of 32-bit kernels, wherever KASLR put them.
func TestFindI386(t *testing.T) {
	for _, l := range kt.I386 {
		for _, base := range []uint64{0xc100_0000, 0xdb20_0000, 0x8100_0000} {
			va := base + 0x9a4000
			want := kt.Many(l, base, 5000)
			b := kt.Build(l, va, base, want)
			got, err := Find(b, va, base)
			if err != nil {
				t.Errorf("%s at %#x: %v", l, base, err)
				continue
			}
			if diff := cmp.Diff(want, all(got)); diff != "" || got.Layout().Form != FormBase {
				t.Errorf("%s at %#x: form %d (-want +got):\n%.2000s", l, base, got.Layout().Form, diff)
			}
		}
	}
}

// The form is told by what fits, so each layout must be taken for what it is.
func TestFindForm(t *testing.T) {
	want := map[kt.Layout]Form{kt.Linux510: FormAbsolute, kt.Linux62: FormAbsolute, kt.Linux612: FormAbsolute, kt.Linux615: FormBase, kt.Linux72: FormPlace}
	for _, l := range kt.Layouts {
		tab, err := Find(kt.Build(l, testVA, testBase, kt.Many(l, testBase, 3000)), testVA, testBase)
		if err != nil || tab.Layout().Form != want[l] {
			t.Errorf("%s: form %d, %v, want %d", l, tab.Layout().Form, err, want[l])
		}
	}
}

func TestLookups(t *testing.T) {
	syms := kt.Many(kt.Linux612, testBase, 3000)
	tab, err := Find(kt.Build(kt.Linux612, testVA, testBase, syms), testVA, testBase)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"_text", "same_name", "init_function_7_table", "__per_cpu_end"} {
		i, ok := tab.Lookup(name)
		first := slices.IndexFunc(syms, func(s kt.Symbol) bool { return s.Name == name })
		if !ok || i != first {
			t.Errorf("%s: Lookup %d %v, want %d", name, i, ok, first)
		}
	}
	for _, name := range []string{"", "init_function_7_tabl", "nit_function_7_table", "Tinit_function_7_table", "absent"} {
		_, ok := tab.Lookup(name)
		if ok {
			t.Errorf("%q was found", name)
		}
	}
	if i, ok := tab.At(testBase + 16*7 + 5); !ok || tab.Name(i) != "init_function_7_table" || tab.Next(i) != testBase+16*8 {
		t.Errorf("At: %d, %v, next %#x", i, ok, tab.Next(i))
	}
	if i, ok := tab.At(testBase + 3); !ok || tab.Name(i) != "_stext" || tab.Next(i) != testBase+16 {
		t.Errorf("At of two symbols at one address: %d, %v", i, ok)
	}
	if n := tab.Next(tab.Len() - 1); n != 0 {
		t.Errorf("Next of the last: %#x", n)
	}
	if _, ok := (&Table{}).At(5); ok {
		t.Error("an empty table holds address 5")
	}
}

// A table whose parts contradict each other is refused, and what looks like the
// start of a table does not hide the real one behind it.
func TestFindBroken(t *testing.T) {
	syms := kt.Many(kt.Linux612, testBase, 2000)
	good := kt.Build(kt.Linux612, testVA, testBase, syms)
	tab, err := Find(good, testVA, testBase)
	if err != nil {
		t.Fatal(err)
	}
	l := tab.Layout()
	for name, at := range map[string]int{
		"count": l.Names - 8, "length": l.Names, "marker": (l.NamesEnd+7)&^7 + 4, "index": l.Index + 8, "offset": l.Offsets + 4*1000 + 3, "base": l.RelativeBase + 7,
	} {
		b := bytes.Clone(good)
		b[at] ^= 0x55
		if got, err := Find(b, testVA, testBase); err == nil {
			t.Errorf("%s broken: found %d symbols", name, got.Len())
		}
	}
	bait := append(bytes.Repeat(digits, 30), make([]byte, 4096-len(digits)*30%4096)...)
	if got, err := Find(append(bait, good...), testVA-uint64(len(bait)), testBase); err != nil || got.Len() != len(syms) {
		t.Errorf("behind bait: %v", err)
	}
	for _, cut := range []int{0, 1, l.Names, l.NamesEnd, l.Tokens + 3, l.Index + 100, l.Offsets + 4, l.RelativeBase + 1} {
		if _, err := Find(good[:cut], testVA, testBase); !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrFormat) {
			t.Errorf("cut at %d: %v", cut, err)
		}
	}
}

// Memory that is made of plausible counts must not cost a walk for each.
func TestFindBounded(t *testing.T) {
	good := kt.Build(kt.Linux72, testVA, testBase, kt.Many(kt.Linux72, testBase, 1000))
	tab, err := Find(good, testVA, testBase)
	if err != nil {
		t.Fatal(err)
	}
	trap := make([]byte, 8<<20) // each position is a count, and names of one letter
	for p := 0; p+4 <= len(trap); p += 4 {
		binary.LittleEndian.PutUint32(trap[p:], 0x00010101)
	}
	b := append(trap, good[tab.Layout().Tokens:]...)
	if _, err := Find(b, testVA, testBase); err == nil {
		t.Error("found a table in a trap")
	}
}

func FuzzKallsyms(f *testing.F) {
	for _, l := range kt.Layouts {
		f.Add([]byte(l), uint64(1), uint8(3))
	}
	// Whole tables are too large for the mutator; it chooses where to break one.
	tables := map[byte][]byte{}
	for _, l := range kt.Layouts {
		tables[l[0]^l[2]] = kt.Build(l, testVA, testBase, kt.Many(l, testBase, 600))
	}
	f.Fuzz(func(t *testing.T, seed []byte, at uint64, n uint8) {
		var key byte
		if len(seed) >= 3 {
			key = seed[0] ^ seed[2]
		}
		b := bytes.Clone(tables[key])
		if b == nil {
			b = seed
		}
		r := rand.New(rand.NewPCG(at, uint64(n)))
		for i := range int(n) {
			if len(b) > 0 {
				b[r.IntN(len(b))] = seed[i%len(seed)]
			}
		}
		tab, err := Find(b, testVA, testBase)
		if (tab == nil) == (err == nil) {
			t.Fatalf("got %v and %v, want one of them", tab, err)
		}
		if tab == nil {
			return
		}
		for i, s := range all(tab) {
			if s.Name == "" || i > 0 && s.Addr < tab.Addr(i-1) {
				t.Fatalf("symbol %d: %+v", i, s)
			}
		}
	})
}

func BenchmarkFind(b *testing.B) {
	table := kt.Build(kt.Linux612, testVA, testBase, kt.Many(kt.Linux612, testBase, 150_000))
	b.SetBytes(int64(len(table)))
	for b.Loop() {
		if _, err := Find(table, testVA, testBase); err != nil {
			b.Fatal(err)
		}
	}
}
