//go:build linux && !386 && !amd64

package main

import "errors"

func ia32Caller() (func(nr uintptr, a [5]uintptr) uintptr, error) {
	return nil, errors.ErrUnsupported
}

func usualCaller(c func(uintptr, [5]uintptr) uintptr) func(uintptr, [5]uintptr) uintptr { return c }
