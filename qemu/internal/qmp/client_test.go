package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}` + "\r\n"

// fake is QEMU's side: answer is given each command and returns what to send.
func fake(t *testing.T, hello string, answer func(command string, id uint64) string) net.Conn {
	t.Helper()
	a, b := net.Pipe()
	t.Cleanup(func() { a.Close(); b.Close() })
	go func() {
		b.Write([]byte(hello))
		in := bufio.NewScanner(b)
		for in.Scan() {
			var req struct {
				Execute string `json:"execute"`
				ID      uint64 `json:"id"`
			}
			if json.Unmarshal(in.Bytes(), &req) != nil {
				b.Close()
				return
			}
			reply := fmt.Sprintf(`{"return": {}, "id": %d}`, req.ID)
			if req.Execute != "qmp_capabilities" {
				reply = answer(req.Execute, req.ID)
			}
			if reply == "" {
				b.Close()
				return
			}
			b.Write([]byte(reply))
		}
	}()
	return a
}

func open(t *testing.T, conn net.Conn, onEvent func(Event)) *Client {
	t.Helper()
	c, err := Open(t.Context(), conn, 5*time.Second, onEvent)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestAnswersFindTheirQuestions(t *testing.T) {
	var mu sync.Mutex
	var held string // one answer is held back until the next question
	c := open(t, fake(t, greeting, func(command string, id uint64) string {
		mu.Lock()
		defer mu.Unlock()
		now := fmt.Sprintf(`{"return": {"status": %q}, "id": %d}`, command, id) + "\n"
		if held == "" {
			held = now
			return " "
		}
		now, held = now+held, ""
		return now
	}), nil)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			var reply struct{ Status string }
			command := fmt.Sprintf("c%d", i)
			if err := c.Execute(t.Context(), command, nil, &reply); err != nil || reply.Status != command {
				t.Errorf("%s: %+v, %v", command, reply, err)
			}
		})
	}
	wg.Wait()
}

func TestEventsAndForeignMessagesBetweenAnswers(t *testing.T) {
	events := make(chan Event, 10)
	c := open(t, fake(t, greeting, func(_ string, id uint64) string {
		return fmt.Sprintf(`{"timestamp": {}, "event": "STOP"}{"id": "somebody", "return": 1}{"return": 7}
			{"id": 999, "return": 2} {"event": "RESET", "data": {"guest": true}}
			{"return":
			  3, "id": %d}`, id)
	}), func(e Event) { events <- e })
	var n int
	if err := c.Execute(t.Context(), "x", map[string]int{"a": 1}, &n); err != nil || n != 3 {
		t.Fatalf("got %d, %v", n, err)
	}
	if a, b := <-events, <-events; a.Name != "STOP" || b.Name != "RESET" || string(b.Data) != `{"guest": true}` {
		t.Errorf("got %v, %v", a, b)
	}
}

func TestErrors(t *testing.T) {
	for _, tt := range []struct {
		name   string
		hello  string
		answer string // %d is the id
		check  func(error) bool
	}{
		{"refused", greeting, `{"error": {"class": "CommandNotFound", "desc": "The command x has not been found"}, "id": %d}`,
			func(err error) bool {
				var ce *CommandError
				return errors.As(err, &ce) && ce.Class == "CommandNotFound"
			}},
		{"another type", greeting, `{"return": [], "id": %d}`, func(err error) bool { return strings.Contains(err.Error(), "decode") }},
		{"ended", greeting, ``, func(err error) bool { return errors.Is(err, ErrClosed) }},
		{"not JSON", greeting, `}{%d`, func(err error) bool { return errors.Is(err, ErrClosed) }},
		{"no end of it", greeting, `{"id": %d, "return": "` + strings.Repeat("x", maxMessage), func(err error) bool { return errors.Is(err, ErrClosed) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := open(t, fake(t, tt.hello, func(_ string, id uint64) string {
				if tt.answer == "" {
					return ""
				}
				return fmt.Sprintf(tt.answer, id)
			}), nil)
			var reply struct{}
			if err := c.Execute(t.Context(), "x", nil, &reply); err == nil || !tt.check(err) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestGreeting(t *testing.T) {
	for _, tt := range []struct{ name, hello, want string }{
		{"none", "", ErrNoGreeting.Error()},
		{"something else", "{\"hello\": 1}\n", "does not speak QMP"},
		{"not JSON", "SSH-2.0-OpenSSH\r\n", "read greeting"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			start, patience := time.Now(), 10*time.Second
			if tt.hello == "" {
				patience = 50 * time.Millisecond
			}
			_, err := Open(t.Context(), fake(t, tt.hello, nil), patience, nil)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v", err)
			}
			if d := time.Since(start); d > 9*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
}

func TestContextEnds(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := Open(ctx, fake(t, "", nil), time.Minute, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("open: %v", err)
	}
	first := true
	c := open(t, fake(t, greeting, func(_ string, id uint64) string {
		if first {
			first = false
			return " "
		}
		return fmt.Sprintf(`{"return": %d, "id": %d}`, id, id)
	}), nil)
	ctx, cancel = context.WithTimeout(t.Context(), time.Second) // within which it is written
	defer cancel()
	if err := c.Execute(ctx, "slow", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("execute: %v", err)
	}
	// The connection is as good as before.
	if err := c.Execute(t.Context(), "next", nil, nil); err != nil {
		t.Error(err)
	}
}

func TestClose(t *testing.T) {
	c := open(t, fake(t, greeting, func(string, uint64) string { return " " }), nil)
	time.AfterFunc(20*time.Millisecond, func() { c.Close() })
	if err := c.Execute(t.Context(), "x", nil, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("under way: %v", err)
	}
	<-c.Done()
	if err := c.Execute(t.Context(), "x", nil, nil); !errors.Is(err, ErrClosed) || !errors.Is(c.Err(), ErrClosed) {
		t.Errorf("afterwards: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func FuzzMessages(f *testing.F) {
	f.Add([]byte(greeting + `{"return": {}, "id": 1}{"event": "STOP", "timestamp": {"seconds": 1}}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		m := newMessages(strings.NewReader(string(in)))
		for range len(in) + 1 {
			if _, err := m.next(); err != nil {
				return
			}
		}
		t.Error("more messages than bytes")
	})
}

// A QEMU that reads nothing, being stopped, holds nobody up beyond the context,
// neither the one that writes nor those that wait to; later it is used again.
func TestPeerThatDoesNotRead(t *testing.T) {
	resume := make(chan struct{})
	c := open(t, fake(t, greeting, func(_ string, id uint64) string {
		<-resume
		return fmt.Sprintf(`{"return": {}, "id": %d}`, id)
	}), nil)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	failed := make(chan error)
	for i := range 5 { // the first is read, and not answered
		go func() { failed <- c.Execute(ctx, fmt.Sprintf("c%d", i), nil, nil) }()
	}
	for range 5 {
		select {
		case err := <-failed:
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v, want the context's error", err)
			}
		case <-time.After(time.Minute):
			t.Fatal("a command outlives its context")
		}
	}
	close(resume)
	if err := c.Execute(t.Context(), "again", nil, nil); err != nil {
		t.Errorf("after the peer goes on: %v", err)
	}
}

// A command of which only a part could be written ends the connection.
func TestPeerThatReadsAPart(t *testing.T) {
	ours, peer := net.Pipe()
	defer peer.Close()
	c := &Client{conn: ours, done: make(chan struct{}), writing: make(chan struct{}, 1), waiting: map[uint64]chan message{}}
	go peer.Read(make([]byte, 5))
	ctx, cancel := context.WithTimeout(t.Context(), time.Second) // within which the part is read
	defer cancel()
	if err := c.Execute(ctx, "x", nil, nil); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrClosed) {
		t.Errorf("got %v, want the context's error and ErrClosed", err)
	}
}
