package rsp

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

// retries is how often a damaged packet is asked for, or sent, again.
const retries = 3

// Conn is a connection to a gdbstub. Queue, Flush and Read belong to one
// goroutine; Interrupt, Wake and Close may be called from any.
type Conn struct {
	conn net.Conn
	in   []byte // read and not yet consumed: in[pos:]
	pos  int
	used int // bytes of in[pos:] that the last returned payload takes

	last    []byte // the last frame, for a repetition
	waiting int    // requests that no reply was read for
	tries   int    // repetitions of the present one
	NoAck   bool   // acknowledgements are off

	mu  sync.Mutex // guards the following field, and writing to conn
	out []byte
}

// NewConn returns a Conn that owns conn.
func NewConn(conn net.Conn) *Conn { return &Conn{conn: conn} }

// Queue adds a request to what the next Flush sends.
func (c *Conn) Queue(payload string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(c.out)
	c.out = AppendPacket(c.out, payload)
	c.last = append(c.last[:0], c.out[n:]...)
	c.waiting++
}

// Flush sends what was queued, in one piece.
func (c *Conn) Flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.out) == 0 {
		return nil
	}
	_, err := c.conn.Write(c.out)
	c.out = c.out[:0]
	c.tries = 0
	return err
}

// Interrupt asks a running guest to stop. A stopped one takes no notice.
func (c *Conn) Interrupt() error { return c.write(0x03) }

func (c *Conn) write(b ...byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.conn.Write(b)
	return err
}

// Wake makes a Read that is under way, or the next one, return
// os.ErrDeadlineExceeded, unless it has a packet.
func (c *Conn) Wake() { c.conn.SetReadDeadline(time.Unix(1, 0)) }

// SetReadDeadline bounds the following Reads; the zero time takes the bound,
// and what Wake has set, away.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.conn.SetReadDeadline(t) }

// SetWriteDeadline bounds the following writes.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.conn.SetWriteDeadline(t) }

// Close ends the connection. The guest stays as it is, and so do breakpoints.
func (c *Conn) Close() error { return c.conn.Close() }

// Read returns the payload of the next packet, which is valid until the next
// Read. After os.ErrDeadlineExceeded it may be called again, and nothing is lost.
func (c *Conn) Read() ([]byte, error) {
	c.pos += c.used
	c.used = 0
	for {
		tok, payload, n, err := cut(c.in[c.pos:])
		if err != nil {
			return nil, err
		}
		switch tok {
		case tokenPacket:
			c.used = n
			c.tries = 0
			c.waiting = max(c.waiting-1, 0)
			return unescape(payload)
		case tokenNone:
			err = c.fill()
		case tokenBad:
			c.pos += n
			err = c.again("-")
		case tokenNack:
			c.pos += n
			err = c.again(string(c.last))
		default:
			c.pos += n
		}
		if err != nil {
			return nil, err
		}
	}
}

// again sends what makes the peer repeat, or repeats for it. With several
// requests under way it is not known which one it is about.
func (c *Conn) again(what string) error {
	if c.tries++; c.tries > retries || c.waiting > 1 || c.NoAck {
		return fmt.Errorf("%w, %d requests under way", ErrChecksum, c.waiting)
	}
	return c.write([]byte(what)...)
}

// fill reads more of the stream.
func (c *Conn) fill() error {
	if c.pos > 0 {
		c.in = c.in[:copy(c.in, c.in[c.pos:])]
		c.pos = 0
	}
	if len(c.in) == cap(c.in) {
		c.in = append(make([]byte, 0, max(8192, 2*cap(c.in))), c.in...)
	}
	n, err := c.conn.Read(c.in[len(c.in):cap(c.in)])
	c.in = c.in[:len(c.in)+n]
	if n > 0 {
		return nil
	}
	return err
}

// IsTimeout reports whether err is the end of a deadline.
func IsTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// Raw returns the connection beneath, for tests of what damages it.
func (c *Conn) Raw() net.Conn { return c.conn }
