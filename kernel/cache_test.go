package kernel_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vitrine-vmi/vitrine/kernel"
	kt "github.com/vitrine-vmi/vitrine/kernel/internal/kallsymstest"
)

const cacheFile = fakeID + ".kernel.json"

func byCache(k *kernel.Kernel) bool { return strings.Contains(k.Facts()["symbols"], "found by cache") }

func TestCache(t *testing.T) {
	for _, l := range kt.Layouts {
		dir := filepath.Join(t.TempDir(), "made", "when absent")
		f := newFake(t, fakeOptions{layout: l})
		cold := describe(t, f.guest(), &kernel.Options{CacheDir: dir})
		if byCache(cold) {
			t.Errorf("%s: the first time was by cache: %q", l, cold.Facts()["symbols"])
		}
		warm := describe(t, f.guest(), &kernel.Options{CacheDir: dir})
		if !byCache(warm) {
			t.Errorf("%s: the second time was not by cache: %q", l, warm.Facts()["symbols"])
		}
		checkFake(t, "warm", f, warm)
		files, _ := os.ReadDir(dir)
		if len(files) != 1 || files[0].Name() != cacheFile {
			t.Errorf("%s: files %v", l, files)
		}
	}
}

// A cache file that is broken or wrong is not used and is replaced.
func TestCacheWrong(t *testing.T) {
	f := newFake(t, fakeOptions{})
	good := func(dir string) string {
		describe(t, f.guest(), &kernel.Options{CacheDir: dir})
		b, err := os.ReadFile(filepath.Join(dir, cacheFile))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	text := good(t.TempDir())
	for name, bad := range map[string]string{
		"empty":        "",
		"no JSON":      text[:len(text)/2],
		"other id":     strings.Replace(text, fakeID, strings.Repeat("ab", 20), 1),
		"other format": strings.Replace(text, `"format": 1`, `"format": 2`, 1),
		"wrong sum":    strings.Replace(text, `"token_table_sum": `, `"token_table_sum": 1`, 1),
		"wrong start":  strings.Replace(text, `"kallsyms_start": `, `"kallsyms_start": 1`, 1),
		"huge end":     strings.Replace(text, `"kallsyms_end": `, `"kallsyms_end": 1844674407370`, 1),
		"short end":    strings.Replace(text, `"kallsyms_start"`, `"x"`, 1),
		"large file":   text + strings.Repeat(" ", 1<<20),
	} {
		if bad == text {
			t.Fatalf("%s: nothing was changed", name)
		}
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, cacheFile), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		k := describe(t, f.guest(), &kernel.Options{CacheDir: dir})
		checkFake(t, name, f, k)
		if byCache(k) && name != "short end" { // from the base on is a wider hint, and right
			t.Errorf("%s: was used", name)
		}
		if b, _ := os.ReadFile(filepath.Join(dir, cacheFile)); string(b) != text {
			t.Errorf("%s: was not replaced: %s", name, b)
		}
	}
}

// A file of another kernel does not get in the way.
func TestCacheOfOtherKernel(t *testing.T) {
	dir := t.TempDir()
	describe(t, newFake(t, fakeOptions{layout: kt.Linux72}).guest(), &kernel.Options{CacheDir: dir})
	f := newFake(t, fakeOptions{layout: kt.Linux510}) // the same build id, as a forger would have it
	checkFake(t, "other", f, describe(t, f.guest(), &kernel.Options{CacheDir: dir}))
}

// A build id that is no build id makes no file, least of all elsewhere.
func TestCacheHostileBuildID(t *testing.T) {
	dir := t.TempDir()
	f := newFake(t, fakeOptions{})
	text := strings.Replace(fakeNote(f.base, fakeOptions{release: fakeRelease}, 0), fakeID, "../../"+fakeID[6:], 1)
	f.space.Put(fakeInfo, note(text))
	k := describe(t, f.guest(), &kernel.Options{CacheDir: filepath.Join(dir, "a", "b")})
	if k.BuildID() != "" {
		t.Errorf("build id %q", k.BuildID())
	}
	if files, _ := os.ReadDir(dir); len(files) != 0 {
		t.Errorf("files %v", files)
	}
}

// A folder that cannot be written costs the cache, not the answer.
func TestCacheUnwritable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f := newFake(t, fakeOptions{})
	k := describe(t, f.guest(), &kernel.Options{CacheDir: file})
	if m := strings.Join(k.Missing(), "\n"); !strings.Contains(m, "cache") {
		t.Errorf("missing: %q", m)
	}
}
