package testvm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// Event is one event of QEMU's monitor, such as STOP or RESUME.
type Event struct {
	Name string
	Time time.Time // by QEMU's clock
	Data json.RawMessage
}

// monitor is the harness's own QMP connection: it runs beside the one of whatever is under test, and sees the same
// events.
type monitor struct {
	conn net.Conn

	// mu guards the rest.
	mu      sync.Mutex
	next    int
	waiting map[int]chan qmpReply
	events  []Event
	changed chan struct{} // closed and replaced at each event
	err     error         // why the connection ended
}

type qmpReply struct {
	ID     int             `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

// dialMonitor connects and leaves capability negotiation.
func dialMonitor(ctx context.Context, path string) (*monitor, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	m := &monitor{conn: conn, waiting: map[int]chan qmpReply{}, changed: make(chan struct{})}
	go m.read()
	if _, err := m.execute(ctx, "qmp_capabilities", nil); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return m, nil
}

func (m *monitor) read() {
	s := bufio.NewScanner(m.conn)
	s.Buffer(nil, 16<<20)
	for s.Scan() {
		var r qmpReply
		if json.Unmarshal(s.Bytes(), &r) == nil {
			m.deliver(r)
		}
	}
	err := s.Err()
	if err == nil {
		err = errors.New("QEMU closed its monitor")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
	for id, c := range m.waiting {
		close(c)
		delete(m.waiting, id)
	}
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *monitor) deliver(r qmpReply) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r.Event != "" {
		at := time.Unix(r.Timestamp.Seconds, r.Timestamp.Microseconds*1000)
		m.events = append(m.events, Event{Name: r.Event, Time: at, Data: r.Data})
		close(m.changed)
		m.changed = make(chan struct{})
		return
	}
	if c := m.waiting[r.ID]; c != nil {
		delete(m.waiting, r.ID)
		c <- r
	}
}

func (m *monitor) execute(ctx context.Context, command string, args any) (json.RawMessage, error) {
	c := make(chan qmpReply, 1)
	m.mu.Lock()
	if m.err != nil {
		defer m.mu.Unlock()
		return nil, fmt.Errorf("execute %s: %w", command, m.err)
	}
	m.next++
	id := m.next
	m.waiting[id] = c
	m.mu.Unlock()
	q := map[string]any{"execute": command, "id": id}
	if args != nil {
		q["arguments"] = args
	}
	text, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	if _, err := m.conn.Write(append(text, '\n')); err != nil {
		return nil, fmt.Errorf("execute %s: %w", command, err)
	}
	select {
	case r, ok := <-c:
		switch {
		case !ok:
			return nil, fmt.Errorf("execute %s: %w", command, m.failure())
		case r.Error != nil:
			return nil, fmt.Errorf("execute %s: %s: %s", command, r.Error.Class, r.Error.Desc)
		}
		return r.Return, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("execute %s: %w", command, ctx.Err())
	}
}

func (m *monitor) failure() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// since returns the events after the first n, and a channel that closes when there are more.
func (m *monitor) since(n int) ([]Event, <-chan struct{}, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]Event(nil), m.events[min(n, len(m.events)):]...), m.changed, m.err
}
