package testvm

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// buildGuest compiles the ground-truth program from the sources beside this file and returns the path of the result,
// which is cached by the content of those sources. It is for a processor by Go's name.
func buildGuest(arch string) (string, error) {
	dir, err := sourceDir()
	if err != nil {
		return "", err
	}
	sum, err := hashSources(dir, "guest", "wire")
	if err != nil {
		return "", fmt.Errorf("build ground-truth program: %w", err)
	}
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	program := filepath.Join(cache, "guest-"+sum)
	if arch != amd64 {
		program += "-" + arch
	}
	if exists(program) {
		return program, nil
	}
	l, err := lock(filepath.Join(cache, "guest.lock"))
	if err != nil {
		return "", err
	}
	defer l.Close()
	if exists(program) {
		return program, nil
	}
	if err := compile(dir, program, arch); err != nil {
		return "", fmt.Errorf("build ground-truth program: %w", err)
	}
	return program, nil
}

// sourceDir finds this package's sources on disk.
func sourceDir() (string, error) {
	_, file, _, _ := runtime.Caller(0)
	dir := filepath.Dir(file)
	if !filepath.IsAbs(dir) || !exists(filepath.Join(dir, "guest", "main.go")) {
		return "", errors.New("build ground-truth program: its sources are not on this machine; give Options.Script instead")
	}
	return dir, nil
}

func hashSources(dir string, folders ...string) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, runtime.Version())
	for _, folder := range folders {
		files, err := filepath.Glob(filepath.Join(dir, folder, "*"))
		if err != nil {
			return "", err
		}
		slices.Sort(files)
		for _, file := range files {
			if ext := filepath.Ext(file); ext != ".go" && ext != ".s" || strings.HasSuffix(file, "_test.go") {
				continue
			}
			b, err := os.ReadFile(file)
			if err != nil {
				return "", err
			}
			fmt.Fprintf(h, "%s %d\n", filepath.Base(file), len(b))
			h.Write(b)
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}

func compile(dir, program, arch string) error {
	tmp := program + ".new"
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", tmp, "./guest")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOFLAGS=-buildvcs=false", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
	}
	return os.Rename(tmp, program)
}
