package x86dec

import (
	"bufio"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// known are instructions whose lengths come from the manual, most of them those
// that x86asm gets wrong.
var known = []struct {
	hex  string
	kind Kind
	name string
}{
	{"f30f1efa", Endbr, "endbr64"},
	{"f30f1efb", Endbr, "endbr32"},
	{"f3480f1ec8", Other, "rdsspq rax"},
	{"0f01ca", Other, "clac"},
	{"0f01cb", Other, "stac"},
	{"f30f01ca", Far, "eretu"},
	{"0f01c1", Other, "vmcall"},
	{"0f01d9", Other, "vmmcall"},
	{"f30f01d9", Other, "vmgexit"},
	{"0f01cf", Other, "encls"},
	{"0f01dc", Other, "stgi"},
	{"f30f01fe", Other, "rmpadjust"},
	{"f20f01ff", Other, "pvalidate"},
	{"0f01ee", Other, "rdpkru"},
	{"0f01ef", Other, "wrpkru"},
	{"0f01e8", Other, "serialize"},
	{"480fc7f8", Other, "rdseed rax"},
	{"0f01fa", Other, "monitorx"},
	{"660faef1", Other, "tpause ecx"},
	{"66480f38f510", Other, "wrussq [rax], rdx"},
	{"c4e27849c0", Other, "tilerelease"},
	{"c5f877", Other, "vzeroupper"},
	{"c5fd6f0c25785634 12", Other, "vmovdqa ymm1, [0x12345678]"},
	{"c4e37d39c101", Other, "vextracti128 xmm1, ymm0, 1"},
	{"62f1fd486f00", Other, "vmovdqa64 zmm0, [rax]"},
	{"62f1fd486f8040000000", Other, "vmovdqa64 zmm0, [rax+0x40]"},
	{"0f7878 10", Other, "vmread [rax+16], rdi"},
	{"0fb94010", Trap, "ud1 eax, [rax+16]"},
	{"670fb94010", Trap, "ud1 eax, [eax+16]"},
	{"90", Nop, "nop"},
	{"0f1f00", Nop, "nopl [rax]"},
	{"0f1f440000", Nop, "nopl [rax+rax+0]: ftrace"},
	{"6666666690", Nop, "data16 nop: ftrace on 5.10"},
	{"0f1f40d6", Nop, "nopl [rax-42]: a sealed endbr64"},
	{"662e0f1f840000000000", Nop, "nopw cs:[rax+rax+0]"},
	{"c3", Ret, "ret"},
	{"f3c3", Ret, "repz ret"},
	{"c20800", Ret, "ret 8"},
	{"cc", Trap, "int3"},
	{"cd80", Other, "int 0x80"},
	{"0f0b", Trap, "ud2"},
	{"f4", Trap, "hlt"},
	{"eb10", JmpRel, "jmp +16"},
	{"e910000000", JmpRel, "jmp +16"},
	{"e810000000", CallRel, "call +16"},
	{"7410", CondJmp, "je +16"},
	{"0f8410000000", CondJmp, "je +16"},
	{"2e0f8410000000", CondJmp, "cs je +16"},
	{"e2fe", CondJmp, "loop -2"},
	{"ffe0", JmpInd, "jmp rax"},
	{"3effe0", JmpInd, "notrack jmp rax"},
	{"41ffe3", JmpInd, "jmp r11"},
	{"ff24c5000000 81", JmpInd, "jmp [rax*8-0x7f000000]"},
	{"ff1500000000", CallInd, "call [rip]"},
	{"48cf", Far, "iretq"},
	{"480f07", Far, "sysretq"},
	{"55", Push, "push rbp"},
	{"4157", Push, "push r15"},
	{"4889e5", MovReg, "mov rbp, rsp"},
	{"4883ec18", SubReg, "sub rsp, 24"},
	{"4881ec00010000", SubReg, "sub rsp, 256"},
	{"65488b042500000000", Load, "mov rax, gs:[0]"},
	{"48894350", Store, "mov [rbx+0x50], rax"},
	{"488b4508", Load, "mov rax, [rbp+8]"},
	{"894350", Other, "mov [rbx+0x50], eax"},
	{"48c7435000000000", Other, "mov qword [rbx+0x50], 0"},
	{"0f09", Other, "wbinvd"},
	{"f30f09", Other, "wbnoinvd"},
	{"0f31", Other, "rdtsc"},
	{"0f22d8", Other, "mov cr3, rax"},
	{"f3480fae e8", Other, "incsspq rax"},
	{"0f20d8", Other, "mov rax, cr3"},
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDecodeKnown(t *testing.T) {
	for _, k := range known {
		code := unhex(t, k.hex)
		// What follows must not be swallowed, whatever it is.
		for _, next := range []byte{0x90, 0xc3, 0xff, 0x00, 0x48} {
			in, err := Decode(append(code[:len(code):len(code)], next, next), 0x1000)
			if err != nil || in.Len != len(code) || in.Kind != k.kind {
				t.Errorf("%s (%s) before %#x = kind %d length %d, %v, want kind %d length %d",
					k.name, k.hex, next, in.Kind, in.Len, err, k.kind, len(code))
			}
		}
		for n := range code {
			in, err := Decode(code[:n], 0x1000)
			if err == nil && in.Len > n {
				t.Errorf("%s cut to %d bytes has length %d", k.name, n, in.Len)
			}
		}
	}
}

func TestDecodeOperands(t *testing.T) {
	for s, want := range map[string]Inst{
		"eb10":           {Kind: JmpRel, Len: 2, Target: 0x1012, Src: -1, Dst: -1},
		"ebfe":           {Kind: JmpRel, Len: 2, Target: 0x1000, Src: -1, Dst: -1},
		"e8fbffffff":     {Kind: CallRel, Len: 5, Target: 0x1000, Src: -1, Dst: -1},
		"0f8500010000":   {Kind: CondJmp, Len: 6, Target: 0x1106, Src: -1, Dst: -1},
		"c20800":         {Kind: Ret, Len: 3, Imm: 8, Src: -1, Dst: -1},
		"4157":           {Kind: Push, Len: 2, Src: 15, Dst: -1},
		"4889e5":         {Kind: MovReg, Len: 3, Dst: 5, Src: 4},
		"4989fe":         {Kind: MovReg, Len: 3, Dst: 14, Src: 7},
		"4883ec18":       {Kind: SubReg, Len: 4, Dst: 4, Src: -1, Imm: 24},
		"4883ec80":       {Kind: SubReg, Len: 4, Dst: 4, Src: -1, Imm: -128},
		"41ffe3":         {Kind: JmpInd, Len: 3, Src: 11, Dst: -1},
		"5655":           {Kind: Push, Len: 1, Src: 6, Dst: -1},
		"89e5":           {Kind: Other, Len: 2, Src: -1, Dst: -1}, // 32 bits: clears the upper half
		"83ec18":         {Kind: Other, Len: 3, Src: -1, Dst: -1},
		"ff3500000000":   {Kind: Other, Len: 6, Src: -1, Dst: -1}, // push [rip]
		"6a01":           {Kind: Other, Len: 2, Src: -1, Dst: -1}, // push 1
		"48c7c001000000": {Kind: Other, Len: 7, Src: -1, Dst: -1},
	} {
		got, err := Decode(unhex(t, s), 0x1000)
		if err != nil || got != want {
			t.Errorf("Decode(%s) = %+v, %v, want %+v", s, got, err, want)
		}
	}
	in, err := Decode(unhex(t, "ff25 10000000"), 0x1000)
	if err != nil || in.Kind != JmpInd || in.Src != -1 || in.Mem.Disp != 0x10 {
		t.Errorf("jmp [rip+16] = %+v, %v", in, err)
	}
}

func TestDecodeErrors(t *testing.T) {
	for s, want := range map[string]error{
		"":                                   ErrTruncated,
		"f3":                                 ErrTruncated,
		"0f":                                 ErrTruncated,
		"0f01":                               ErrTruncated,
		"e810":                               ErrUnknown, // x86asm does not tell
		"c5f8":                               ErrTruncated,
		"06ffffff":                           ErrUnknown, // push es does not exist in 64-bit code
		"48":                                 ErrTruncated,
		"4848484848484848484848484848484890": ErrTruncated, // longer than an instruction can be
	} {
		if in, err := Decode(unhex(t, s), 0); !errors.Is(err, want) {
			t.Errorf("Decode(%s) = %+v, %v, want %v", s, in, err, want)
		}
	}
}

// TestDecodeAgainstObjdump walks a program's text by our lengths and asks
// objdump whether it sees an instruction at each place. The program is this
// test, or the one that VITRINE_ELF names (a kernel).
func TestDecodeAgainstObjdump(t *testing.T) {
	tool, err := exec.LookPath("objdump")
	if err != nil {
		t.Skip("objdump is not installed: install binutils to compare against it")
	}
	args := []string{"-d", "-w", "-j", ".text"}
	path := os.Getenv("VITRINE_ELF")
	if path == "" {
		if path, err = os.Executable(); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(tool, append(args, path)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	total, wrong := 0, 0
	for sc := bufio.NewScanner(out); sc.Scan(); {
		code, text, ok := objdumpLine(sc.Text())
		if !ok || strings.Contains(text, "(bad)") || strings.HasPrefix(text, ".byte") {
			continue
		}
		total++
		in, err := Decode(append(code[:len(code):len(code)], 0x90, 0x90, 0x90), 0)
		if err != nil || in.Len != len(code) {
			if wrong++; wrong <= 20 {
				t.Logf("% x %s: length %d, %v", code, text, in.Len, err)
			}
		}
	}
	_ = cmd.Wait()
	t.Logf("%d instructions, %d differ", total, wrong)
	if total < 100_000 {
		t.Fatalf("compared only %d instructions", total)
	}
	if wrong*100_000 > total { // objdump itself splits some prefixes from their instruction
		t.Errorf("%d of %d instructions differ", wrong, total)
	}
}

// objdumpLine splits "  401000:\t48 89 e5  \tmov ...".
func objdumpLine(s string) (code []byte, text string, ok bool) {
	f := strings.Split(s, "\t")
	if len(f) < 3 || !strings.HasSuffix(f[0], ":") {
		return nil, "", false
	}
	for _, h := range strings.Fields(f[1]) {
		v, err := strconv.ParseUint(h, 16, 8)
		if err != nil {
			return nil, "", false
		}
		code = append(code, byte(v))
	}
	return code, f[2], len(code) > 0
}

func FuzzDecode(f *testing.F) {
	for _, k := range known {
		f.Add(unhex(f, k.hex))
	}
	f.Fuzz(func(t *testing.T, code []byte) {
		in, err := Decode(code, 0xffffffff81000000)
		switch {
		case err != nil && in != Inst{}:
			t.Fatalf("% x: both %+v and %v", code, in, err)
		case err == nil && (in.Len < 1 || in.Len > MaxLen || in.Len > len(code)):
			t.Fatalf("% x: length %d", code, in.Len)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	code := unhex(b, "4889e5909090909090")
	for b.Loop() {
		if _, err := Decode(code, 0); err != nil {
			b.Fatal(err)
		}
	}
}
