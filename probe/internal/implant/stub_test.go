package implant

import (
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/vitrine-vmi/vitrine/arch"
)

func itoa(v int) string { return strconv.Itoa(v) }

func testCode(n int) *code {
	c := &code{base: 0xffffffffa0000000, data: 0xffffc90000100000, dataLen: 1 << 20, frame: 40, gadget: 0xffffffff81000010}
	c.stubs, c.sitesAt, c.size = codeLayout(100, n)
	for i := range n {
		c.sites = append(c.sites, site{addr: 0xffffffff81000000 + arch.GVA(i)*0x100 + 4, nop: nops[0]})
	}
	return c
}

func TestStubsDisassemble(t *testing.T) {
	if _, err := exec.LookPath("objdump"); err != nil {
		t.Skip("objdump is not installed: the stubs cannot be checked against it")
	}
	c := testCode(3)
	p, err := c.image(make([]byte, 100), c.base+0x40, c.base+0x50)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "stub")
	at := int(c.stubs) + stubSize + stubEntry
	if err := os.WriteFile(file, p[at:at+stubSize-stubEntry], 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("objdump", "-D", "-b", "binary", "-mi386:x86-64", "--no-show-raw-insn",
		"--adjust-vma="+c.stub(1).String(), file).Output()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"sub $0x28,%rsp", "mov $0x1,%eax", "call 0xffffffffa0000040", "test %eax,%eax", "jne 0xffffffffa0000132",
		"call 0xffffffff81000109", "mov $0x1,%r11d", "jmp 0xffffffffa0000050", "add $0x28,%rsp", "jmp 0xffffffff81000109",
	}
	var got []string
	for line := range strings.Lines(string(out)) {
		addr, text, ok := strings.Cut(line, ":\t")
		if !ok || strings.Contains(text, "int3") {
			continue
		}
		got = append(got, strings.Join(strings.Fields(text), " "))
		if strings.Contains(text, "r11d") && strings.TrimSpace(addr) != strconv.FormatUint(uint64(c.base)+uint64(c.stubs)+stubSize+stubBack, 16) {
			t.Errorf("call returns to %s, not to offset %d of the stub", addr, stubBack)
		}
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("stub is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestCodeAddresses(t *testing.T) {
	c := testCode(3)
	for i := range 3 {
		if back := uint64(c.stub(i)) - stubEntry + stubBack; !c.returnsHere(back) || c.returnsHere(back+1) || c.returnsHere(back-1) {
			t.Errorf("returnsHere is wrong around %#x", back)
		}
	}
	if c.returnsHere(uint64(c.stub(3)) - stubEntry + stubBack) {
		t.Error("returnsHere says yes behind the last stub")
	}
	if !c.contains(uint64(c.base)) || c.contains(uint64(c.base)-1) || c.contains(uint64(c.base)+c.size) {
		t.Error("contains is wrong at an end")
	}
}

func TestJump(t *testing.T) {
	from, to := arch.GVA(0xffffffff81000004), arch.GVA(0xffffffffa0000150)
	b, err := jump(from, to)
	if got, ok := jumpTarget(from, b[:]); err != nil || !ok || got != to {
		t.Errorf("jumpTarget(jump) = %v, %v, %v; want %v", got, ok, err, to)
	}
	if _, ok := jumpTarget(from, nops[0][:]); ok {
		t.Error("jumpTarget takes a nop for a jump")
	}
	if _, err := jump(from, 0xffffc90000000000); !errors.Is(err, errRange) {
		t.Errorf("jump over 2 GiB = %v; want %v", err, errRange)
	}
}

func TestImageHeader(t *testing.T) {
	c := testCode(2)
	p, err := c.image([]byte{1, 2, 3}, c.base, c.base)
	if err != nil {
		t.Fatal(err)
	}
	if uint64(len(p)) != c.size || binary.LittleEndian.Uint64(p) != codeMagic || p[codeHeaderSize+2] != 3 {
		t.Errorf("image of %d bytes starts with % x", len(p), p[:8])
	}
	if got := arch.GVA(binary.LittleEndian.Uint64(p[c.sitesAt+siteSize:])); got != c.sites[1].addr {
		t.Errorf("site 1 is %v; want %v", got, c.sites[1].addr)
	}
	c.sites[1].addr = 0xffff888000000000
	if _, err := c.image(nil, c.base, c.base); !errors.Is(err, errRange) {
		t.Errorf("image with a site out of reach = %v; want %v", err, errRange)
	}
}
