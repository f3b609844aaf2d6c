package ntguest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vitrine-vmi/vitrine/internal/testvm"
)

// program is what runs guests.
const program = "qemu-system-x86_64"

// Options says how to boot. The zero value, and nil, is two processors, 64 MiB, and everything where it usually is.
type Options struct {
	Name      string // -name of QEMU; default a unique one
	CPUs      int    // 1 to 4, default 2
	Memory    int    // MiB, default 64
	Processes int    // so many more than usual
	Build     int    // the build number that the kernel claims; default the layout's own
	Base      uint64 // where the kernel lies, on a page; on x86 from 0x80000000 to 0x83c00000. Default a usual place
	Pool      uint64 // x86-64: where the pool lies, on 1 GiB
	INT2E     bool   // x86: user code makes system calls by int 2e and not by sysenter
	Paused    bool   // -S
	Args      []string
}

func (o *Options) withDefaults() *Options {
	var c Options
	if o != nil {
		c = *o
	}
	if c.CPUs == 0 {
		c.CPUs = 2
	}
	if c.Memory == 0 {
		c.Memory = 64
	}
	if c.Name == "" {
		c.Name = fmt.Sprintf("ntguest-%d-%d", os.Getpid(), serial.Add(1))
	}
	return &c
}

var serial atomic.Uint64

// cmdline returns the kernel's command line. Its numbers are hexadecimal.
func (o *Options) cmdline() string {
	words := []string{fmt.Sprintf("cpus=%x", o.CPUs)}
	add := func(name string, v uint64) {
		if v != 0 {
			words = append(words, name+"="+strconv.FormatUint(v, 16))
		}
	}
	add("procs", uint64(o.Processes))
	add("build", uint64(o.Build))
	add("base", o.Base)
	add("pool", o.Pool)
	add("int2e", uint64(number(o.INT2E)))
	return strings.Join(words, " ")
}

// Guest is a running guest.
type Guest struct {
	Layout  string
	Options *Options // with the defaults filled in
	QMP     string   // path of QEMU's monitor socket
	Dir     string   // sockets
	Kernel  string   // path of what was booted
	Command []string // QEMU's command line
	PID     int      // of QEMU

	cmd    *exec.Cmd
	conn   net.Conn
	stderr bytes.Buffer
	leave  func() error
	close  sync.Once

	// turn is held by the one command at a time.
	turn sync.Mutex
	// mu guards the rest.
	mu    sync.Mutex
	lines []Line
	more  chan struct{} // closed and replaced at each line
	err   error         // why there will be no more
}

// Start builds what is missing, boots a guest and waits until it has told its truth, which Truth asks for again. Close
// ends it.
func Start(ctx context.Context, layout string, o *Options) (*Guest, error) {
	kernel, err := Build(ctx, layout)
	if err != nil {
		return nil, err
	}
	leave, err := testvm.Enter(ctx)
	if err != nil {
		return nil, fmt.Errorf("start NT test guest: %w", err)
	}
	g := &Guest{Layout: layout, Options: o.withDefaults(), Kernel: kernel, leave: leave, more: make(chan struct{})}
	if err := g.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start NT test guest: %w: %s", err, bytes.TrimSpace(g.stderr.Bytes())), g.Close())
	}
	return g, nil
}

func (g *Guest) start(ctx context.Context) error {
	var err error
	if g.Dir, err = os.MkdirTemp("", "vitrine-nt-"); err != nil { // short: a socket's path may have 107 bytes
		return err
	}
	g.QMP = filepath.Join(g.Dir, "qmp")
	link := filepath.Join(g.Dir, "link")
	listen, err := net.Listen("unix", link)
	if err != nil {
		return err
	}
	defer listen.Close()
	args := []string{
		"-name", g.Options.Name, "-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc,accel=tcg", "-cpu", "max",
		"-smp", strconv.Itoa(g.Options.CPUs), "-m", strconv.Itoa(g.Options.Memory), "-qmp", "unix:" + g.QMP + ",server=on,wait=off",
		"-chardev", "socket,id=link,path=" + link, "-serial", "chardev:link", "-kernel", g.Kernel, "-append", g.Options.cmdline(),
	}
	if g.Options.Paused {
		args = append(args, "-S")
	}
	g.cmd = exec.Command(program, append(args, g.Options.Args...)...)
	g.cmd.Stderr = &g.stderr
	g.Command = g.cmd.Args
	if err := g.cmd.Start(); err != nil {
		return err
	}
	g.PID = g.cmd.Process.Pid
	if g.conn, err = accept(ctx, listen); err != nil {
		return err
	}
	go g.read()
	if g.Options.Paused {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	_, err = g.Await(ctx, 0, "end")
	return err
}

// bootTime bounds a boot, which takes a second or two on a quiet machine.
const bootTime = 90 * time.Second

// accept waits for QEMU to call.
func accept(ctx context.Context, l net.Listener) (net.Conn, error) {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	conn, err := l.Accept()
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return conn, err
}

func (g *Guest) read() {
	s := bufio.NewScanner(g.conn)
	s.Buffer(nil, 16<<20)
	for s.Scan() {
		text := bytes.TrimSpace(s.Bytes())
		if len(text) == 0 || text[0] != '{' { // firmware talks too
			continue
		}
		l, err := parseLine(bytes.Clone(text))
		if err == nil && l.Type == "panic" {
			err = fmt.Errorf("guest panics: %s", text)
		}
		g.add(l, err)
	}
	err := s.Err()
	if err == nil {
		err = errors.New("QEMU has ended")
	}
	g.add(Line{}, err)
}

func (g *Guest) add(l Line, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err != nil && g.err == nil {
		g.err = err
	} else if err == nil {
		g.lines = append(g.lines, l)
	}
	close(g.more)
	g.more = make(chan struct{})
}

// Lines returns what the guest has said after its first n lines.
func (g *Guest) Lines(n int) []Line {
	lines, _, _ := g.since(n)
	return lines
}

func (g *Guest) since(n int) ([]Line, <-chan struct{}, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]Line(nil), g.lines[min(n, len(g.lines)):]...), g.more, g.err
}

// Await waits until the guest has said a line of a type after its first n, and returns all after those up to it.
func (g *Guest) Await(ctx context.Context, n int, kind string) ([]Line, error) {
	for {
		lines, more, err := g.since(n)
		for i, l := range lines {
			if l.Type == kind {
				return lines[:i+1], nil
			}
		}
		if err != nil {
			return lines, fmt.Errorf("wait for %q of NT test guest: %w", kind, err)
		}
		select {
		case <-more:
		case <-ctx.Done():
			return lines, fmt.Errorf("wait for %q of NT test guest: %w", kind, ctx.Err())
		}
	}
}

// Do gives the guest a command and returns what it said until it had obeyed: the last line is of type "ok".
func (g *Guest) Do(ctx context.Context, command string) ([]Line, error) {
	return g.do(ctx, command, "ok")
}

func (g *Guest) do(ctx context.Context, command, end string) ([]Line, error) {
	g.turn.Lock()
	defer g.turn.Unlock()
	n := len(g.Lines(0))
	if _, err := g.conn.Write([]byte(command + "\n")); err != nil {
		return nil, fmt.Errorf("command NT test guest: %w", err)
	}
	return g.Await(ctx, n, end)
}

// Truth asks the guest what it has laid out. Processes may come and go after it has answered.
func (g *Guest) Truth(ctx context.Context) (*Truth, error) {
	lines, err := g.Do(ctx, "ps")
	if err != nil {
		return nil, err
	}
	return truthOf(lines)
}

// Calls makes each worker make n rounds of eight system calls, and returns those that were made, in the order in which
// they ended. What else is called meanwhile is among them.
func (g *Guest) Calls(ctx context.Context, n int) ([]Call, error) {
	return g.calls(ctx, fmt.Sprintf("syscalls %d", n))
}

// KernelCalls makes a thread of the System process call ZwOpenKey and ZwClose n times.
func (g *Guest) KernelCalls(ctx context.Context, n int) ([]Call, error) {
	return g.calls(ctx, fmt.Sprintf("zw %d", n))
}

func (g *Guest) calls(ctx context.Context, command string) ([]Call, error) {
	lines, err := g.do(ctx, command, "done")
	if err != nil {
		return nil, err
	}
	var all []Call
	for _, l := range lines {
		if l.Type != "call" {
			continue
		}
		var c Call
		if err := l.Decode(&c); err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

// Spawn starts a process.
func (g *Guest) Spawn(ctx context.Context) (*Process, error) {
	lines, err := g.Do(ctx, "spawn")
	if err != nil {
		return nil, err
	}
	for _, l := range lines {
		if l.Type == "start" {
			var v struct{ Process Process }
			err := l.Decode(&v)
			return &v.Process, err
		}
	}
	return nil, errors.New("spawn in NT test guest: it told of none")
}

// Exit ends a process by its own system call.
func (g *Guest) Exit(ctx context.Context, pid int) error {
	_, err := g.do(ctx, fmt.Sprintf("exit %d", pid), "exit")
	return err
}

// Births makes a program make n processes that end at once by themselves, and with the first two a thread of its own
// each. They have been made when it returns, but may not have ended.
func (g *Guest) Births(ctx context.Context, n int) error {
	_, err := g.do(ctx, fmt.Sprintf("births %d", n), "done")
	return err
}

// Current tells who ran on each processor when the guest was asked, by a clock interrupt of the first.
func (g *Guest) Current(ctx context.Context) ([]Current, error) {
	lines, err := g.Do(ctx, "current")
	if err != nil {
		return nil, err
	}
	var v struct{ CPUs []Current }
	return v.CPUs, lines[0].Decode(&v)
}

// Close ends the guest. It may be called more than once.
func (g *Guest) Close() error {
	var errs []error
	g.close.Do(func() {
		if g.cmd != nil && g.cmd.Process != nil {
			g.cmd.Process.Kill()
			g.cmd.Wait()
		}
		if g.conn != nil {
			g.conn.Close()
		}
		errs = append(errs, os.RemoveAll(g.Dir), g.leave())
	})
	return errors.Join(errs...)
}
