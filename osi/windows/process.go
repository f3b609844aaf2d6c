package windows

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/osi"
)

// Limits of lists.
const (
	maxProcesses = 1 << 16
	maxThreads   = 1 << 18
)

// Types in dispatcher headers (KOBJECTS).
const (
	processObject = 3
	threadObject  = 6
)

// process is what was read of an EPROCESS at once.
type process struct {
	record
	pid, parent int
	peb         arch.GVA
	table       arch.GVA
	exited      bool
	kernelOnly  bool // it has no memory of its own: System, Registry, Idle, ...
}

// readProcess copies an EPROCESS. What has not the header of a process is none.
func (s *system) readProcess(as *vitrine.AddressSpace, addr arch.GVA) (process, error) {
	r, err := s.load(as, "EPROCESS", addr, s.l.process.size)
	if err != nil {
		if errors.Is(err, osi.ErrCorrupt) || pagedOut(err) {
			err = fmt.Errorf("%w: %w", osi.ErrNoProcess, err)
		}
		return process{}, err
	}
	if r.buf[0] != processObject {
		return process{}, fmt.Errorf("object at %v has the type %d: %w", addr, r.buf[0], osi.ErrNoProcess)
	}
	l := &s.l.process
	p := process{record: r, pid: int(r.ptr(l.pid)), parent: int(r.ptr(l.parent)), peb: r.ptr(l.peb), table: r.ptr(l.table)}
	p.exited = r.u64(l.exited) != 0
	p.kernelOnly = !p.exited && p.peb == 0 && r.ptr(l.base) == 0
	return p, nil
}

func (s *system) handleOf(p *process) osi.Handle {
	h := osi.Handle{Task: p.addr}
	if !p.kernelOnly && !p.exited {
		h.ASID = arch.Root(s.kernel.Mode(), uint64(p.table))
	}
	return h
}

// list returns the processes in the order in which they were made.
func (s *system) list(ctx context.Context, as *vitrine.AddressSpace) ([]arch.GVA, error) {
	if s.triage != nil {
		return []arch.GVA{s.triage.Process}, ctx.Err()
	}
	all, err := s.collect(ctx, as, s.nt.ProcessHead, s.l.process.links.off, s.w, maxProcesses)
	if err != nil {
		err = fmt.Errorf("list processes: %w", err)
	}
	return all, err
}

// eachProcess calls f with each process, or the error that stands for one,
// until f returns false. One that ends meanwhile is passed over.
func (s *system) eachProcess(ctx context.Context, as *vitrine.AddressSpace, f func(*process, error) bool) {
	all, listErr := s.list(ctx, as)
	for _, addr := range all {
		if err := ctx.Err(); err != nil {
			f(nil, err)
			return
		}
		p, err := s.readProcess(as, addr)
		if errors.Is(err, osi.ErrNoProcess) && s.g.Info().Live && listErr == nil && !s.linked(as, addr) {
			continue
		}
		if !f(&p, err) || err != nil && fatal(err) {
			return
		}
	}
	if listErr != nil {
		f(nil, listErr)
	}
}

// linked reports whether a process is on the list.
func (s *system) linked(as *vitrine.AddressSpace, addr arch.GVA) bool {
	link := addr + s.l.process.links.off
	prev, err := s.word(as, link+s.w)
	if err != nil || !s.nt.KernelAddress(prev) {
		return false
	}
	next, err := s.word(as, prev)
	return err == nil && next == link
}

// ProcessHandles implements osi.System. It corresponds to PsActiveProcessHead.
func (s *system) ProcessHandles(ctx context.Context) iter.Seq2[osi.Handle, error] {
	return func(yield func(osi.Handle, error) bool) {
		s.eachProcess(ctx, s.fresh(), func(p *process, err error) bool {
			if err != nil {
				return yield(osi.Handle{}, err)
			}
			return yield(s.handleOf(p), nil)
		})
	}
}

// Processes implements osi.System.
func (s *system) Processes(ctx context.Context) iter.Seq2[osi.Process, error] {
	return func(yield func(osi.Process, error) bool) {
		as := s.fresh()
		s.eachProcess(ctx, as, func(p *process, err error) bool {
			if err != nil {
				return yield(osi.Process{}, err)
			}
			return yield(s.process(as, p), nil)
		})
	}
}

// Process implements osi.System.
func (s *system) Process(ctx context.Context, h osi.Handle) (osi.Process, error) {
	as := s.fresh()
	p, err := s.processOf(ctx, as, h)
	if err != nil {
		return osi.Process{}, err
	}
	return s.process(as, &p), nil
}

// processOf returns the process that a handle names, by itself or by a thread.
func (s *system) processOf(ctx context.Context, as *vitrine.AddressSpace, h osi.Handle) (process, error) {
	if err := ctx.Err(); err != nil {
		return process{}, err
	}
	p, err := s.readProcess(as, h.Task)
	if err == nil || !errors.Is(err, osi.ErrNoProcess) {
		return p, err
	}
	t, threadErr := s.readThread(as, h.Task)
	if threadErr != nil {
		return process{}, err
	}
	return s.readProcess(as, t.process)
}

// ProcessByPID implements osi.System.
func (s *system) ProcessByPID(ctx context.Context, pid int) (osi.Process, error) {
	as := s.fresh()
	all, err := s.list(ctx, as)
	for _, addr := range all {
		id, readErr := s.word(as, addr+s.l.process.pid.off)
		if readErr != nil || int(id) != pid || pid <= 0 {
			continue
		}
		if p, readErr := s.readProcess(as, addr); readErr == nil && p.pid == pid {
			return s.process(as, &p), nil
		}
	}
	if err == nil {
		err = osi.ErrNoProcess
	}
	return osi.Process{}, fmt.Errorf("find process %d: %w", pid, err)
}

// name returns EPROCESS.ImageFileName, 14 or 15 characters of the file's name.
func (s *system) name(p *process) string {
	b := p.buf[s.l.process.name.off:]
	b = b[:min(len(b), 15)]
	name, _, _ := strings.Cut(string(b), "\x00")
	if name == "" && p.pid == 0 {
		return "Idle"
	}
	return name
}

// process makes the record of a process.
func (s *system) process(as *vitrine.AddressSpace, p *process) osi.Process {
	l := &s.l.process
	out := osi.Process{
		Handle: s.handleOf(p), PID: p.pid, PPID: p.parent, Name: s.name(p), KThread: p.kernelOnly,
		Threads: max(1, int(p.u32(l.active))), StartTime: kernel.Filetime(p.u64(l.created)), WOW64: p.ptr(l.wow64) != 0,
		Compat: p.ptr(l.wow64) != 0,
	}
	if p.exited {
		out.State, out.Threads = 'Z', 1
	}
	out.FullName = out.Name
	out.ID = osi.MakeID(p.pid, time.Duration(p.u64(l.created)))
	out.Exe = s.imagePath(as, p)
	if full := lastElement(out.Exe); strings.HasPrefix(full, out.Name) {
		out.FullName = full
	}
	if !l.active.ok {
		out.Threads = s.countThreads(as, p)
	}
	out.User, out.Session = s.user(as, p)
	out.Handles = s.countHandles(as, p)
	if user := s.userSpace(p); user != nil && p.peb != 0 {
		out.CommandLine = text(s.parameter(user, p, s.l.params.command))
		out.Args = splitCommand(out.CommandLine)
		if out.Exe == "" {
			out.Exe = text(s.parameter(user, p, s.l.params.image))
		}
	}
	return out
}

func lastElement(path string) string { return path[strings.LastIndexByte(path, '\\')+1:] }

// imagePath returns the path of the executable as the kernel keeps it for
// audits: SeAuditProcessCreationInfo.ImageFileName.
func (s *system) imagePath(as *vitrine.AddressSpace, p *process) string {
	at := p.ptr(s.l.process.audit)
	if !s.nt.KernelAddress(at) {
		return ""
	}
	return text(s.str(as, at))
}

// userSpace returns the user memory of a process, nil when it has none.
func (s *system) userSpace(p *process) *vitrine.AddressSpace {
	root := arch.Root(s.kernel.Mode(), uint64(p.table))
	if p.kernelOnly || p.exited || root == 0 {
		return nil
	}
	return s.nt.SoftPages(s.g.AddressSpace(s.kernel.Mode(), root))
}

// parameter reads a text of PEB.ProcessParameters.
func (s *system) parameter(user *vitrine.AddressSpace, p *process, m member) (string, error) {
	if !m.ok || !s.l.peb.params.ok || p.peb == 0 {
		return "", nil
	}
	params, err := s.word(user, p.peb+s.l.peb.params.off)
	if err != nil || params == 0 {
		return "", err
	}
	return s.str(user, params+m.off)
}

// splitCommand splits a command line as CommandLineToArgvW does: by blanks
// outside of quotes; a backslash is one, but before a quote two stand for one,
// and an odd one makes the quote a character. The program's own name knows
// quotes only.
func splitCommand(s string) []string {
	if s == "" {
		return nil
	}
	var out []string
	name, rest := s, ""
	if s[0] == '"' {
		name, rest, _ = strings.Cut(s[1:], `"`)
	} else if i := strings.IndexAny(s, " \t"); i >= 0 && s != osi.PagedOut {
		name, rest = s[:i], s[i:]
	}
	out = append(out, name)
	for rest = strings.TrimLeft(rest, " \t"); rest != ""; rest = strings.TrimLeft(rest, " \t") {
		var arg string
		arg, rest = nextArg(rest)
		out = append(out, arg)
	}
	return out
}

func nextArg(s string) (arg, rest string) {
	var b strings.Builder
	quoted := false
	for i := 0; i < len(s); {
		n := 0
		for i+n < len(s) && s[i+n] == '\\' {
			n++
		}
		quote := i+n < len(s) && s[i+n] == '"'
		switch {
		case n > 0 && quote:
			b.WriteString(strings.Repeat(`\`, n/2))
			if i += n; n%2 == 1 {
				b.WriteByte('"')
				i++
			}
		case n > 0:
			b.WriteString(s[i : i+n])
			i += n
		case quote:
			if quoted && i+1 < len(s) && s[i+1] == '"' { // a doubled quote within quotes is one
				b.WriteByte('"')
				i++
			} else {
				quoted = !quoted
			}
			i++
		case !quoted && (s[i] == ' ' || s[i] == '\t'):
			return b.String(), s[i:]
		default:
			b.WriteByte(s[i])
			i++
		}
	}
	return b.String(), ""
}
