/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * What bpf/trace.bpf.c tells user/trace.c: the records of its ring buffer. Both are built
 * together and nothing of it is pinned, so this is no ABI (that is include/vsr_abi.h).
 *
 * BPF includes it after vmlinux.h, user space after <linux/types.h>.
 */
#ifndef VSR_TRACE_H
#define VSR_TRACE_H

#ifndef __VMLINUX_H__
#include <linux/types.h>
#endif

/* Operations of a packet: enum virtio_vsock_op of the virtio specification, 5.10.6. */
enum vsr_op {
	VSR_OP_REQUEST = 1,
	VSR_OP_RESPONSE = 2,
	VSR_OP_RST = 3,
	VSR_OP_SHUTDOWN = 4,
	VSR_OP_RW = 5,
	VSR_OP_CREDIT_UPDATE = 6,
	VSR_OP_CREDIT_REQUEST = 7,
	VSR_OP_END,
};

/* Flags of a SHUTDOWN. */
#define VSR_SHUTDOWN_RCV  1 /* its sender receives no more */
#define VSR_SHUTDOWN_SEND 2 /* its sender sends no more */
#define VSR_SHUTDOWN_BOTH (VSR_SHUTDOWN_RCV | VSR_SHUTDOWN_SEND)

enum vsr_trace_kind {
	/* A packet, as its header says: src_cid to fwd_cnt, sent. */
	VSR_TRACE_PACKET = 1,
	/* accept() returned a connection: src is the peer, dst we. pid, comm: who called it. */
	VSR_TRACE_ACCEPT = 2,
	/* recv() took len bytes that bypass the verdict of an attached socket: src is the peer,
	 * dst we; flags are those of recv(). pid, comm. */
	VSR_TRACE_RAW_READ = 3,
	/* The VM src_cid ends: its device was closed. Its connections follow. */
	VSR_TRACE_VM_END = 4,
	/* The peer's VM is gone, and the connection with it: src is the peer, dst we. */
	VSR_TRACE_VANISHED = 5,
	/* The daemon took a report into custody (USDT probe `accepted`): src is the agent, 0:0 on a
	 * hybrid socket; len bytes. pid. */
	VSR_TRACE_CUSTODY = 6,
};

#define VSR_TRACE_COMM 16

struct vsr_trace_event {
	__u64 ns; /* CLOCK_BOOTTIME */
	__u32 kind;
	__u32 src_cid, src_port;
	__u32 dst_cid, dst_port;
	__u32 len;
	__u16 type; /* 1 stream, 2 seqpacket */
	__u16 op;   /* enum vsr_op, or whatever else a guest has sent */
	__u32 flags;
	__u32 buf_alloc; /* credit: size of the sender's receive buffer ... */
	__u32 fwd_cnt;	 /* ... and how many bytes it has consumed so far, modulo 2^32 */
	__u32 sent;	 /* 1: this kernel sends it, 0: it came in */
	__u32 pid;
	char comm[VSR_TRACE_COMM];
	__u32 lost; /* events lost before this one, modulo 2^32 */
};
_Static_assert(sizeof(struct vsr_trace_event) == 80, "shared with BPF");

#endif
