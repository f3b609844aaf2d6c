//go:build linux

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/vitrine-vmi/vitrine/internal/testvm/wire"
	"golang.org/x/sys/unix"
)

// procs starts programs and reaps them, and whatever else pid 1 inherits.
type procs struct {
	// mu guards the rest.
	mu    sync.Mutex
	loads map[string]*load
	ended map[int]chan syscall.WaitStatus // by pid, closed after the status
}

// load is one running workload.
type load struct {
	pid    int
	stdin  *os.File
	lines  *bufio.Reader
	ended  chan syscall.WaitStatus
	tellMu sync.Mutex // one conversation at a time
}

func newProcs() *procs {
	p := &procs{loads: map[string]*load{}, ended: map[int]chan syscall.WaitStatus{}}
	go p.reap()
	return p
}

// reap collects ended children, known and inherited.
func (p *procs) reap() {
	for {
		var ws syscall.WaitStatus
		// __WALL also collects threads-by-clone; the call blocks unless there is no child at all.
		pid, err := syscall.Wait4(-1, &ws, 0, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // no child yet
			continue
		}
		p.mu.Lock()
		done := p.ended[pid]
		delete(p.ended, pid)
		p.mu.Unlock()
		if done != nil {
			done <- ws
			close(done)
		}
	}
}

// start runs a program; the lock is held over the fork so that the reaper cannot meet a pid that it does not know.
func (p *procs) start(path string, argv []wire.Text, attr *syscall.ProcAttr) (int, chan syscall.WaitStatus, error) {
	args := make([]string, len(argv))
	for i, a := range argv {
		args[i] = string(a)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	pid, err := syscall.ForkExec(path, args, attr)
	if err != nil {
		return 0, nil, fmt.Errorf("start %s: %w", path, err)
	}
	done := make(chan syscall.WaitStatus, 1)
	p.ended[pid] = done
	return pid, done, nil
}

func (p *procs) spawn(a wire.SpawnArgs) (wire.Spawned, error) {
	if a.Name == "" {
		return wire.Spawned{}, errors.New("spawn: no name given")
	}
	p.mu.Lock()
	_, taken := p.loads[a.Name]
	p.mu.Unlock()
	if taken {
		return wire.Spawned{}, fmt.Errorf("spawn: name %q is in use", a.Name)
	}
	path, argv, err := commandOf(a)
	if err != nil {
		return wire.Spawned{}, err
	}
	l, err := p.startPiped(path, argv, a)
	if err != nil {
		return wire.Spawned{}, err
	}
	s := wire.Spawned{PID: l.pid}
	if a.Kind != "program" {
		if err := readLine(l.lines, &s); err != nil {
			return wire.Spawned{}, fmt.Errorf("spawn %s: workload did not get ready: %w", a.Kind, err)
		}
	} else if err := awaitExec(l.pid); err != nil {
		return wire.Spawned{}, err
	}
	p.mu.Lock()
	p.loads[a.Name] = l
	p.mu.Unlock()
	return s, nil
}

// commandOf returns what to execute: for a built-in kind a link named like the kind, so that the task has that name.
func commandOf(a wire.SpawnArgs) (string, []wire.Text, error) {
	if a.Kind == "program" {
		argv := a.Argv
		if len(argv) == 0 {
			argv = []wire.Text{[]byte(a.Path)}
		}
		return a.Path, argv, nil
	}
	if workloads[a.Kind] == nil {
		return "", nil, fmt.Errorf("spawn: no workload %q", a.Kind)
	}
	program, prefix := "/init", "w-"
	if a.Bits32 {
		program, prefix = wire.Init32, "w32-"
	}
	path := filepath.Join(stateDir, prefix+filepath.Base(a.Kind))
	if err := os.Symlink(program, path); err != nil && !os.IsExist(err) {
		return "", nil, err
	}
	argv := []wire.Text{[]byte(path), []byte("workload"), []byte(a.Kind), []byte(a.Name)}
	for _, s := range a.Args {
		argv = append(argv, []byte(s))
	}
	return path, argv, nil
}

func (p *procs) startPiped(path string, argv []wire.Text, a wire.SpawnArgs) (*load, error) {
	inR, inW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, inR.Close(), inW.Close())
	}
	dir := a.Dir
	if dir == "" {
		dir = "/"
	}
	pid, ended, err := p.start(path, argv, &syscall.ProcAttr{
		Dir:   dir,
		Env:   append([]string{"PATH=/bin:/usr/bin"}, a.Env...),
		Files: []uintptr{inR.Fd(), outW.Fd(), 2},
		Sys:   &syscall.SysProcAttr{Setsid: true, Credential: credential(a)},
	})
	err = errors.Join(err, inR.Close(), outW.Close())
	if err != nil {
		return nil, errors.Join(err, inW.Close(), outR.Close())
	}
	return &load{pid: pid, stdin: inW, lines: bufio.NewReader(outR), ended: ended}, nil
}

func credential(a wire.SpawnArgs) *syscall.Credential {
	if a.UID == 0 && a.GID == 0 {
		return nil
	}
	return &syscall.Credential{Uid: a.UID, Gid: a.GID}
}

// awaitExec waits until the program sleeps: its start-up is over when it has used no time between two looks.
func awaitExec(pid int) error {
	last := ""
	for range 200 {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return fmt.Errorf("program ended at once: %w", err)
		}
		now := string(stat[bytes.LastIndexByte(stat, ')'):])
		if now == last && now[2] == 'S' {
			return nil
		}
		last = now
		time.Sleep(20 * time.Millisecond)
	}
	return nil // it does not sleep by nature
}

func readLine(r *bufio.Reader, v any) error {
	line, err := r.ReadBytes('\n')
	if err != nil {
		if errors.Is(err, io.EOF) {
			return errors.New("it ended; see the console")
		}
		return err
	}
	return json.Unmarshal(line, v)
}

func (p *procs) find(name string) (*load, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.loads[name]
	if l == nil {
		return nil, fmt.Errorf("no workload is named %q", name)
	}
	return l, nil
}

func (p *procs) tell(a wire.TellArgs) (json.RawMessage, error) {
	l, err := p.find(a.Name)
	if err != nil {
		return nil, err
	}
	l.tellMu.Lock()
	defer l.tellMu.Unlock()
	if _, err := l.stdin.WriteString(a.Line + "\n"); err != nil {
		return nil, fmt.Errorf("tell %s: %w", a.Name, err)
	}
	var answer json.RawMessage
	if err := readLine(l.lines, &answer); err != nil {
		return nil, fmt.Errorf("tell %s: %w", a.Name, err)
	}
	return answer, nil
}

func (p *procs) stop(a wire.StopArgs) error {
	l, err := p.find(a.Name)
	if err != nil {
		return err
	}
	p.mu.Lock()
	delete(p.loads, a.Name)
	p.mu.Unlock()
	// Workloads lead a process group of their own (Setsid), children included.
	if err := syscall.Kill(-l.pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("stop %s: %w", a.Name, err)
	}
	select {
	case <-l.ended:
	case <-time.After(3 * time.Minute):
		return fmt.Errorf("stop %s: pid %d does not end", a.Name, l.pid)
	}
	return errors.Join(l.stdin.Close(), awaitGroupEnd(l.pid))
}

// awaitGroupEnd waits until the orphans of a killed group are reaped.
func awaitGroupEnd(pgid int) error {
	for range 20000 {
		if err := syscall.Kill(-pgid, 0); errors.Is(err, syscall.ESRCH) {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return fmt.Errorf("process group %d does not end", pgid)
}

func (p *procs) quiet() error {
	p.mu.Lock()
	names := make([]string, 0, len(p.loads))
	for name := range p.loads {
		names = append(names, name)
	}
	p.mu.Unlock()
	var all error
	for _, name := range names {
		all = errors.Join(all, p.stop(wire.StopArgs{Name: name}))
	}
	return all
}

func (p *procs) run(a wire.RunArgs) (wire.RunResult, error) {
	if len(a.Argv) == 0 {
		return wire.RunResult{}, errors.New("run: no command given")
	}
	in, err := stdinFile(a.Stdin)
	if err != nil {
		return wire.RunResult{}, err
	}
	defer in.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return wire.RunResult{}, err
	}
	defer r.Close()
	argv := make([]wire.Text, len(a.Argv))
	for i, s := range a.Argv {
		argv[i] = []byte(s)
	}
	_, ended, err := p.start(lookPath(a.Argv[0]), argv, &syscall.ProcAttr{
		Dir: "/", Env: os.Environ(), Files: []uintptr{in.Fd(), w.Fd(), w.Fd()},
	})
	if err := errors.Join(err, w.Close()); err != nil {
		return wire.RunResult{}, err
	}
	out, err := io.ReadAll(io.LimitReader(r, wire.MaxFrame/2))
	if err != nil {
		return wire.RunResult{}, err
	}
	ws := <-ended
	code := ws.ExitStatus()
	if ws.Signaled() {
		code = -int(ws.Signal())
	}
	return wire.RunResult{Output: out, Code: code}, nil
}

func stdinFile(text []byte) (*os.File, error) {
	if len(text) == 0 {
		return os.Open("/dev/null")
	}
	fd, err := unix.MemfdCreate("stdin", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "stdin")
	if _, err := f.Write(text); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	_, err = f.Seek(0, io.SeekStart)
	return f, err
}

func lookPath(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		if path := filepath.Join(dir, name); unix.Access(path, unix.X_OK) == nil {
			return path
		}
	}
	return name
}

// rate reads the workload's counter twice, the given time apart.
func (p *procs) rate(a wire.RateArgs) (wire.Rate, error) {
	if _, err := p.find(a.Name); err != nil {
		return wire.Rate{}, err
	}
	page, err := counterPage(a.Name)
	if err != nil {
		return wire.Rate{}, err
	}
	defer func() { _ = unix.Munmap(page) }()
	c := (*uint64)(unsafe.Pointer(&page[0])) //nolint:gosec // the page is shared with the workload
	begin, t0 := atomic.LoadUint64(c), time.Now()
	time.Sleep(time.Duration(a.Seconds * float64(time.Second)))
	end, took := atomic.LoadUint64(c), time.Since(t0)
	return wire.Rate{Count: end - begin, Seconds: took.Seconds()}, nil
}

// counterPage maps the page in which the workload of that name counts.
func counterPage(name string) ([]byte, error) {
	path := filepath.Join(stateDir, filepath.Base(name)+".count")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(4096); err != nil {
		return nil, err
	}
	page, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	return page, nil
}
