package testvm

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/vitrine-vmi/vitrine/internal/testvm/wire"
)

// Ping returns when the guest's ground-truth program has answered: user space runs.
func (vm *VM) Ping(ctx context.Context) error {
	return vm.link.request(ctx, wire.OpPing, nil, nil)
}

// Truth returns what the guest's /proc and /sys say of the processes with these pids, of all without any.
func (vm *VM) Truth(ctx context.Context, pids ...int) (*wire.Truth, error) {
	var t wire.Truth
	if err := vm.link.request(ctx, wire.OpTruth, wire.TruthArgs{PIDs: pids}, &t); err != nil {
		return nil, err
	}
	return &t, nil
}

// BriefTruth is Truth of all processes without mappings, open files and threads: a guest needs milliseconds for each
// process to report those.
func (vm *VM) BriefTruth(ctx context.Context) (*wire.Truth, error) {
	var t wire.Truth
	if err := vm.link.request(ctx, wire.OpTruth, wire.TruthArgs{Brief: true}, &t); err != nil {
		return nil, err
	}
	return &t, nil
}

// Spawn starts a workload of the ground-truth program; see the kinds in its sources (guest/workloads.go, holders.go).
// It returns when the workload is set up.
func (vm *VM) Spawn(ctx context.Context, kind, name string, args ...string) (wire.Spawned, error) {
	return vm.SpawnWith(ctx, wire.SpawnArgs{Kind: kind, Name: name, Args: args})
}

// SpawnProgram starts a program of the guest as a workload. It returns when the program sleeps.
func (vm *VM) SpawnProgram(ctx context.Context, name string, argv ...string) (wire.Spawned, error) {
	a := wire.SpawnArgs{Kind: "program", Name: name, Path: argv[0]}
	for _, s := range argv {
		a.Argv = append(a.Argv, wire.Text(s))
	}
	return vm.SpawnWith(ctx, a)
}

// SpawnWith starts a workload with everything that can be said of it.
func (vm *VM) SpawnWith(ctx context.Context, a wire.SpawnArgs) (wire.Spawned, error) {
	var s wire.Spawned
	err := vm.link.request(ctx, wire.OpSpawn, a, &s)
	return s, err
}

// Kill ends a workload and its children.
func (vm *VM) Kill(ctx context.Context, name string) error {
	return vm.link.request(ctx, wire.OpStop, wire.StopArgs{Name: name}, nil)
}

// Quiet ends all workloads.
func (vm *VM) Quiet(ctx context.Context) error {
	return vm.link.request(ctx, wire.OpQuiet, nil, nil)
}

// Rate measures, by the guest's clock, how fast a workload goes.
func (vm *VM) Rate(ctx context.Context, name string, seconds float64) (wire.Rate, error) {
	var r wire.Rate
	err := vm.link.request(ctx, wire.OpRate, wire.RateArgs{Name: name, Seconds: seconds}, &r)
	return r, err
}

// Tell sends a line to a workload that waits for one and parses its answer into result, which may be nil.
func (vm *VM) Tell(ctx context.Context, name, line string, result any) error {
	var raw json.RawMessage
	if err := vm.link.request(ctx, wire.OpTell, wire.TellArgs{Name: name, Line: line}, &raw); err != nil {
		return err
	}
	if result == nil {
		return nil
	}
	return json.Unmarshal(raw, result)
}

// Sequence makes a "sequence" workload do one turn and returns the system calls that it made.
func (vm *VM) Sequence(ctx context.Context, name string) ([]wire.SeqCall, error) {
	var calls []wire.SeqCall
	err := vm.Tell(ctx, name, "go", &calls)
	return calls, err
}

// Run runs a command in the guest to its end and returns what it printed. A status other than 0 is an error.
func (vm *VM) Run(ctx context.Context, argv ...string) ([]byte, error) {
	var r wire.RunResult
	if err := vm.link.request(ctx, wire.OpRun, wire.RunArgs{Argv: argv}, &r); err != nil {
		return nil, err
	}
	if r.Code != 0 {
		return r.Output, fmt.Errorf("run %q in guest: status %d: %s", argv, r.Code, tail(r.Output, 5))
	}
	return r.Output, nil
}

// ReadFile returns a file of the guest.
func (vm *VM) ReadFile(ctx context.Context, path string) ([]byte, error) {
	var b wire.Text
	err := vm.link.request(ctx, wire.OpRead, wire.ReadArgs{Path: path}, &b)
	return b, err
}

// Insmod loads a module that the initramfs carries: dummy, isofs and qemu_fw_cfg are there and not yet loaded (the last
// not where the kernel was fetched before it was wanted: remove the kernel from the cache to have it fetched anew).
func (vm *VM) Insmod(ctx context.Context, name, params string) error {
	return vm.link.request(ctx, wire.OpInsmod, wire.InsmodArgs{Name: name, Params: params}, nil)
}

// Rmmod unloads a module.
func (vm *VM) Rmmod(ctx context.Context, name string) error {
	return vm.link.request(ctx, wire.OpRmmod, wire.RmmodArgs{Name: name}, nil)
}

// TextBaseline makes the guest remember its kernel's text.
func (vm *VM) TextBaseline(ctx context.Context) (wire.TextBaseline, error) {
	var b wire.TextBaseline
	err := vm.link.request(ctx, wire.OpBaseline, nil, &b)
	return b, err
}

// TextDiff compares the kernel's text with what it was at TextBaseline.
func (vm *VM) TextDiff(ctx context.Context) (wire.TextDiff, error) {
	var d wire.TextDiff
	err := vm.link.request(ctx, wire.OpTextDiff, nil, &d)
	return d, err
}

// PowerOff makes the guest switch its machine off, and waits for QEMU to end.
func (vm *VM) PowerOff(ctx context.Context) error {
	if err := vm.link.request(ctx, wire.OpPowerOff, nil, nil); err != nil {
		return err
	}
	select {
	case <-vm.exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for power off: %w", ctx.Err())
	}
}

// Reboot makes the guest restart its machine; AwaitBoot then waits until it is up again.
func (vm *VM) Reboot(ctx context.Context) error {
	return vm.link.request(ctx, wire.OpReboot, nil, nil)
}
