package testvm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFindMirror(t *testing.T) {
	for _, c := range []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"deb822, security first", map[string]string{"sources.list.d/debian.sources": `# a comment
Types: deb
URIs: http://a.example/debian-security
Suites: bookworm-security
Components: main

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main

Types: deb deb-src
# another
URIs: http://b.example/debian
 http://c.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
`}, "http://b.example/debian"},
		{"one-line with options", map[string]string{"sources.list": "# deb http://no.example/debian bookworm main\n" +
			"deb-src http://src.example/debian bookworm main\ndeb http://x.example/pool noble main\n" +
			"deb [arch=amd64 signed-by=/k.gpg] https://d.example/debian trixie main non-free-firmware\n"}, "https://d.example/debian"},
		{"a third party before Debian", map[string]string{
			"sources.list.d/a.list":    "deb https://packages.example/apt tool-bookworm main\n",
			"sources.list.d/b.list.no": "deb http://ignored.example/debian bookworm main\n",
			"sources.list.d/c.sources": "Types: deb\nURIs: mirror+file:///etc/apt/mirrors/debian.list\nSuites: trixie\nComponents: main\n",
		}, "mirror+file:///etc/apt/mirrors/debian.list"},
		{"not Debian", map[string]string{"sources.list": "deb http://u.example/ubuntu noble main\n"}, ""},
		{"nothing", nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("VITRINE_MIRROR", "")
			etc := t.TempDir()
			for name, text := range c.files {
				file := filepath.Join(etc, name)
				if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, err := findMirror(etc)
			if got != c.want || (err == nil) != (c.want != "") {
				t.Errorf("got %q, %v, want %q", got, err, c.want)
			}
			if err != nil && !strings.Contains(err.Error(), "VITRINE_MIRROR") {
				t.Errorf("error does not say what to do: %v", err)
			}
		})
	}
}

func TestMirrorFromEnvironment(t *testing.T) {
	t.Setenv("VITRINE_MIRROR", "http://mine.example/debian")
	if got, err := findMirror(t.TempDir()); got != "http://mine.example/debian" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestKernelPatterns(t *testing.T) {
	for pkg, want := range map[string]string{
		"linux-image-5.10.0-32-amd64":                "5.10",
		"linux-image-5.10.0-32-cloud-amd64":          "5.10-cloud",
		"linux-image-6.1.0-50-amd64":                 "6.1",
		"linux-image-6.1.0-50-cloud-amd64":           "6.1-cloud",
		"linux-image-6.1.0-50-rt-amd64":              "6.1-rt",
		"linux-image-6.1.0-50-cloud-amd64-unsigned":  "",
		"linux-image-6.1.0-50-cloud-amd64-dbg":       "",
		"linux-image-cloud-amd64":                    "",
		"linux-image-6.12.107+deb13-amd64":           "6.12",
		"linux-image-6.12.107+deb13-cloud-amd64":     "6.12-cloud",
		"linux-image-6.12.107+deb12-amd64":           "",
		"linux-binary-7.2.13+deb14-amd64":            "7.2",
		"linux-binary-7.2.13+deb14-cloud-amd64":      "7.2-cloud",
		"linux-image-7.2.13+deb14-cloud-amd64":       "",
		"linux-headers-6.1.0-50-cloud-amd64":         "",
		"linux-image-6.1.0-50-arm64":                 "6.1-arm64",
		"linux-image-6.1.0-50-cloud-arm64":           "6.1-cloud-arm64",
		"linux-image-6.12.107+deb13-arm64":           "6.12-arm64",
		"linux-image-6.12.107+deb13-cloud-arm64":     "6.12-cloud-arm64",
		"linux-image-6.12.107+deb13-cloud-arm64-dbg": "",
	} {
		var got string
		for _, s := range sources {
			if m, err := match(pkg+"\n", s.pattern); err != nil {
				t.Fatal(err)
			} else if len(m) > 0 {
				got += s.name
			}
		}
		if got != want {
			t.Errorf("%s is taken for %q, want %q", pkg, got, want)
		}
	}
}

func TestArguments(t *testing.T) {
	p := pathsIn("/d")
	k := &Kernel{Image: "/k"}
	for _, c := range []struct {
		o    Options
		want []string
		not  []string
	}{
		{Options{}, []string{"-machine pc,accel=tcg", "-cpu max", "-smp 1", "-m 512", "-kernel /k"}, []string{"nokaslr", "memory-backend", " -S"}},
		{Options{Machine: "q35", RAM: SharedMemfd, Memory: 5120, CPUs: 2}, []string{"q35,accel=tcg,memory-backend=ram", "memory-backend-memfd,id=ram,size=5120M,share=on", "-smp 2"}, nil},
		{Options{RAM: SharedFile, NoKASLR: true, Cmdline: "a=b"}, []string{"mem-path=/d/ram", "nokaslr a=b"}, nil},
		{Options{Firmware: true, Paused: true}, []string{" -S"}, []string{"-kernel", "-initrd"}},
	} {
		got := strings.Join(c.o.withDefaults().arguments(k, p), " ")
		for _, w := range c.want {
			if !strings.Contains(got, w) {
				t.Errorf("%+v: no %q in %s", c.o, w, got)
			}
		}
		for _, w := range c.not {
			if strings.Contains(got, w) {
				t.Errorf("%+v: %q in %s", c.o, w, got)
			}
		}
	}
}

func TestQuoteCommand(t *testing.T) {
	got := quoteCommand([]string{"a", "b c", "", "it's", "x=1,y"})
	if want := `a 'b c' '' 'it'\''s' x=1,y`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestSlotsFromEnvironment(t *testing.T) {
	for text, want := range map[string]int{"3": 3, "0": 0, "x": 0, "-1": 0} {
		t.Setenv("VITRINE_TEST_VMS", text)
		if got, err := slots(); got != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
}

// Two guests of one process need one right, and a second process waits for it.
func TestTurns(t *testing.T) {
	t.Setenv("VITRINE_CACHE", t.TempDir())
	t.Setenv("VITRINE_TEST_VMS", "1")
	ctx := t.Context()
	if err := enter(ctx); err != nil {
		t.Fatal(err)
	}
	if err := enter(ctx); err != nil {
		t.Fatal(err)
	}
	cache, err := CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	taken := func() bool {
		l, err := tryLock(filepath.Join(cache, "slot0.lock"))
		if err != nil {
			t.Fatal(err)
		}
		if l == nil {
			return true
		}
		l.Close()
		return false
	}
	if !taken() {
		t.Error("slot is free while two guests run")
	}
	if err := leave(); err != nil || !taken() {
		t.Errorf("slot is free while one guest runs (%v)", err)
	}
	if err := leave(); err != nil || taken() {
		t.Errorf("slot is taken after the last guest (%v)", err)
	}
}
