package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/qemu/internal/qmp"
)

// monitor is a way to give QEMU commands: its own QMP socket, or libvirt, which
// holds that socket itself.
type monitor interface {
	// execute runs a QMP command and stores what it returns in reply (nilable).
	execute(ctx context.Context, command string, args, reply any) error
	// done is closed when the way is lost.
	done() <-chan struct{}
	close() error
}

// socket is the monitor over a QMP socket.
type socket struct {
	client *qmp.Client
	conn   net.Conn
}

var _ monitor = (*socket)(nil)

// dialMonitor connects to the QMP socket at path, or to HOST:PORT when path
// begins with "tcp:". It waits at most for the given time in all.
func dialMonitor(ctx context.Context, path string, wait time.Duration, onEvent func(qmp.Event)) (*socket, error) {
	conn, err := dial(ctx, path, wait)
	if err != nil {
		return nil, err
	}
	c, err := qmp.Open(ctx, conn, wait, onEvent)
	switch {
	case errors.Is(err, qmp.ErrNoGreeting):
		return nil, fmt.Errorf("attach to %s: %w: the monitor did not answer within %v; QEMU serves one client "+
			"at a time: end the other one, or give QEMU a second -qmp socket", path, vitrine.ErrBusy, wait)
	case err != nil && ctx.Err() == nil:
		return nil, fmt.Errorf("attach to %s: %w: %w", path, vitrine.ErrGone, err)
	case err != nil:
		return nil, fmt.Errorf("attach to %s: %w", path, err)
	}
	return &socket{client: c, conn: conn}, nil
}

func dial(ctx context.Context, path string, wait time.Duration) (net.Conn, error) {
	network, addr := "unix", path
	if rest, ok := strings.CutPrefix(path, "tcp:"); ok {
		network, addr = "tcp", rest
	}
	d := net.Dialer{Timeout: wait}
	conn, err := d.DialContext(ctx, network, addr)
	switch {
	case err == nil:
		return conn, nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("attach to %s: %w", path, ctx.Err())
	case errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("attach to %s: %w: there is no such socket", path, vitrine.ErrNotFound)
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("attach to %s: %w: no QEMU listens there (any more)", path, vitrine.ErrNotFound)
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("attach to %s: %w: the socket is not yours to open; run as the user of the QEMU process, or as root",
			path, vitrine.ErrPermission)
	case errors.Is(err, syscall.EAGAIN), os.IsTimeout(err):
		// The queue of clients that wait for QEMU to finish with another is full.
		return nil, fmt.Errorf("attach to %s: %w: the monitor has a client, and others wait", path, vitrine.ErrBusy)
	}
	return nil, fmt.Errorf("attach to %s: %w", path, err)
}

func (s *socket) execute(ctx context.Context, command string, args, reply any) error {
	return s.client.Execute(ctx, command, args, reply)
}

func (s *socket) done() <-chan struct{} { return s.client.Done() }

func (s *socket) close() error { return s.client.Close() }

// execute runs a QMP command within the time limit, and turns the loss of the
// monitor into the errors of package vitrine.
func (m *machine) execute(ctx context.Context, command string, args, reply any) error {
	limited, cancel := context.WithTimeout(ctx, m.timeout)
	defer cancel()
	err := m.mon.execute(limited, command, args, reply)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, qmp.ErrClosed) && m.isClosed():
		return fmt.Errorf("%s: %w", command, vitrine.ErrClosed)
	case errors.Is(err, qmp.ErrClosed):
		return fmt.Errorf("%w: %w", vitrine.ErrGone, err)
	case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
		return fmt.Errorf("%s: QEMU did not answer within %v", command, m.timeout)
	}
	return err
}

// hmp runs a command of the human monitor, whose errors are text like any
// other answer. cpu is the index of the processor that it is about.
func (m *machine) hmp(ctx context.Context, cpu int, line string) (string, error) {
	args := struct {
		Line string `json:"command-line"`
		CPU  *int   `json:"cpu-index,omitempty"`
	}{Line: line}
	if cpu >= 0 {
		args.CPU = &cpu
	}
	var text string
	if err := m.execute(ctx, "human-monitor-command", args, &text); err != nil {
		return "", fmt.Errorf("monitor command %q: %w", line, err)
	}
	return text, nil
}
