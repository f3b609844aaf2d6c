package host

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// VMA is a mapping of a process: one line of /proc/PID/maps.
type VMA struct {
	Start, End uint64 // End is the first address behind it
	Perms      string // "rw-s"
	Offset     uint64 // of Start in the file
	Dev        string // "fe:00", as printed
	Inode      uint64 // 0 when no file is mapped
	Path       string // with " (deleted)" where the kernel says so
}

// Shared reports whether writes through the mapping reach the file.
func (v VMA) Shared() bool { return len(v.Perms) == 4 && v.Perms[3] == 's' }

// ParseMaps parses /proc/PID/maps.
func ParseMaps(r io.Reader) ([]VMA, error) {
	var out []VMA
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		v, err := parseVMA(sc.Text())
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, sc.Err()
}

// parseVMA parses "START-END PERMS OFFSET DEV INODE [PATH]".
func parseVMA(line string) (VMA, error) {
	fail := func() (VMA, error) { return VMA{}, fmt.Errorf("parse maps: %.200q", line) }
	head, path := line, ""
	// The path may hold blanks; it starts behind the fifth field.
	for i, n := 0, 0; i < len(line); i++ {
		if line[i] == ' ' && (i == 0 || line[i-1] != ' ') {
			if n++; n == 5 {
				head, path = line[:i], strings.TrimLeft(line[i:], " ")
				break
			}
		}
	}
	f := strings.Fields(head)
	if len(f) != 5 || len(f[1]) != 4 {
		return fail()
	}
	v := VMA{Perms: f[1], Dev: f[3], Path: path}
	lo, hi, _ := strings.Cut(f[0], "-")
	var err [4]error
	v.Start, err[0] = strconv.ParseUint(lo, 16, 64)
	v.End, err[1] = strconv.ParseUint(hi, 16, 64)
	v.Offset, err[2] = strconv.ParseUint(f[2], 16, 64)
	v.Inode, err[3] = strconv.ParseUint(f[4], 10, 64)
	for _, e := range err {
		if e != nil {
			return fail()
		}
	}
	if v.End <= v.Start {
		return fail()
	}
	return v, nil
}
