//go:build !linux

package testvm

import (
	"errors"
	"os"
	"syscall"
)

// errHost is why a guest can't be started on other systems: the kernels come by Debian's tools.
var errHost = errors.New("guests are started on Linux hosts only")

func ownedProcess() *syscall.SysProcAttr { return nil }

func lock(string) (*os.File, error) { return nil, errHost }

func tryLock(string) (*os.File, error) { return nil, errHost }
