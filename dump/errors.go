package dump

import (
	"errors"
	"fmt"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
)

// Errors of images.
var (
	// ErrFormat is returned when a file is no memory image of a kind that this
	// package reads, or contradicts itself so that nothing can be read of it.
	// The text says what was looked for and what was found.
	ErrFormat = errors.New("not a readable memory image")
	// ErrMissing is returned, within a *vitrine.PhysicalError, where the guest
	// had RAM whose content is not in the image: it was left out, or the file
	// was cut off, or damaged there.
	ErrMissing = errors.New("not in the image")
)

// missing returns the error for RAM at a that the image lacks, and why.
func missing(a uint64, why string) error {
	return &vitrine.PhysicalError{Addr: arch.GPA(a), Err: fmt.Errorf("%w: %s", ErrMissing, why)}
}

// noRAM returns the error for an address at which the guest has no RAM.
func noRAM(a uint64) error { return &vitrine.PhysicalError{Addr: arch.GPA(a)} }

// malformed returns an ErrFormat with a reason.
func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
}
