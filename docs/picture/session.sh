#!/usr/bin/env bash
# Makes docs/session.svg: boots the demonstration's guest, types some commands on a real terminal (by script(1)) and
# draws what it showed. Run it from the top of the repository, with bin/vitrine built and script(1) installed.
set -euo pipefail
PATH=$PWD/bin:$PATH
work=$(mktemp -d)
vitrine demo --keep 2> "$work/demo.log" &
demo=$!
trap 'kill "$demo" 2>/dev/null || true; wait "$demo" || true; rm -rf "$work"' EXIT
until grep -q 'The guest runs' "$work/demo.log"; do
	kill -0 "$demo" || { cat "$work/demo.log" >&2; exit 1; }
	sleep 0.2
done
vm=vitrine-demo
vitrine info "$vm" > "$work/warm" # the cache is warm for the picture, as it is for whoever looks twice
pid=$(vitrine ps "$vm" --json | sed -n 's/^{"pid":\([0-9]*\),.*"args":\["[^"]*bash","\/srv.*/\1/p')
{
	echo "show() { printf '\033[32m\$\033[0m %s\n' \"\$*\"; eval \"\$*\"; echo; }"
	echo "show 'vitrine info $vm | grep -E \"^(release|paging|slide)|types|symbols\"'"
	echo "show 'vitrine ps $vm --tree --no-kthreads'"
	echo "show 'vitrine libs $vm $pid'"
	echo "show 'vitrine trace $vm -e openat,newfstatat,execve,exit_group --count 12 --stats'"
} > "$work/typed"
TERM=xterm script -qec "bash $work/typed" /dev/null > "$work/shown"
go run ./docs/picture < "$work/shown" > docs/session.svg
