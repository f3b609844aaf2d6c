package testvm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Kernel is a guest kernel on this machine's disk.
type Kernel struct {
	Name    string // as in KernelNames
	Release string // what uname -r says in the guest, as in 6.1.0-50-cloud-amd64
	Package string // Debian package and version
	Image   string // path of what QEMU boots: a bzImage, or an Image
	Config  string // path of the kernel's configuration file
	Modules string // directory of NAME.ko files, uncompressed
	Profile string // path of an ISF of its types, "" for none: of a kernel without BTF whose release testdata has
}

// source says where a kernel comes from.
type source struct {
	name  string
	suite string
	// pattern matches the package names; the newest match by Debian's version order is taken.
	pattern string
	// jumpsOnCX16 marks kernels that branch on the flags of cmpxchg16b at once, as the allocator does since 6.12. QEMU
	// 7.2's TCG translates that instruction without saving its lazy flags first, so its helper computes RFLAGS out of
	// stale ones, and an interrupt that arrives at the branch pushes the garbage: a double fault whose EFLAGS end in bits
	// of a pointer, with nothing attached. Such guests get a CPU without the instruction.
	jumpsOnCX16 bool
	arch        string // Debian's name of the processor
}

// sources is the matrix. A suite moves on: when it has no match any more the error says so.
var sources = []source{
	{"5.10", "bullseye", `^linux-image-5\.10\.0-[0-9]+-amd64$`, false, amd64},
	{"5.10-cloud", "bullseye", `^linux-image-5\.10\.0-[0-9]+-cloud-amd64$`, false, amd64},
	{"6.1", "bookworm", `^linux-image-6\.1\.0-[0-9]+-amd64$`, false, amd64},
	{"6.1-cloud", "bookworm", `^linux-image-6\.1\.0-[0-9]+-cloud-amd64$`, false, amd64},
	{"6.1-rt", "bookworm", `^linux-image-6\.1\.0-[0-9]+-rt-amd64$`, false, amd64},
	{"6.12", "trixie", `^linux-image-6\.12\.[0-9.]+\+deb13-amd64$`, true, amd64},
	{"6.12-cloud", "trixie", `^linux-image-6\.12\.[0-9.]+\+deb13-cloud-amd64$`, true, amd64},
	{"6.12-rt", "trixie", `^linux-image-6\.12\.[0-9.]+\+deb13-rt-amd64$`, true, amd64},
	// From 7.x on the signed linux-image packages only depend on linux-binary, which has the files.
	{"7.2", "sid", `^linux-binary-7\.2\.[0-9.]+\+deb14-amd64$`, true, amd64},
	{"7.2-cloud", "sid", `^linux-binary-7\.2\.[0-9.]+\+deb14-cloud-amd64$`, true, amd64},
	{"6.1-686-pae", "bookworm", `^linux-image-6\.1\.0-[0-9]+-686-pae$`, false, i386},
	{"6.1-arm64", "bookworm", `^linux-image-6\.1\.0-[0-9]+-arm64$`, false, arm64},
	{"6.1-cloud-arm64", "bookworm", `^linux-image-6\.1\.0-[0-9]+-cloud-arm64$`, false, arm64},
	{"6.12-arm64", "trixie", `^linux-image-6\.12\.[0-9.]+\+deb13-arm64$`, false, arm64},
	{"6.12-cloud-arm64", "trixie", `^linux-image-6\.12\.[0-9.]+\+deb13-cloud-arm64$`, false, arm64},
}

// guestModules are loaded, in this order, by a guest at start, where the kernel has them as modules: a chain of
// dependent ones among them, none that needs a device. (dummy was left out: it makes a network device.)
var guestModules = []string{"crc-itu-t", "nls_ascii", "fat", "vfat", "loop"}

// spareModules are in the initramfs but not loaded at start.
var spareModules = []string{"dummy", "isofs", "qemu_fw_cfg"}

// KernelNames lists the kernels that FetchKernel knows.
func KernelNames() []string {
	names := make([]string, len(sources))
	for i, s := range sources {
		names[i] = s.name
	}
	return names
}

// platformOf returns the machine of a kernel's guests.
func platformOf(kernel string) *platform {
	for _, s := range sources {
		if s.name == kernel {
			return platforms[s.arch]
		}
	}
	return platforms[amd64]
}

// cpuFor returns the -cpu that a kernel gets when model was asked for.
func cpuFor(kernel, model string) string {
	if slices.ContainsFunc(sources, func(s source) bool { return s.name == kernel && s.jumpsOnCX16 }) {
		return model + ",-cx16"
	}
	return model
}

// FetchKernel returns the named kernel, downloading it from Debian's archive on first use into the cache. It needs no
// rights and leaves the machine's own package lists alone. Several processes may call it at once. Progress goes to
// progress, which may be nil.
func FetchKernel(ctx context.Context, name string, progress io.Writer) (*Kernel, error) {
	i := slices.IndexFunc(sources, func(s source) bool { return s.name == name })
	if i < 0 {
		return nil, fmt.Errorf("fetch kernel %q: unknown; there are %s", name, strings.Join(KernelNames(), ", "))
	}
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(cache, "kernels", name)
	if k, err := openKernel(dir); err == nil {
		return k, nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, fmt.Errorf("fetch kernel: %w", err)
	}
	l, err := lock(dir + ".lock")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	if k, err := openKernel(dir); err == nil {
		return k, nil // another process was quicker
	}
	if progress == nil {
		progress = io.Discard
	}
	if err := fetchKernel(ctx, sources[i], dir, progress); err != nil {
		return nil, fmt.Errorf("fetch kernel %s: %w", name, err)
	}
	return openKernel(dir)
}

// openKernel reads what fetchKernel has stored.
func openKernel(dir string) (*Kernel, error) {
	text, err := os.ReadFile(filepath.Join(dir, "package"))
	if err != nil {
		return nil, err
	}
	f := strings.Split(strings.TrimSpace(string(text)), "\n")
	if len(f) != 2 {
		return nil, fmt.Errorf("open kernel: %s/package is damaged", dir)
	}
	return &Kernel{
		Name: filepath.Base(dir), Package: f[0], Release: f[1],
		Image: filepath.Join(dir, "vmlinuz"), Config: filepath.Join(dir, "config"), Modules: filepath.Join(dir, "modules"),
		Profile: profileOf(f[1]),
	}, nil
}

// profileOf finds the profile of a release; kernel/internal/vmlinux/gen makes one out of the vmlinux in Debian's package
// linux-image-RELEASE-dbg.
func profileOf(release string) string {
	dir, err := sourceDir()
	if err != nil {
		return ""
	}
	name := filepath.Join(dir, "testdata", release+".json.xz")
	if !exists(name) {
		return ""
	}
	return name
}

// Symbols returns the profile as the option that names it has it.
func (k *Kernel) Symbols() []string {
	if k.Profile == "" {
		return nil
	}
	return []string{k.Profile}
}

func fetchKernel(ctx context.Context, s source, dir string, progress io.Writer) error {
	a, err := newApt(s.suite, s.arch, progress)
	if err != nil {
		return err
	}
	if err := a.update(ctx); err != nil {
		return err
	}
	pkg, version, err := a.newest(ctx, s.pattern)
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(dir), s.name+".new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	tree := filepath.Join(work, "tree")
	if err := a.unpack(ctx, pkg, tree); err != nil {
		return err
	}
	if strings.HasPrefix(pkg, "linux-binary-") { // 7.x has the modules in a package of their own
		if err := a.unpack(ctx, strings.Replace(pkg, "binary", "modules", 1), tree); err != nil {
			return err
		}
	}
	ready := filepath.Join(work, "ready")
	if err := pick(ctx, tree, ready, pkg+" "+version); err != nil {
		return err
	}
	return os.Rename(ready, dir)
}

// pick takes what a guest needs out of an unpacked package.
func pick(ctx context.Context, tree, ready, origin string) error {
	image, err := one(tree, "boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz", "usr/lib/linux/vmlinuz-*", "lib/modules/*/vmlinuz")
	if err != nil {
		return err
	}
	modules, err := one(tree, "usr/lib/modules/*", "lib/modules/*")
	if err != nil {
		return err
	}
	release := filepath.Base(modules)
	if err := os.MkdirAll(filepath.Join(ready, "modules"), 0o755); err != nil {
		return err
	}
	if err := os.Rename(image, filepath.Join(ready, "vmlinuz")); err != nil {
		return err
	}
	if config, err := one(tree, "boot/config-*", "usr/lib/modules/*/config", "lib/modules/*/config"); err == nil {
		if err := os.Rename(config, filepath.Join(ready, "config")); err != nil {
			return err
		}
	}
	for _, name := range slices.Concat(guestModules, spareModules) {
		if err := pickModule(ctx, modules, name, filepath.Join(ready, "modules")); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(ready, "package"), []byte(origin+"\n"+release+"\n"), 0o644) //nolint:gosec // not secret
}

// one returns the only match of the first pattern that has any.
func one(tree string, patterns ...string) (string, error) {
	for _, p := range patterns {
		found, err := filepath.Glob(filepath.Join(tree, p))
		if err != nil {
			return "", err
		}
		if len(found) == 1 {
			return found[0], nil
		}
		if len(found) > 1 {
			return "", fmt.Errorf("package has %d files %s", len(found), p)
		}
	}
	return "", fmt.Errorf("package has no file %s", strings.Join(patterns, " nor "))
}

// pickModule copies a module, uncompressed; a kernel that has it built in, or not at all, is fine.
func pickModule(ctx context.Context, modules, name, into string) error {
	var found string
	err := filepath.WalkDir(filepath.Join(modules, "kernel"), func(path string, d os.DirEntry, err error) error {
		base, _, isModule := strings.Cut(filepath.Base(path), ".ko")
		if err == nil && !d.IsDir() && isModule && sameModule(base, name) {
			found = path
			return filepath.SkipAll
		}
		return err
	})
	if err != nil || found == "" {
		return err
	}
	unpack := map[string]string{".xz": "xz", ".zst": "zstd", ".gz": "gzip"}[filepath.Ext(found)]
	to := filepath.Join(into, name+".ko")
	if unpack == "" {
		return os.Rename(found, to)
	}
	cmd := exec.CommandContext(ctx, unpack, "-dc", found)
	text, err := cmd.Output()
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("unpack module %s: %w (install it with apt-get install %s)", name, err, debianPackage(unpack))
	}
	if err != nil {
		return fmt.Errorf("unpack module %s: %w", name, err)
	}
	return os.WriteFile(to, text, 0o644) //nolint:gosec // not secret
}

func debianPackage(tool string) string {
	return cmp.Or(map[string]string{"xz": "xz-utils"}[tool], tool)
}

// sameModule compares module names, for which - and _ are one.
func sameModule(a, b string) bool {
	return strings.ReplaceAll(a, "-", "_") == strings.ReplaceAll(b, "-", "_")
}

// match returns the lines that the pattern matches.
func match(lines, pattern string) ([]string, error) {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return nil, err
	}
	var found []string
	for line := range strings.Lines(lines) {
		if line = strings.TrimSpace(line); re.MatchString(line) {
			found = append(found, line)
		}
	}
	return found, nil
}
