package app

// Who is connected to a Unix socket, by the kernel's sock_diag interface:
// sock_diag(7), include/uapi/linux/unix_diag.h. /proc/net/unix lists sockets
// too, but not their peers.

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	sockDiagByFamily = 20 // SOCK_DIAG_BY_FAMILY
	unixDiagName     = 0  // UNIX_DIAG_NAME
	unixDiagPeer     = 2  // UNIX_DIAG_PEER
	showName         = 1  // UDIAG_SHOW_NAME
	showPeer         = 4  // UDIAG_SHOW_PEER
	established      = 1  // TCP_ESTABLISHED, for Unix sockets too
)

// unixSocket is a Unix socket of this network namespace.
type unixSocket struct {
	inode, peer uint32 // inode is 0 for a connection that waits to be accepted
	name        string
}

// holders returns the processes that are connected to the socket at path, as
// "pid 12 (socat)". Those that may not be seen are left out.
func holders(path string) []string {
	sockets, err := unixSockets()
	if err != nil {
		return nil
	}
	peers := map[uint32]bool{}
	for _, s := range sockets {
		if s.name == path && s.inode != 0 && s.peer != 0 {
			peers[s.peer] = true
		}
	}
	return owners(peers)
}

// unixSockets asks the kernel for all connected Unix sockets.
func unixSockets() ([]unixSocket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, diagRequest(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	var out []unixSocket
	buf := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return nil, err
		}
		some, done, err := parseDiag(buf[:n])
		out = append(out, some...)
		if done || err != nil {
			return out, err
		}
	}
}

// diagRequest is struct nlmsghdr and struct unix_diag_req.
func diagRequest() []byte {
	const size = 16 + 24
	b := make([]byte, 0, size)
	le := binary.NativeEndian
	b = le.AppendUint32(b, size)
	b = le.AppendUint16(b, sockDiagByFamily)
	b = le.AppendUint16(b, unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	b = le.AppendUint32(b, 1) // sequence
	b = le.AppendUint32(b, 0) // port
	b = append(b, unix.AF_UNIX, 0, 0, 0)
	b = le.AppendUint32(b, 1<<established)
	b = le.AppendUint32(b, 0) // inode: any
	b = le.AppendUint32(b, showName|showPeer)
	return append(b, 0, 0, 0, 0, 0, 0, 0, 0) // cookie
}

// parseDiag parses one datagram of answers.
func parseDiag(b []byte) (out []unixSocket, done bool, err error) {
	le := binary.NativeEndian
	for len(b) >= 16 {
		n := int(le.Uint32(b))
		if n < 16 || n > len(b) {
			return out, true, fmt.Errorf("sock_diag: message of %d bytes in %d", n, len(b))
		}
		switch le.Uint16(b[4:]) {
		case unix.NLMSG_DONE:
			return out, true, nil
		case unix.NLMSG_ERROR:
			return out, true, fmt.Errorf("sock_diag: refused")
		case sockDiagByFamily:
			if n >= 32 {
				out = append(out, parseUnixDiag(b[16:n]))
			}
		}
		b = b[min(len(b), (n+3)&^3):]
	}
	return out, false, nil
}

// parseUnixDiag parses struct unix_diag_msg and its attributes.
func parseUnixDiag(b []byte) unixSocket {
	le := binary.NativeEndian
	s := unixSocket{inode: le.Uint32(b[4:])}
	for b = b[16:]; len(b) >= 4; {
		n, kind := int(le.Uint16(b)), le.Uint16(b[2:])
		if n < 4 || n > len(b) {
			break
		}
		switch value := b[4:n]; {
		case kind == unixDiagName:
			s.name = strings.TrimRight(string(value), "\x00")
		case kind == unixDiagPeer && len(value) >= 4:
			s.peer = le.Uint32(value)
		}
		b = b[min(len(b), (n+3)&^3):]
	}
	return s
}

// owners finds the processes that have the sockets of these inodes open.
func owners(inodes map[uint32]bool) []string {
	if len(inodes) == 0 {
		return nil
	}
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return nil
	}
	var out []string
	seen := map[string]bool{}
	for _, l := range links {
		to, err := os.Readlink(l)
		if err != nil {
			continue
		}
		text, ok := strings.CutPrefix(to, "socket:[")
		n, err := strconv.ParseUint(strings.TrimSuffix(text, "]"), 10, 32)
		pid := strings.Split(l, "/")[2]
		if !ok || err != nil || !inodes[uint32(n)] || seen[pid] {
			continue
		}
		seen[pid] = true
		comm, _ := os.ReadFile("/proc/" + pid + "/comm") // a process that ended just now has no name
		out = append(out, fmt.Sprintf("pid %s (%s)", pid, strings.TrimSpace(string(comm))))
	}
	return out
}
