// Package cmdline reads the command line of a QEMU system emulator: the guest's
// name and size, and where its machine monitor (QMP) listens.
//
// It is a pure parser. It takes what it knows and ignores the rest; QEMU's own
// word on all of it is to be had over QMP once attached.
package cmdline

import (
	"math/bits"
	"net"
	"path/filepath"
	"strconv"
	"strings"
)

// Guest is what a command line tells.
type Guest struct {
	Name        string   // "" when -name is not given
	Accel       string   // "kvm", "tcg", ...: the first that is asked for
	MemoryBytes uint64   // as -m says; QEMU's default of 128 MiB without it
	CPUs        int      // as -smp says, 1 without it
	QMP         []string // sockets that serve QMP: a path, or tcp:HOST:PORT
	Libvirt     bool     // libvirt started it, and holds its monitor
	ID          string   // -uuid, "" when not given
}

// IsQEMU reports whether the path, or the command name cut to 15 characters as
// the kernel does, is that of a system emulator.
func IsQEMU(path string) bool {
	base := filepath.Base(path)
	return strings.HasPrefix(base, "qemu-system-") || base == "qemu-kvm" || base == "kvm"
}

// Parse reads the arguments; args[0] is the program.
func Parse(args []string) Guest {
	g := Guest{MemoryBytes: 128 << 20, CPUs: 1}
	p := parser{guest: &g, chardevs: map[string]string{}}
	if len(args) > 0 && (filepath.Base(args[0]) == "kvm" || filepath.Base(args[0]) == "qemu-kvm") {
		g.Accel = "kvm"
	}
	for i := 1; i < len(args); i++ {
		opt, ok := strings.CutPrefix(args[i], "-")
		if !ok {
			continue
		}
		opt = strings.TrimPrefix(opt, "-")
		if opt == "enable-kvm" {
			p.accel("kvm")
			continue
		}
		if i+1 < len(args) && p.option(opt, args[i+1]) {
			i++
		}
	}
	// The device may come after the monitor that uses it.
	for _, id := range p.monitors {
		if addr := p.chardevs[id]; addr != "" {
			g.QMP = append(g.QMP, addr)
		}
	}
	if g.Accel == "" {
		g.Accel = "tcg"
	}
	return g
}

type parser struct {
	guest    *Guest
	chardevs map[string]string // listening sockets by id
	monitors []string          // ids of the devices that serve QMP
}

// option takes an option with its value. It reports whether it knows it.
func (p *parser) option(opt, value string) bool {
	switch opt {
	case "name":
		p.guest.Name = split(value, "guest")["guest"]
	case "uuid":
		p.guest.ID = value
	case "m":
		if n, ok := size(split(value, "size")["size"]); ok {
			p.guest.MemoryBytes = n
		}
	case "smp":
		p.guest.CPUs = processors(split(value, "cpus"))
	case "accel":
		p.accel(split(value, "accel")["accel"])
	case "machine", "M":
		p.accel(split(value, "type")["accel"])
	case "qmp", "qmp-pretty":
		if addr := listener(value); addr != "" {
			p.guest.QMP = append(p.guest.QMP, addr)
		}
	case "chardev":
		p.chardev(split(value, "backend"))
	case "mon":
		if o := split(value, "chardev"); o["mode"] == "control" {
			p.monitors = append(p.monitors, o["chardev"])
			// libvirt has called the device of its monitor so since 2009.
			p.guest.Libvirt = p.guest.Libvirt || o["chardev"] == "charmonitor"
		}
	default:
		return false
	}
	return true
}

// accel takes "kvm" or a list of preference, "kvm:tcg". The first one counts.
func (p *parser) accel(list string) {
	if p.guest.Accel == "" {
		p.guest.Accel, _, _ = strings.Cut(list, ":")
	}
}

func (p *parser) chardev(o map[string]string) {
	if o["backend"] == "socket" && listens(o) {
		p.chardevs[o["id"]] = address(o)
	}
}

// listener returns the address that "unix:PATH,server=on" or
// "tcp:HOST:PORT,server" listens at, "" for anything else.
func listener(value string) string {
	o := split(value, "addr")
	switch addr := o["addr"]; {
	case !listens(o):
		return ""
	case strings.HasPrefix(addr, "unix:"):
		return addr[len("unix:"):]
	case strings.HasPrefix(addr, "tcp:"):
		return tcp(addr[len("tcp:"):])
	}
	return ""
}

// listens reports whether the socket waits for clients. The short form
// "server" is what was written before QEMU 5.2.
func listens(o map[string]string) bool {
	v, ok := o["server"]
	return ok && v != "off" && o["abstract"] != "on"
}

func address(o map[string]string) string {
	if o["path"] != "" {
		return o["path"]
	}
	if o["port"] != "" {
		return tcp(net.JoinHostPort(o["host"], o["port"]))
	}
	return "" // fd=N: handed over by who started QEMU
}

// tcp returns the address to connect to for one to listen at.
func tcp(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return ""
	}
	switch host {
	case "", "0.0.0.0":
		host = "127.0.0.1"
	case "::":
		host = "::1"
	}
	return "tcp:" + net.JoinHostPort(host, port)
}

// split parses "VALUE,key=value,flag": the first part may lack its key, which
// is then first. A doubled comma stands for a comma.
func split(value, first string) map[string]string {
	out := map[string]string{}
	for i, part := range fields(value) {
		k, v, ok := strings.Cut(part, "=")
		switch {
		case ok:
		case i == 0:
			k, v = first, part
		default:
			v = "on"
		}
		// "unix:/a=b,server" has its sign within the first value.
		if i == 0 && ok && strings.ContainsAny(k, ":/") {
			k, v = first, part
		}
		out[k] = v
	}
	return out
}

func fields(s string) []string {
	var out []string
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] != ',':
			b.WriteByte(s[i])
		case i+1 < len(s) && s[i+1] == ',':
			b.WriteByte(',')
			i++
		default:
			out = append(out, b.String())
			b.Reset()
		}
	}
	return append(out, b.String())
}

// size parses a memory size: MiB without a suffix.
func size(s string) (uint64, bool) {
	if s == "" {
		return 0, false
	}
	shift := 20
	if i := strings.IndexByte("bkmgtp", s[len(s)-1]|0x20); i >= 0 {
		shift, s = 10*i, s[:len(s)-1]
	}
	f, err := strconv.ParseFloat(s, 64) // QEMU takes 1.5G
	if err != nil || !(f > 0) || f > float64(uint64(1)<<(62-shift)) {
		return 0, false
	}
	return uint64(f * float64(uint64(1)<<shift)), true
}

// processors returns the number that -smp asks for: cpus, else the product of
// the levels that are given.
func processors(o map[string]string) int {
	if n, err := strconv.Atoi(o["cpus"]); err == nil && n > 0 {
		return n
	}
	product := uint64(1)
	for _, level := range []string{"drawers", "books", "sockets", "dies", "clusters", "modules", "cores", "threads"} {
		n, err := strconv.ParseUint(o[level], 10, 16)
		if err != nil || n == 0 {
			continue
		}
		hi, lo := bits.Mul64(product, n)
		if hi != 0 || lo > 1<<20 {
			return 1
		}
		product = lo
	}
	return int(product)
}
