package syscalls

import "strconv"

// maxErrno is the largest error that a system call can return (MAX_ERRNO).
const maxErrno = 4095

// restarts are the codes by which the kernel tells itself to restart a call.
// They are not part of the interface to programs, but a trace in the kernel
// sees them (include/linux/errno.h).
var restarts = [...]described{
	512: {"ERESTARTSYS", "To be restarted if SA_RESTART is set"},
	513: {"ERESTARTNOINTR", "To be restarted"},
	514: {"ERESTARTNOHAND", "To be restarted if no handler"},
	515: {"ENOIOCTLCMD", "No ioctl command"},
	516: {"ERESTART_RESTARTBLOCK", "Interrupted by signal"},
	517: {"EPROBE_DEFER", "Driver requests probe retry"},
	518: {"EOPENSTALE", "Open found a stale dentry"},
	519: {"ENOPARAM", "Parameter not supported"},
	524: {"ENOTSUPP", "Operation is not supported"},
	529: {"EIOCBQUEUED", "Queued, will get completion event"},
	530: {"ERECALLCONFLICT", "Conflict with recalled state"},
}

func errnoInfo(n int64) described {
	if n > 0 && n < int64(len(errnos)) {
		return errnos[n]
	}
	if n > 0 && n < int64(len(restarts)) {
		return restarts[n]
	}
	return described{}
}

// Errno returns the name of an error by its positive number ("ENOENT"), and
// the empty string if it has none.
func Errno(n int64) string { return errnoInfo(n).name }

// ErrnoText returns what strerror says of an error, and the empty string if
// the number is unknown.
func ErrnoText(n int64) string { return errnoInfo(n).text }

// IsError reports whether a system call's result stands for an error.
func IsError(ret int64) bool { return ret < 0 && ret >= -maxErrno }

// restarting reports whether the result never reaches the program as it is.
func restarting(ret int64) bool {
	switch -ret {
	case 512, 513, 514, 516:
		return true
	}
	return false
}

// appendError appends a failed call's result as strace does.
func appendError(b []byte, ret int64) []byte {
	e := errnoInfo(-ret)
	if restarting(ret) {
		b = append(b, "? "...)
	} else {
		b = append(b, "-1 "...)
	}
	if e.name == "" {
		b = append(b, "errno "...)
		return strconv.AppendInt(b, -ret, 10)
	}
	b = append(append(b, e.name...), " ("...)
	return append(append(b, e.text...), ')')
}
