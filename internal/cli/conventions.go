package cli

//go:generate go run ../../docs/gen ../../docs

// Conventions is what holds for all commands, in Markdown. The generator of
// the commands' pages puts it behind their list.
const Conventions = `
## Output

Standard output carries only what was asked for, everything else goes to
standard error. With ` + "`--json`" + ` it is one JSON object a line; addresses are
strings (` + "`\"0x...\"`" + `), so that no reader loses bits. Names are only ever added.

Strings that come from the guest are quoted where they hold a space, a quote or
anything that a terminal might act on. Colour is used on terminals only, and
not with ` + "`NO_COLOR`" + ` set.

A list entry that could not be read, as the guest changed it in that moment, is
named on standard error and the list goes on; that does not change the exit
status, unless nothing could be read at all or the list broke off.

## Exit status

| status | |
|---|---|
| 0 | done, also when the reader of the output went away |
| 1 | failed |
| 2 | wrong usage, also a system call name that the guest does not have |
| 3 | target not found |
| 4 | guest not understood: no known operating system, or none has started |
| 129, 130, 131, 143 | ended by SIGHUP, SIGINT, SIGQUIT, SIGTERM, after a clean detach |

A second Ctrl-C does not hurry the detach. While a trace runs, Ctrl-Z is
refused: a guest that waits for a stopped tracer would stand still with it.

## Environment

| variable | |
|---|---|
| ` + "`VITRINE_CACHE`" + ` | folder for facts about kernels, instead of ` + "`vitrine`" + ` in the user's cache directory |
| ` + "`NO_COLOR`" + ` | no colours, whatever it is set to |
`
