package x86dec

// cursor reads the bytes of one instruction; behind the end it yields zeros
// and remembers that.
type cursor struct {
	b    []byte
	n    int // bytes read
	over bool
}

func (c *cursor) next() byte {
	if c.n >= len(c.b) {
		c.over = true
		return 0
	}
	c.n++
	return c.b[c.n-1]
}

func (c *cursor) skip(n int) {
	if c.n+n > len(c.b) {
		c.over = true
		return
	}
	c.n += n
}

// modRM reads a ModRM byte with the SIB byte and displacement that it calls
// for (SDM 2.1.5, tables 2-2 and 2-3), and returns it.
func (c *cursor) modRM() byte {
	m := c.next()
	mod, rm := m>>6, m&7
	base := rm
	if mod != 3 && rm == 4 {
		base = c.next() & 7
	}
	switch {
	case mod == 1:
		c.skip(1)
	case mod == 2, mod == 0 && base == 5:
		c.skip(4) // mod 0: RIP-relative, or no base
	}
	return m
}

func (c *cursor) done(k Kind) (Inst, bool, error) {
	if c.over {
		return Inst{}, false, ErrTruncated
	}
	return Inst{Kind: k, Len: c.n, Src: -1, Dst: -1}, true, nil
}

// prefixes are those that stand before an opcode in 64-bit code.
type prefixes struct {
	rep, repne, data bool
}

// prefixes reads legacy prefixes and REX, and returns the byte after them.
func (c *cursor) prefixes() (p prefixes, op byte) {
	for {
		switch b := c.next(); {
		case b == 0xf3:
			p.rep, p.repne = true, false
		case b == 0xf2:
			p.rep, p.repne = false, true
		case b == 0x66:
			p.data = true
		case b == 0x67, b == 0xf0, b&0xe7 == 0x26, b&0xfe == 0x64, b&0xf0 == 0x40:
		default:
			return p, b
		}
		if c.over {
			return p, 0
		}
	}
}

// decodeGap decodes what x86asm does not. ok is false when the instruction is
// not one of those.
func decodeGap(code []byte) (in Inst, ok bool, err error) {
	c := &cursor{b: code}
	p, op := c.prefixes()
	switch {
	case c.over:
		return in, false, ErrTruncated
	case op == 0xcc:
		return c.done(Trap)
	case op == 0xc5, op == 0xc4:
		return c.vex(op)
	case op == 0x62:
		return c.evex()
	case op == 0x0f:
		return c.twoByte(p)
	}
	return in, false, nil
}

// vex measures an instruction with a VEX prefix (SDM 2.3.5). In 64-bit mode c4
// and c5 are nothing else.
func (c *cursor) vex(op byte) (Inst, bool, error) {
	opmap := byte(1)
	if op == 0xc4 {
		opmap = c.next() & 0x1f
	}
	c.next() // R or W, vvvv, L, pp
	return c.vector(opmap)
}

// evex measures an instruction with an EVEX prefix (SDM 2.7.1).
func (c *cursor) evex() (Inst, bool, error) {
	opmap := c.next() & 7
	c.skip(2)
	return c.vector(opmap)
}

// vector reads opcode, operands and immediate of a VEX or EVEX instruction.
func (c *cursor) vector(opmap byte) (Inst, bool, error) {
	op := c.next()
	if opmap == 1 && op == 0x77 { // vzeroupper, vzeroall
		return c.done(Other)
	}
	c.modRM()
	if opmap == 3 || opmap == 1 && (op >= 0x70 && op <= 0x73 || op == 0xc2 || op >= 0xc4 && op <= 0xc6) {
		c.skip(1)
	}
	if opmap == 7 {
		c.skip(4) // urdmsr, uwrmsr
	}
	return c.done(Other)
}

// twoByte measures those instructions of map 0f (SDM table A-3) that x86asm
// does not all know: groups whose members grow with every processor.
func (c *cursor) twoByte(p prefixes) (Inst, bool, error) {
	switch op := c.next(); op {
	case 0x38:
		c.skip(1)
		c.modRM()
	case 0x3a:
		c.skip(1)
		c.modRM()
		c.skip(1)
	case 0x09: // wbinvd, wbnoinvd
	case 0x1e:
		return c.hint(p)
	case 0x00, // lldt, ltr, lkgs, ...
		0x01,                               // lgdt, ..., vmcall, clac, stac, serialize, rdpkru, encls, ...
		0x78, 0x79, 0xa6, 0xa7, 0xae, 0xc7: // vmread, vmwrite, padlock, fences and xsave, cmpxchg16b and rdrand
		if op < 0xa6 && op > 0x01 && (p.data || p.repne) {
			return Inst{}, false, nil // extrq, insertq
		}
		return c.group(op)
	case 0x18, 0x19, 0x1a, 0x1b, 0x1c, 0x1d: // prefetches and hints
		c.modRM()
	case 0x1f:
		c.modRM()
		return c.done(Nop)
	case 0xb9, 0xff: // ud1, ud0
		c.modRM()
		return c.done(Trap)
	default:
		if c.over {
			return c.done(Other)
		}
		return Inst{}, false, nil
	}
	return c.done(Other)
}

// group reads the operand of a 0f group. Two register forms of 0f 01 leave
// the kernel: eretu and erets.
func (c *cursor) group(op byte) (Inst, bool, error) {
	if m := c.modRM(); op == 0x01 && m == 0xca && c.n >= 3 && (c.b[0] == 0xf3 || c.b[0] == 0xf2) {
		return c.done(Far)
	}
	return c.done(Other)
}

// hint measures 0f 1e: endbr64, endbr32, rdssp, and plain nops.
func (c *cursor) hint(p prefixes) (Inst, bool, error) {
	m := c.modRM()
	switch {
	case p.rep && (m == 0xfa || m == 0xfb):
		return c.done(Endbr)
	case p.rep && m>>6 == 3 && m>>3&7 == 1:
		return c.done(Other) // rdssp
	}
	return c.done(Nop)
}
