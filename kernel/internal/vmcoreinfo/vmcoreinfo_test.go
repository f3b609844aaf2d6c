package vmcoreinfo

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// sample has the lines of a Debian 6.12 note that this package reads, and some
// that it does not.
const sample = `OSRELEASE=6.12.107+deb13-cloud-amd64
BUILD-ID=e1b6c81f7afcf08c49c197583920e5307d281cdf
PAGESIZE=4096
SYMBOL(init_uts_ns)=ffffffff83a218a0
OFFSET(uts_namespace.name)=0
SYMBOL(swapper_pg_dir)=ffffffff83822000
NUMBER(VMALLOC_START)=0xffffd30980000000
LENGTH(mem_section)=2048
NUMBER(PAGE_SLAB_MAPCOUNT_VALUE)=-184549376
NUMBER(phys_base)=316669952
KERNELOFFSET=c00000
`

func TestParse(t *testing.T) {
	got, err := Parse([]byte(sample + "\x00OSRELEASE=9.9"))
	if err != nil {
		t.Fatal(err)
	}
	want := &Info{
		Text:         []byte(sample),
		Release:      "6.12.107+deb13-cloud-amd64",
		BuildID:      "e1b6c81f7afcf08c49c197583920e5307d281cdf",
		KernelOffset: 0xc00000,
		HasOffset:    true,
		Symbols:      map[string]uint64{"init_uts_ns": 0xffffffff83a218a0, "swapper_pg_dir": 0xffffffff83822000},
		Numbers:      map[string]int64{"VMALLOC_START": -0x2cf680000000, "PAGE_SLAB_MAPCOUNT_VALUE": -184549376, "phys_base": 316669952},
		Offsets:      map[string]int64{"uts_namespace.name": 0},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Parse (-want +got):\n%s", diff)
	}
}

func TestParseRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"empty":            "",
		"no release":       "PAGESIZE=4096\n",
		"release is empty": "OSRELEASE=\n",
		"format string":    "OSRELEASE=%s\n",
		"long release":     "OSRELEASE=6" + strings.Repeat("1", 64) + "\n",
		"control bytes":    "OSRELEASE=6.1\x1b[2J\n",
	} {
		if in, err := Parse([]byte(text)); !errors.Is(err, ErrFormat) || in != nil {
			t.Errorf("%s: got %v, %v, want ErrFormat", name, in, err)
		}
	}
}

// A build id names a file of the cache, so it must not be able to name another.
func TestParseBuildID(t *testing.T) {
	for _, id := range []string{"../../etc/passwd", "e1b6c81f7afcf08", "E1B6C81F7AFCF08C", "", "e1b6c81f7afcf08/", strings.Repeat("a", 42)} {
		in, err := Parse([]byte("OSRELEASE=6.1\nBUILD-ID=" + id + "\n"))
		if err != nil || in.BuildID != "" {
			t.Errorf("build id %q: got %+v, %v, want none", id, in, err)
		}
	}
}

func TestInPage(t *testing.T) {
	note := append([]byte{11, 0, 0, 0, 0xbe, 12, 0, 0, 0, 0, 0, 0}, "VMCOREINFO\x00\x00"...)
	page := func(parts ...[]byte) []byte { return append(bytes.Join(parts, nil), make([]byte, 64)...) }
	for name, c := range map[string]struct {
		page []byte
		want string
	}{
		"text alone":           {page([]byte(sample)), sample},
		"note":                 {page(note, []byte(sample)), sample},
		"note without header":  {page(make([]byte, 24), []byte(sample)), ""},
		"in the middle":        {page(make([]byte, 100), []byte(sample)), ""},
		"zeros":                {page(), ""},
		"short":                {[]byte("OSREL"), ""},
		"ends within the page": {[]byte("OSRELEASE=6"), "OSRELEASE=6"},
	} {
		if got := string(InPage(c.page)); got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

func FuzzVMCoreInfo(f *testing.F) {
	f.Add([]byte(sample))
	f.Add([]byte("OSRELEASE=6.1\nSYMBOL()=\n(=\n)=(\nNUMBER(a)=0x\nKERNELOFFSET=-1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		InPage(b)
		in, err := Parse(b)
		if (in == nil) == (err == nil) {
			t.Fatalf("got %v and %v, want one of them", in, err)
		}
		if in != nil && (in.Release == "" || strings.ContainsAny(in.BuildID, "/.\\")) {
			t.Fatalf("release %q, build id %q", in.Release, in.BuildID)
		}
	})
}
