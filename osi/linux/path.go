package linux

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/vitrine-vmi/vitrine"
	"github.com/vitrine-vmi/vitrine/arch"
	"github.com/vitrine-vmi/vitrine/osi"
)

// Bounds of a path. The kernel itself shows none longer than a page; a name in
// a real file system has 255 bytes at most, a pseudo file's may be longer.
const (
	maxPath       = 4096
	maxName       = 1024
	maxComponents = maxPath // each has a byte and a slash, or is a mount point
)

// fmodeBacking marks a file that overlayfs opened beneath one of its own (6.6).
const fmodeBacking = 1 << 25

// resolver names files. It remembers what it has seen, so one is made for each
// question: the guest renames things.
type resolver struct {
	s       *system
	as      *vitrine.AddressSpace
	dentry  map[arch.GVA]dentry
	paths   map[pathKey]string
	files   map[arch.GVA]pathKey // struct file to its path; children share their parent's executable
	parents map[arch.GVA]int     // task to process id, see system.parentID
	fsTypes map[arch.GVA]string
	buf     [512]byte
}

// pathKey is struct path: a place in a mounted file system.
type pathKey struct{ mnt, dentry arch.GVA }

type dentry struct {
	name     string
	parent   arch.GVA
	unhashed bool
	op, sb   arch.GVA
	inode    arch.GVA
}

func (s *system) newResolver(as *vitrine.AddressSpace) *resolver {
	return &resolver{s: s, as: as, dentry: map[arch.GVA]dentry{}, paths: map[pathKey]string{}, files: map[arch.GVA]pathKey{}, fsTypes: map[arch.GVA]string{}}
}

// file returns the path of an open file as /proc/PID/fd and /proc/PID/exe show
// it to a reader outside of any chroot: from the root of the mount namespace
// that the file was opened in. A null pointer has the empty path.
func (n *resolver) file(addr arch.GVA) (string, error) {
	if addr == 0 {
		return "", nil
	}
	k, ok := n.files[addr]
	if !ok {
		l := &n.s.l.file
		r, err := load(n.as, &l.shape, addr, nil)
		if err != nil {
			return "", err
		}
		k = pathKey{r.ptr(l.mnt), r.ptr(l.dentry)}
		n.files[addr] = k
	}
	return n.path(k)
}

// mapped is file for the file of a mapping: for a file of overlayfs the kernel
// maps the one beneath, and shows the path of the one above.
func (n *resolver) mapped(r record) (string, error) {
	l, b := &n.s.l.file, &n.s.l.backing
	if b.dentry.ok() && r.uint(l.mode)&fmodeBacking != 0 {
		up, err := load(n.as, &b.shape, r.addr, nil)
		if err != nil {
			return "", err
		}
		return n.path(pathKey{up.ptr(b.mnt), up.ptr(b.dentry)})
	}
	return n.path(pathKey{r.ptr(l.mnt), r.ptr(l.dentry)})
}

// path returns the path of a dentry in a mount.
func (n *resolver) path(k pathKey) (string, error) {
	if p, ok := n.paths[k]; ok {
		return p, nil
	}
	p, err := n.resolve(k)
	if err != nil {
		return "", fmt.Errorf("resolve path of dentry %v: %w", k.dentry, err)
	}
	n.paths[k] = p
	return p, nil
}

func (n *resolver) resolve(k pathKey) (string, error) {
	d, err := n.load(k.dentry)
	if err != nil {
		return "", err
	}
	if p, ok, err := n.pseudo(&d, k); ok || err != nil {
		return p, err
	}
	p, err := n.walk(k)
	if d.unhashed && d.parent != k.dentry {
		p += " (deleted)"
	}
	return p, err
}

// walk collects names from the dentry up to the root of the mount that has no
// parent. Its length is bounded, so it ends on a cycle too.
func (n *resolver) walk(k pathKey) (string, error) {
	var parts []string
	m, err := n.mount(k.mnt)
	if err != nil {
		return "", err
	}
	for at, length, steps := k.dentry, 0, 0; ; steps++ {
		if steps > maxComponents || length > maxPath {
			return "", fmt.Errorf("path longer than %d bytes: %w", maxPath, osi.ErrCorrupt)
		}
		if at == m.root {
			if m.parent == m.addr {
				return join(parts), nil
			}
			at = m.mountpoint
			if m, err = n.mountAt(m.parent); err != nil {
				return "", err
			}
			continue
		}
		d, err := n.load(at)
		if err != nil {
			return "", err
		}
		if d.parent == at {
			return join(parts), nil // moved out of its mount: the kernel stops here too
		}
		parts = append(parts, d.name)
		length += len(d.name) + 1
		at = d.parent
	}
}

// join puts names that were collected from the last to the first together.
func join(parts []string) string {
	if len(parts) == 0 {
		return "/"
	}
	var b strings.Builder
	for i := len(parts) - 1; i >= 0; i-- {
		b.WriteByte('/')
		b.WriteString(parts[i])
	}
	return b.String()
}

// mountRecord is what the walk needs of a struct mount.
type mountRecord struct{ addr, parent, mountpoint, root arch.GVA }

// mount reads the struct mount around a struct vfsmount.
func (n *resolver) mount(mnt arch.GVA) (mountRecord, error) {
	return n.mountAt(mnt - arch.GVA(n.s.l.mount.mnt.off))
}

func (n *resolver) mountAt(addr arch.GVA) (mountRecord, error) {
	l := &n.s.l.mount
	r, err := load(n.as, &l.shape, addr, n.buf[:])
	return mountRecord{addr, r.ptr(l.parent), r.ptr(l.mountpoint), r.ptr(l.root)}, err
}

// load reads a dentry with its name, which lies within it if it is short.
func (n *resolver) load(addr arch.GVA) (dentry, error) {
	if d, ok := n.dentry[addr]; ok {
		return d, nil
	}
	l := &n.s.l.dentry
	r, err := load(n.as, &l.shape, addr, n.buf[:])
	if err != nil {
		return dentry{}, err
	}
	d := dentry{
		parent: r.ptr(l.parent), unhashed: r.uint(l.pprev) == 0,
		op: r.ptr(l.op), sb: r.ptr(l.sb), inode: r.ptr(l.inode),
	}
	size := r.uint(l.len) & 0xffffffff
	if size > maxName {
		return dentry{}, fmt.Errorf("name of %d bytes: %w", size, osi.ErrCorrupt)
	}
	if d.name, err = n.name(r, r.ptr(l.name), size); err != nil {
		return dentry{}, err
	}
	n.dentry[addr] = d
	return d, nil
}

func (n *resolver) name(r record, at arch.GVA, size uint64) (string, error) {
	inline := member{off: uint64(at - r.addr), size: size}
	if at >= r.addr && at < r.addr+maxShape && size > 0 {
		if b := r.bytes(inline); b != nil {
			return cString(b), nil
		}
	}
	if err := kernelPointer(at); err != nil {
		return "", err
	}
	b := make([]byte, size)
	if _, err := n.as.Read(b, at); err != nil {
		return "", err
	}
	return cString(b), nil
}

// pseudo names what has no place in a directory tree: a dentry whose
// operations make up its name (d_dname). Which text they make is told by the
// type of its file system.
func (n *resolver) pseudo(d *dentry, k pathKey) (string, bool, error) {
	if d.op == 0 || !n.hasDName(d.op) {
		return "", false, nil
	}
	if d.parent == k.dentry && d.sb != 0 {
		// The root of such a mount has a path like any other.
		if m, err := n.mount(k.mnt); err == nil && m.root == k.dentry {
			return "", false, nil
		}
	}
	kind, err := n.fsType(d.sb)
	if err != nil {
		return "", true, err
	}
	switch kind {
	case "pipefs", "sockfs", "nsfs":
		ino, err := n.inode(d.inode)
		prefix := map[string]string{"pipefs": "pipe", "sockfs": "socket"}[kind]
		if kind == "nsfs" && err == nil {
			prefix, err = n.namespace(d.inode)
		}
		return prefix + ":[" + strconv.FormatUint(ino, 10) + "]", true, err
	case "anon_inodefs":
		return "anon_inode:" + d.name, true, nil
	case "pidfs":
		return "anon_inode:[pidfd]", true, nil
	}
	return "/" + d.name + " (deleted)", true, nil // memfd, System V and other unnamed shared memory
}

func (n *resolver) hasDName(op arch.GVA) bool {
	if kernelPointer(op) != nil {
		return false
	}
	f, err := n.as.ReadPointer(op + arch.GVA(n.s.l.dentryOps.dname.off))
	return err == nil && f != 0
}

// namespace returns the name of the kind of a namespace by its inode: "net", "mnt".
func (n *resolver) namespace(inode arch.GVA) (string, error) {
	l := n.s.l
	at := inode
	for _, m := range []member{l.inode.private, l.ns.ops, l.nsOps.name} {
		if !m.ok() {
			return "ns", nil
		}
		if err := kernelPointer(at); err != nil {
			return "", err
		}
		var err error
		if at, err = n.as.ReadPointer(at + arch.GVA(m.off)); err != nil {
			return "", err
		}
	}
	if err := kernelPointer(at); err != nil {
		return "", err
	}
	return n.as.ReadString(at, 64)
}

func (n *resolver) inode(addr arch.GVA) (uint64, error) {
	if addr == 0 {
		return 0, nil
	}
	r, err := load(n.as, &n.s.l.inode.shape, addr, n.buf[:])
	return r.uint(n.s.l.inode.ino), err
}

// fsType returns the name of a file system's type: "ext4", "pipefs".
func (n *resolver) fsType(sb arch.GVA) (string, error) {
	if name, ok := n.fsTypes[sb]; ok {
		return name, nil
	}
	r, err := load(n.as, &n.s.l.superBlock.shape, sb, n.buf[:])
	if err != nil {
		return "", err
	}
	if r, err = load(n.as, &n.s.l.fsType.shape, r.ptr(n.s.l.superBlock.fsType), n.buf[:]); err != nil {
		return "", err
	}
	at := r.ptr(n.s.l.fsType.name)
	if err := kernelPointer(at); err != nil {
		return "", err
	}
	name, err := n.as.ReadString(at, 64)
	if err == nil {
		n.fsTypes[sb] = name
	}
	return name, err
}
