#!/bin/sh
# Compiles the implant to the object that package implant embeds.
# usage: build.sh OUTPUT
set -eu
out=$(realpath "${1:-implant.o}")
cd "$(dirname "$0")"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
flags="-O2 -std=gnu11 -ffreestanding -nostdinc -fno-pic -fno-pie -mcmodel=kernel -mno-red-zone -mgeneral-regs-only
 -fno-stack-protector -fcf-protection=none -fno-asynchronous-unwind-tables -fno-jump-tables -fno-tree-loop-distribute-patterns
 -fno-strict-aliasing -fno-toplevel-reorder -fno-reorder-functions -fno-reorder-blocks-and-partition -mfunction-return=thunk-extern -Wall -Wextra -Werror -fno-ident"
flags="$flags -fomit-frame-pointer"
gcc $flags -c implant.c -o "$tmp/c.o"
gcc -c trampoline.S -o "$tmp/s.o"
ld -r -o "$tmp/implant.o" "$tmp/s.o" "$tmp/c.o"
strip --strip-unneeded "$tmp/implant.o"
cp "$tmp/implant.o" "$out"
