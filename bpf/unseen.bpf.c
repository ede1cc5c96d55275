// SPDX-License-Identifier: GPL-2.0-only
/*
 * An iterator over vsr_socks: how many references each socket has.
 *
 * Packets without payload wake nobody, so the verdict is never shown them, and the kernel charges
 * them to no socket (docs/kernel-facts.md, unseen_packets). But each packet in a vsock socket's own
 * queue holds a reference on the socket (skb_set_owner_sk_safe(), virtio_transport_recv_pkt()), and
 * the verdict takes every other packet out of that queue at once: what is above the few references
 * of an idle socket (user/unseen.h) are packets that nobody was shown.
 */
#include "vmlinux.h"

#include <bpf/bpf_helpers.h>

#include "vsr_unseen.h"

char LICENSE[] SEC("license") = "GPL";

SEC("iter/sockmap")
int vsr_unseen(struct bpf_iter__sockmap *ctx)
{
	struct sock *sk = ctx->sk;
	struct vsr_unseen seen = {};
	__u64 *cookie = ctx->key;

	if (!sk || !cookie)
		return 0;
	seen.cookie = *cookie;
	seen.references = sk->__sk_common.skc_refcnt.refs.counter;
	bpf_seq_write(ctx->meta->seq, &seen, sizeof(seen));
	return 0;
}
