package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"time"
)

// Errors of the connection.
var (
	// ErrNoGreeting is returned by Open when the peer accepted the connection
	// and sent no greeting within the time given: another client holds it.
	ErrNoGreeting = errors.New("no greeting: another client holds the monitor")
	// ErrClosed is returned when the connection has ended.
	ErrClosed = errors.New("monitor connection has ended")
)

// maxMessage bounds one message of the peer. The largest known ones are
// answers of "info mtree -f" and query-qmp-schema, well under 1 MiB.
const maxMessage = 16 << 20

// CommandError is returned when QEMU answers a command with an error.
type CommandError struct {
	Command string // the command that was sent
	Class   string // "GenericError", "CommandNotFound", ...
	Desc    string // QEMU's words
}

// Error describes the command and QEMU's answer.
func (e *CommandError) Error() string { return fmt.Sprintf("%s: %s", e.Command, e.Desc) }

// Event is an asynchronous message of QEMU.
type Event struct {
	Name string          // "STOP", "RESET", ...
	Data json.RawMessage // nil when the event carries none
}

// Client is one monitor connection. Its methods may be called concurrently.
type Client struct {
	conn    net.Conn
	onEvent func(Event) // called by the reader, in order; nil to drop events
	done    chan struct{}

	writing chan struct{} // holds one while a command is written; a mutex that a context can end the wait for

	mu      sync.Mutex // guards the following fields
	nextID  uint64
	waiting map[uint64]chan message
	err     error // why the connection ended, set before done is closed
}

// message is any message of the peer.
type message struct {
	Greeting *json.RawMessage `json:"QMP"`
	ID       json.RawMessage  `json:"id"`
	Return   json.RawMessage  `json:"return"`
	Error    *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Event string          `json:"event"`
	Data  json.RawMessage `json:"data"`
}

// Open waits for the greeting on conn, at most for the given time, and enters
// command mode. It then owns conn; after an error conn is closed. onEvent may
// be nil; it is called from one goroutine and must not call the client.
func Open(ctx context.Context, conn net.Conn, greeting time.Duration, onEvent func(Event)) (*Client, error) {
	c := &Client{conn: conn, onEvent: onEvent, done: make(chan struct{}), writing: make(chan struct{}, 1), waiting: map[uint64]chan message{}}
	in := newMessages(conn)
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	conn.SetReadDeadline(time.Now().Add(greeting))
	err := in.greeting()
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, greetingError(ctx, err)
	}
	conn.SetReadDeadline(time.Time{})
	go c.read(in)
	if err := c.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func greetingError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return ErrNoGreeting
	}
	return fmt.Errorf("read greeting: %w", err)
}

// Execute sends a command and stores what it returns in reply, both nilable.
// It returns a *CommandError when QEMU refuses, ErrClosed when the connection
// has ended, and ctx's error when ctx ends first: the command may then still
// be carried out, and its answer is dropped.
func (c *Client) Execute(ctx context.Context, command string, args, reply any) error {
	id, ch, err := c.register()
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	defer c.forget(id)
	if err := c.send(ctx, id, command, args); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	select {
	case m := <-ch:
		return m.decode(command, reply)
	case <-c.done:
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", command, ctx.Err())
	}
	select { // an answer that came just before the end counts
	case m := <-ch:
		return m.decode(command, reply)
	default:
		return fmt.Errorf("%s: %w", command, c.Err())
	}
}

// DecodeReply stores in reply (nilable) what a command returned, out of the
// text of QEMU's answer. It returns a *CommandError when QEMU refused.
func DecodeReply(command string, text []byte, reply any) error {
	var m message
	if err := json.Unmarshal(text, &m); err != nil {
		return fmt.Errorf("%s: decode answer: %w", command, err)
	}
	return m.decode(command, reply)
}

func (m *message) decode(command string, reply any) error {
	if m.Error != nil {
		return &CommandError{Command: command, Class: m.Error.Class, Desc: m.Error.Desc}
	}
	if reply == nil {
		return nil
	}
	if err := json.Unmarshal(m.Return, reply); err != nil {
		return fmt.Errorf("%s: decode answer: %w", command, err)
	}
	return nil
}

func (c *Client) register() (uint64, chan message, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, nil, c.err
	}
	c.nextID++
	ch := make(chan message, 1)
	c.waiting[c.nextID] = ch
	return c.nextID, ch, nil
}

func (c *Client) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, id)
}

func (c *Client) send(ctx context.Context, id uint64, command string, args any) error {
	b, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, id})
	if err != nil {
		return err
	}
	select {
	case c.writing <- struct{}{}:
	case <-c.done:
		return c.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-c.writing }()
	return c.write(ctx, append(b, '\n'))
}

// write writes b until ctx ends: a QEMU that is stopped does not read, and its
// socket fills up. After a part of b the connection is of no more use.
func (c *Client) write(ctx context.Context, b []byte) error {
	late := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		c.conn.SetWriteDeadline(time.Unix(1, 0))
		close(late)
	})
	n, err := c.conn.Write(b)
	if !stop() {
		<-late
		c.conn.SetWriteDeadline(time.Time{})
	}
	switch {
	case err == nil:
		return nil
	case n == 0 && ctx.Err() != nil:
		return ctx.Err()
	}
	c.end(fmt.Errorf("%w: %w", ErrClosed, err))
	return errors.Join(ctx.Err(), c.Err())
}

// read is the only reader of the connection once it is in command mode.
func (c *Client) read(in *messages) {
	for {
		m, err := in.next()
		if err != nil {
			c.end(fmt.Errorf("%w: %w", ErrClosed, err))
			return
		}
		switch {
		case m.Event != "":
			if c.onEvent != nil {
				c.onEvent(Event{m.Event, m.Data})
			}
		default:
			if id, err := strconv.ParseUint(string(m.ID), 10, 64); err == nil {
				c.deliver(id, m)
			}
		}
	}
}

func (c *Client) deliver(id uint64, m message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ch := c.waiting[id]; ch != nil {
		delete(c.waiting, id)
		ch <- m
	}
}

// end records why the connection ended, once, and wakes everybody.
func (c *Client) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
		c.conn.Close()
		close(c.done)
	}
}

// Done is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err returns why the connection ended, nil while it lives.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection. It may be called more than once.
func (c *Client) Close() error {
	c.end(ErrClosed)
	return nil
}

// messages splits a stream into JSON values of bounded size.
type messages struct {
	limit *io.LimitedReader
	dec   *json.Decoder
}

func newMessages(r io.Reader) *messages {
	l := &io.LimitedReader{R: r, N: maxMessage}
	return &messages{limit: l, dec: json.NewDecoder(bufio.NewReader(l))}
}

func (in *messages) next() (message, error) {
	var m message
	in.limit.N = maxMessage
	err := in.dec.Decode(&m)
	if in.limit.N <= 0 {
		return message{}, fmt.Errorf("message of more than %d bytes", maxMessage)
	}
	return m, err
}

// greeting reads up to the greeting, which is the first message.
func (in *messages) greeting() error {
	m, err := in.next()
	if err != nil {
		return err
	}
	if m.Greeting == nil {
		return errors.New("the peer does not speak QMP")
	}
	return nil
}
