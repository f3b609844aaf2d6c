package host

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Page is one page of a file, mapped shared: what is stored in it is in the
// file at once and stays there when this process is killed.
type Page struct {
	Bytes []byte
}

// CreatePage creates the file, which must not exist, for its owner alone.
func CreatePage(path string) (*Page, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size := unix.Getpagesize()
	if err := f.Truncate(int64(size)); err != nil {
		return nil, err
	}
	b, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return &Page{b}, nil
}

// Close unmaps the page; the file stays.
func (p *Page) Close() error {
	if p.Bytes == nil {
		return errors.New("page is closed")
	}
	b := p.Bytes
	p.Bytes = nil
	return unix.Munmap(b)
}
