package testvm

import "runtime"

// platform is what differs between guests' machines by their processor.
type platform struct {
	debian  string   // Debian's name of the processor
	goarch  string   // Go's, where it is another
	qemu    string   // the program that runs guests
	install string   // Debian's package of that program
	machine string   // -machine where the options do not say
	cpu     string   // -cpu where the options do not say
	console string   // the kernel's console, which is written to a file
	serial  []string // what makes the console's and the link's port of character devices "console" and "link"
	// libraries is where the dynamic linker of Debian finds libraries.
	libraries []string
}

// Debian's names of processors.
const (
	amd64 = "amd64"
	arm64 = "arm64"
	i386  = "i386"
)

var platforms = map[string]*platform{
	amd64: {
		debian: amd64, qemu: "qemu-system-x86_64", install: "qemu-system-x86",
		machine: "pc", cpu: "max", console: "ttyS0",
		serial:    []string{"-device", "isa-serial,chardev=console", "-device", "isa-serial,chardev=link"},
		libraries: []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"},
	},
	// 32-bit kernels on a 64-bit machine, as most run that still run.
	i386: {
		debian: i386, goarch: "386", qemu: "qemu-system-x86_64", install: "qemu-system-x86",
		machine: "pc", cpu: "max", console: "ttyS0",
		serial:    []string{"-device", "isa-serial,chardev=console", "-device", "isa-serial,chardev=link"},
		libraries: []string{"/lib/i386-linux-gnu", "/usr/lib/i386-linux-gnu", "/lib", "/usr/lib"},
	},
	// A Cortex-A72 has no pointer authentication, which TCG computes in full at each call and return of the guest.
	// The machine has one serial port; the link's is a card.
	arm64: {
		debian: arm64, qemu: "qemu-system-aarch64", install: "qemu-system-arm",
		machine: "virt", cpu: "cortex-a72", console: "ttyAMA0",
		serial:    []string{"-serial", "chardev:console", "-device", "pci-serial,chardev=link"},
		libraries: []string{"/lib/aarch64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/lib", "/usr/lib"},
	},
}

// foreign reports whether this machine's own programs are of no use to the guest.
func (on *platform) foreign() bool { return on.debian != runtime.GOARCH }
