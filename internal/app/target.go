package app

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// TargetKind says how a target names its guest.
type TargetKind uint8

// The kinds of targets.
const (
	TargetName  TargetKind = iota // the name of a running guest
	TargetQMP                     // qmp:PATH, a monitor's socket
	TargetPID                     // pid:N, a QEMU process
	TargetImage                   // the path of a memory image
)

// Target is a parsed target string.
type Target struct {
	Kind TargetKind
	Text string // as given
	Path string // of the socket or the image
	PID  int
}

// ErrTarget is returned when a target string can't be understood.
var ErrTarget = errors.New("malformed target")

// ParseTarget understands a target: NAME, qmp:PATH, pid:N, or the path of a
// memory image, which has to hold a slash or to exist as a regular file.
func ParseTarget(s string) (Target, error) {
	t := Target{Text: s}
	switch {
	case s == "":
		return t, fmt.Errorf("%w: it is empty", ErrTarget)
	case strings.HasPrefix(s, "qmp:"):
		t.Kind, t.Path = TargetQMP, strings.TrimPrefix(s, "qmp:")
		if t.Path == "" {
			return t, fmt.Errorf("%w %q: qmp: wants the path of a socket", ErrTarget, s)
		}
	case strings.HasPrefix(s, "pid:"):
		n, err := strconv.Atoi(strings.TrimPrefix(s, "pid:"))
		if err != nil || n <= 0 {
			return t, fmt.Errorf("%w %q: pid: wants a process number", ErrTarget, s)
		}
		t.Kind, t.PID = TargetPID, n
	default:
		return imageOrName(t), nil
	}
	return t, nil
}

// imageOrName tells a path from a guest's name. A path to a socket is the
// monitor's: it is what a user types who forgot the prefix.
func imageOrName(t Target) Target {
	fi, err := os.Stat(t.Text)
	switch {
	case err == nil && fi.Mode()&os.ModeSocket != 0:
		t.Kind, t.Path = TargetQMP, t.Text
	case err == nil && fi.Mode().IsRegular(), strings.Contains(t.Text, "/"):
		t.Kind, t.Path = TargetImage, t.Text
	default:
		t.Kind = TargetName
	}
	return t
}
