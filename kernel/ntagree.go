package kernel

import (
	"github.com/vitrine-vmi/vitrine/kernel/internal/infer"
	"github.com/vitrine-vmi/vitrine/kernel/internal/layouts"
)

// minAgree is with how many accessors a layout must agree to be taken instead of
// that of the build which the kernel claims to be.
const minAgree = 6

// saidMember is where an accessor says that a member lies.
type saidMember struct {
	accessor
	offset uint64
}

// saidMembers decodes the accessors that begin at a structure.
func (b *ntBuilder) saidMembers() []saidMember {
	var out []saidMember
	for _, a := range accessors {
		v, err := b.readAccessor(a.export)
		if err != nil || v.Base != infer.Param {
			continue
		}
		if f, ok := a.field(v); ok {
			out = append(out, saidMember{a, f.Offset})
		}
	}
	return out
}

// agreement counts the accessors that a layout agrees with, and the others.
func agreement(l *layouts.Layout, said []saidMember) (agree, differ int) {
	t := newNTTypes(l, "")
	for _, a := range said {
		f, err := t.field(a.structName, a.member)
		if a.member == threadsProcess && err != nil {
			f, err = t.field("_KTHREAD", "Process")
		}
		switch {
		case err != nil:
		case f.Offset == a.offset:
			agree++
		default:
			differ++
		}
	}
	return agree, differ
}

// agreeingLayout returns a layout that all accessors agree with when that of the
// build that the kernel claims is not one: the kernel lays its structures out as
// another build does. Of several it is the one that tells of most of them, and
// of these that of the nearest build. It is nil when there is none.
func (b *ntBuilder) agreeingLayout() *layouts.Layout {
	said := b.saidMembers()
	if _, differ := agreement(b.layout, said); differ == 0 {
		return nil
	}
	var best *layouts.Layout
	most, nearest := minAgree-1, 0
	for _, l := range layouts.All() {
		agree, differ := agreement(l, said)
		if l.X64 != b.nt.X64 || differ > 0 || agree < most {
			continue
		}
		away := max(l.Version[2], b.nt.Build) - min(l.Version[2], b.nt.Build)
		if agree > most || best == nil || away < nearest {
			best, most, nearest = l, agree, away
		}
	}
	return best
}
