package testvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/vitrine-vmi/vitrine/internal/testvm/wire"
)

// link is the line to the ground-truth program.
type link struct {
	hello chan wire.Hello // one value, when the guest is up; again after a reboot

	// mu guards the rest.
	mu      sync.Mutex
	net     net.Conn
	conn    *wire.Conn
	next    uint64
	waiting map[uint64]chan wire.Reply
	err     error
}

func (l *link) start(c net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.net, l.conn = c, wire.NewConn(c)
	l.waiting, l.hello = map[uint64]chan wire.Reply{}, make(chan wire.Hello, 1)
	go l.receive(l.conn)
}

func (l *link) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.net != nil {
		_ = l.net.Close()
	}
}

func (l *link) receive(conn *wire.Conn) {
	for {
		var r wire.Reply
		err := conn.Receive(&r)
		switch {
		case errors.Is(err, wire.ErrDamaged):
			l.askAgain()
		case err != nil:
			l.end(err)
			return
		case r.ID == 0:
			var h wire.Hello
			if json.Unmarshal(r.Body, &h) == nil {
				select {
				case l.hello <- h:
				default: // nobody took the last one
				}
			}
		default:
			l.deliver(r)
		}
	}
}

func (l *link) deliver(r wire.Reply) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c := l.waiting[r.ID]; c != nil {
		delete(l.waiting, r.ID)
		c <- r
	}
}

// askAgain repeats the wish for every reply that is due: one of them was damaged. A reply that comes twice is dropped.
func (l *link) askAgain() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id := range l.waiting {
		body, err := json.Marshal(wire.ResendArgs{ID: id})
		if err == nil {
			_ = l.conn.Send(wire.Request{Op: wire.OpResend, Body: body}) // the caller's context bounds the wait
		}
	}
}

func (l *link) end(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = fmt.Errorf("line to the guest ended: %w", err)
	for id, c := range l.waiting {
		close(c)
		delete(l.waiting, id)
	}
}

// replyTime bounds the wait for a reply when the caller's context does not: a truth of thousands of processes on a busy
// machine takes a minute.
const replyTime = 4 * time.Minute

// request sends the request and waits for its reply.
func (l *link) request(ctx context.Context, op string, args, result any) error {
	if _, bounded := ctx.Deadline(); !bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, replyTime)
		defer cancel()
	}
	c, id, err := l.send(op, args)
	if err != nil {
		return fmt.Errorf("ask guest to %s: %w", op, err)
	}
	select {
	case r, ok := <-c:
		switch {
		case !ok:
			l.mu.Lock()
			defer l.mu.Unlock()
			return fmt.Errorf("ask guest to %s: %w", op, l.err)
		case r.Err != "":
			return fmt.Errorf("ask guest to %s: it says: %s", op, r.Err)
		case result == nil:
			return nil
		}
		return json.Unmarshal(r.Body, result)
	case <-ctx.Done():
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.waiting, id)
		return fmt.Errorf("ask guest to %s: %w", op, ctx.Err())
	}
}

func (l *link) send(op string, args any) (chan wire.Reply, uint64, error) {
	q := wire.Request{Op: op}
	if args != nil {
		body, err := json.Marshal(args)
		if err != nil {
			return nil, 0, err
		}
		q.Body = body
	}
	c := make(chan wire.Reply, 1)
	l.mu.Lock()
	if l.err != nil || l.conn == nil {
		defer l.mu.Unlock()
		return nil, 0, errors.Join(errors.New("no line to the guest"), l.err)
	}
	l.next++
	q.ID = l.next
	l.waiting[q.ID] = c
	conn := l.conn
	l.mu.Unlock()
	return c, q.ID, conn.Send(q)
}
