package testvm

import (
	"fmt"
	"os"
	"path/filepath"
)

// CacheDir returns the directory that holds fetched kernels and built programs, made if absent: $VITRINE_CACHE, else
// "vitrine" in the user's cache directory. Whatever is in it may be deleted while no guest is being started.
func CacheDir() (string, error) {
	dir := os.Getenv("VITRINE_CACHE")
	if dir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("find cache directory (set VITRINE_CACHE to name one): %w", err)
		}
		dir = filepath.Join(user, "vitrine")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("find cache directory: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make cache directory (set VITRINE_CACHE to name another): %w", err)
	}
	return dir, nil
}

// exists says whether the path is there.
func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
