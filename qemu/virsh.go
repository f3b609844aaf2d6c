package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/qemu/internal/host"
	"github.com/vitrine-vmi/vitrine/qemu/internal/qmp"
)

// virsh is the monitor of a libvirt domain: libvirt holds the socket, and hands
// commands on. Each costs a process, some 10 ms.
type virsh struct {
	domain string
	ended  chan struct{}
	events *exec.Cmd // nil when libvirt offers none
	stop   func()    // ends what watches the QEMU process
	once   sync.Once
}

var _ monitor = (*virsh)(nil)

// AttachDomain reaches a libvirt domain through the virsh command, with the
// connection that LIBVIRT_DEFAULT_URI names or virsh chooses. libvirt marks a
// domain as tainted that was given monitor commands; it does no more.
func AttachDomain(ctx context.Context, name string, opts *Options) (*vitrine.Guest, error) {
	o := opts.orDefault()
	m := &machine{timeout: o.Timeout, allowSlow: o.AllowSlow}
	v := &virsh{domain: name, ended: make(chan struct{}), stop: func() {}}
	m.mon = v
	v.watchEvents(m.onEvent)
	g, err := m.open(ctx, fmt.Sprintf("domain %q", name))
	if err != nil {
		return nil, err
	}
	// Nobody tells when a domain's QEMU ends, but the process itself.
	if p := m.mem.proc; p != 0 {
		v.stop = p.OnExit(v.end)
	}
	return g, nil
}

// listDomains returns the names of the running domains; an error when virsh is
// not installed or not usable.
func listDomains(ctx context.Context) ([]string, error) {
	out, err := runVirsh(ctx, "list", "--name")
	if err != nil {
		return nil, err
	}
	var names []string
	for line := range strings.Lines(string(out)) {
		if name := strings.TrimSpace(line); name != "" {
			names = append(names, name)
		}
	}
	return names, nil
}

// runVirsh runs virsh and returns its output, or its complaint as the error.
func runVirsh(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "virsh", append([]string{"--quiet"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	switch {
	case err == nil:
		return out, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, exec.ErrNotFound):
		return nil, fmt.Errorf("libvirt's virsh is not installed (Debian: apt-get install libvirt-clients): %w", err)
	}
	return nil, virshError(strings.TrimSpace(stderr.String()), err)
}

// virshError sorts virsh's complaints, which have no codes: the words are
// libvirt's own, in its untranslated form (LC_ALL is not touched, so that a
// user reads them in their language; then the plain error is what remains).
func virshError(text string, err error) error {
	switch {
	case strings.Contains(text, "failed to get domain"), strings.Contains(text, "no domain with matching name"):
		return fmt.Errorf("%w: %s", vitrine.ErrNotFound, text)
	case strings.Contains(text, "domain is not running"):
		return fmt.Errorf("%w: %s", vitrine.ErrGone, text)
	case strings.Contains(text, "Permission denied"), strings.Contains(text, "authentication"), strings.Contains(text, "access denied"):
		return fmt.Errorf("%w: %s", vitrine.ErrPermission, text)
	case text == "":
		return fmt.Errorf("virsh: %w", err)
	}
	return fmt.Errorf("virsh: %s", text)
}

func (v *virsh) execute(ctx context.Context, command string, args, reply any) error {
	select {
	case <-v.ended:
		return fmt.Errorf("%s: %w", command, qmp.ErrClosed)
	default:
	}
	request, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, args})
	if err != nil {
		return err
	}
	out, err := runVirsh(ctx, "qemu-monitor-command", "--domain", v.domain, "--", string(request))
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	return qmp.DecodeReply(command, out, reply)
}

// watchEvents has virsh print the events of the monitor for as long as the
// domain is attached. Where it cannot, there are none.
func (v *virsh) watchEvents(onEvent func(qmp.Event)) {
	cmd := exec.Command("virsh", "--quiet", "qemu-monitor-event", "--domain", v.domain, "--loop")
	out, err := cmd.StdoutPipe()
	if err != nil || cmd.Start() != nil {
		return
	}
	v.events = cmd
	go func() {
		readEvents(out, onEvent)
		cmd.Wait()
	}()
}

// readEvents parses lines of "event NAME at SECONDS for domain 'NAME': DATA".
func readEvents(r io.Reader, onEvent func(qmp.Event)) {
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		if f := strings.Fields(sc.Text()); len(f) > 2 && f[0] == "event" {
			onEvent(qmp.Event{Name: f[1]})
		}
	}
}

func (v *virsh) done() <-chan struct{} { return v.ended }

// end marks the domain as gone.
func (v *virsh) end() { v.once.Do(func() { close(v.ended) }) }

func (v *virsh) close() error {
	v.stop()
	if v.events != nil {
		v.events.Process.Kill()
	}
	v.end()
	return nil
}

// process returns the QEMU process of a libvirt domain.
func (v *virsh) process(ctx context.Context) (host.Process, bool) {
	all, err := List(ctx)
	if err != nil {
		return 0, false
	}
	for _, r := range all {
		if r.Domain && r.Name == v.domain {
			return host.Process(r.PID), true
		}
	}
	return 0, false
}
