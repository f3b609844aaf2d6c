package testvm

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// packaged lists programs that a Debian machine may lack, with the packages that hold them and what they are linked to
// beyond the C library.
var packaged = map[string][]string{
	"/usr/bin/strace": {"strace", "libunwind8", "liblzma5"},
}

// program is a dynamically linked program for guests.
type program struct {
	file string // path in the guest, and below root
	root string // the host's root directory is ""; else where packages were unpacked
}

// basics are the packages of what every guest has, for guests that have no use for the host's own programs; the C library
// and others that those are linked to among them.
var basics = []string{"busybox-static", "coreutils", "bash", "sed", "libc6", "libtinfo6", "libselinux1", "libpcre2-8-0", "libacl1", "libattr1", "libgmp10"}

// basicPrograms returns the folder below which busybox and the dynamically linked programs of every guest are: "" is
// the host's own.
func (on *platform) basicPrograms(ctx context.Context, progress io.Writer) (string, error) {
	if !on.foreign() {
		return "", nil
	}
	dir, err := fetchTree(ctx, "basics-"+on.debian, on.debian, basics, progress)
	if err != nil {
		return "", fmt.Errorf("find programs for %s: %w", on.debian, err)
	}
	return dir, nil
}

// findPrograms returns the programs that the options name: the host's own, or else Debian's, fetched on first use into
// the cache.
func findPrograms(ctx context.Context, on *platform, files []string, progress io.Writer) ([]program, error) {
	var found []program
	for _, file := range files {
		p := program{file: file}
		if on.foreign() || !exists(file) {
			var err error
			if p.root, err = fetchProgram(ctx, on, file, progress); err != nil {
				return nil, fmt.Errorf("find program %s: %w", file, err)
			}
		}
		found = append(found, p)
	}
	return found, nil
}

// fetchProgram returns the directory below which a program's packages are unpacked.
func fetchProgram(ctx context.Context, on *platform, file string, progress io.Writer) (string, error) {
	packages := packaged[file]
	if packages == nil {
		return "", fmt.Errorf("not on this machine, nor among the packages that are known: %w", fs.ErrNotExist)
	}
	name := path.Base(file)
	if on.foreign() { // nor are the libraries that every Debian machine has
		name += "-" + on.debian
		packages = append(slices.Clone(packages), "libc6")
	}
	dir, err := fetchTree(ctx, name, on.debian, packages, progress)
	if err != nil {
		return "", err
	}
	if !exists(filepath.Join(dir, file)) {
		return "", fmt.Errorf("not in the packages %s: %w", strings.Join(packages, ", "), fs.ErrNotExist)
	}
	return dir, nil
}

// fetchTree returns the directory of the cache, by its name there, below which packages are unpacked.
func fetchTree(ctx context.Context, name, arch string, packages []string, progress io.Writer) (string, error) {
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "programs", name)
	if exists(dir) {
		return dir, nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", err
	}
	l, err := lock(dir + ".lock")
	if err != nil {
		return "", err
	}
	defer l.Close()
	if exists(dir) {
		return dir, nil // another process was quicker
	}
	work, err := os.MkdirTemp(filepath.Dir(dir), name+".new-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	tree := filepath.Join(work, "tree")
	if err := unpackAll(ctx, arch, packages, tree, progress); err != nil {
		return "", err
	}
	return dir, os.Rename(tree, dir)
}

func unpackAll(ctx context.Context, arch string, packages []string, tree string, progress io.Writer) error {
	// Of the oldest release that guests' kernels are taken from and that is not archived: its programs run with the C
	// library of every later one.
	a, err := newApt("bookworm", arch, progress)
	if err != nil {
		return err
	}
	if err := a.update(ctx); err != nil {
		return err
	}
	for _, p := range packages {
		if err := a.unpack(ctx, p, tree); err != nil {
			return err
		}
	}
	return nil
}
