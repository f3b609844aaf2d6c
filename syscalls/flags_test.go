package syscalls

import (
	"testing"

	"github.com/vitrine-vmi/vitrine/arch"
)

func TestOpenFlags(t *testing.T) {
	for _, tc := range []struct {
		a     arch.Arch
		flags uint64
		want  string
	}{
		{arch.AMD64, 0, "O_RDONLY"},
		{arch.AMD64, 0x8000, "O_RDONLY|O_LARGEFILE"},
		{arch.AMD64, 0x101002, "O_RDWR|O_SYNC"},
		{arch.AMD64, 0x1001, "O_WRONLY|O_DSYNC"},
		{arch.AMD64, 0x410002, "O_RDWR|O_TMPFILE"},
		{arch.AMD64, 0x4000, "O_RDONLY|O_DIRECT"},
		{arch.ARM64, 0x4000, "O_RDONLY|O_DIRECTORY"},
		{arch.ARM64, 0x10000, "O_RDONLY|O_DIRECT"},
		{arch.ARM64, 0x20000, "O_RDONLY|O_LARGEFILE"},
		{arch.I386, 0x8002, "O_RDWR|O_LARGEFILE"},
		{arch.AMD64, 1 << 40, "O_RDONLY|0x10000000000"},
	} {
		if got := OpenFlags(tc.a, tc.flags); got != tc.want {
			t.Errorf("OpenFlags(%v, %#x) = %s, want %s", tc.a, tc.flags, got, tc.want)
		}
	}
}

func TestFamilies(t *testing.T) {
	for _, tc := range []struct {
		fam  family
		v    uint64
		want string
	}{
		{famProt, 0, "PROT_NONE"},
		{famProt, 7, "PROT_READ|PROT_WRITE|PROT_EXEC"},
		{famProt, 0x10, "0x10"},
		{famMmap, 3, "MAP_SHARED_VALIDATE"},
		{famMmap, 0x22, "MAP_PRIVATE|MAP_ANONYMOUS"},
		{famMmap, 0xc, "0xc"},
		{famFutex, 0, "FUTEX_WAIT"},
		{famFutex, 0x189, "FUTEX_WAIT_BITSET|FUTEX_PRIVATE_FLAG|FUTEX_CLOCK_REALTIME"},
		{famSeek, 2, "SEEK_END"},
		{famSeek, 77, "0x4d"},
		{famSocktype, 0x80002, "SOCK_DGRAM|SOCK_CLOEXEC"},
	} {
		if got := string(tc.fam.append(nil, arch.AMD64, tc.v)); got != tc.want {
			t.Errorf("%s %#x = %s, want %s", families[tc.fam].name, tc.v, got, tc.want)
		}
	}
}

// Every family has constants on every architecture, and each constant shows as
// itself.
func TestEveryConstantShowsAsItself(t *testing.T) {
	for f := famNone + 1; f < famCount; f++ {
		for _, a := range allArches {
			if len(f.of(a)) == 0 {
				t.Errorf("%s is empty on %v", families[f].name, a)
			}
			for _, c := range f.of(a) {
				got := string(f.append(nil, a, c.value))
				mask := families[f].mask
				if zero, ok := f.find(a, 0, mask); mask != 0 && ok && c.value&mask == 0 && c.value != 0 {
					got = got[min(len(got), len(zero)+1):]
				}
				if got != c.name {
					t.Errorf("%v %s: %#x shows as %s", a, c.name, c.value, got)
				}
			}
		}
	}
}

func TestSignals(t *testing.T) {
	for n, want := range map[int]string{1: "SIGHUP", 17: "SIGCHLD", 31: "SIGSYS", 32: "SIGRT_0", 64: "SIGRT_32"} {
		if got, ok := SignalName(n); !ok || got != want {
			t.Errorf("SignalName(%d) = %q, %v, want %q", n, got, ok, want)
		}
	}
	for _, n := range []int{-1, 0, 65, 1 << 30} {
		if got, ok := SignalName(n); ok {
			t.Errorf("SignalName(%d) = %q", n, got)
		}
	}
}

func TestErrno(t *testing.T) {
	for n, want := range map[int64]string{1: "EPERM", 2: "ENOENT", 11: "EAGAIN", 35: "EDEADLK", 95: "EOPNOTSUPP", 133: "EHWPOISON", 512: "ERESTARTSYS", 0: "", -1: "", 200: "", 1 << 40: ""} {
		if got := Errno(n); got != want {
			t.Errorf("Errno(%d) = %q, want %q", n, got, want)
		}
	}
	if got, want := ErrnoText(2), "No such file or directory"; got != want {
		t.Errorf("ErrnoText(2) = %q, want %q", got, want)
	}
	for ret, want := range map[int64]bool{0: false, -1: true, -4095: true, -4096: false, 5: false} {
		if IsError(ret) != want {
			t.Errorf("IsError(%d) = %v", ret, !want)
		}
	}
	d := NewDecoder(Fallback(arch.AMD64), nil)
	for ret, want := range map[int64]Result{
		-2:   {"-1 ENOENT (No such file or directory)", "ENOENT"},
		-516: {"? ERESTART_RESTARTBLOCK (Interrupted by signal)", "ERESTART_RESTARTBLOCK"},
		-999: {"-1 errno 999", ""},
		7:    {"7", ""},
	} {
		if got := d.Result(&Call{Name: "close", Ret: ret, Returned: true}, nil); got != want {
			t.Errorf("Result(%d) = %+v, want %+v", ret, got, want)
		}
	}
}
