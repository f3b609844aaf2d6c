// Package wire is the language between the test harness and the ground-truth program inside the guest: framed JSON
// over a serial line, and the records that program reports. It is linked into both sides and imports only the standard
// library. A Conn may be used by one reader and any number of writers at a time.
package wire

import (
	"bufio"
	"bytes"
	"compress/flate"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
)

// A frame is magic, payload length, CRC-32 (IEEE) of the payload, payload; numbers are little endian. The payload is
// a deflated JSON value: an emulated UART is slow enough for the compression to pay for itself.
const (
	magic      = "VTG1"
	headerSize = 12
	// MaxFrame bounds a frame's payload, compressed and uncompressed, in bytes.
	MaxFrame = 64 << 20
)

// ErrDamaged is returned by Conn.Receive when a frame arrived with a wrong checksum; the stream goes on after it.
var ErrDamaged = errors.New("damaged frame")

// Request asks the guest for one operation.
type Request struct {
	ID   uint64          `json:"id"`             // chosen by the host, echoed in the Reply
	Op   string          `json:"op"`             // name of the operation
	Body json.RawMessage `json:"body,omitempty"` // its arguments, by operation
}

// Reply answers the Request with the same ID. ID 0 is the greeting that the guest sends once, with a Hello as body.
type Reply struct {
	ID   uint64          `json:"id"`
	Err  string          `json:"err,omitempty"` // empty when the operation succeeded
	Body json.RawMessage `json:"body,omitempty"`
}

// Conn sends and receives frames over a byte stream.
type Conn struct {
	r *bufio.Reader

	// mu guards w.
	mu sync.Mutex
	w  io.Writer
}

// NewConn returns a Conn over rw.
func NewConn(rw io.ReadWriter) *Conn {
	return &Conn{r: bufio.NewReaderSize(rw, 1<<16), w: rw}
}

// Send writes v as one frame. It is safe for concurrent use.
func (c *Conn) Send(v any) error {
	frame, err := encode(v)
	if err != nil {
		return fmt.Errorf("encode frame: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := c.w.Write(frame); err != nil {
		return fmt.Errorf("send frame: %w", err)
	}
	return nil
}

func encode(v any) ([]byte, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.Write(make([]byte, headerSize))
	z, err := flate.NewWriter(&b, flate.BestSpeed)
	if err != nil {
		return nil, err
	}
	if _, err := z.Write(text); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	frame := b.Bytes()
	payload := frame[headerSize:]
	if len(payload) > MaxFrame || len(text) > MaxFrame {
		return nil, fmt.Errorf("frame of %d bytes is over the limit of %d", len(text), MaxFrame)
	}
	copy(frame, magic)
	binary.LittleEndian.PutUint32(frame[4:], uint32(len(payload)))
	binary.LittleEndian.PutUint32(frame[8:], crc32.ChecksumIEEE(payload))
	return frame, nil
}

// Receive reads the next frame into v, skipping anything between frames. It returns ErrDamaged (wrapped) when a frame
// did not survive the line; the caller may ask again. On any error v may be partly written.
func (c *Conn) Receive(v any) error {
	if err := c.sync(); err != nil {
		return err
	}
	var h [headerSize - len(magic)]byte
	if _, err := io.ReadFull(c.r, h[:]); err != nil {
		return err
	}
	size, sum := binary.LittleEndian.Uint32(h[:]), binary.LittleEndian.Uint32(h[4:])
	if size > MaxFrame {
		return fmt.Errorf("receive frame of %d bytes: %w", size, ErrDamaged)
	}
	var payload bytes.Buffer
	if _, err := io.CopyN(&payload, c.r, int64(size)); err != nil {
		return err
	}
	if crc32.ChecksumIEEE(payload.Bytes()) != sum {
		return fmt.Errorf("receive frame: checksum differs: %w", ErrDamaged)
	}
	return decode(payload.Bytes(), v)
}

// sync reads up to and including the next magic.
func (c *Conn) sync() error {
	for got := 0; got < len(magic); {
		b, err := c.r.ReadByte()
		switch {
		case err != nil:
			return err
		case b == magic[got]:
			got++
		case b == magic[0]:
			got = 1
		default:
			got = 0
		}
	}
	return nil
}

func decode(payload []byte, v any) error {
	z := flate.NewReader(bytes.NewReader(payload))
	text, err := io.ReadAll(io.LimitReader(z, MaxFrame+1))
	if err != nil {
		return fmt.Errorf("inflate frame: %w: %w", err, ErrDamaged)
	}
	if len(text) > MaxFrame {
		return fmt.Errorf("inflate frame: over %d bytes: %w", MaxFrame, ErrDamaged)
	}
	if err := json.Unmarshal(text, v); err != nil {
		return fmt.Errorf("parse frame: %w: %w", err, ErrDamaged)
	}
	return nil
}
