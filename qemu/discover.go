package qemu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/qemu/internal/cmdline"
	"github.com/vitrine-vmi/vitrine/qemu/internal/host"
)

// Running is a QEMU of this host, as its command line shows it.
type Running struct {
	Name        string // "" when it was given none
	PID         int
	Accel       string // "kvm", "tcg", ...
	MemoryBytes uint64 // as it was started
	CPUs        int
	QMP         string // the first of its QMP sockets that Attach can use, "" when it has none
	Domain      bool   // libvirt runs it: it is reached through virsh

	sockets []string
}

// String names the guest for messages.
func (r Running) String() string { return fmt.Sprintf("%q (process %d)", r.Name, r.PID) }

// List returns the guests of this host's QEMU processes in the order of their
// process numbers. Processes whose command line the host hides from this user
// are missing.
func List(ctx context.Context) ([]Running, error) {
	procs, err := host.Processes()
	if err != nil {
		return nil, fmt.Errorf("list guests: %w", err)
	}
	var out []Running
	for _, p := range procs {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("list guests: %w", err)
		}
		if r, ok := inspect(p); ok {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b Running) int { return cmp.Compare(a.PID, b.PID) })
	return out, nil
}

// inspect returns what the command line of a process tells; ok is false when it
// is no QEMU, or has just ended.
func inspect(p host.Process) (r Running, ok bool) {
	args, err := p.Cmdline()
	if err != nil || !cmdline.IsQEMU(p.Executable()) && !cmdline.IsQEMU(args[0]) {
		return Running{}, false
	}
	g := cmdline.Parse(args)
	r = Running{Name: g.Name, PID: int(p), Accel: g.Accel, MemoryBytes: g.MemoryBytes, CPUs: g.CPUs, Domain: g.Libvirt}
	for _, s := range g.QMP {
		r.sockets = append(r.sockets, reachable(p, s))
	}
	if len(r.sockets) > 0 {
		r.QMP = r.sockets[0]
	}
	return r, true
}

// reachable turns a socket of a command line into what this process can
// connect to: relative paths count from the folder that QEMU was started in,
// and QEMU may see other files than we do.
func reachable(p host.Process, socket string) string {
	if strings.HasPrefix(socket, "tcp:") {
		return socket
	}
	if !filepath.IsAbs(socket) {
		if cwd, err := os.Readlink(p.Path("cwd")); err == nil {
			socket = filepath.Join(cwd, socket)
		}
	}
	if p.OtherFiles() {
		return p.Path("root") + socket
	}
	return socket
}

// isQEMU reports whether the process runs a QEMU system emulator.
func isQEMU(p host.Process) bool {
	_, ok := inspect(p)
	return ok
}

// AttachName reaches the guest of that name: the -name of a QEMU of this host,
// or a libvirt domain. It returns an error that wraps vitrine.ErrNotFound and
// offers the nearest names when there is none, and one that names them when
// there are two.
func AttachName(ctx context.Context, name string, opts *Options) (*vitrine.Guest, error) {
	return whenThere(ctx, opts, func() (*vitrine.Guest, error) { return attachName(ctx, name, opts) })
}

func attachName(ctx context.Context, name string, opts *Options) (*vitrine.Guest, error) {
	all, err := List(ctx)
	if err != nil {
		return nil, err
	}
	var found []Running
	for _, r := range all {
		if r.Name == name {
			found = append(found, r)
		}
	}
	switch len(found) {
	case 1:
		return found[0].attach(ctx, opts)
	case 0:
		return attachDomainOrNearest(ctx, name, all, opts)
	}
	var who []string
	for _, r := range found {
		who = append(who, fmt.Sprintf("pid:%d", r.PID))
	}
	return nil, fmt.Errorf("attach to %q: %d guests have that name: say %s", name, len(found), strings.Join(who, " or "))
}

// attachDomainOrNearest tries a libvirt domain whose process is hidden from us.
func attachDomainOrNearest(ctx context.Context, name string, all []Running, opts *Options) (*vitrine.Guest, error) {
	var names []string
	for _, r := range all {
		names = append(names, r.Name)
	}
	domains, err := listDomains(ctx)
	if err == nil && slices.Contains(domains, name) {
		return AttachDomain(ctx, name, opts)
	}
	return nil, fmt.Errorf("attach to %q: %w%s", name, vitrine.ErrNotFound, suggest(name, append(names, domains...)))
}

// AttachPID reaches the guest of a QEMU process. One without a QMP socket
// cannot be reached yet: that error wraps errors.ErrUnsupported.
func AttachPID(ctx context.Context, pid int, opts *Options) (*vitrine.Guest, error) {
	if pid <= 0 {
		return nil, fmt.Errorf("attach to process %d: %w", pid, vitrine.ErrNotFound)
	}
	p := host.Process(pid)
	if _, err := p.Cmdline(); err != nil {
		return nil, fmt.Errorf("attach to process %d: %w: %w", pid, vitrine.ErrNotFound, err)
	}
	r, ok := inspect(p)
	if !ok {
		return nil, fmt.Errorf("attach to process %d: %w: it is %q, not a QEMU system emulator", pid, vitrine.ErrNotFound, p.Executable())
	}
	return r.attach(ctx, opts)
}

// attach tries the guest's sockets in order until one is not busy.
func (r Running) attach(ctx context.Context, opts *Options) (*vitrine.Guest, error) {
	if r.Domain {
		return AttachDomain(ctx, r.Name, opts)
	}
	if len(r.sockets) == 0 {
		return nil, fmt.Errorf("attach to %v: it has no QMP socket; start it with -qmp unix:PATH,server=on,wait=off: %w", r, errors.ErrUnsupported)
	}
	var errs []error
	for _, s := range r.sockets {
		g, err := attach(ctx, s, opts)
		if err == nil {
			return g, nil
		}
		errs = append(errs, err)
		if !errors.Is(err, vitrine.ErrBusy) {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// suggest returns a hint at the names that look most like the one that was
// asked for, best first.
func suggest(name string, names []string) string {
	slices.Sort(names)
	names = slices.DeleteFunc(slices.Compact(names), func(s string) bool { return s == "" })
	if len(names) == 0 {
		return "; no guest with a name runs on this host"
	}
	slices.SortStableFunc(names, func(a, b string) int { return cmp.Compare(distance(name, a), distance(name, b)) })
	var quoted []string
	for _, s := range names[:min(len(names), 3)] {
		quoted = append(quoted, fmt.Sprintf("%q", s))
	}
	return "; did you mean " + strings.Join(quoted, ", ") + "?"
}

// distance is how many letters have to be changed, added or left out to make b
// of a, where case does not count and a part that b contains is near.
func distance(a, b string) int {
	a, b = strings.ToLower(a), strings.ToLower(b)
	if a != "" && strings.Contains(b, a) {
		return 1
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diag
			if a[i] != b[j] {
				change++
			}
			diag = row[j+1]
			row[j+1] = min(change, diag+1, row[j]+1)
		}
	}
	return row[len(b)]
}
