package xz

// decoder unpacks LZMA, by the names of the LZMA specification.
type decoder struct {
	lc, lp, pb uint

	src        []byte
	at         int
	rng, code  uint32
	short      bool // the chunk ended too early
	state      int
	rep        [4]uint32
	isMatch    [12 << 4]uint16
	isRep      [12]uint16
	isRepG0    [12]uint16
	isRepG1    [12]uint16
	isRepG2    [12]uint16
	isRep0Long [12 << 4]uint16
	literal    []uint16
	length     lengths
	repLength  lengths
	slot       [4][64]uint16
	distance   [115]uint16
	align      [16]uint16
}

// lengths decodes the length of a match.
type lengths struct {
	choice, choice2 uint16
	low, mid        [16][8]uint16
	high            [256]uint16
}

const half = 1 << 10 // probabilities have 11 bits

func newDecoder(props byte) *decoder {
	d := &decoder{lc: uint(props % 9), lp: uint(props / 9 % 5), pb: uint(props / 45)}
	d.literal = make([]uint16, 0x300<<(d.lc+d.lp))
	d.reset()
	return d
}

func fill(p []uint16) {
	for i := range p {
		p[i] = half
	}
}

func (l *lengths) reset() {
	l.choice, l.choice2 = half, half
	for i := range l.low {
		fill(l.low[i][:])
		fill(l.mid[i][:])
	}
	fill(l.high[:])
}

// reset forgets everything but the properties.
func (d *decoder) reset() {
	d.state, d.rep = 0, [4]uint32{}
	for _, p := range [][]uint16{d.isMatch[:], d.isRep[:], d.isRepG0[:], d.isRepG1[:], d.isRepG2[:], d.isRep0Long[:], d.literal, d.distance[:], d.align[:]} {
		fill(p)
	}
	for i := range d.slot {
		fill(d.slot[i][:])
	}
	d.length.reset()
	d.repLength.reset()
}

func (d *decoder) next() uint32 {
	if d.at >= len(d.src) {
		d.short = true
		return 0
	}
	d.at++
	return uint32(d.src[d.at-1])
}

func (d *decoder) normalize() {
	if d.rng < 1<<24 {
		d.rng <<= 8
		d.code = d.code<<8 | d.next()
	}
}

func (d *decoder) bit(p *uint16) uint32 {
	bound := d.rng >> 11 * uint32(*p)
	var bit uint32
	if d.code < bound {
		*p += (1<<11 - *p) >> 5
		d.rng = bound
	} else {
		*p -= *p >> 5
		d.code -= bound
		d.rng -= bound
		bit = 1
	}
	d.normalize()
	return bit
}

func (d *decoder) direct(n uint) uint32 {
	var v uint32
	for ; n > 0; n-- {
		d.rng >>= 1
		d.code -= d.rng
		t := 0 - d.code>>31
		d.code += d.rng & t
		d.normalize()
		v = v<<1 + t + 1
	}
	return v
}

func (d *decoder) tree(p []uint16, n uint) uint32 {
	m := uint32(1)
	for range n {
		m = m<<1 + d.bit(&p[m])
	}
	return m - 1<<n
}

func (d *decoder) reverse(p []uint16, n uint) uint32 {
	m, v := uint32(1), uint32(0)
	for i := range n {
		b := d.bit(&p[m])
		m = m<<1 + b
		v |= b << i
	}
	return v
}

func (d *decoder) matchLength(l *lengths, pos uint32) int {
	if d.bit(&l.choice) == 0 {
		return int(d.tree(l.low[pos][:], 3))
	}
	if d.bit(&l.choice2) == 0 {
		return 8 + int(d.tree(l.mid[pos][:], 3))
	}
	return 16 + int(d.tree(l.high[:], 8))
}

// farther decodes the distance of a match of a length.
func (d *decoder) farther(length int) uint32 {
	slot := d.tree(d.slot[min(length, 3)][:], 6)
	if slot < 4 {
		return slot
	}
	n := uint(slot>>1 - 1)
	dist := (2 | slot&1) << n
	if slot < 14 {
		return dist + d.reverse(d.distance[dist-slot:], n)
	}
	return dist + d.direct(n-4)<<4 + d.reverse(d.align[:], 4)
}

// chunk unpacks n bytes behind out. Matches reach back to base at most.
func (d *decoder) chunk(src, out []byte, base, n int) ([]byte, error) {
	if len(src) < 5 || src[0] != 0 {
		return nil, malformed("chunk of %d bytes", len(src))
	}
	d.src, d.at, d.rng, d.code, d.short = src, 1, 1<<32-1, 0, false
	for range 4 {
		d.code = d.code<<8 | d.next()
	}
	for end := len(out) + n; len(out) < end; {
		var err error
		if out, err = d.step(out, base, end); err != nil {
			return nil, err
		}
		if d.short {
			return nil, malformed("chunk ends too early")
		}
	}
	return out, nil
}

// step decodes one literal or match.
func (d *decoder) step(out []byte, base, end int) ([]byte, error) {
	pos := uint32(len(out)-base) & (1<<d.pb - 1)
	if d.bit(&d.isMatch[d.state<<4+int(pos)]) == 0 {
		return d.oneLiteral(out, base)
	}
	var length int
	if d.bit(&d.isRep[d.state]) == 0 {
		d.rep[3], d.rep[2], d.rep[1] = d.rep[2], d.rep[1], d.rep[0]
		length = d.matchLength(&d.length, pos)
		d.rep[0] = d.farther(length)
		d.state = after(d.state, 7, 10)
	} else {
		if len(out) == base {
			return nil, malformed("match before anything")
		}
		if d.again(pos) {
			d.state = after(d.state, 9, 11)
			length = -1 // one byte
		} else {
			length = d.matchLength(&d.repLength, pos)
			d.state = after(d.state, 8, 11)
		}
	}
	length += 2
	dist := int64(d.rep[0]) + 1
	if dist > int64(len(out)-base) || length > end-len(out) {
		return nil, malformed("match of %d bytes, %d back", length, dist)
	}
	for range length {
		out = append(out, out[len(out)-int(dist)])
	}
	return out, nil
}

func after(state, low, high int) int {
	if state < 7 {
		return low
	}
	return high
}

// again decodes which of the last distances is meant, and reports whether it
// is a match of one byte.
func (d *decoder) again(pos uint32) bool {
	if d.bit(&d.isRepG0[d.state]) == 0 {
		return d.bit(&d.isRep0Long[d.state<<4+int(pos)]) == 0
	}
	var dist uint32
	if d.bit(&d.isRepG1[d.state]) == 0 {
		dist = d.rep[1]
	} else {
		if d.bit(&d.isRepG2[d.state]) == 0 {
			dist = d.rep[2]
		} else {
			dist = d.rep[3]
			d.rep[3] = d.rep[2]
		}
		d.rep[2] = d.rep[1]
	}
	d.rep[1], d.rep[0] = d.rep[0], dist
	return false
}

func (d *decoder) oneLiteral(out []byte, base int) ([]byte, error) {
	prev := uint32(0)
	if len(out) > base {
		prev = uint32(out[len(out)-1])
	}
	context := (uint32(len(out)-base)&(1<<d.lp-1))<<d.lc + prev>>(8-d.lc)
	p := d.literal[0x300*context:][:0x300]
	symbol := uint32(1)
	if d.state >= 7 {
		dist := int64(d.rep[0]) + 1
		if dist > int64(len(out)-base) {
			return nil, malformed("literal after a match from before anything")
		}
		match := uint32(out[len(out)-int(dist)])
		for symbol < 0x100 {
			top := match >> 7 & 1
			match <<= 1
			bit := d.bit(&p[(1+top)<<8+symbol])
			symbol = symbol<<1 | bit
			if top != bit {
				break
			}
		}
	}
	for symbol < 0x100 {
		symbol = symbol<<1 | d.bit(&p[symbol])
	}
	switch {
	case d.state < 4:
		d.state = 0
	case d.state < 10:
		d.state -= 3
	default:
		d.state -= 6
	}
	return append(out, byte(symbol)), nil
}
