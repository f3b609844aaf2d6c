package kernel_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	vitrine "github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/vitrinetest/nttest"
)

// testISF makes a symbol file that says things of its own: a structure that no
// layout has, and a member where no layout has it.
func testISF(t *testing.T, guid string, age int, symbols map[string]uint64) []byte {
	t.Helper()
	syms := map[string]any{}
	for name, rva := range symbols {
		syms[name] = map[string]any{"address": rva}
	}
	pointer := map[string]any{"kind": "pointer"}
	b, err := json.Marshal(map[string]any{
		"metadata":   map[string]any{"format": "6.1.0", "windows": map[string]any{"pdb": map[string]any{"GUID": guid, "age": age, "database": "ntkrnlmp.pdb"}}},
		"base_types": map[string]any{"pointer": map[string]any{"size": 8}},
		"enums":      map[string]any{"_MODE": map[string]any{"size": 4, "constants": map[string]any{"UserMode": 1}}},
		"symbols":    syms,
		"user_types": map[string]any{"_OURS": map[string]any{"size": 24, "fields": map[string]any{"It": map[string]any{"offset": 16, "type": pointer}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t *testing.T, name string, b []byte) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

const testGUID = "5278AFF86C341677D7D7835C85B7B844" // that of nttest's kernels

// known says whether the symbols of testISF are in use.
func known(k *kernel.Kernel) bool {
	f, err := k.Types().Field("_OURS", "It")
	s, err2 := k.Symbol("KiServiceTable")
	_, err3 := k.Types().Enum("_MODE", "UserMode")
	return err == nil && f.Offset == 16 && f.Size == 8 && err2 == nil && s.Addr == k.Base()+0x1234 && err3 == nil
}

func TestNTSymbolFiles(t *testing.T) {
	g := nttest.New(ntBuilds[7].config())
	good := testISF(t, strings.ToLower(testGUID), 1, map[string]uint64{"KiServiceTable": 0x1234})
	dir := t.TempDir()
	named := write(t, filepath.Join(dir, "x.json"), good)
	other := write(t, filepath.Join(dir, "other.json"), testISF(t, "00"+testGUID[2:], 1, nil))
	older := write(t, filepath.Join(dir, "older.json"), testISF(t, testGUID, 2, nil))
	junk := write(t, filepath.Join(dir, "junk.json"), []byte("MSCF"))
	store := filepath.Join(dir, "store")
	write(t, filepath.Join(store, "ntkrnlmp.pdb", testGUID+"-1.json"), good)
	for name, tt := range map[string]struct {
		symbols []string
		known   bool
		missing string
	}{
		"file":             {[]string{named}, true, ""},
		"store":            {[]string{store}, true, ""},
		"empty store":      {[]string{t.TempDir()}, false, ""},
		"other GUID":       {[]string{other}, false, "refused"},
		"other age":        {[]string{older}, false, "refused"},
		"other, then good": {[]string{other, named}, true, "refused"},
		"compressed":       {[]string{junk}, false, "cabextract"},
		"absent":           {[]string{filepath.Join(dir, "nothing")}, false, "no such file"},
	} {
		k := describe(t, g.Guest(), &kernel.Options{Symbols: tt.symbols})
		if known(k) != tt.known {
			t.Errorf("%s: symbols in use: %v, want %v; missing %q", name, known(k), tt.known, k.Missing())
		}
		if all := strings.Join(k.Missing(), "\n"); (tt.missing == "") != (all == "") || !strings.Contains(all, tt.missing) {
			t.Errorf("%s: missing %q, want %q", name, all, tt.missing)
		}
		// What the file does not know is known by the layout still.
		if f, err := k.Types().Field("_EPROCESS", "UniqueProcessId"); err != nil || f.Offset != 0x440 {
			t.Errorf("%s: UniqueProcessId at %#x, %v", name, f.Offset, err)
		}
	}
}

func TestNTSymbolServer(t *testing.T) {
	good := testISF(t, testGUID, 1, map[string]uint64{"KiServiceTable": 0x1234})
	asked := ""
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.URL.Path
		if strings.HasPrefix(r.URL.Path, "/none") {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(good)
	}))
	defer server.Close()
	g := nttest.New(ntBuilds[7].config())
	store := t.TempDir()
	k := describe(t, g.Guest(), &kernel.Options{Symbols: []string{store}, SymbolServer: server.URL})
	want := "/ntkrnlmp.pdb/" + testGUID + "1/ntkrnlmp.pdb"
	if !known(k) || asked != want {
		t.Errorf("asked for %s, want %s; missing %q", asked, want, k.Missing())
	}
	// It is kept, and found without asking again.
	asked = ""
	if k := describe(t, g.Guest(), &kernel.Options{Symbols: []string{store}, SymbolServer: server.URL}); !known(k) || asked != "" {
		t.Errorf("asked again for %q; missing %q", asked, k.Missing())
	}
	if k := describe(t, g.Guest(), &kernel.Options{SymbolServer: server.URL + "/none"}); known(k) || !strings.Contains(strings.Join(k.Missing(), ""), "404") {
		t.Errorf("missing %q, want a 404", k.Missing())
	}
	asked = ""
	if describe(t, g.Guest(), nil); asked != "" {
		t.Errorf("asked for %s without being told to", asked)
	}
}

// A crash dump's header is not believed when what it names is no kernel.
func TestNTCrashHeader(t *testing.T) {
	g := nttest.New(ntBuilds[7].config())
	crash := &vitrine.WindowsCrash{Type: vitrine.WindowsFull, Bits: 64, Build: 19041, Paging: g.Mode, DirectoryTableBase: g.Kernel.Root(), PsLoadedModuleList: g.ModuleList}
	image := func() *vitrine.Guest {
		return vitrine.New(crashImage{imageOnly{g.Backend}, crash}, vitrine.Info{Backend: "dump", CPUs: 1})
	}
	if k, err := kernel.Describe(t.Context(), image(), nil); err != nil || k.Base() != g.Base || k.NT().ProcessHead != g.ProcessHead {
		t.Errorf("full dump: %v", err)
	}
	crash.PsLoadedModuleList = g.ProcessHead
	if k, err := kernel.Describe(t.Context(), image(), nil); err == nil {
		t.Errorf("list of drivers that is another: %v", k.Base())
	}
}

// crashImage is an image with the header of a crash dump.
type crashImage struct {
	imageOnly
	crash *vitrine.WindowsCrash
}

func (c crashImage) WindowsCrash() *vitrine.WindowsCrash { return c.crash }
