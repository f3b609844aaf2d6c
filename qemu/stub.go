package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/qemu/internal/host"
)

// stub is QEMU's gdbstub as a chardev: where it listens and whose it is.
type stub struct {
	network, addr string // as QEMU names it: "unix" and a path, "tcp" and host:port
	connected     bool   // it has a client
	ours          bool   // opened by Vitrine, this process or an earlier one
	dir           string // our private folder, as this process sees it; "" without one
	mark          *mark  // nil where the stub is not ours
}

// stubPrefix is how the private folders of our stubs are named, which is how a
// later run knows them.
const stubPrefix = "vitrine-gdb-"

// maxBase bounds the folder that ours is made in: the path of a socket has 107
// bytes at most, and QEMU's root may have to be put before it.
const maxBase = 48

// findStub returns the gdbstub that is open now, nil when there is none. QEMU
// labels its chardev "gdb", whoever opened it: -gdb, -s or the monitor.
func (m *machine) findStub(ctx context.Context) (*stub, error) {
	var devs []struct {
		Label    string `json:"label"`
		Filename string `json:"filename"`
	}
	if err := m.execute(ctx, "query-chardev", nil, &devs); err != nil {
		return nil, err
	}
	for _, d := range devs {
		if d.Label != "gdb" {
			continue
		}
		s := parseStub(d.Filename)
		if s.network == "tcp" {
			_, _, err := host.ReadPage(filepath.Join(m.folder(s), markName))
			s.ours = err == nil
		}
		return s, nil
	}
	return nil, nil
}

// folder returns where the mark of a stub of ours lies: beside its socket, or, for a port, in a folder that names
// QEMU and the port. A user who may not read the mark takes the stub for somebody else's.
func (m *machine) folder(s *stub) string {
	if s.network == "unix" {
		return filepath.Dir(m.seen(s.addr))
	}
	port := s.addr[strings.LastIndexByte(s.addr, ':')+1:]
	return filepath.Join("/tmp", fmt.Sprintf("%sof-%d-port-%s", stubPrefix, m.mem.proc, filepath.Base(port)))
}

// parseStub parses what query-chardev prints of a socket:
// "disconnected:unix:PATH,server=on", "unix:PATH,server=on <-> ...",
// "disconnected:tcp:HOST:PORT,server=on", "tcp:HOST:PORT,server=on <-> PEER".
func parseStub(filename string) *stub {
	rest, waiting := strings.CutPrefix(filename, "disconnected:")
	s := &stub{connected: !waiting}
	network, addr, ok := strings.Cut(rest, ":")
	if !ok {
		return s
	}
	if i := strings.Index(addr, ",server"); i >= 0 {
		addr = addr[:i]
	}
	s.network, s.addr = network, addr
	s.ours = network == "unix" && strings.HasPrefix(filepath.Base(filepath.Dir(addr)), stubPrefix)
	return s
}

// seen returns a path of QEMU's as this process reaches it: QEMU may live in
// another mount namespace, or in a chroot.
func (m *machine) seen(path string) string {
	if !filepath.IsAbs(path) {
		return m.mem.proc.Path("cwd") + "/" + path
	}
	if m.mem.proc.OtherFiles() {
		return m.mem.proc.Path("root") + path
	}
	return path
}

// errNoProcess is returned for a QEMU that is not known to run on this host:
// its gdbstub would listen where we cannot reach it.
var errNoProcess = fmt.Errorf("the QEMU process is not one of this host: %w", errors.ErrUnsupported)

// openStub makes QEMU listen for us on a socket in a private folder, and on a
// TCP port of the loopback interface where it may not make sockets there
// (AppArmor). While such a port waits, for some milliseconds, any user of this
// host could connect to it.
func (m *machine) openStub(ctx context.Context) (*stub, error) {
	if m.mem.proc == 0 {
		return nil, errNoProcess
	}
	s, err := m.openUnixStub(ctx)
	if err == nil || ctx.Err() != nil {
		return s, err
	}
	s, err2 := m.openTCPStub(ctx)
	if err2 != nil {
		return nil, errors.Join(err, err2)
	}
	return s, nil
}

func (m *machine) openTCPStub(ctx context.Context) (*stub, error) {
	if err := m.gdbserver(ctx, "tcp:127.0.0.1:0"); err != nil {
		return nil, err
	}
	s, err := m.findStub(ctx)
	if err == nil && s == nil {
		err = errors.New("open the gdbstub: QEMU does not list it")
	}
	if err != nil {
		return nil, errors.Join(err, m.gdbserver(context.WithoutCancel(ctx), "none"))
	}
	s.ours, s.dir = true, m.folder(s)
	os.RemoveAll(s.dir) // of an earlier QEMU with the same numbers
	if err = os.Mkdir(s.dir, 0o700); err == nil {
		s.mark, err = newMark(s.dir)
	}
	if err != nil {
		return nil, errors.Join(err, m.closeStub(context.WithoutCancel(ctx), s))
	}
	return s, nil
}

func (m *machine) openUnixStub(ctx context.Context) (*stub, error) {
	base := os.TempDir()
	if len(base) > maxBase {
		base = "/tmp"
	}
	dir, err := os.MkdirTemp(m.seen(base), fmt.Sprintf("%s%d-", stubPrefix, os.Getpid()))
	if err != nil {
		return nil, err
	}
	mk, err := m.prepareDir(dir)
	if err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	path := filepath.Join(base, filepath.Base(dir), "s")
	if err := m.gdbserver(ctx, "unix:"+path+",server=on,wait=off"); err != nil {
		mk.close()
		os.RemoveAll(dir)
		return nil, err
	}
	return &stub{network: "unix", addr: path, ours: true, dir: dir, mark: mk}, nil
}

// prepareDir hands the folder to the user that QEMU runs as, and puts the mark
// into it.
func (m *machine) prepareDir(dir string) (*mark, error) {
	mk, err := newMark(dir)
	if err != nil {
		return nil, err
	}
	uid, gid, err := m.mem.proc.UID()
	if err == nil && uid != os.Geteuid() {
		err = os.Chown(dir, uid, gid)
	}
	if err != nil {
		mk.close()
		return nil, err
	}
	return mk, nil
}

// gdbserver runs the monitor command of that name. It answers in words.
func (m *machine) gdbserver(ctx context.Context, device string) error {
	text, err := m.hmp(ctx, -1, "gdbserver "+device)
	if err != nil {
		return err
	}
	if strings.HasPrefix(text, "Waiting for gdb connection") || strings.HasPrefix(text, "Disabled gdbserver") {
		return nil
	}
	return fmt.Errorf("gdbserver %s: %s", device, strings.TrimSpace(text))
}

// connect connects to the stub, which stops the guest.
func (m *machine) connect(ctx context.Context, s *stub) (net.Conn, error) {
	addr := s.addr
	if s.network == "unix" {
		addr = m.seen(addr)
	}
	d := net.Dialer{Timeout: time.Second}
	conn, err := d.DialContext(ctx, s.network, addr)
	if err != nil {
		return nil, fmt.Errorf("connect to the gdbstub: %w", err)
	}
	return conn, nil
}

// closeStub makes QEMU stop listening, if it was we who made it listen, and
// removes the folder.
func (m *machine) closeStub(ctx context.Context, s *stub) error {
	var err error
	if s.ours {
		err = m.gdbserver(ctx, "none")
	}
	return errors.Join(err, s.discard())
}

// discard removes the folder of the stub's socket, if it has one of ours.
func (s *stub) discard() error {
	if s.mark != nil {
		s.mark.close()
		s.mark = nil
	}
	if s.dir == "" {
		return nil
	}
	return os.RemoveAll(s.dir)
}

// available returns ErrBusy for a stub (nil for none) that somebody uses: it has
// a client, or the run that opened it has not connected yet.
func (m *machine) available(s *stub) error {
	if s == nil {
		return nil
	}
	if s.connected {
		return s.busy()
	}
	if _, alive := m.readMark(s); s.ours && alive {
		return s.busy()
	}
	return nil
}

// mark is a file beside our stub's socket that tells a later run, should this
// one be killed, whether it was we who stopped the guest. It is mapped: to
// keep it up to date costs a store, and it outlives the process.
type mark struct{ page *host.Page }

// Contents of the mark: byte 0 says whether the guest is stopped by us.
const (
	markName    = "state"
	markRunning = 1
	markHeld    = 2
)

func newMark(dir string) (*mark, error) {
	p, err := host.CreatePage(filepath.Join(dir, markName))
	if err != nil {
		return nil, err
	}
	return &mark{p}, nil
}

func (mk *mark) held(on bool) {
	switch {
	case mk == nil:
	case on:
		mk.page.Bytes[0] = markHeld
	default:
		mk.page.Bytes[0] = markRunning
	}
}

func (mk *mark) close() { mk.page.Close() }

// readMark reads the mark of a stub that somebody opened as ours: whether the
// run that did so held the guest stopped, and whether that run still goes on.
func (m *machine) readMark(s *stub) (held, alive bool) {
	state, alive, err := host.ReadPage(filepath.Join(m.folder(s), markName))
	return err == nil && state == markHeld, alive
}

// busy is the error for a stub that somebody else uses.
func (s *stub) busy() error {
	return fmt.Errorf("the gdbstub at %s:%s: %w: a debugger, or another vitrine, is connected to it", s.network, s.addr, vitrine.ErrBusy)
}
