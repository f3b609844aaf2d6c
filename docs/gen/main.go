// Command gen writes the manual pages (docs/man) and the pages of the commands
// (docs/commands) from the command line's own definitions, so that they can't
// say something else than --help does.
package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
	"github.com/spf13/pflag"
	"github.com/vitrine-vmi/vitrine/event"
	"github.com/vitrine-vmi/vitrine/internal/cli"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: gen FOLDER")
		os.Exit(2)
	}
	if err := generate(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

// generate writes all pages below dir.
func generate(dir string) error {
	root := cli.Command()
	root.InitDefaultHelpFlag()
	for _, d := range []string{"man", "commands"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	for _, c := range append(commands(root), root) {
		if err := generateOne(dir, c); err != nil {
			return err
		}
	}
	return write(filepath.Join(dir, "commands", "README.md"), index(root))
}

// commands returns the commands that have pages.
func commands(root *cobra.Command) []*cobra.Command {
	var out []*cobra.Command
	for _, c := range root.Commands() {
		if c.Name() != "help" && !c.Hidden {
			out = append(out, c)
		}
	}
	return out
}

func generateOne(dir string, c *cobra.Command) error {
	c.DisableAutoGenTag = true
	for _, sub := range c.Commands() {
		sub.DisableAutoGenTag = true
	}
	// A date would make the pages differ from day to day.
	never := time.Time{}
	h := &doc.GenManHeader{Section: "1", Source: "vitrine", Manual: "Vitrine", Date: &never}
	var man bytes.Buffer
	if err := doc.GenMan(c, h, &man); err != nil {
		return fmt.Errorf("man page of %s: %w", c.Name(), err)
	}
	text := bytes.ReplaceAll(man.Bytes(), []byte(`"Jan 0001" `), []byte(`"" `))
	name := strings.ReplaceAll(c.CommandPath(), " ", "-") + ".1"
	if err := write(filepath.Join(dir, "man", name), text); err != nil {
		return err
	}
	if !c.HasParent() {
		return nil
	}
	return write(filepath.Join(dir, "commands", c.Name()+".md"), page(c))
}

func write(path string, b []byte) error {
	b = append(bytes.TrimRight(b, "\n"), '\n')
	return os.WriteFile(path, b, 0o644)
}

// records are what commands print with --json.
var records = map[string]event.Record{
	"list": event.Guest{}, "info": event.Info{}, "ps": event.Process{}, "current": event.Current{},
	"modules": event.Module{}, "libs": event.Library{}, "maps": event.Mapping{}, "files": event.File{},
	"trace": event.Call{}, "events": event.Life{},
}

// page is the page of one command.
func page(c *cobra.Command) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# %s\n\n%s.\n\n```\n%s\n```\n\n%s\n", c.CommandPath(), c.Short, c.UseLine(), fence(c.Long))
	if c.Example != "" {
		fmt.Fprintf(&b, "\n## Examples\n\n```\n%s\n```\n", dedent(c.Example))
	}
	flags(&b, "Flags", c.LocalNonPersistentFlags())
	flags(&b, "Flags of all commands", c.InheritedFlags())
	if r := records[c.Name()]; r != nil {
		fmt.Fprintf(&b, "\n## JSON\n\nOne object a line, with the names\n\n%s\n", names(r))
	}
	if c.Name() == "trace" {
		fmt.Fprintf(&b, "\nand with `--stats` one object at the end, `{\"event\":\"stats\",...}`, with\n\n%s\n", names(event.Stats{}))
	}
	fmt.Fprint(&b, "\n[Exit status and conventions](README.md)\n")
	return b.Bytes()
}

// fence puts indented parts of a help text into fences.
func fence(long string) string {
	var b strings.Builder
	in := false
	for line := range strings.Lines(long) {
		if code := strings.HasPrefix(line, "  "); code != in {
			b.WriteString("```\n")
			in = code
		}
		b.WriteString(line)
	}
	if in {
		b.WriteString("\n```")
	}
	return b.String()
}

func dedent(s string) string { return strings.TrimPrefix(strings.ReplaceAll(s, "\n  ", "\n"), "  ") }

// flags writes a table of flags.
func flags(b *bytes.Buffer, title string, fs *pflag.FlagSet) {
	rows := ""
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Name == "help" {
			return
		}
		kind, usage := pflag.UnquoteUsage(f)
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		if kind != "" {
			name += " " + kind
		}
		if d := f.DefValue; d != "" && d != "false" && d != "0" && d != "0s" {
			usage += " (default " + d + ")"
		}
		rows += fmt.Sprintf("| `%s` | %s |\n", name, strings.ReplaceAll(usage, "|", `\|`))
	})
	if rows != "" {
		fmt.Fprintf(b, "\n## %s\n\n| flag | |\n|---|---|\n%s", title, rows)
	}
}

// names lists the JSON names of a record.
func names(r event.Record) string {
	var out []string
	t := reflect.TypeOf(r)
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		out = append(out, "`"+name+"`")
	}
	return strings.Join(out, " ")
}

// index is the page above the commands' pages.
func index(root *cobra.Command) []byte {
	var b bytes.Buffer
	b.WriteString("# Commands\n\n")
	b.WriteString(fence(root.Long) + "\n\n| command | |\n|---|---|\n")
	for _, c := range commands(root) {
		fmt.Fprintf(&b, "| [%s](%s.md) | %s |\n", strings.TrimPrefix(c.CommandPath(), "vitrine "), c.Name(), c.Short)
	}
	b.WriteString(cli.Conventions)
	return b.Bytes()
}
