package testvm

import (
	"cmp"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
)

// RAM says how the guest's memory is held by QEMU.
type RAM string

const (
	// Private is plain -m: anonymous memory that only QEMU has.
	Private RAM = ""
	// SharedMemfd is -object memory-backend-memfd,share=on.
	SharedMemfd RAM = "memfd"
	// SharedFile is -object memory-backend-file,share=on, a file in the VM's directory.
	SharedFile RAM = "file"
)

// Options says what to boot. The zero value, and nil, boots the "6.1-cloud" kernel on one vCPU with 512 MiB.
type Options struct {
	Name     string // -name; default a unique one. List commands show it.
	Kernel   string // one of KernelNames
	Firmware bool   // no kernel: the guest stays in its firmware
	Paused   bool   // -S: not one instruction runs until Cont

	CPUs    int    // default 1
	Memory  int    // MiB, default 512
	CPU     string // -cpu, default "max"; "cortex-a72" for arm64
	Machine string // "pc" (default) or "q35"; "virt" for arm64
	RAM     RAM
	NoKASLR bool   // KASLR is on otherwise
	Cmdline string // appended to the kernel's command line

	// Script replaces the ground-truth program by a busybox shell script as first process: nothing is compiled, and
	// the VM's methods that talk to that program fail. /proc, /sys and /dev are for the script to mount. The script
	// says that it is up by printing ScriptReady to /dev/console.
	Script string
	// Programs are dynamically linked programs that the guest has besides those of every guest, by their paths on a Debian
	// machine: the host's, with their libraries, or else Debian's (/usr/bin/strace is known), fetched on first use.
	Programs []string
	// Also32 gives a guest of x86-64 the ground-truth program for 32-bit x86 too, whose workloads wire.SpawnArgs.Bits32
	// starts.
	Also32 bool
	// Files are put into the guest's root file system, by path.
	Files map[string][]byte

	Args     []string  // more arguments for QEMU
	KeepDir  bool      // don't remove the directory of sockets and logs at Close
	Progress io.Writer // what is being fetched and started; nil: nowhere
}

// ScriptReady is the text by which a guest of Options.Script says that it is up.
const ScriptReady = "vitrine guest is up"

// withDefaults returns a copy with everything filled in.
func (o *Options) withDefaults() *Options {
	var c Options
	if o != nil {
		c = *o
	}
	c.Kernel = cmp.Or(c.Kernel, "6.1-cloud")
	p := platformOf(c.Kernel)
	c.CPU = cmp.Or(c.CPU, p.cpu)
	c.Machine = cmp.Or(c.Machine, p.machine)
	c.CPUs = cmp.Or(c.CPUs, 1)
	c.Memory = cmp.Or(c.Memory, 512)
	if c.Progress == nil {
		c.Progress = io.Discard
	}
	return &c
}

// Key tells options apart: they have the same if they make the same guest, whatever is left to a default.
func (o *Options) Key() string {
	c := o.withDefaults()
	c.Progress = nil
	return fmt.Sprintf("%+v", *c)
}

// paths are the files of one VM.
type paths struct {
	dir, qmp, harness, link, console, initrd, ram string
}

func pathsIn(dir string) paths {
	p := func(name string) string { return filepath.Join(dir, name) }
	return paths{dir: dir, qmp: p("qmp"), harness: p("harness.qmp"), link: p("link"), console: p("console.log"), initrd: p("initrd.img"), ram: p("ram")}
}

// arguments returns QEMU's command line, without its name.
func (o *Options) arguments(k *Kernel, p paths) []string {
	args := []string{
		"-name", o.Name, "-nodefaults", "-no-user-config", "-display", "none",
		"-cpu", cpuFor(o.Kernel, o.CPU), "-smp", strconv.Itoa(o.CPUs), "-m", strconv.Itoa(o.Memory),
	}
	args = append(args, o.memoryArguments(p)...)
	// Monitor for the one under test, monitor for the harness.
	args = append(args, "-qmp", "unix:"+p.qmp+",server=on,wait=off", "-qmp", "unix:"+p.harness+",server=on,wait=off")
	// QEMU connects to the harness, not the other way round: what the guest says early is not lost.
	args = append(args, "-chardev", "file,id=console,path="+p.console, "-chardev", "socket,id=link,path="+p.link)
	args = append(args, platformOf(o.Kernel).serial...)
	if o.Paused {
		args = append(args, "-S")
	}
	if !o.Firmware {
		args = append(args, "-kernel", k.Image, "-initrd", p.initrd, "-append", o.kernelCmdline())
	}
	return append(args, o.Args...)
}

func (o *Options) memoryArguments(p paths) []string {
	machine := o.Machine + ",accel=tcg"
	switch o.RAM {
	case SharedMemfd:
		return []string{"-machine", machine + ",memory-backend=ram", "-object", fmt.Sprintf("memory-backend-memfd,id=ram,size=%dM,share=on", o.Memory)}
	case SharedFile:
		return []string{"-machine", machine + ",memory-backend=ram", "-object", fmt.Sprintf("memory-backend-file,id=ram,size=%dM,share=on,mem-path=%s", o.Memory, p.ram)}
	}
	return []string{"-machine", machine}
}

func (o *Options) kernelCmdline() string {
	words := []string{"console=" + platformOf(o.Kernel).console, "quiet", "random.trust_cpu=on", "panic=0"}
	if o.NoKASLR {
		words = append(words, "nokaslr")
	}
	if o.Cmdline != "" {
		words = append(words, o.Cmdline)
	}
	return strings.Join(words, " ")
}
