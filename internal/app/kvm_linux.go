package app

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Requests of Documentation/virt/kvm/api.rst.
const (
	kvmGetAPIVersion = 0xae00 // KVM_GET_API_VERSION
	kvmCreateVM      = 0xae01 // KVM_CREATE_VM
	kvmVersion       = 12     // the only one there ever was
)

// tryKVM makes an empty virtual machine: that the device can be opened does not
// mean that it works.
func tryKVM() error {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	v, err := unix.IoctlRetInt(int(f.Fd()), kvmGetAPIVersion)
	if err == nil && v != kvmVersion {
		err = fmt.Errorf("version %d, want %d", v, kvmVersion)
	}
	if err != nil {
		return fmt.Errorf("/dev/kvm does not answer as KVM does: %w", err)
	}
	vm, err := unix.IoctlRetInt(int(f.Fd()), kvmCreateVM)
	if err != nil {
		return fmt.Errorf("/dev/kvm makes no virtual machine: %w", err)
	}
	return unix.Close(vm)
}
