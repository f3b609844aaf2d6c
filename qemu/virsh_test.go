package qemu

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vitrine-vmi/vitrine"
)

// fakeVirsh puts a virsh on PATH that knows one domain, whose monitor is the
// real one at socket, reached through this test binary.
func fakeVirsh(t *testing.T, domain, socket string) {
	t.Helper()
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf("#!/bin/sh\nVITRINE_FAKE_VIRSH=%q VITRINE_FAKE_DOMAIN=%q exec %q \"$@\"\n", socket, domain, self)
	if err := os.WriteFile(filepath.Join(dir, "virsh"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func TestMain(m *testing.M) {
	if socket := os.Getenv("VITRINE_FAKE_VIRSH"); socket != "" {
		os.Exit(virshMain(socket, os.Getenv("VITRINE_FAKE_DOMAIN"), os.Args[1:]))
	}
	if until := os.Getenv("VITRINE_TRACER"); until != "" {
		os.Exit(tracerMain(os.Getenv("VITRINE_SOCKET"), until))
	}
	if slow := os.Getenv("VITRINE_STRANGER"); slow != "" {
		os.Exit(strangerMain(os.Getenv("VITRINE_SOCKET"), slow))
	}
	os.Exit(m.Run())
}

// virshMain is the fake virsh: it behaves as virsh 9.0 does, in the words that
// its source has.
func virshMain(socket, domain string, args []string) int {
	if len(args) < 2 || args[0] != "--quiet" {
		return 2
	}
	switch args[1] {
	case "list":
		fmt.Printf("%s\n\n", domain)
		return 0
	case "qemu-monitor-event":
		fmt.Printf("event RESET at 1700000000.123456 for domain '%s': {\"guest\":true}\n", domain)
		time.Sleep(time.Minute)
		return 0
	case "qemu-monitor-command":
		if args[3] != domain {
			fmt.Fprintf(os.Stderr, "error: failed to get domain '%s'\n", args[3])
			return 1
		}
		return passOn(socket, args[5])
	}
	return 2
}

func passOn(socket, request string) int {
	answer, err := oneCommand(socket, request)
	if err != nil {
		fmt.Fprintf(os.Stderr, "error: Requested operation is not valid: domain is not running\n")
		return 1
	}
	fmt.Println(strings.TrimSpace(answer) + "\n")
	return 0
}

func TestAttachDomain(t *testing.T) {
	e := startQEMU(t, "-m", "64", "-smp", "2", "-name", "deb12")
	fakeVirsh(t, "deb12", e.qmp)
	g, err := AttachDomain(t.Context(), "deb12", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if i := g.Info(); i.Name != "deb12" || i.CPUs != 2 || i.Access != "process_vm_readv" {
		t.Errorf("info = %+v", i)
	}
	if r, err := g.Registers(t.Context(), 1); err != nil || r.CR0 == 0 {
		t.Errorf("registers: %+v, %v", r, err)
	}
	var b [16]byte
	if _, err := g.ReadPhysical(b[:], 0xffff0); err != nil {
		t.Error(err)
	}
	if _, err := AttachDomain(t.Context(), "deb13", nil); !errors.Is(err, vitrine.ErrNotFound) {
		t.Errorf("unknown domain: %v", err)
	}
	events := g.WatchLife(t.Context())
	e.cmd.Process.Kill()
	for ev := range events {
		if ev == vitrine.LifeGone {
			break
		}
	}
	if _, err := g.ReadPhysical(b[:], 0xffff0); !errors.Is(err, vitrine.ErrGone) {
		t.Errorf("read after the end: %v", err)
	}
}

func TestAttachNameFallsBackToLibvirt(t *testing.T) {
	e := startQEMU(t, "-m", "64")
	fakeVirsh(t, "hidden", e.qmp)
	g, err := AttachName(t.Context(), "hidden", nil)
	if err != nil {
		t.Fatal(err)
	}
	g.Close()
	if _, err := AttachName(t.Context(), "hiden", nil); !errors.Is(err, vitrine.ErrNotFound) || !strings.Contains(err.Error(), `"hidden"`) {
		t.Errorf("got %v", err)
	}
}

func TestAttachDomainWithoutLibvirt(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := AttachDomain(t.Context(), "x", nil); err == nil || !strings.Contains(err.Error(), "libvirt-clients") {
		t.Errorf("got %v", err)
	}
}

func TestReadEvents(t *testing.T) {
	m := new(machine)
	ch := m.life.watch(t.Context())
	readEvents(strings.NewReader("event RESET at 1.2 for domain 'a': {}\nevent NIC_RX at 1 for domain 'a'\nnonsense\nevent STOP at 3.4 for domain 'a': <null>\n"), m.onEvent)
	if a, b := <-ch, <-ch; a != vitrine.LifeReset || b != vitrine.LifeStop || len(ch) > 0 {
		t.Errorf("got %v, %v", a, b)
	}
}
