// SPDX-License-Identifier: GPL-2.0-only
/*
 * Diagnostics, attached on demand by `vsock-relayctl trace`, apart from the data path: nothing in
 * here changes anything. Each program looks at one place in the kernel (or in the daemon), drops
 * what was not asked for, and puts the rest into one ring buffer. What packets mean together,
 * user space finds out (user/flow.c).
 *
 *   incoming packets   the tracepoint virtio_transport_recv_pkt, before the socket is looked up
 *   outgoing packets   the transports' send functions: the tracepoint virtio_transport_alloc_pkt
 *                      comes before the credit is written into the header
 *   loopback           only where a packet comes in: each would be seen twice
 *
 * The types of modules are not in vmlinux.h. What we need of them is declared here, and found in
 * the modules' own BTF (CO-RE; what stands behind ___ in a name is ignored).
 */
#include "regs.h"
#include "vmlinux.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/usdt.bpf.h>

#include "vsr_trace.h"

/* libbpf's macros declare every argument up to the one that is wanted. */
#pragma clang diagnostic ignored "-Wunused-parameter"

char LICENSE[] SEC("license") = "GPL";

/* Set by user/trace.c before the load; the verifier removes what they switch off. */
const volatile bool filter_cid = false;	 /* only packets from or to this CID */
const volatile bool filter_port = false; /* only packets from or to this port */
const volatile bool filter_ops = false;	 /* only operations whose bit is set in ops */
const volatile __u32 cid = 0;
const volatile __u32 port = 0;
const volatile __u32 ops = 0;

__u64 seen = 0; /* what passed the filters ... */
__u64 lost = 0; /* ... and found no room in the ring buffer */

/* struct vsr_trace_event; user/trace.c sets the size. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} vsr_trace SEC(".maps");

/* The header on the wire, little-endian (virtio specification, 5.10.6). */
struct wire_header {
	__u64 src_cid;
	__u64 dst_cid;
	__u32 src_port;
	__u32 dst_port;
	__u32 len;
	__u16 type;
	__u16 op;
	__u32 flags;
	__u32 buf_alloc;
	__u32 fwd_cnt;
} __attribute__((packed));
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "wire_header is read as it is");

struct sockaddr_vm___trace {
	unsigned int svm_port;
	unsigned int svm_cid;
} __attribute__((preserve_access_index));

struct vsock_sock___trace {
	struct sockaddr_vm___trace local_addr;
	struct sockaddr_vm___trace remote_addr;
} __attribute__((preserve_access_index));

struct vhost_vsock___trace {
	__u32 guest_cid;
} __attribute__((preserve_access_index));

/* struct sock's sk_user_data belongs to a psock: the socket is in a sockmap (SK_USER_DATA_PSOCK in
 * the kernel's include/net/sock.h). */
#define USER_DATA_PSOCK 4

static __always_inline bool wanted(__u32 src_cid, __u32 src_port, __u32 dst_cid, __u32 dst_port)
{
	if (filter_cid && src_cid != cid && dst_cid != cid)
		return false;
	return !filter_port || src_port == port || dst_port == port;
}

/* Room for an event, its time taken. NULL: there is none, and that is counted. */
static __always_inline struct vsr_trace_event *event_new(__u32 kind)
{
	struct vsr_trace_event *e;

	__sync_fetch_and_add(&seen, 1);
	e = bpf_ringbuf_reserve(&vsr_trace, sizeof(*e), 0);
	if (!e) {
		__sync_fetch_and_add(&lost, 1);
		return NULL;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->ns = bpf_ktime_get_boot_ns();
	e->kind = kind;
	e->lost = lost;
	return e;
}

static __always_inline void say_who(struct vsr_trace_event *e)
{
	e->pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(e->comm, sizeof(e->comm));
}

static __always_inline bool op_wanted(__u32 op)
{
	return !filter_ops || (op < 32 && (ops & (1U << op)));
}

SEC("raw_tp/virtio_transport_recv_pkt")
int trace_recv(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 src_cid = ctx->args[0], src_port = ctx->args[1];
	__u32 dst_cid = ctx->args[2], dst_port = ctx->args[3];
	__u16 op = ctx->args[6];
	struct vsr_trace_event *e;

	if (!wanted(src_cid, src_port, dst_cid, dst_port) || !op_wanted(op))
		return 0;
	e = event_new(VSR_TRACE_PACKET);
	if (!e)
		return 0;
	e->src_cid = src_cid;
	e->src_port = src_port;
	e->dst_cid = dst_cid;
	e->dst_port = dst_port;
	e->len = ctx->args[4];
	e->type = ctx->args[5];
	e->op = op;
	e->flags = ctx->args[7];
	e->buf_alloc = ctx->args[8];
	e->fwd_cnt = ctx->args[9];
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/* The header stands at the head of the buffer (virtio_vsock_hdr() in the kernel). */
static __always_inline int trace_send(struct sk_buff *packet)
{
	struct wire_header h;
	struct vsr_trace_event *e;

	if (bpf_probe_read_kernel(&h, sizeof(h), BPF_CORE_READ(packet, head)))
		return 0;
	if (!wanted(h.src_cid, h.src_port, h.dst_cid, h.dst_port) || !op_wanted(h.op))
		return 0;
	e = event_new(VSR_TRACE_PACKET);
	if (!e)
		return 0;
	e->src_cid = h.src_cid;
	e->src_port = h.src_port;
	e->dst_cid = h.dst_cid;
	e->dst_port = h.dst_port;
	e->len = h.len;
	e->type = h.type;
	e->op = h.op;
	e->flags = h.flags;
	e->buf_alloc = h.buf_alloc;
	e->fwd_cnt = h.fwd_cnt;
	e->sent = 1;
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/* To a guest of this machine ... */
SEC("kprobe/vhost_transport_send_pkt")
int BPF_KPROBE(trace_send_to_guest, struct sk_buff *packet)
{
	return trace_send(packet);
}

/* ... and to the host, if this machine is a guest itself. */
SEC("kprobe/virtio_transport_send_pkt")
int BPF_KPROBE(trace_send_to_host, struct sk_buff *packet)
{
	return trace_send(packet);
}

/* An event about a connection: src is its peer. NULL: not wanted, or no room. */
static __always_inline struct vsr_trace_event *event_of_socket(__u32 kind, const void *sk)
{
	const struct vsock_sock___trace *vsk = sk;
	__u32 src_cid = BPF_CORE_READ(vsk, remote_addr.svm_cid);
	__u32 src_port = BPF_CORE_READ(vsk, remote_addr.svm_port);
	__u32 dst_cid = BPF_CORE_READ(vsk, local_addr.svm_cid);
	__u32 dst_port = BPF_CORE_READ(vsk, local_addr.svm_port);
	struct vsr_trace_event *e;

	if (!wanted(src_cid, src_port, dst_cid, dst_port))
		return NULL;
	e = event_new(kind);
	if (e) {
		e->src_cid = src_cid;
		e->src_port = src_port;
		e->dst_cid = dst_cid;
		e->dst_port = dst_port;
		say_who(e);
	}
	return e;
}

/* The arguments behind these two changed in 6.10. */
SEC("fexit/vsock_accept")
int BPF_PROG(trace_accept, struct socket *sock, struct socket *newsock)
{
	struct sock *sk = BPF_CORE_READ(newsock, sk);
	struct vsr_trace_event *e;

	if (!sk)
		return 0; /* nothing was accepted */
	e = event_of_socket(VSR_TRACE_ACCEPT, sk);
	if (e)
		bpf_ringbuf_submit(e, 0);
	return 0;
}

/* The socket's own queue is read. All that the verdict has passed is in another one. */
SEC("fexit/virtio_transport_stream_dequeue")
int BPF_PROG(trace_raw_read, struct sock *sk, struct msghdr *msg, size_t len, int flags,
	     ssize_t ret)
{
	struct vsr_trace_event *e;

	if (ret <= 0 || !((unsigned long)BPF_CORE_READ(sk, sk_user_data) & USER_DATA_PSOCK))
		return 0;
	e = event_of_socket(VSR_TRACE_RAW_READ, sk);
	if (e) {
		e->len = ret;
		e->flags = flags;
		bpf_ringbuf_submit(e, 0);
	}
	return 0;
}

/* A VM ends: its device is closed. */
SEC("fentry/vhost_vsock_dev_release")
int BPF_PROG(trace_vm_end, struct inode *inode, struct file *file)
{
	const struct vhost_vsock___trace *v = BPF_CORE_READ(file, private_data);
	__u32 guest = BPF_CORE_READ(v, guest_cid);
	struct vsr_trace_event *e;

	if (guest == 0 || (filter_cid && guest != cid))
		return 0; /* it never got as far as having a CID */
	e = event_new(VSR_TRACE_VM_END);
	if (!e)
		return 0;
	e->src_cid = guest;
	say_who(e);
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/* Next, and for every connection of every VM; it sets the error of those that the ended one had. By
 * then who serves the connection may have closed it already. */
SEC("fexit/vhost_vsock_reset_orphans")
int BPF_PROG(trace_vanished, struct sock *sk)
{
	struct vsr_trace_event *e;

	if (BPF_CORE_READ(sk, sk_err) != 104 /* ECONNRESET */)
		return 0;
	e = event_of_socket(VSR_TRACE_VANISHED, sk);
	if (e)
		bpf_ringbuf_submit(e, 0);
	return 0;
}

/* USDT probe `accepted` of the daemon (user/usdt.h). */
SEC("usdt")
int BPF_USDT(trace_custody, __u32 ns, __u32 vm_cid, __u32 vm_port, __u64 generation, __u64 bytes)
{
	struct vsr_trace_event *e;

	if (filter_cid && vm_cid != cid)
		return 0;
	e = event_new(VSR_TRACE_CUSTODY);
	if (!e)
		return 0;
	e->src_cid = vm_cid;
	e->src_port = vm_port;
	e->len = bytes;
	say_who(e);
	bpf_ringbuf_submit(e, 0);
	return 0;
}
