package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// A Linux kernel without BTF (CONFIG_DEBUG_INFO_BTF is off, as in Debian's i386
// kernels, or resolve_btfids was not there when it was built) tells no
// structures. The user may give them: a profile, made of the debug information
// of exactly that build.

// useProfile takes the types of the user's first symbol file that is of exactly
// this kernel, and tells of those that are not.
func (d *describer) useProfile(k *Kernel) bool {
	if len(d.opts.Symbols) == 0 {
		return false
	}
	d.progress("reading the profile")
	for _, name := range d.profiles(k.release) {
		f, err := openSymbols(name.path)
		if name.guessed && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = k.takeProfile(f, name.path)
		}
		if err == nil {
			return true
		}
		k.lacks(fmt.Sprintf("profile %s: %v", name.path, err))
	}
	return false
}

// profileFile is a file that may be a profile; guessed, if a folder may have it
// and need not.
type profileFile struct {
	path    string
	guessed bool
}

// profiles lists the files that the user's options name, and of folders those
// that are called after the kernel's release.
func (d *describer) profiles(release string) []profileFile {
	var out []profileFile
	for _, p := range d.opts.Symbols {
		if st, err := os.Stat(p); err != nil || !st.IsDir() {
			out = append(out, profileFile{path: p})
			continue
		}
		if release != filepath.Base(release) { // it is the guest's word
			continue
		}
		for _, dir := range []string{p, filepath.Join(p, "linux")} { // as Volatility has them
			for _, form := range []string{"%s", "vmlinux-%s", "linux-image-%s"} {
				for _, suffix := range []string{".json", ".json.xz", ""} {
					out = append(out, profileFile{filepath.Join(dir, fmt.Sprintf(form, release)+suffix), true})
				}
			}
		}
	}
	return out
}

// takeProfile makes a symbol file the kernel's types, if it has the same banner:
// that has the compiler, who built it and when.
func (k *Kernel) takeProfile(f *symbolFile, path string) error {
	if f.isf == nil {
		return fmt.Errorf("no profile of a Linux kernel: %w", errors.ErrUnsupported)
	}
	switch banner := f.isf.Banner(); banner {
	case k.banner:
	case "":
		return errors.New("it does not tell which kernel it is of (linux_banner): refused")
	default:
		return fmt.Errorf("it is of %.200q, the kernel says %.200q: refused", banner, k.banner)
	}
	k.types.profile, k.types.by = f.isf, "profile "+filepath.Base(path)
	k.fact("types", k.types.by)
	k.takeSymbols(f.isf)
	return nil
}

// noTypes notes why there is no type information, and what would help, unless
// the user has given a profile.
func (d *describer) noTypes(k *Kernel, why string) {
	if d.useProfile(k) {
		return
	}
	k.types.absent = fmt.Sprintf("%s; give a profile of exactly this build by --symbols: the vmlinux with debug information, "+
		"which is in Debian's package linux-image-%s-dbg, or, quicker to read, "+
		"what dwarf2json linux --elf VMLINUX >PROFILE.json makes of it", why, k.release)
	if k.buildID != "" {
		k.types.absent += ", or at a debuginfod server under the build id " + k.buildID
	}
	k.lacks(k.types.absent)
}
