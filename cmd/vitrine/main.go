// Command vitrine looks into running virtual machines from the outside.
package main

import (
	"os"

	"github.com/vitrine-vmi/vitrine/internal/cli"
)

func main() {
	os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
