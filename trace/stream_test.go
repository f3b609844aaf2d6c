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
	got := d.captures(entry{symbol: "__x64_sys_read", name: "read", abi: arch.AMD64})
	if len(got) != 1 || got[0].Arg != 1 || !got[0].Return || got[0].Length != probe.LengthResult {
		t.Errorf("captures of read = %+v", got)
	}
	for _, en := range []entry{{symbol: "vfs_read", name: "", abi: arch.AMD64}, {symbol: "__ia32_sys_read", name: "read", abi: arch.I386}} {
		if got := d.captures(en); got != nil {
			t.Errorf("captures of %s = %+v; want none", en.symbol, got)
		}
	}
	for en, want := range map[entry]probe.UserRegs{
		{symbol: "vfs_read", name: "", abi: arch.AMD64}:                 probe.NoUserRegs,
		{symbol: "__x64_sys_read", name: "read", abi: arch.AMD64}:       probe.UserRegs64,
		{symbol: "__ia32_sys_read", name: "read", abi: arch.I386}:       probe.UserRegs32,
		{symbol: "__ia32_sys_mmap2", name: "mmap2", abi: arch.I386}:     probe.UserRegs32,
		{symbol: "__x64_sys_getppid", name: "getppid", abi: arch.AMD64}: probe.UserRegs64,
	} {
		if got := en.register(); got != want {
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
