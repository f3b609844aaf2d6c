// Package host looks at a process of this host as /proc shows it, and reads and
// writes its memory: by mapping the file that a range of it is a shared mapping
// of, or by process_vm_readv and process_vm_writev.
//
// It knows nothing of hypervisors. On hosts other than Linux everything
// answers errors.ErrUnsupported.
package host
