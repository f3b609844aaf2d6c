package host

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Page is one page of a file, mapped shared: what is stored in it is in the
// file at once and stays there when this process is killed. The file is locked
// for as long as the page is open, which ReadPage tells others.
type Page struct {
	Bytes []byte
	file  *os.File
}

// CreatePage creates the file, which must not exist, for its owner alone.
func CreatePage(path string) (*Page, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	p := &Page{file: f}
	size := unix.Getpagesize()
	if err = f.Truncate(int64(size)); err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err == nil {
		p.Bytes, err = unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return p, nil
}

// Close unmaps the page and unlocks the file, which stays.
func (p *Page) Close() error {
	if p.Bytes == nil {
		return errors.New("page is closed")
	}
	b := p.Bytes
	p.Bytes = nil
	return errors.Join(unix.Munmap(b), p.file.Close())
}

// ReadPage returns the first byte of the file of a page, and whether the
// process that created it still has it open.
func ReadPage(path string) (first byte, open bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, false, err
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.Read(b[:]); err != nil {
		return 0, false, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	return b[0], errors.Is(err, unix.EWOULDBLOCK), nil
}
