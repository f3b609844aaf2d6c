//go:build !linux

package host

import (
	"errors"
	"net"
	"os"
)

// Process is a process of this host; outside Linux nothing is known of it.
type Process int

// Mapping is a file range mapped shared into this process.
type Mapping struct {
	Bytes    []byte
	File     *os.File
	Offset   int64
	Writable bool
}

// Close does nothing: there is no mapping outside Linux.
func (m *Mapping) Close() error { return nil }

// NextData returns off.
func (m *Mapping) NextData(off uint64) uint64 { return off }

// Page is one page of a file, mapped shared.
type Page struct{ Bytes []byte }

// Close does nothing: there is no page outside Linux.
func (p *Page) Close() error { return nil }

// Processes answers errors.ErrUnsupported, as everything here does.
func Processes() ([]Process, error) { return nil, errors.ErrUnsupported }

// ThreadOwner answers errors.ErrUnsupported.
func ThreadOwner(int) (Process, error) { return 0, errors.ErrUnsupported }

// Peer answers errors.ErrUnsupported.
func Peer(net.Conn) (Process, error) { return 0, errors.ErrUnsupported }

// CreatePage answers errors.ErrUnsupported.
func CreatePage(string) (*Page, error) { return nil, errors.ErrUnsupported }

// ReadPage answers errors.ErrUnsupported.
func ReadPage(string) (first byte, open bool, err error) { return 0, false, errors.ErrUnsupported }

// OnExit never calls f.
func (p Process) OnExit(func()) (cancel func()) { return func() {} }

// Path returns "".
func (p Process) Path(...string) string { return "" }

// Maps answers errors.ErrUnsupported.
func (p Process) Maps() ([]VMA, error) { return nil, errors.ErrUnsupported }

// MapShared answers errors.ErrUnsupported.
func (p Process) MapShared([]VMA, uint64, uint64) (*Mapping, error) {
	return nil, errors.ErrUnsupported
}

// Executable returns "".
func (p Process) Executable() string { return "" }

// Cmdline answers errors.ErrUnsupported.
func (p Process) Cmdline() ([]string, error) { return nil, errors.ErrUnsupported }

// UID answers errors.ErrUnsupported.
func (p Process) UID() (uid, gid int, err error) { return 0, 0, errors.ErrUnsupported }

// HasThread returns false.
func (p Process) HasThread(int) bool { return false }

// OtherFiles returns false.
func (p Process) OtherFiles() bool { return false }

// Read answers errors.ErrUnsupported.
func (p Process) Read([]byte, uint64) (int, error) { return 0, errors.ErrUnsupported }

// Write answers errors.ErrUnsupported.
func (p Process) Write([]byte, uint64) (int, error) { return 0, errors.ErrUnsupported }
