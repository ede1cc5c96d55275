#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes vmlinux.h, the kernel's own types as C, from the BTF in Debian's 6.12 cloud kernel, and
# the README that says which one it was. Needed only to move to a newer kernel: CO-RE relocates
# the program on the kernel that it meets.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
bpftool=/usr/sbin/bpftool
kernel=$("$here/../scripts/fetch-kernel" "$@" 6.12)

# u8 or u32, little-endian, at an offset of the image.
number()
{
	od -A n -t "u$2" -j "$1" -N "$2" "$kernel/vmlinuz" | tr -d ' '
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The boot protocol's header (Documentation/arch/x86/boot.rst) says where the compressed ELF image
# is: payload_offset and payload_length count from the end of the setup sectors. The last 4 bytes
# are the uncompressed size, which the kernel's build appends.
setup_sectors=$(number $((0x1f1)) 1)
offset=$(((setup_sectors + 1) * 512 + $(number $((0x248)) 4)))
length=$(($(number $((0x24c)) 4) - 4))
tail -c "+$((offset + 1))" "$kernel/vmlinuz" | head -c "$length" >"$work/payload"

case $(od -A n -t x1 -N 4 "$work/payload" | tr -d ' ') in
fd377a58) unpack=xz ;;
28b52ffd) unpack=zstd ;;
02214c18) unpack=lz4 ;;
1f8b*) unpack=gzip ;;
*)
	echo "generate.sh: $kernel/vmlinuz: unknown compression" >&2
	exit 1
	;;
esac
"$unpack" -dc <"$work/payload" >"$work/vmlinux"

"$bpftool" btf dump file "$work/vmlinux" format c >"$work/vmlinux.h"
grep -q '^#ifndef __VMLINUX_H__' "$work/vmlinux.h"
mv "$work/vmlinux.h" "$here/vmlinux.h"
chmod 644 "$here/vmlinux.h"

cat >"$here/README.md" <<END
# vmlinux.h

The types of a Linux kernel as one C header, for the programs in \`bpf/\`. It is the only generated
file in git, so that a build needs neither the network nor a kernel image.

Generated from Debian's package \`$(cat "$kernel/package")\` by

    vmlinux/generate.sh

which takes the image from \`scripts/fetch-kernel 6.12\`, unpacks it and lets \`bpftool btf dump\`
print its BTF. \`vmlinux/generate.sh --refresh\` moves to the newest 6.12 kernel that Debian has.

Field offsets in it are not those of the kernel that the daemon runs on: libbpf relocates each
access (CO-RE), so a newer header is needed only for a type or field that is not in this one.
END
