#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes vmlinux.h, the kernel's own types as C, from the BTF in Debian's 6.12 cloud kernel, and
# the README that says which one it was. Needed only to move to a newer kernel: CO-RE relocates
# the program on the kernel that it meets.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
bpftool=/usr/sbin/bpftool
kernel=$("$here/../scripts/fetch-kernel" "$@" 6.12)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$bpftool" btf dump file "$kernel/vmlinux" format c >"$work/vmlinux.h"
grep -q '^#ifndef __VMLINUX_H__' "$work/vmlinux.h"
mv "$work/vmlinux.h" "$here/vmlinux.h"
chmod 644 "$here/vmlinux.h"

cat >"$here/README.md" <<END
# vmlinux.h

The types of a Linux kernel as one C header, for the programs in \`bpf/\`. It is the only generated
file in git, so that a build needs neither the network nor a kernel image.

Generated from Debian's package \`$(cat "$kernel/package")\` by

    vmlinux/generate.sh

which takes the image from \`scripts/fetch-kernel 6.12\` and lets \`bpftool btf dump\` print its BTF.
\`vmlinux/generate.sh --refresh\` moves to the newest 6.12 kernel that Debian has.

Field offsets in it are not those of the kernel that the daemon runs on: libbpf relocates each
access (CO-RE), so a newer header is needed only for a type or field that is not in this one.
END
