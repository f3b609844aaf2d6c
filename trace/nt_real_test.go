package trace_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/event"
	"github.com/vitrine-vmi/vitrine/kernel"
	"github.com/vitrine-vmi/vitrine/osi"
	_ "github.com/vitrine-vmi/vitrine/osi/windows"
	"github.com/vitrine-vmi/vitrine/qemu"
	"github.com/vitrine-vmi/vitrine/tests/ntguest"
	"github.com/vitrine-vmi/vitrine/trace"
)

// ntLayouts are booted by default: one of each width. VITRINE_TEST_NT_LAYOUTS=all
// boots all that ntguest lists, or it names some.
func ntLayouts() []string {
	switch v := os.Getenv("VITRINE_TEST_NT_LAYOUTS"); v {
	case "":
		return []string{ntguest.Win7x86, ntguest.Win10}
	case "all":
		return ntguest.Layouts()
	default:
		return strings.Split(v, ",")
	}
}

// ntTarget is a guest laid out as NT is, understood.
type ntTarget struct {
	vm    *ntguest.Guest
	g     *vitrine.Guest
	k     *kernel.Kernel
	sys   osi.System
	truth *ntguest.Truth
}

func attachNT(t *testing.T, layout string, o *ntguest.Options) *ntTarget {
	t.Helper()
	x := &ntTarget{vm: ntguest.Boot(t, layout, o)}
	var err error
	if x.truth, err = x.vm.Truth(t.Context()); err != nil {
		t.Fatal(err)
	}
	if x.g, err = qemu.Attach(t.Context(), x.vm.QMP, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.g.Close() })
	if x.k, err = kernel.Describe(t.Context(), x.g, nil); err != nil {
		t.Fatal(err)
	}
	if x.sys, err = osi.Open(t.Context(), x.g, x.k, nil); err != nil {
		t.Fatal(err)
	}
	return x
}

// text returns the kernel's text as it is in memory, by a hash of the guest's own.
func (x *ntTarget) text(t *testing.T) string {
	t.Helper()
	lines, err := x.vm.Do(t.Context(), "hash")
	if err != nil {
		t.Fatal(err)
	}
	var v struct {
		Hash string `json:"text_hash"`
	}
	if err := lines[len(lines)-1].Decode(&v); err != nil || v.Hash == "" {
		t.Fatalf("hash: %v", err)
	}
	return v.Hash
}

// bytes returns the kernel's text as it is seen from outside.
func (x *ntTarget) bytes(t *testing.T) []byte {
	t.Helper()
	b := make([]byte, int(x.truth.Kernel.TextEnd-x.truth.Kernel.Base))
	n, _ := x.k.AddressSpace().Read(b, arch.GVA(x.truth.Kernel.Base))
	if n < len(b)/2 {
		t.Fatalf("kernel text: %d bytes of %d", n, len(b))
	}
	return b[:n]
}

// collector keeps the records of a trace.
type collector struct {
	mu   sync.Mutex
	recs []event.Call
}

func (c *collector) emit(r *event.Call) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.recs = append(c.recs, *r)
	return nil
}

func (c *collector) all() []event.Call {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.recs)
}

// traceNT traces while work runs, from the first breakpoint being in.
func (x *ntTarget) traceNT(t *testing.T, o *trace.CallsOptions, work func()) ([]event.Call, *event.Stats) {
	t.Helper()
	var c collector
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	type ended struct {
		stats *event.Stats
		err   error
	}
	done := make(chan ended, 1)
	go func() {
		stats, err := trace.Calls(ctx, x.g, x.k, x.sys, o, c.emit)
		done <- ended{stats, err}
	}()
	// The guest's programs sleep all the time: a call of it shows that all is planted.
	deadline := time.Now().Add(2 * time.Minute)
	for !slices.ContainsFunc(c.all(), func(r event.Call) bool { return r.Name == "NtDelayExecution" }) {
		select {
		case e := <-done:
			t.Fatalf("trace ended: %v", e.err)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatal("no call is seen")
		}
	}
	work() // what it made the guest call has been delivered when the guest says so: in step
	cancel()
	e := <-done
	if e.err != nil && !errors.Is(e.err, context.Canceled) {
		t.Fatal(e.err)
	}
	return c.all(), e.stats
}

// traced are the calls that the guest's workers make, and the one that shows that the trace runs.
var ntTraced = []string{"NtCreateFile", "NtOpenKey", "NtClose", "NtAllocateVirtualMemory", "NtFreeVirtualMemory", "NtDelayExecution"}

// What the guest laid out as NT is says of its calls is what a trace shows, and
// its memory is what it was.
func TestNTGuest(t *testing.T) {
	for _, layout := range ntLayouts() {
		t.Run(layout, func(t *testing.T) {
			x := attachNT(t, layout, nil)
			hash, text := x.text(t), x.bytes(t)
			t.Run("services", x.services)
			t.Run("calls", x.calls)
			t.Run("kernel", x.kernelCalls)
			t.Run("filter", x.filtered)
			t.Run("all", x.allCalls)
			t.Run("loop", x.loop)
			t.Run("change", x.change)
			t.Run("unknown", x.unknown)
			if now := x.text(t); now != hash || !slices.Equal(x.bytes(t), text) {
				t.Errorf("kernel text changed from %s to %s", hash, now)
			}
		})
	}
}

func (x *ntTarget) services(t *testing.T) {
	s, err := x.k.NT().Services()
	if err != nil {
		t.Fatal(err)
	}
	want := &x.truth.Kernel
	if s.Table != arch.GVA(want.KiServiceTable) || len(s.All) != want.Services {
		t.Errorf("table of %d services at %v, want %d at %#x", len(s.All), s.Table, want.Services, want.KiServiceTable)
	}
	before := s.Unnamed()
	p := x.truth.Process("worker1.exe")
	as, err := x.sys.AddressSpace(t.Context(), osi.Handle{Task: arch.GVA(p.EPROCESS)})
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(p.Modules, func(m ntguest.Module) bool { return m.Name == "ntdll.dll" && !m.WOW64 })
	after, err := s.NameBy(as, arch.GVA(p.Modules[i].Base))
	if err != nil || after >= before || len(s.Named()) < 200 {
		t.Errorf("%d services without a name, %d by ntdll, %v", before, after, err)
	}
	named := map[string]arch.GVA{}
	for _, e := range s.Named() {
		named[e.Name] = e.Addr
	}
	for name, at := range want.Functions {
		if named[name] != arch.GVA(at) {
			t.Errorf("%s at %v, want %#x", name, named[name], at)
		}
	}
	if _, err := s.NameBy(as, arch.GVA(p.Base)); err == nil {
		t.Error("the program's own image named services")
	}
}

// calls traces rounds of the workers and compares each.
func (x *ntTarget) calls(t *testing.T) {
	hash, text := x.text(t), x.bytes(t)
	var said []ntguest.Call
	recs, stats := x.traceNT(t, &trace.CallsOptions{Names: ntTraced}, func() {
		var err error
		if said, err = x.vm.Calls(t.Context(), 4); err != nil {
			t.Error(err)
		}
		if now := x.text(t); now != hash || !slices.Equal(x.bytes(t), text) {
			t.Errorf("kernel text is %s while breakpoints are in, was %s", now, hash)
		}
	})
	x.compare(t, recs, said, 2*4*8)
	if stats.Lost > 0 || stats.Engine != "trap" || stats.Delivery != "sync" || stats.PerFunc["NtClose"] != 2*4*3 {
		t.Errorf("%+v", stats)
	}
}

// compare compares the records of the workers' calls with what the guest says.
func (x *ntTarget) compare(t *testing.T, recs []event.Call, said []ntguest.Call, want int) {
	t.Helper()
	recs = slices.DeleteFunc(slices.Clone(recs), func(r event.Call) bool { return r.Name == "NtDelayExecution" })
	if len(recs) != want || len(said) != want {
		for _, r := range recs {
			t.Logf("%s", r.AppendJSON(nil))
		}
		t.Fatalf("%d calls traced, %d said, want %d", len(recs), len(said), want)
	}
	// In the order of their ends, which the guest tells before the return is seen: of each thread by itself.
	by := map[int][]event.Call{}
	for _, r := range recs {
		by[r.TID] = append(by[r.TID], r)
	}
	for _, c := range said {
		if len(by[c.TID]) == 0 {
			t.Fatalf("call %+v is not in the trace", c)
		}
		x.same(t, &by[c.TID][0], &c)
		by[c.TID] = by[c.TID][1:]
	}
}

// same compares one record.
func (x *ntTarget) same(t *testing.T, r *event.Call, c *ntguest.Call) {
	t.Helper()
	type call struct {
		Name, Comm string
		PID, TID   int
		PPID       int
		Kernel     bool
		Status     uint32
		Errno      string
		Args       []uint64
		Event      event.CallKind
	}
	p := x.process(t, c.PID)
	want := call{Name: c.Name, Comm: p.Image, PID: c.PID, TID: c.TID, PPID: p.PPID, Kernel: c.Kernel, Status: uint32(c.Status), Event: event.Joined}
	switch c.Status {
	case 0xc0000034:
		want.Errno = "STATUS_OBJECT_NAME_NOT_FOUND"
	case 0xc0000008:
		want.Errno = "STATUS_INVALID_HANDLE"
	}
	for _, a := range c.Args {
		want.Args = append(want.Args, uint64(a))
	}
	got := call{Name: r.Name, Comm: r.Comm, PID: r.PID, TID: r.TID, PPID: r.PPID, Kernel: r.Kernel, Status: uint32(r.Ret), Errno: r.Errno, Event: r.Event}
	for i, a := range r.Args {
		v := a.Value
		if i < len(want.Args) && narrow[a.Name] { // the upper half of the place is whatever it was
			v = uint64(uint32(v))
		}
		got.Args = append(got.Args, v)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("call (-said +traced):\n%s", d)
	}
	if r.Event != event.Joined || int64(int32(c.Status)) != r.Ret {
		t.Errorf("%s returned %#x as %s, want %#x", r.Name, r.Ret, r.Event, c.Status)
	}
	// By the guest's clock, which begins in 2023 whenever it is booted, and stands still while a hit is dealt with.
	if apart := r.Time.Sub(filetime(c.Time)).Abs(); apart > time.Minute {
		t.Errorf("%s at %v, the guest says that it ended at %v", r.Name, r.Time, filetime(c.Time))
	}
	for i, want := range texts(c) {
		if got := r.Args[i].Text; got != want {
			t.Errorf("%s: argument %s is %q, want %q", r.Name, r.Args[i].Name, got, want)
		}
	}
}

// filetime returns the time of a FILETIME.
func filetime(v ntguest.Addr) time.Time {
	return time.Unix(int64(v/10_000_000)-11_644_473_600, int64(v%10_000_000)*100).UTC()
}

// narrow are the arguments of 32 bits.
var narrow = map[string]bool{"DesiredAccess": true, "FileAttributes": true, "ShareAccess": true, "CreateDisposition": true,
	"CreateOptions": true, "EaLength": true, "AllocationType": true, "Protect": true, "FreeType": true}

// texts is what arguments of a call look like, by what the guest says.
func texts(c *ntguest.Call) map[int]string {
	name := fmt.Sprintf(`{ObjectName="%s", Attributes=OBJ_CASE_INSENSITIVE}`, c.Object)
	if c.Kernel {
		name = fmt.Sprintf(`{ObjectName="%s"`, c.Object)
	}
	file := `\Device\HarddiskVolume2` + strings.TrimPrefix(c.Object, `\??\C:`)
	switch c.Name {
	case "NtCreateFile":
		out := map[int]string{2: name, 4: "NULL", 7: "FILE_OPEN", 10: "0"}
		if c.Status == 0 {
			out[0], out[1] = fmt.Sprintf("[%#x<File %s>]", uint64(c.Out), file), "FILE_GENERIC_READ"
			out[3], out[8] = "{Status=STATUS_SUCCESS, Information=0x1}", "FILE_SYNCHRONOUS_IO_NONALERT|FILE_NON_DIRECTORY_FILE"
			out[5], out[6] = "FILE_ATTRIBUTE_NORMAL", "FILE_SHARE_READ|FILE_SHARE_WRITE"
		} else {
			out[0], out[1] = fmt.Sprintf("%#x", uint64(c.Args[0])), "SYNCHRONIZE|GENERIC_READ"
		}
		return out
	case "NtOpenKey":
		if c.Kernel {
			return map[int]string{1: "KEY_READ"}
		}
		return map[int]string{0: fmt.Sprintf("[%#x<Key %s>]", uint64(c.Out), c.Object), 1: "KEY_READ", 2: name}
	case "NtAllocateVirtualMemory":
		return map[int]string{0: "NtCurrentProcess()", 1: fmt.Sprintf("[0] => [%#x]", uint64(c.Out)), 3: "[0x2000]", 4: "MEM_COMMIT|MEM_RESERVE", 5: "PAGE_READWRITE"}
	case "NtFreeVirtualMemory":
		return map[int]string{0: "NtCurrentProcess()", 3: "MEM_RELEASE"}
	case "NtClose":
		if c.Status != 0 {
			return map[int]string{0: "0xdead0"}
		}
	}
	return nil
}

func (x *ntTarget) process(t *testing.T, pid int) *ntguest.Process {
	t.Helper()
	for i := range x.truth.Processes {
		if p := &x.truth.Processes[i]; p.PID == pid {
			return p
		}
	}
	t.Fatalf("no process %d", pid)
	return nil
}

// Calls of the kernel itself are told from programs'.
func (x *ntTarget) kernelCalls(t *testing.T) {
	var said []ntguest.Call
	recs, _ := x.traceNT(t, &trace.CallsOptions{Names: []string{"ZwOpenKey", "Close", "NtDelayExecution"}}, func() {
		var err error
		if said, err = x.vm.KernelCalls(t.Context(), 3); err != nil {
			t.Error(err)
		}
	})
	x.compare(t, recs, said, 6)
	for _, r := range recs {
		if r.Kernel != (r.Name != "NtDelayExecution") || r.Kernel && (r.PID != 4 || r.Comm != "System") {
			t.Errorf("%+v", r)
		}
	}
}

// A filter leaves others out.
func (x *ntTarget) filtered(t *testing.T) {
	p := x.truth.Process("worker1.exe")
	for _, o := range []trace.CallsOptions{{PIDs: []int{p.PID}}, {Comms: []string{p.Image}}} {
		o.Names, o.Ignore = ntTraced, []string{"NtClose"}
		var said []ntguest.Call
		recs, _ := x.traceNT(t, &o, func() {
			var err error
			if said, err = x.vm.Calls(t.Context(), 1); err != nil {
				t.Error(err)
			}
		})
		said = slices.DeleteFunc(said, func(c ntguest.Call) bool { return c.PID != p.PID || c.Name == "NtClose" })
		x.compare(t, recs, said, 5)
	}
}

// All calls at once, each as two records.
func (x *ntTarget) allCalls(t *testing.T) {
	var said []ntguest.Call
	recs, stats := x.traceNT(t, &trace.CallsOptions{Separate: true}, func() {
		var err error
		if said, err = x.vm.Calls(t.Context(), 1); err != nil {
			t.Error(err)
		}
	})
	var returns []event.Call
	enters := 0
	for _, r := range recs {
		if r.Event == event.Return {
			r.Event = event.Joined
			returns = append(returns, r)
		} else if r.Name != "NtDelayExecution" {
			enters++
		}
	}
	x.compare(t, returns, said, 16)
	if enters != 16 || stats.PerFunc["NtOpenKey"] != 2 {
		t.Errorf("%d entries, %+v", enters, stats)
	}
}

// runLoop runs a loop while work runs.
func (x *ntTarget) runLoop(t *testing.T, l *trace.Loop, work func()) {
	t.Helper()
	var once sync.Once
	begun := make(chan struct{})
	if err := l.Handle("NtDelayExecution", func(*trace.Event) any { once.Do(func() { close(begun) }); return nil }, nil); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- l.Run(t.Context()) }()
	select {
	case <-begun:
	case err := <-done:
		t.Fatalf("loop ended: %v", err)
	case <-time.After(2 * time.Minute):
		t.Fatal("no call is seen")
	}
	work()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A loop's handlers see all arguments and the status, and who calls.
func (x *ntTarget) loop(t *testing.T) {
	l, err := trace.New(x.g, x.k, x.sys, nil)
	if err != nil {
		t.Fatal(err)
	}
	if l.OSType() != trace.Windows {
		t.Errorf("system %v", l.OSType())
	}
	var got []string
	var mu sync.Mutex
	onCall := func(e *trace.Event) any {
		mu.Lock()
		defer mu.Unlock()
		th, err := x.sys.ThreadAt(t.Context(), e.Thread.Task)
		if err != nil || th.PID != e.PID() || th.TID != e.TID() || th.Name != e.Comm() || th.PPID != e.PPID() {
			t.Errorf("thread %+v of the hit, %+v by osi, %v", e.Thread, th, err)
		}
		if cur, err := x.sys.Current(t.Context(), e.CPU); err != nil || cur.TID != e.TID() || cur.PID != e.PID() {
			t.Errorf("current thread %+v, %v, want %+v", cur, err, e.Thread)
		}
		return uint32(e.Arg(7))
	}
	onReturn := func(e *trace.Event, v any) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, fmt.Sprintf("%s %d %v %d", e.Name, v, uint32(e.Arg(8)), e.Result()))
	}
	if err := l.Handle("NtCreateFile", onCall, onReturn); err != nil {
		t.Fatal(err)
	}
	x.runLoop(t, l, func() {
		if _, err := x.vm.Calls(t.Context(), 1); err != nil {
			t.Error(err)
		}
	})
	slices.Sort(got)
	want := []string{"NtCreateFile 1 32 -1073741772", "NtCreateFile 1 32 -1073741772", "NtCreateFile 1 96 0", "NtCreateFile 1 96 0"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// A handler changes an argument and a result, and makes a call not happen where
// it is known how to.
func (x *ntTarget) change(t *testing.T) {
	l, err := trace.New(x.g, x.k, x.sys, nil)
	if err != nil {
		t.Fatal(err)
	}
	var skipErr error
	skipped := 0
	errs := errors.Join(
		l.Handle("NtClose", func(e *trace.Event) any {
			if e.Arg(0) == 0xdead0 {
				if err := e.SetArg(0, 0xdead4); err != nil {
					t.Error(err)
				}
			}
			return nil
		}, nil),
		l.Handle("NtOpenKey", func(e *trace.Event) any {
			if skipErr = e.SkipWith(0xc0000022); skipErr == nil {
				skipped++
			}
			return nil
		}, nil))
	if errs != nil {
		t.Fatal(errs)
	}
	var said []ntguest.Call
	x.runLoop(t, l, func() {
		if said, err = x.vm.Calls(t.Context(), 1); err != nil {
			t.Error(err)
		}
	})
	changed, opened := 0, 0
	for _, c := range said {
		if c.Name == "NtClose" && c.Args[0] == 0xdead4 {
			changed++
		}
		if c.Name == "NtOpenKey" {
			opened++
		}
	}
	if changed != 2 {
		t.Errorf("%d arguments changed, want 2: %+v", changed, said)
	}
	if x.k.NT().X64 && (skipErr != nil || skipped != 2 || opened != 0) || !x.k.NT().X64 && (!errors.Is(skipErr, errors.ErrUnsupported) || opened != 2) {
		t.Errorf("%d calls skipped (%v), %d made", skipped, skipErr, opened)
	}
}

// Names that the guest does not know are refused before anything is planted.
func (x *ntTarget) unknown(t *testing.T) {
	for _, name := range []string{"NtNoSuchCall", "openat", "NtBuildNumber"} {
		_, err := trace.Calls(t.Context(), x.g, x.k, x.sys, &trace.CallsOptions{Names: []string{name}}, func(*event.Call) error { return nil })
		if !errors.Is(err, trace.ErrUnknownCall) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := trace.Calls(t.Context(), x.g, x.k, x.sys, &trace.CallsOptions{Engine: "implant"}, func(*event.Call) error { return nil })
	if !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("implant: %v", err)
	}
}
