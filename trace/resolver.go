package trace

import (
	"context"
	"errors"

	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/osi"
	"github.com/vitrine-vmi/vitrine/syscalls"
)

// resolver answers what a decoder asks about the process that makes a call.
type resolver struct {
	sys  osi.System
	ctx  context.Context //nolint:containedctx // the resolver lives as long as one event
	task arch.GVA
}

var _ syscalls.Resolver = (*resolver)(nil)

// Path implements syscalls.Resolver.
func (r *resolver) Path(fd int) (string, bool) {
	p, err := r.path(fd)
	return p, err == nil && p != ""
}

func (r *resolver) path(fd int) (string, error) {
	if r.sys == nil {
		return "", errors.New("operating system not known")
	}
	h := osi.Handle{Task: r.task}
	if fd == syscalls.AtFDCWD {
		return r.sys.Cwd(r.ctx, h)
	}
	f, err := r.sys.FileByFD(r.ctx, h, fd)
	return f.Path, err
}
