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

	"github.com/google/go-cmp/cmp"

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
	p, err := c.image(make([]byte, 100), c.base+0x40, c.base+0x50, []*gate{nil, {0x1fbc0, 0x9a4, 0xffffc90000102000}})
	if err != nil {
		t.Fatal(err)
	}
	nop := "nopw 0x0(%rax,%rax,1)"
	for i, want := range [][]string{
		{
			nop, nop, nop, nop, "xchg %ax,%ax", "sub $0x28,%rsp", "mov $0x0,%eax", "call 0xffffffffa0000040", "test %eax,%eax",
			"jne 0xffffffffa0000158", "call 0xffffffff81000009", "mov $0x0,%r11d", "jmp 0xffffffffa0000050", "add $0x28,%rsp",
			"jmp 0xffffffff81000009",
		},
		{
			"movabs $0xffffc90000102000,%r10", "mov %gs:0x1fbc0,%rax", "mov 0x9a4(%rax),%eax", "cmp $0x400000,%eax",
			"jae 0xffffffffa00001dc", "bt %rax,(%r10)", "jae 0xffffffffa00001dc", "sub $0x28,%rsp", "mov $0x1,%eax",
			"call 0xffffffffa0000040", "test %eax,%eax", "jne 0xffffffffa00001d8", "call 0xffffffff81000109", "mov $0x1,%r11d",
			"jmp 0xffffffffa0000050", "add $0x28,%rsp", "jmp 0xffffffff81000109",
		},
	} {
		got, back := disassemble(t, c, p, i)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("stub %d (-want +got):\n%s", i, diff)
		}
		if want := uint64(c.stub(i)) - stubEntry + stubBack; back != want {
			t.Errorf("call in stub %d returns to %#x, not to %#x", i, back, want)
		}
	}
}

// disassemble returns the instructions of stub i, and the address of the one
// behind the call of the function.
func disassemble(t *testing.T, c *code, image []byte, i int) (text []string, back uint64) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "stub")
	at := int(c.stubs) + i*stubSize + stubEntry
	if err := os.WriteFile(file, image[at:at+stubSize-stubEntry], 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("objdump", "-D", "-b", "binary", "-mi386:x86-64", "--no-show-raw-insn",
		"--adjust-vma="+c.stub(i).String(), file).Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		addr, in, ok := strings.Cut(line, ":\t")
		if !ok || strings.Contains(in, "int3") {
			continue
		}
		text = append(text, strings.Join(strings.Fields(in), " "))
		if strings.Contains(in, "r11d") {
			if back, err = strconv.ParseUint(strings.TrimSpace(addr), 16, 64); err != nil {
				t.Fatal(err)
			}
		}
	}
	return text, back
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
	p, err := c.image([]byte{1, 2, 3}, c.base, c.base, nil)
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
	if _, err := c.image(nil, c.base, c.base, nil); !errors.Is(err, errRange) {
		t.Errorf("image with a site out of reach = %v; want %v", err, errRange)
	}
}
