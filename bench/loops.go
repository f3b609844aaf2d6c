package main

import (
	"fmt"
	"strings"
)

// loop is a workload that does one thing again and again on one vCPU.
type loop struct {
	name  string
	thing string // what its rate counts
	kind  string // as testvm names it
	args  []string
	works bool // a round is more than some calls
	job   bool // a round is a job of many calls
}

// loops are the cheapest system call, a pair with some work in it, the life of
// a process, and work as people do it.
var loops = []loop{
	{name: "getppid", thing: "calls", kind: "getppid", args: []string{"16"}},
	{name: "open+close", thing: "pairs", kind: "open", args: []string{"0", "/etc/hostname"}},
	{name: "fork+exec+exit", thing: "processes", kind: "exec", args: []string{"0", "/bin/true"}, works: true},
	{name: "tar", thing: "archives", kind: "exec", args: []string{"0", "/usr/bin/tar", "-cf", "/tmp/bench.tar", "-C", "/bench", "tree"}, works: true, job: true},
	{name: "script", thing: "runs", kind: "exec", args: []string{"0", "/bench/script"}, works: true, job: true},
}

// script reads files by the shell itself and through pipes.
const script = `#!/bin/bash
cd /bench/tree
for d in d00 d01 d02; do
	n=0
	while read -r line; do n=$((n + ${#line})); done < $d/f00
	cat $d/* | sort | uniq -c | sort -rn | head -n 3
done > /tmp/script.out
`

// tree is the script, and what it and tar read: 200 files of up to 16 KiB.
func tree() map[string][]byte {
	files := map[string][]byte{"bench/script": []byte(script)}
	for i := range 200 {
		line := fmt.Sprintf("file %d says that %d is its number\n", i, i*i)
		files[fmt.Sprintf("bench/tree/d%02d/f%02d", i/20, i%20)] = []byte(strings.Repeat(line, 1+i*37%400))
	}
	return files
}
