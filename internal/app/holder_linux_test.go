package app

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
)

// A second client of a monitor waits in the socket's queue: only the first,
// whose connection was accepted, is the holder.
func TestHolders(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if got := holders(path); len(got) != 0 {
		t.Errorf("holders before anybody connected: %q", got)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := holders(path); len(got) != 0 {
		t.Errorf("holders while the client waits: %q", got)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("pid %d (%s)", os.Getpid(), comm[:len(comm)-1])
	if got := holders(path); len(got) != 1 || got[0] != want {
		t.Errorf("holders = %q, want %q", got, want)
	}
	c.Close()
	if got := holders(path); len(got) != 0 {
		t.Errorf("holders after the client left: %q", got)
	}
}

func FuzzParseDiag(f *testing.F) {
	f.Add(diagRequest())
	f.Fuzz(func(t *testing.T, b []byte) {
		if out, _, err := parseDiag(b); len(out) > len(b)/16 {
			t.Fatalf("%d sockets from %d bytes (%v)", len(out), len(b), err)
		}
	})
}
