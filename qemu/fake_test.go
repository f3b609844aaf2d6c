package qemu

import (
	"bufio"
	"net"
	"path/filepath"
	"strings"
	"testing"
)

// listenQuietly returns a socket that lets clients connect and never speaks, as
// QEMU's does while another client holds it.
func listenQuietly(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "quiet")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return path
}

// oneCommand connects to a QMP socket, has one command carried out, and returns
// the answer as text.
func oneCommand(socket, request string) (string, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	in := bufio.NewReader(conn)
	var answer string
	for _, send := range []string{"", `{"execute":"qmp_capabilities"}`, request} {
		if _, err := conn.Write([]byte(send)); err != nil {
			return "", err
		}
		for ok := false; !ok; ok = !strings.Contains(answer, `"event"`) {
			if answer, err = in.ReadString('\n'); err != nil {
				return "", err
			}
		}
	}
	return answer, nil
}
