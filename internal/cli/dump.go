package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/vitrine-vmi/vitrine/internal/app"
)

func (e *env) dumpCmd() *cobra.Command {
	var o app.DumpOptions
	var path string
	c := &cobra.Command{
		Use:   "dump TARGET -o FILE",
		Short: "Write an ELF core of a guest",
		Long: `Write the memory of a guest to FILE as an ELF core: with the registers of its
processors and what the kernel says of itself for crash-dump tools. Every
command that looks into a guest takes FILE for a target. TARGET may itself be
an image, of any kind, which is converted.

The guest stands still while its memory is written, so that the core is of one
moment, and runs on before the file is brought to disk; one that was paused
stays paused. With --live it is not paused, and the core is of many moments:
lists in it may be torn.

Pages of zeros are left out as holes. FILE must not exist. Until it is whole it
is called FILE.part; that is what stays behind when the disk is full, or after
Ctrl-C. With --resume it is gone on with: all memory is read anew, and only
what is missing or has changed is written.`,
		Example: "  vitrine dump vm1 -o vm1.core\n  vitrine ps vm1.core\n  vitrine dump vm1 -o vm1.core --resume",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if path == "" {
				return usagef("say where to with -o FILE")
			}
			o.Progress = e.dumpProgress()
			return e.withGuest(c.Context(), args[0], func(ctx context.Context, s *app.Session) error {
				r, err := s.Dump(ctx, path, o)
				e.progress.done()
				if err != nil {
					return e.explainPart(path, err)
				}
				return e.reportDump(path, r)
			})
		},
	}
	c.Flags().StringVarP(&path, "output", "o", "", "write to this file, which must not exist")
	c.Flags().BoolVar(&o.Live, "live", false, "let the guest run meanwhile")
	c.Flags().BoolVar(&o.Resume, "resume", false, "go on with FILE.part of a dump that failed")
	return c
}

// dumpProgress tells how far the writing is, a few times a second.
func (e *env) dumpProgress() func(done, total uint64) {
	var last time.Time
	return func(done, total uint64) {
		if now := time.Now(); done == total || now.Sub(last) > progressTick {
			last = now
			e.progress.step(fmt.Sprintf("writing memory: %d of %d MiB", done>>20, total>>20))
		}
	}
}

// explainPart adds to an error what was left behind.
func (e *env) explainPart(path string, err error) error {
	if _, serr := os.Stat(path + ".part"); serr == nil && !errors.Is(err, app.ErrCoreExists) {
		return fmt.Errorf("%w; %s is not whole: --resume goes on with it", err, path+".part")
	}
	return err
}

func (e *env) reportDump(path string, r *app.DumpReport) error {
	if r.Note != "" {
		fmt.Fprintln(e.stderr, "vitrine:", r.Note)
	}
	if r.Missing > 0 {
		fmt.Fprintf(e.stderr, "vitrine: %d KiB could not be read: they are zero in the core\n", r.Missing>>10)
	}
	return e.say(fmt.Sprintf("%s: %d MiB of memory, %d MiB on disk", path, r.Memory>>20, r.Stored>>20), struct {
		File    string `json:"file"`
		Memory  uint64 `json:"memory_bytes"`
		Stored  uint64 `json:"stored_bytes"`
		Kept    uint64 `json:"kept_bytes"`
		Missing uint64 `json:"missing_bytes"`
	}{path, r.Memory, r.Stored, r.Kept, r.Missing})
}
