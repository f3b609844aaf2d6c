package testvm

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
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

// findPrograms returns the programs that the options name: the host's own, or else Debian's, fetched on first use into
// the cache.
func findPrograms(ctx context.Context, files []string, progress io.Writer) ([]program, error) {
	var found []program
	for _, file := range files {
		p := program{file: file}
		if !exists(file) {
			var err error
			if p.root, err = fetchProgram(ctx, file, progress); err != nil {
				return nil, fmt.Errorf("find program %s: %w", file, err)
			}
		}
		found = append(found, p)
	}
	return found, nil
}

// fetchProgram returns the directory below which a program's packages are unpacked.
func fetchProgram(ctx context.Context, file string, progress io.Writer) (string, error) {
	packages := packaged[file]
	if packages == nil {
		return "", fmt.Errorf("not on this machine, nor among the packages that are known: %w", fs.ErrNotExist)
	}
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "programs", path.Base(file))
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
	work, err := os.MkdirTemp(filepath.Dir(dir), path.Base(file)+".new-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	tree := filepath.Join(work, "tree")
	if err := unpackAll(ctx, packages, tree, progress); err != nil {
		return "", err
	}
	if !exists(filepath.Join(tree, file)) {
		return "", fmt.Errorf("not in the packages %s: %w", strings.Join(packages, ", "), fs.ErrNotExist)
	}
	return dir, os.Rename(tree, dir)
}

func unpackAll(ctx context.Context, packages []string, tree string, progress io.Writer) error {
	// Of the oldest release that guests' kernels are taken from and that is not archived: its programs run with the C
	// library of every later one.
	a, err := newApt("bookworm", progress)
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
