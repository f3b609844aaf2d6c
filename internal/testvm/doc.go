// Package testvm boots throw-away Linux guests under QEMU for tests, benchmarks and the demonstration: it fetches
// Debian kernels, builds an initramfs around a ground-truth program, starts QEMU with the wanted machine, CPU, memory
// and sockets, and talks to the program inside, which tells what the guest's own kernel says of its processes.
//
// It knows nothing of the rest of Vitrine, so that a test has something independent to compare with, and does not
// import testing: package vmtest has the helpers for tests. It needs a Debian host on x86-64 with qemu-system-x86 and
// busybox-static, and for the ground-truth program the Go tool; what is missing is named in the error.
//
// Files are cached in the user's cache directory (see CacheDir). A machine-wide limit keeps the number of guests that
// run at once down to the number of CPUs. A VM's methods are safe for concurrent use unless they say otherwise.
package testvm
