package dump

import (
	"bytes"
	"fmt"
	"io"
	"sync"

	lzo "github.com/anchore/go-lzo"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
)

// codec says how a piece of memory is compressed.
type codec uint8

// The codecs.
const (
	stored codec = iota
	codecZlib
	codecLZO
	codecSnappy // a block, not a stream
	codecZstd
)

var codecNames = [...]string{"stored", "zlib", "lzo", "snappy", "zstd"}

func (c codec) String() string { return codecNames[c] }

// maxPiece is the most bytes that a compressed piece may expand to: a page of
// arm64 is 64 KiB at most, and so is a chunk of snappy's framing.
const maxPiece = 64 << 10

// expand fills dst with what src holds, which has to be exactly that much.
func (c codec) expand(dst, src []byte) (err error) {
	defer func() {
		if r := recover(); r != nil { // a decoder that hostile bytes upset
			err = fmt.Errorf("%v: %v", c, r)
		}
	}()
	n := 0
	switch c {
	case stored:
		n = copy(dst, src)
		if len(src) != len(dst) {
			n = len(src)
		}
	case codecZlib:
		n, err = inflate(dst, src)
	case codecLZO:
		n, err = lzo.Decompress(src, dst)
	case codecSnappy:
		n, err = unsnap(dst, src)
	case codecZstd:
		n, err = unzstd(dst, src)
	}
	if err != nil {
		return fmt.Errorf("%v: %w", c, err)
	}
	if n != len(dst) {
		return fmt.Errorf("%v: expands to %d bytes, not to %d", c, n, len(dst))
	}
	return nil
}

// inflaters are zlib decoders that are not in use: making one takes longer than
// the page that it is for.
var inflaters sync.Pool

func inflate(dst, src []byte) (int, error) {
	z, _ := inflaters.Get().(io.ReadCloser)
	if z == nil {
		var err error
		if z, err = zlib.NewReader(bytes.NewReader(src)); err != nil {
			return 0, err
		}
	} else if err := z.(zlib.Resetter).Reset(bytes.NewReader(src), nil); err != nil {
		inflaters.Put(z)
		return 0, err
	}
	defer inflaters.Put(z)
	return io.ReadFull(z, dst)
}

func unsnap(dst, src []byte) (int, error) {
	n, err := snappy.DecodedLen(src)
	if err != nil || n != len(dst) { // never let it allocate
		return n, err
	}
	_, err = snappy.Decode(dst, src)
	return n, err
}

// unzstds are decoders that are not in use.
var unzstds sync.Pool

func unzstd(dst, src []byte) (int, error) {
	z, _ := unzstds.Get().(*zstd.Decoder)
	if z == nil {
		var err error
		z, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(1<<20))
		if err != nil {
			return 0, err
		}
	}
	defer unzstds.Put(z)
	out, err := z.DecodeAll(src, make([]byte, 0, len(dst)))
	copy(dst, out)
	return len(out), err
}

// cacheBytes is how much expanded memory an image keeps.
const cacheBytes = 16 << 20

// pieceCost is what keeping a piece takes beside its bytes.
const pieceCost = 128

// expanded keeps the pieces that were expanded last, the oldest going first.
type expanded struct {
	mu     sync.Mutex
	pieces map[uint64][]byte // by the place in the file
	order  []uint64          // the same places in the order of their coming
	bytes  int
}

// get returns the piece at off in the file, made by the function when it is
// not there. Nobody may change it.
func (e *expanded) get(off uint64, expand func() ([]byte, error)) ([]byte, error) {
	e.mu.Lock()
	p := e.pieces[off]
	e.mu.Unlock()
	if p != nil {
		return p, nil
	}
	p, err := expand()
	if err != nil {
		return nil, err
	}
	e.put(off, p)
	return p, nil
}

func (e *expanded) put(off uint64, p []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.pieces == nil {
		e.pieces = map[uint64][]byte{}
	}
	if e.pieces[off] != nil {
		return
	}
	for e.bytes+len(p)+pieceCost > cacheBytes {
		old := e.order[0]
		e.order = e.order[1:]
		e.bytes -= len(e.pieces[old]) + pieceCost
		delete(e.pieces, old)
	}
	e.order = append(e.order, off)
	e.bytes += len(p) + pieceCost
	e.pieces[off] = p
}

// expandAt expands n bytes at off of a file to a piece of size bytes.
func expandAt(b blob, c codec, off, n, size uint64) ([]byte, error) {
	if size > maxPiece || n > 2*maxPiece {
		return nil, malformed("a piece of %d bytes for %d", n, size)
	}
	src, err := bytesOf(b, off, n, 2*maxPiece)
	if err != nil {
		return nil, err
	}
	dst := make([]byte, size)
	return dst, c.expand(dst, src)
}
