//go:build !linux

package app

import "errors"

// tryKVM fails: KVM is Linux's.
func tryKVM() error { return errors.ErrUnsupported }
