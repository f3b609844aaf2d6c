package implant

import (
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/probe/internal/engine"
)

func firstLine(t *testing.T, command ...string) string {
	t.Helper()
	out, err := exec.Command(command[0], command[1:]...).Output()
	if err != nil {
		t.Skipf("%s: %v: the object cannot be rebuilt here", command[0], err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}

func TestObjectMatchesSource(t *testing.T) {
	have := firstLine(t, "gcc", "--version") + "\n" + firstLine(t, "ld", "--version") + "\n"
	if have != objectCompiler {
		t.Skipf("the object was made by\n%sand here are\n%s", objectCompiler, have)
	}
	out := filepath.Join(t.TempDir(), "implant.o")
	if b, err := exec.Command("object/build.sh", out).CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, b)
	}
	built, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(built, objectFile) {
		t.Error("object/implant.o is not what its sources compile to: run go generate")
	}
}

// values gives every undefined symbol of o a value near base.
func values(o *object) map[string]uint64 {
	v := map[string]uint64{}
	for i, name := range o.undefined() {
		v[name] = uint64(0x100 + i*8)
		if !strings.HasPrefix(name, "vt_") {
			v[name] = 0xffffffff81000000 + uint64(i)*0x100
		}
	}
	v["vt_data"] = 0xffffc90000100000
	return v
}

func TestLink(t *testing.T) {
	o, err := loadObject()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"vt_enter_trampoline", "vt_leave_trampoline", "vt_enter", "vt_leave"} {
		if _, ok := o.defined[name]; !ok {
			t.Errorf("object does not define %s", name)
		}
	}
	base := arch.GVA(0xffffffffa0000000)
	text, err := o.link(base, values(o))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range o.relocs {
		if r.symbol == "vt_data" && binary.LittleEndian.Uint64(text[r.offset:]) != 0xffffc90000100000 {
			t.Errorf("vt_data at %#x was not relocated", r.offset)
		}
	}
	for _, name := range o.undefined() {
		v := values(o)
		delete(v, name)
		if _, err := o.link(base, v); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("link without %s = %v; want an error that names it", name, err)
		}
	}
}

func TestLinkOutOfRange(t *testing.T) {
	o, err := loadObject()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.link(0xffff888000000000, values(o)); !errors.Is(err, errRange) {
		t.Errorf("link far from the kernel = %v; want %v", err, errRange)
	}
}

func TestApply(t *testing.T) {
	const base = 0xffffffffa0000000
	for _, tt := range []struct {
		r      reloc
		symbol uint64
		want   []byte
	}{
		{reloc{kind: reloc64, offset: 0, addend: -1}, 0x100, []byte{0xff, 0, 0, 0, 0, 0, 0, 0}},
		{reloc{kind: relocPLT32, offset: 4, addend: -4}, base + 0x18, []byte{0, 0, 0, 0, 0x10, 0, 0, 0}},
		{reloc{kind: reloc32S, offset: 0}, 0xffffffff82000000, []byte{0, 0, 0, 0x82, 0, 0, 0, 0}},
	} {
		got := make([]byte, 8)
		if err := tt.r.apply(got, base, tt.symbol); err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%v = % x, %v; want % x", tt.r.kind, got, err, tt.want)
		}
	}
	for _, r := range []reloc{{kind: reloc64, offset: 1}, {kind: reloc32S, offset: 9}, {kind: 23}} {
		if err := r.apply(make([]byte, 8), base, 0); err == nil {
			t.Errorf("apply %v at %d = nil; want an error", r.kind, r.offset)
		}
	}
}

func TestParseObjectRejects(t *testing.T) {
	for _, file := range [][]byte{nil, []byte("\x7fELF"), objectFile[:200]} {
		if o, err := parseObject(file); err == nil {
			t.Errorf("parseObject(%d bytes) = %v; want an error", len(file), o)
		}
	}
}

// TestLayoutMatchesHeader compiles implant.h's offsets and compares.
func TestLayoutMatchesHeader(t *testing.T) {
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skip("gcc is not installed: implant.h cannot be asked")
	}
	want := map[string]int{
		"O(header,magic)": hdrMagic, "O(header,nunits)": hdrUnits, "O(header,size)": hdrSize, "O(header,code)": hdrCode,
		"O(header,head)": hdrHead, "O(header,tail)": hdrTail, "O(header,heartbeat)": hdrHeartbeat, "O(header,stop)": hdrStop,
		"O(header,stale)": hdrStale, "O(header,lost)": hdrLost, "O(header,silent)": hdrSilent, "O(header,inside)": hdrInside,
		"O(header,mode)": hdrMode, "O(header,ncomms)": hdrNComms, "O(header,nuids)": hdrNUIDs, "O(header,uids)": hdrUIDs,
		"O(header,comms)": hdrComms, "O(header,clock_due)": hdrClockDue, "O(header,clock_seq)": hdrClockSeq, "O(header,clock_tsc)": hdrClockTSC,
		"O(header,clock_wall)": hdrClockWall, "O(header,clock_every)": hdrEvery, "O(header,clock_most)": hdrMost, "sizeof(struct header)": hdrEnd, "HEADER_MAGIC": headerMagic,
		"MODE_LOSSLESS": modeLossless, "MODE_TGID": modeTGID, "MODE_COMM": modeComm, "MODE_UID": modeUID,
		"FUNCS_OFFSET": funcsOffset, "sizeof(struct func)": funcSize, "O(func,captures)": funcCaptures, "O(func,about)": funcAbout,
		"sizeof(struct capture)": captureSize, "MAX_CAPTURES": maxCaptures,
		"FUNC_ENTER": funcEnter, "FUNC_RETURN": funcReturn, "FUNC_SYSCALL": funcSyscall, "FUNC_COMPAT": funcCompat,
		"FUNC_SYNC": funcSync, "FUNC_FORK": funcFork,
		"FUNC_RETURN_DATA": funcReturnData, "FUNC_WHOLE": funcWhole, "CAP_NOT_NOW": capNotNow, "LEN_MAX": lenMax, "LEN_RESULT": lenResult, "LEN_NEXT": lenNext, "LEN_BOTH": lenBoth, "O(capture,unit)": 6, "O(capture,off)": 7,
		"PHASE_ENTER": phaseEnter, "PHASE_RETURN": phaseReturn, "O(capture,when)": 5, "O(capture,lenarg)": 4, "O(capture,max)": 2,
		"CAP_STRING": capString, "CAP_BUFFER": capBuffer, "CAP_VECTOR": capVector, "CAP_COUNT": capCount, "CAP_VIA": capVia,
		"VECTOR_MORE": engine.VectorMore, "VECTOR_FAULT": engine.VectorFault, "VECTOR_CUT": engine.VectorCut, "CAP_FAILED": capFailed,
		"UNIT_SIZE": unitSize, "sizeof(struct slot)": slotSize, "O(slot,mark)": slotMark, "O(slot,tsc)": slotTSC, "O(slot,func)": slotFunc,
		"O(slot,kind)": slotKind, "O(slot,flags)": slotFlags, "O(slot,cpu)": slotCPU, "O(slot,task)": slotTask,
		"O(slot,tid)": slotTID, "O(slot,tgid)": slotTGID, "O(slot,ptgid)": slotPTGID, "O(slot,uid)": slotUID,
		"O(slot,comm)": slotComm, "O(slot,call)": slotCall, "O(slot,result)": slotResult, "O(slot,args)": slotArgs,
		"O(slot,regs)": slotRegs, "O(slot,answer)": slotAnswer, "O(slot,value)": slotValue, "O(slot,datalen)": slotLen,
		"O(slot,data)": slotData, "KIND_ENTER": kindEnter, "KIND_RETURN": kindReturn, "SLOT_SYNC": slotSync, "SLOT_NOWAIT": slotNoWait, "SLOT_SLIM": slotSlim,
		"ANSWER_GO": answerGo, "ANSWER_SKIP": answerSkip, "ANSWER_DROP": answerDrop,
		"ABOUT_ARG": int(aboutCodes[engine.AboutArg]), "ABOUT_CURRENT": int(aboutCodes[engine.AboutCurrent]), "sizeof(struct about)": aboutSize,
		"O(about,task)": aboutTask, "O(about,start)": aboutStart, "O(about,leader_start)": aboutLeaderStart, "O(about,parent_start)": aboutParentStart,
		"O(about,exe_mnt)": aboutExeMount, "O(about,exe_dentry)": aboutExeEntry, "O(about,args_start)": aboutArgsStart, "O(about,args_size)": aboutArgsSize,
		"O(about,tid)": aboutTID, "O(about,tgid)": aboutTGID, "O(about,ptgid)": aboutPTGID, "O(about,uid)": aboutUID,
		"O(about,signal_flags)": aboutSignalFlags, "O(about,signal_code)": aboutSignalCode, "O(about,comm)": aboutComm, "O(about,leader_comm)": aboutLeaderComm,
		"sizeof(struct frame)": frameMin, "O(entry,args)": entryArgs, "O(entry,frame)": entryFrame, "O(leave,frame)": leaveFrame,
	}
	src := "#include \"implant.h\"\n#define O(s, m) __builtin_offsetof(struct s, m)\n"
	for expr, v := range want {
		src += "_Static_assert((unsigned long)(" + expr + ") == " + itoa(v) + "ul, \"" + expr + "\");\n"
	}
	cmd := exec.Command("gcc", "-x", "c", "-std=gnu11", "-fsyntax-only", "-Iobject", "-")
	cmd.Stdin = strings.NewReader(src)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("layout.go and implant.h differ:\n%s", out)
	}
}

func FuzzParseObject(f *testing.F) {
	f.Add(objectFile)
	f.Add(objectFile[:300])
	f.Fuzz(func(t *testing.T, file []byte) {
		o, err := parseObject(file)
		if (o == nil) == (err == nil) {
			t.Errorf("parseObject = %v, %v", o, err)
		}
		if o != nil {
			_, _ = o.link(0xffffffffa0000000, nil)
		}
	})
}
