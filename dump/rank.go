package dump

import (
	"encoding/binary"
	"math/bits"
)

// bitmap tells for each frame of memory whether it is there, and counts.
type bitmap struct {
	p     []byte   // a bit for each frame, the lowest first
	n     uint64   // frames
	ranks []uint64 // bits set before every group
}

// rankGroup is how many bytes of a bitmap are counted together: looking up a
// rank counts half of them, and a terabyte of RAM has 65536 groups.
const rankGroup = 512

func newBitmap(p []byte, n uint64) *bitmap {
	return &bitmap{p: p, n: min(n, 8*uint64(len(p)))}
}

func (b *bitmap) has(i uint64) bool { return i < b.n && b.p[i/8]>>(i%8)&1 != 0 }

// count fills in what rank needs, and returns how many bits are set.
func (b *bitmap) count() uint64 {
	total := uint64(0)
	size := int((b.n + 7) / 8)
	b.ranks = make([]uint64, 0, size/rankGroup+1)
	for at := 0; at < size; at += rankGroup {
		b.ranks = append(b.ranks, total)
		total += ones(b.p[at:min(at+rankGroup, size)])
	}
	return total
}

// rank returns how many bits before bit i are set.
func (b *bitmap) rank(i uint64) uint64 {
	group := i / 8 / rankGroup
	n := b.ranks[group] + ones(b.p[group*rankGroup:i/8])
	return n + uint64(bits.OnesCount8(b.p[i/8]&(1<<(i%8)-1)))
}

func ones(p []byte) uint64 {
	n := 0
	for ; len(p) >= 8; p = p[8:] {
		n += bits.OnesCount64(binary.LittleEndian.Uint64(p))
	}
	for _, c := range p {
		n += bits.OnesCount8(c)
	}
	return uint64(n)
}

// ranges calls f for each run of set bits, in order.
func (b *bitmap) ranges(f func(first, n uint64)) {
	start, in := uint64(0), false
	for i := uint64(0); i < b.n; {
		if i%8 == 0 && b.n-i >= 64 && len(b.p)-int(i/8) >= 8 {
			w := binary.LittleEndian.Uint64(b.p[i/8:])
			if !in && w == 0 || in && w == ^uint64(0) {
				i += 64
				continue
			}
		}
		if set := b.has(i); set != in {
			if in {
				f(start, i-start)
			}
			start, in = i, set
		}
		i++
	}
	if in {
		f(start, b.n-start)
	}
}
