/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* What the iterator bpf/unseen.bpf.c writes of each socket in vsr_socks. Not pinned, not part of
 * the ABI: the program and its one reader are built together. */
#ifndef VSR_UNSEEN_H
#define VSR_UNSEEN_H

#ifndef __VMLINUX_H__
#include <linux/types.h>
#endif

struct vsr_unseen {
	__u64 cookie;
	__u32 references; /* sk_refcnt */
	__u32 pad;
};
_Static_assert(sizeof(struct vsr_unseen) == 16, "both sides");

#endif
