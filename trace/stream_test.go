package trace

import (
	"errors"
	"testing"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/probe"
	"github.com/vitrine-vmi/vitrine/syscalls"
)

func TestCapturesOfCalls(t *testing.T) {
	d := &decoders{tables: map[arch.Arch]*syscalls.Table{arch.AMD64: syscalls.Fallback(arch.AMD64)}}
	got := d.captures(entry{"__x64_sys_read", "read", arch.AMD64})
	if len(got) != 1 || got[0].Arg != 1 || !got[0].Return || got[0].Length != probe.LengthResult {
		t.Errorf("captures of read = %+v", got)
	}
	for _, en := range []entry{{"vfs_read", "", arch.AMD64}, {"__ia32_sys_read", "read", arch.I386}} {
		if got := d.captures(en); got != nil {
			t.Errorf("captures of %s = %+v; want none", en.symbol, got)
		}
	}
	for en, want := range map[entry]probe.UserRegs{
		{"vfs_read", "", arch.AMD64}:                 probe.NoUserRegs,
		{"__x64_sys_read", "read", arch.AMD64}:       probe.UserRegs64,
		{"__ia32_sys_read", "read", arch.I386}:       probe.UserRegs32,
		{"__ia32_sys_mmap2", "mmap2", arch.I386}:     probe.UserRegs32,
		{"__x64_sys_getppid", "getppid", arch.AMD64}: probe.UserRegs64,
	} {
		if got := en.user(); got != want {
			t.Errorf("user of %s = %d; want %d", en.symbol, got, want)
		}
	}
}

// Without a record there is nothing to read, whatever the guest's memory holds.
func TestRecordedReadsNothingElse(t *testing.T) {
	args := [6]uint64{0x1000}
	r := recorded{&probe.Hit{}, nil, &args}
	if n, err := r.Read(make([]byte, 4), 0x1000); n != 0 || !errors.Is(err, errNotRecorded) {
		t.Errorf("Read = %d, %v; want %v", n, err, errNotRecorded)
	}
}
