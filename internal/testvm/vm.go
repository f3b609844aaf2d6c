package testvm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vitrine-vmi/vitrine/internal/testvm/wire"
)

// VM is a running guest.
type VM struct {
	Options *Options // with the defaults filled in
	Kernel  *Kernel  // nil for a guest that stays in its firmware
	Name    string   // -name of QEMU
	PID     int      // of QEMU
	QMP     string   // path of a monitor socket that the harness does not use
	Dir     string   // sockets and logs
	Command []string // QEMU's command line
	// Hello is what the guest said when it came up; set by Boot and AwaitBoot.
	Hello wire.Hello

	paths    paths
	programs []program
	cmd      *exec.Cmd
	monitor  *monitor
	listen   net.Listener
	stderr   *bytes.Buffer
	exited   chan struct{} // closed when QEMU has ended; exitErr is set before
	exitErr  error
	close    sync.Once

	link link
}

var serial atomic.Uint64

// Boot starts a guest and waits until its ground-truth program (or script) is up. When that fails, or ctx ends before,
// nothing is left running and the error has the end of the console. Close ends the guest.
func Boot(ctx context.Context, o *Options) (*VM, error) {
	vm, err := Start(ctx, o)
	if err != nil {
		return nil, err
	}
	if vm.Options.Firmware || vm.Options.Paused {
		return vm, nil
	}
	if err := vm.AwaitBoot(ctx); err != nil {
		return nil, errors.Join(err, vm.Close())
	}
	return vm, nil
}

// Start starts a guest and does not wait for it to boot. It waits for a free slot (see VITRINE_TEST_VMS
// in enter) and fetches and builds what is missing first.
func Start(ctx context.Context, o *Options) (*VM, error) {
	o = o.withDefaults()
	p := platformOf(o.Kernel)
	if _, err := exec.LookPath(p.qemu); err != nil {
		return nil, fmt.Errorf("start guest: %w: apt-get install %s", err, p.install)
	}
	var kernel *Kernel
	var programs []program
	if !o.Firmware {
		var err error
		if kernel, err = FetchKernel(ctx, o.Kernel, o.Progress); err != nil {
			return nil, fmt.Errorf("start guest: %w", err)
		}
		if programs, err = findPrograms(ctx, p, o.Programs, o.Progress); err != nil {
			return nil, fmt.Errorf("start guest: %w", err)
		}
	}
	if err := enter(ctx); err != nil {
		return nil, fmt.Errorf("start guest: %w", err)
	}
	dir, err := os.MkdirTemp("", "vitrine-vm-") // short: a socket's path may have 107 bytes
	if err != nil {
		return nil, errors.Join(err, leave())
	}
	if o.Name == "" {
		o.Name = fmt.Sprintf("vitrine-%d-%d", os.Getpid(), serial.Add(1))
	}
	vm := &VM{Options: o, Kernel: kernel, Name: o.Name, Dir: dir, paths: pathsIn(dir), programs: programs, stderr: &bytes.Buffer{}, exited: make(chan struct{})}
	vm.QMP = vm.paths.qmp
	if err := vm.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start guest: %w", err), vm.Close())
	}
	return vm, nil
}

func (vm *VM) start(ctx context.Context) error {
	if vm.Kernel != nil {
		if err := buildInitramfs(vm.paths.initrd, vm.Kernel, vm.programs, vm.Options); err != nil {
			return fmt.Errorf("build initramfs: %w", err)
		}
	}
	var err error
	if vm.listen, err = net.Listen("unix", vm.paths.link); err != nil {
		return err
	}
	args := vm.Options.arguments(vm.Kernel, vm.paths)
	vm.cmd = exec.Command(platformOf(vm.Options.Kernel).qemu, args...)
	vm.cmd.Stdout, vm.cmd.Stderr = vm.stderr, vm.stderr
	vm.cmd.SysProcAttr = ownedProcess()
	vm.Command = vm.cmd.Args
	fmt.Fprintf(vm.Options.Progress, "starting %s\n", quoteCommand(vm.Command))
	if err := vm.cmd.Start(); err != nil {
		return err
	}
	vm.PID = vm.cmd.Process.Pid
	go vm.wait()
	if err := vm.connect(ctx); err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(vm.stderr.Bytes()))
	}
	return nil
}

// connect waits for QEMU to call and to answer its monitor.
func (vm *VM) connect(ctx context.Context) error {
	accepted := make(chan error, 1)
	go func() {
		conn, err := vm.listen.Accept()
		if err == nil {
			vm.link.start(conn)
		}
		accepted <- err
	}()
	select {
	case err := <-accepted:
		if err != nil {
			return err
		}
	case <-vm.exited:
		return fmt.Errorf("QEMU ended: %w", vm.exitErr)
	case <-ctx.Done():
		return fmt.Errorf("wait for QEMU: %w", ctx.Err())
	}
	var err error
	for {
		// QEMU makes its sockets one after the other, before it runs the guest.
		if vm.monitor, err = dialMonitor(ctx, vm.paths.harness); err == nil {
			return nil
		}
		select {
		case <-vm.exited:
			return fmt.Errorf("QEMU ended: %w", vm.exitErr)
		case <-ctx.Done():
			return fmt.Errorf("connect to QEMU's monitor: %w: %w", ctx.Err(), err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (vm *VM) wait() {
	err := vm.cmd.Wait()
	if err == nil {
		err = errors.New("exit status 0")
	}
	vm.exitErr = err
	close(vm.exited)
}

// AwaitBoot waits until the guest is up. It fails early when the kernel panics or QEMU ends.
func (vm *VM) AwaitBoot(ctx context.Context) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case h := <-vm.link.hello:
			vm.Hello = h
			if len(h.Errors) > 0 {
				return fmt.Errorf("boot guest: it reports: %s", strings.Join(h.Errors, "; "))
			}
			return nil
		case <-vm.exited:
			return vm.bootError(fmt.Errorf("QEMU ended: %w", vm.exitErr))
		case <-ctx.Done():
			return vm.bootError(ctx.Err())
		case <-tick.C:
			console := vm.Console()
			if strings.Contains(console, "Kernel panic") {
				return vm.bootError(errors.New("its kernel panics"))
			}
			if vm.Options.Script != "" && strings.Contains(console, ScriptReady) {
				return nil
			}
		}
	}
}

func (vm *VM) bootError(err error) error {
	return fmt.Errorf("boot guest %s: %w\ncommand: %s\nend of the console:\n%s", vm.Name, err, quoteCommand(vm.Command), tail([]byte(vm.Console()), 25))
}

// Console returns what the guest has printed on its console so far.
func (vm *VM) Console() string {
	b, err := os.ReadFile(vm.paths.console)
	if err != nil {
		return ""
	}
	return string(b)
}

// Execute runs a command of QEMU's monitor on the harness's own connection.
func (vm *VM) Execute(ctx context.Context, command string, args any) (json.RawMessage, error) {
	return vm.monitor.execute(ctx, command, args)
}

// HMP runs a command of QEMU's human monitor and returns what it prints.
func (vm *VM) HMP(ctx context.Context, line string) (string, error) {
	raw, err := vm.Execute(ctx, "human-monitor-command", map[string]string{"command-line": line})
	if err != nil {
		return "", err
	}
	var text string
	err = json.Unmarshal(raw, &text)
	return text, err
}

// Running says whether QEMU runs the guest's vCPUs.
func (vm *VM) Running(ctx context.Context) (bool, error) {
	raw, err := vm.Execute(ctx, "query-status", nil)
	if err != nil {
		return false, err
	}
	var s struct {
		Running bool `json:"running"`
	}
	err = json.Unmarshal(raw, &s)
	return s.Running, err
}

// Cont lets a paused guest run.
func (vm *VM) Cont(ctx context.Context) error {
	_, err := vm.Execute(ctx, "cont", nil)
	return err
}

// Stop pauses the guest.
func (vm *VM) Stop(ctx context.Context) error {
	_, err := vm.Execute(ctx, "stop", nil)
	return err
}

// Events returns the monitor's events after the first n; Events(0) are all since the start.
func (vm *VM) Events(n int) []Event {
	events, _, _ := vm.monitor.since(n)
	return events
}

// AwaitEvent waits for an event of that name among those after the first n.
func (vm *VM) AwaitEvent(ctx context.Context, n int, name string) (Event, error) {
	for {
		events, more, err := vm.monitor.since(n)
		for _, e := range events {
			if e.Name == name {
				return e, nil
			}
		}
		if err != nil {
			return Event{}, fmt.Errorf("wait for event %s: %w", name, err)
		}
		select {
		case <-more:
		case <-ctx.Done():
			return Event{}, fmt.Errorf("wait for event %s: %w", name, ctx.Err())
		}
	}
}

// Exited is closed when QEMU has ended.
func (vm *VM) Exited() <-chan struct{} { return vm.exited }

// Close ends the guest, without asking it, and removes its directory unless Options.KeepDir is set. It may be called
// more than once.
func (vm *VM) Close() error {
	var err error
	vm.close.Do(func() { err = vm.shutDown() })
	return err
}

func (vm *VM) shutDown() error {
	var errs []error
	if vm.cmd != nil && vm.cmd.Process != nil {
		if err := vm.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, err)
		}
		<-vm.exited
	}
	if vm.monitor != nil {
		errs = append(errs, vm.monitor.conn.Close())
	}
	if vm.listen != nil {
		errs = append(errs, vm.listen.Close())
	}
	vm.link.stop()
	if !vm.Options.KeepDir {
		errs = append(errs, os.RemoveAll(vm.Dir))
	}
	return errors.Join(append(errs, leave())...)
}

// quoteCommand prints a command line so that it can be given to a shell.
func quoteCommand(args []string) string {
	quoted := make([]string, len(args))
	for i, a := range args {
		if a == "" || strings.ContainsAny(a, " \t\n'\"\\$`*?[](){}<>|&;#~") {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		quoted[i] = a
	}
	return strings.Join(quoted, " ")
}

// CopyLogs copies the console's log and QEMU's command line into dir, for keeping after a failure.
func (vm *VM) CopyLogs(dir string) error {
	return errors.Join(
		os.WriteFile(filepath.Join(dir, vm.Name+".console"), []byte(vm.Console()), 0o600),
		os.WriteFile(filepath.Join(dir, vm.Name+".command"), []byte(quoteCommand(vm.Command)+"\n"), 0o600),
	)
}
