package cli

import (
	"context"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/vitrine-vmi/vitrine/event"
	"github.com/vitrine-vmi/vitrine/internal/app"
)

// readChunk is how much of a guest's memory is held at a time.
const readChunk = 64 << 10

func (e *env) readCmd() *cobra.Command {
	var from app.MemoryOptions
	c := &cobra.Command{
		Use:   "read TARGET ADDR LEN",
		Short: "Read memory of a guest",
		Long: `Read LEN bytes at ADDR of a guest's memory while it runs: as they are into a
pipe or a file, as a hex dump to a terminal.

ADDR is a virtual address of the kernel, 0x... or decimal, or a kernel symbol
as in linux_banner or init_task+0x10. With --pid it is an address of that
process, with --physical one of the guest's physical memory; --physical needs
no known operating system. LEN takes the suffixes K, M and G.

What can't be read ends the output: the bytes before it are written, and the
exit status is 1. With --json every piece is an object with addr and hex.`,
		Example: "  vitrine read vm1 linux_banner 128\n  vitrine read vm1 --pid 1 0x7ffd5f000000 4K | strings\n  vitrine read vm1 --physical 0 512M > memory",
		Args:    cobra.ExactArgs(3),
		RunE: func(c *cobra.Command, args []string) error {
			n, err := parseSize(args[2])
			if err != nil {
				return err
			}
			if err := checkMemory(c, &from, args[1]); err != nil {
				return err
			}
			open := e.withSystem
			if from.Physical {
				open = e.withGuest
			}
			return open(c.Context(), args[0], func(ctx context.Context, s *app.Session) error {
				m, err := s.Memory(ctx, from)
				if err != nil {
					return err
				}
				e.progress.done()
				return e.dump(ctx, m, n)
			})
		},
	}
	c.Flags().IntVar(&from.PID, "pid", 0, "read the memory of this process")
	c.Flags().BoolVar(&from.Physical, "physical", false, "ADDR is a guest-physical address")
	return c
}

// checkMemory fills from by the flags and the address argument.
func checkMemory(c *cobra.Command, from *app.MemoryOptions, addr string) error {
	from.Process = c.Flags().Changed("pid")
	if from.Process && from.Physical {
		return usagef("--pid and --physical exclude each other")
	}
	if from.Process && from.PID <= 0 {
		return usagef("--pid %d is not a process id", from.PID)
	}
	from.Addr = addr
	if err := from.Check(); err != nil {
		return &usageError{err: err}
	}
	return nil
}

// parseSize parses a number of bytes.
func parseSize(s string) (uint64, error) {
	digits, shift := s, 0
	if i := strings.IndexAny(s, "KMG"); i >= 0 && i == len(s)-1 {
		digits, shift = s[:i], 10*(1+strings.IndexByte("KMG", s[i]))
	}
	n, err := strconv.ParseUint(digits, 0, 64)
	if err != nil || n<<shift>>shift != n {
		return 0, usagef("%q is not a length: want bytes, as in 64, 0x40, 4K, 16M or 1G", s)
	}
	return n << shift, nil
}

// dump writes n bytes of m.
func (e *env) dump(ctx context.Context, m *app.Memory, n uint64) error {
	if n > 0 && m.Start+(n-1) < m.Start {
		return usagef("%d bytes at %v reach beyond the end of the address space", n, event.Addr(m.Start))
	}
	write := e.dumpFormat()
	buf := make([]byte, min(n, readChunk))
	for done := uint64(0); done < n; {
		if err := ctx.Err(); err != nil {
			return err
		}
		at := m.Start + done
		// Pieces end at multiples of the chunk, so that lines and pages stay whole.
		want := min(n-done, readChunk-at%readChunk)
		got, err := m.ReadAt(buf[:min(want, uint64(len(buf)))], at)
		if werr := write(at, buf[:got]); werr != nil {
			return werr
		}
		done += uint64(got)
		if err != nil {
			return fmt.Errorf("read %d of %d bytes: %w", done, n, err)
		}
	}
	return nil
}

// dumpFormat returns how pieces are written.
func (e *env) dumpFormat() func(at uint64, b []byte) error {
	switch {
	case e.json:
		return func(at uint64, b []byte) error {
			if len(b) == 0 {
				return nil
			}
			e.out.line(fmt.Sprintf(`{"addr":"%v","hex":"%s"}`, event.Addr(at), hex.EncodeToString(b)))
			return e.out.err
		}
	case e.out.tty:
		return e.hexDump
	}
	return func(_ uint64, b []byte) error { return e.out.write(b) }
}

// hexDump writes 16 bytes a line, with their address and as text.
func (e *env) hexDump(at uint64, b []byte) error {
	for len(b) > 0 {
		n := min(16, len(b))
		var cols, text strings.Builder
		for i := range 16 {
			if i == 8 {
				cols.WriteByte(' ')
			}
			if i >= n {
				cols.WriteString("   ")
				continue
			}
			fmt.Fprintf(&cols, "%02x ", b[i])
			text.WriteByte(printableByte(b[i]))
		}
		e.out.line(fmt.Sprintf("%016x  %s |%s|", at, cols.String(), text.String()))
		at, b = at+uint64(n), b[n:]
	}
	return e.out.err
}

func printableByte(c byte) byte {
	if c < ' ' || c > '~' {
		return '.'
	}
	return c
}
