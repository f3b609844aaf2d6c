package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// runMeasured as the first argument has this program run the others as a command
// and write to file 3 what that took. A process counts as its greatest memory
// also what the one had that started it, until it became another program; bench
// has the guest's memory mapped. So a small process starts what is measured.
const runMeasured = "run-measured"

// usage is what a command took.
type usage struct {
	Took time.Duration // from before its start to after its end
	RSS  int64         // bytes of memory at most
}

// childMeasured is bench as that small process. It exits as the command does.
func childMeasured(argv []string) int {
	c := exec.Command(argv[0], argv[1:]...) //nolint:gosec // what bench itself has asked for
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	began := time.Now()
	err := c.Run()
	u := usage{Took: time.Since(began)}
	if c.ProcessState == nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if r, ok := c.ProcessState.SysUsage().(*syscall.Rusage); ok {
		u.RSS = r.Maxrss << 10
	}
	if err := json.NewEncoder(os.NewFile(3, "usage")).Encode(u); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return c.ProcessState.ExitCode()
}

// measured runs a command by such a process.
func measured(c *exec.Cmd) (usage, error) {
	self, err := os.Executable()
	if err != nil {
		return usage{}, err
	}
	c.Args = append([]string{self, runMeasured, c.Path}, c.Args[1:]...)
	c.Path = self
	r, w, err := os.Pipe()
	if err != nil {
		return usage{}, err
	}
	defer r.Close()
	c.ExtraFiles = []*os.File{w}
	err = c.Run() // the pipe holds what comes
	w.Close()
	if err != nil {
		return usage{}, err
	}
	var u usage
	if err := json.NewDecoder(r).Decode(&u); err != nil {
		return usage{}, fmt.Errorf("measure %s: %w", c.Args[2], err)
	}
	return u, nil
}
