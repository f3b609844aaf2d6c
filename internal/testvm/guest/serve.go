//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/vitrine-vmi/vitrine/internal/testvm/wire"
	"golang.org/x/sys/unix"
)

// server answers the harness. Requests run side by side; each reply carries the request's ID.
type server struct {
	conn  *wire.Conn
	procs *procs
	text  textKeeper

	// mu guards sent, the last replies in case one is damaged on the line.
	mu   sync.Mutex
	sent []wire.Reply
}

func serve() error {
	failed := boot()
	link, err := openLink()
	if err != nil {
		return err
	}
	s := &server{conn: wire.NewConn(link), procs: newProcs()}
	if err := s.reply(0, hello(failed), nil); err != nil {
		return err
	}
	for {
		var q wire.Request
		err := s.conn.Receive(&q)
		if errors.Is(err, wire.ErrDamaged) {
			continue // the harness asks again when it gets no answer
		}
		if err != nil {
			return fmt.Errorf("receive request: %w", err)
		}
		go s.answer(q)
	}
}

func (s *server) answer(q wire.Request) {
	if q.Op == wire.OpResend {
		s.resend(q)
		return
	}
	body, err := s.do(q)
	if err := s.reply(q.ID, body, err); err != nil {
		fmt.Fprintln(os.Stderr, "guest: reply:", err)
	}
	switch q.Op {
	case wire.OpPowerOff:
		powerOff()
	case wire.OpReboot:
		restart()
	}
}

func (s *server) reply(id uint64, body any, failure error) error {
	r := wire.Reply{ID: id}
	if failure != nil {
		r.Err = failure.Error()
	} else if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		r.Body = text
	}
	s.mu.Lock()
	s.sent = append(s.sent, r)
	if len(s.sent) > 4 {
		s.sent = s.sent[1:]
	}
	s.mu.Unlock()
	return s.conn.Send(r)
}

func (s *server) resend(q wire.Request) {
	var a wire.ResendArgs
	if err := json.Unmarshal(q.Body, &a); err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.sent {
		if r.ID == a.ID {
			if err := s.conn.Send(r); err != nil {
				fmt.Fprintln(os.Stderr, "guest: resend:", err)
			}
		}
	}
}

// call parses the request's arguments and hands them to f.
func call[A, R any](q wire.Request, f func(A) (R, error)) (any, error) {
	var a A
	if len(q.Body) > 0 {
		if err := json.Unmarshal(q.Body, &a); err != nil {
			return nil, fmt.Errorf("parse arguments of %s: %w", q.Op, err)
		}
	}
	return f(a)
}

// nothing adapts a function that has no result.
func nothing[A any](f func(A) error) func(A) (any, error) {
	return func(a A) (any, error) { return nil, f(a) }
}

func (s *server) do(q wire.Request) (any, error) {
	switch q.Op {
	case wire.OpPing, wire.OpPowerOff, wire.OpReboot:
		return nil, nil
	case wire.OpTruth:
		return call(q, truth)
	case wire.OpSpawn:
		return call(q, s.procs.spawn)
	case wire.OpTell:
		return call(q, s.procs.tell)
	case wire.OpStop:
		return call(q, nothing(s.procs.stop))
	case wire.OpQuiet:
		return call(q, nothing(func(struct{}) error { return s.procs.quiet() }))
	case wire.OpRate:
		return call(q, s.procs.rate)
	case wire.OpRun:
		return call(q, s.procs.run)
	case wire.OpRead:
		return call(q, func(a wire.ReadArgs) (wire.Text, error) { return os.ReadFile(a.Path) })
	case wire.OpInsmod:
		return call(q, nothing(insmod))
	case wire.OpRmmod:
		return call(q, nothing(func(a wire.RmmodArgs) error { return unix.DeleteModule(a.Name, 0) }))
	case wire.OpBaseline:
		return call(q, func(struct{}) (wire.TextBaseline, error) { return s.text.baseline() })
	case wire.OpTextDiff:
		return call(q, func(struct{}) (wire.TextDiff, error) { return s.text.diff() })
	}
	return nil, fmt.Errorf("unknown operation %q", q.Op)
}
