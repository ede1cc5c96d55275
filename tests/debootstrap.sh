#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Shows that a clean clone installs its packages, builds and passes its unit tests on a Debian 12
# that has only make and git: in a folder made by debootstrap, as root. Prints TAP.
#
# Packages are kept in build/cache/debootstrap, so that a second run downloads nothing but lists.
# VSR_MIRROR names another mirror than deb.debian.org; VSR_TMP another place than /var/tmp, with
# 4 GB of room.
set -eu

top=$(cd "$(dirname "$0")/.." && pwd)
cache=${VSR_CACHE:-$top/build/cache}/debootstrap
mirror=${VSR_MIRROR:-http://deb.debian.org/debian}

if [ "$(id -u)" != 0 ]; then
	echo "ok 1 - debootstrap # SKIP needs root"
	exit 0
fi

# Mounts and processes of our own: both are gone with us, however we end.
if [ "${1:-}" != inside ]; then
	mkdir -p "$cache/debs" "$cache/archives/partial" "$cache/kernels"
	root=$(mktemp -d "${VSR_TMP:-/var/tmp}/vsr-debian.XXXXXX")
	trap 'rm -rf --one-file-system "$root"' EXIT
	trap 'exit 143' INT TERM
	unshare --mount --pid --fork --kill-child "$0" inside "$root" &
	child=$!
	trap 'kill $child 2>/dev/null; wait $child || :; exit 143' INT TERM
	wait $child
	exit
fi

root=$2
n=0
log=$(mktemp "$root.log.XXXXXX")
trap 'rm -f "$log"' EXIT

# check NAME COMMAND...: one test; its output is shown when it fails, and nothing after it is run.
check()
{
	n=$((n + 1))
	name=$1
	shift
	start=$(date +%s)
	if "$@" >"$log" 2>&1; then
		echo "ok $n - $name ($(($(date +%s) - start)) s)"
	else
		grep -A 5 -m 20 '^not ok' "$log" || tail -n 60 "$log"
		echo "not ok $n - $name"
		exit 1
	fi
}

inside()
{
	chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
		${http_proxy:+http_proxy="$http_proxy"} VSR_CACHE=/var/cache/vsr \
		/bin/sh -euc "cd /root/clone && $1"
}

no_server_runs()
{
	others=
	for process in /proc/[0-9]*; do
		[ "$(readlink "$process/root")" != "$root" ] || others="$others $(cat "$process/comm")"
	done
	enabled=$(find "$root/etc/systemd/system" -name 'prometheus*' -path '*.wants/*')
	[ -z "$others$enabled" ] || {
		echo "running:$others; enabled: $enabled"
		return 1
	}
}

debian()
{
	debootstrap --variant=minbase --include=make,git --cache-dir="$cache/debs" bookworm \
		"$root" "$mirror"
	chmod 755 "$root" # service users have to get in, too
}

mounts()
{
	mount -t proc proc "$root/proc"
	mkdir -p "$root/var/cache/vsr"
	mount --bind "$cache/archives" "$root/var/cache/apt/archives"
	mount --bind "$cache/kernels" "$root/var/cache/vsr"
	cp /etc/resolv.conf "$root/etc/resolv.conf"
}

mount -t proc proc /proc
check "debootstrap makes a Debian 12 with only make and git" debian
check "its folders can be mounted" mounts
check "a clean clone" git clone -q "file://$top" "$root/root/clone"
check "make deps installs what is needed" inside "make deps"
check "no server was started or enabled" no_server_runs
check "make deps again finds all there, without network" \
	unshare --net chroot "$root" /bin/sh -euc "cd /root/clone && make deps"
check "make builds the programs" inside "make -j\$(nproc)"
check "the static agent builds" inside "make build/vsock-agent-static"
check "the daemon starts" inside "build/vsock-relayd --version && build/vsock-agent --help"
check "the packages build" inside \
	"make deb && test -e build/vsock-relay_*.deb && test -e build/vsock-agent_*.deb"
check "unit tests pass" inside "make -j\$(nproc) unit-bins && make check-unit"
check "a VM boots and loads the BPF program" inside \
	"make build/tests/vm/bpf_load && tests/vm/boot.py --bin build/tests/vm/bpf_load \
		--timeout 120 -- bpf_load"
check "the clone is as clean as before" inside 'test -z "$(git status --porcelain)"'
echo "1..$n"
