// SPDX-License-Identifier: GPL-2.0-only
/*
 * The verdict program of vsr_socks: sees every packet that a guest sends on an accepted vsock
 * connection, before the daemon does. It reads the frame's header, enforces the limits, hashes
 * the payload block by block, drops it as long as it equals what the daemon has cached of the VM,
 * keeps per-VM counts, and wakes the daemon up where it is needed.
 *
 * It runs under the socket's lock (in the VM's vhost worker), so verdicts of one socket never
 * overlap: its entry in vsr_conns and its buffers in vsr_bufs have one writer. Different sockets
 * run in parallel: vsr_vms, vsr_pool and vsr_stats change by atomics only.
 *
 * Payload is read by bpf_skb_load_bytes() alone. Direct access, bpf_skb_pull_data() and
 * bpf_dynptr_slice() without a buffer are not safe on the packets that a guest can make: the
 * linear length may be 0 or negative.
 */
#ifdef __bpf__
#include "vmlinux.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#define SETTING const volatile
#else
#include "native.h"
#endif

#include "hash.bpf.h"
#include "verdict.bpf.h"

char LICENSE[] SEC("license") = "GPL";

/* Set by user/ingest_bpf.c before the load. */
SETTING __u64 vsr_seed = 0;	    /* of the digest: the node's */
SETTING __u64 vsr_report_limit = 0; /* most payload bytes of a report */

/* Weak: a kernel without it (before 6.2) still gets the maps of user-space mode from this object;
 * the program is refused there, by the verifier. */
extern void *bpf_cast_to_kern_ctx(void *obj) __ksym __weak;

/* ---- maps: all sizes are set by user/ingest_bpf.c before the load ------------------------------ */

/* The accepted sockets; a socket in here has this program as its verdict. */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u64));
	__uint(value_size, sizeof(__u64));
} vsr_socks SEC(".maps");

/* One entry a connection: what was seen of its stream, and whether it still can be a report.
 * Preallocated HASH, never LRU: an evicted entry would be a report lost. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, struct vsr_conn);
} vsr_conns SEC(".maps");

/* What the daemon lets each connection cost; it stores through its mapping, without a syscall. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct vsr_grant);
} vsr_grants SEC(".maps");

/* The block that is being filled, of each connection: 8 KiB, too big for a stack. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct vsr_buf);
} vsr_bufs SEC(".maps");

/* The reserve that connections share, for packets that come before the daemon could react. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct vsr_pool);
} vsr_pool SEC(".maps");

/* Block digests of cached contents, to compare streams with. Preallocated, since the daemon has
 * no capability to create maps when it learns of a content. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} vsr_blocks SEC(".maps");

/* What the kernel saw of each VM: statistics, so LRU. For people; survives a restart. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, struct vsr_vm_id);
	__type(value, struct vsr_vm_seen);
} vsr_vms SEC(".maps");

/* What the daemon knows of each VM; BPF never looks at it. For people; survives a restart. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, struct vsr_vm_id);
	__type(value, struct vsr_vm_state);
} vsr_vm_state SEC(".maps");

/* Wake-ups for the daemon; struct vsr_event. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 65536);
} vsr_events SEC(".maps");

/* Totals, and a count for every error path. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct vsr_stats);
} vsr_stats SEC(".maps");

/* The layout version of the two maps that survive a restart. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct vsr_abi_info);
} vsr_abi SEC(".maps");

/* ---- the program -------------------------------------------------------------------------------- */

/* Another verdict can interrupt this one on the same CPU (preempt=full), so plain ++ loses. */
#define COUNT(p, field, n) __sync_fetch_and_add(&(p)->field, (n))

/* One packet on its way through the verdict. */
struct packet {
	struct __sk_buff *skb;
	struct vsr_conn *conn;
	struct vsr_stats *stats;
	__u32 len;
	__u32 off;  /* the next byte to look at */
	__u32 left; /* payload bytes from there on, still to be hashed */
	int failed; /* bpf_skb_load_bytes() refused */
	int match;  /* the stream, this packet included, equals the cached content so far */
	__u64 extent, content; /* that content: its first entry in vsr_blocks, its length */
	__u64 from;	       /* payload bytes before this packet */
	struct verdict_cost cost;
};

/* What the kernel charges for the socket and this packet. sk_wmem_alloc starts at 1, which stands
 * for the socket itself (sk_alloc() in the kernel). */
static __always_inline void packet_cost(struct packet *p)
{
	struct sk_buff *skb = bpf_cast_to_kern_ctx(p->skb);
	struct sock *sk = skb->sk;

	p->cost.truesize = skb->truesize;
	p->cost.rmem = 0;
	p->cost.wmem = 0;
	if (sk) {
		int rmem = sk->sk_backlog.rmem_alloc.counter;
		int wmem = sk->sk_wmem_alloc.refs.counter;

		p->cost.rmem = rmem > 0 ? rmem : 0;
		p->cost.wmem = wmem > 1 ? wmem - 1 : 0;
	}
}

/* Reads the header's bytes of the packet. Returns the flags that it raises. */
static __always_inline __u32 packet_header(struct packet *p)
{
	__u32 raised = 0;
	int i;

	for (i = 0; i < VSR_HEADER_SIZE; i++) {
		__u8 byte;

		if (raised || !verdict_in_header(p->conn) || p->off >= p->len)
			break;
		if (bpf_skb_load_bytes(p->skb, p->off, &byte, 1)) {
			COUNT(p->stats, load_failed, 1);
			return VSR_CONN_BAD_PACKET;
		}
		raised = verdict_header_byte(p->conn, byte, vsr_report_limit);
		if (p->conn->mode != VSR_MODE_RAW)
			p->off++;
	}
	return raised;
}

/* Whether the connection can pay for the packet. Returns the flag that it raises. */
static __always_inline __u32 packet_afford(struct packet *p)
{
	struct vsr_conn *c = p->conn;
	__u32 zero = 0, slot = c->slot;
	struct vsr_grant *grant = bpf_map_lookup_elem(&vsr_grants, &slot);
	struct vsr_pool *pool = bpf_map_lookup_elem(&vsr_pool, &zero);
	__u64 charge, share = c->pool_share;
	__u32 raised;

	if (!grant || !pool) {
		COUNT(p->stats, no_slot, 1);
		return VSR_CONN_BAD_PACKET;
	}
	verdict_requeue(c, p->cost.rmem);
	charge = verdict_charge(c, *(volatile __u64 *)&grant->buffered, &p->cost);
	raised = verdict_afford(c, pool, *(volatile __u64 *)&grant->reservation, charge);
	if (c->pool_share != share)
		COUNT(p->stats, pool_draws, 1);
	return raised;
}

/* Room for two blocks (struct vsr_buf has them) makes the copy below provably in bounds: it
 * starts within the first and is at most one block long. */
_Static_assert(sizeof(struct vsr_buf) >= 2 * VSR_BLOCK_SIZE - 1, "room for the verifier");

/* A global function: the verifier walks its loop once, not once for each way to get here. */
__noinline __u64 vsr_hash_block(const struct vsr_buf *buf)
{
	if (!buf)
		return 0;
	return vsr_xxh64_block((const __u64 *)buf->block, vsr_seed);
}

/* Keeps the block's bytes for the daemon, since hashing goes on in the same buffer: of them it needs
 * those that came in packets that were dropped. Once a connection. */
__noinline int vsr_save_block(struct vsr_buf *buf)
{
	__u64 *from, *to;
	__u32 i;

	if (!buf)
		return 0;
	from = (__u64 *)buf->block;
	to = (__u64 *)buf->diverged;
#ifdef __bpf__
#pragma clang loop unroll(disable)
#endif
	for (i = 0; i < VSR_BLOCK_SIZE / 8; i++)
		to[i] = from[i];
	return 0;
}

static __always_inline void packet_diverges(struct packet *p, struct vsr_buf *buf)
{
	vsr_save_block(buf);
	p->match = 0;
}

/* Compares the block that was just filled, with this hash. */
static __always_inline void packet_compare(struct packet *p, struct vsr_buf *buf, __u64 hash)
{
	__u32 index = p->extent + p->conn->payload / VSR_BLOCK_SIZE;
	__u64 *cached = bpf_map_lookup_elem(&vsr_blocks, &index);

	if (!cached)
		COUNT(p->stats, no_slot, 1);
	if (!cached || !verdict_block_matches(p->conn, hash, *cached))
		packet_diverges(p, buf);
}

/* bpf_loop() callback: the packet's part of one block. Returns 1 when nothing is left. */
static long packet_hash_part(__u32 i __attribute__((unused)), struct packet *p)
{
	struct vsr_conn *c = p->conn;
	__u32 slot = c->slot;
	struct vsr_buf *buf = bpf_map_lookup_elem(&vsr_bufs, &slot);
	__u32 fill = c->payload & (VSR_BLOCK_SIZE - 1);
	__u32 n = verdict_block_part(c->payload, p->left);

	if (!buf) {
		COUNT(p->stats, no_slot, 1);
		p->failed = 1;
		return 1;
	}
	if (n == 0 || n > VSR_BLOCK_SIZE)
		return 1;
	if (bpf_skb_load_bytes(p->skb, p->off, buf->block + fill, n)) {
		COUNT(p->stats, load_failed, 1);
		p->failed = 1;
		return 1;
	}
	if (fill + n == VSR_BLOCK_SIZE) {
		__u64 hash = vsr_hash_block(buf);

		c->fold = vsr_digest_fold(c->fold, hash);
		if (p->match)
			packet_compare(p, buf, hash);
	}
	c->payload += n;
	p->off += n;
	p->left -= n;
	return p->left == 0;
}

/* Finds out what the stream is compared with, if it is; a stream that is longer than that differs
 * here. Returns the flag that it raises. */
static __always_inline __u32 packet_match(struct packet *p)
{
	struct vsr_conn *c = p->conn;
	__u32 slot = c->slot;
	struct vsr_grant *grant = bpf_map_lookup_elem(&vsr_grants, &slot);
	struct vsr_buf *buf = bpf_map_lookup_elem(&vsr_bufs, &slot);

	p->from = c->payload;
	if (!grant || !buf || (c->flags & VSR_CONN_DIVERGED))
		return 0;
	/* They stay as they are while the socket is attached. */
	p->extent = grant->extent;
	p->content = grant->extent_bytes;
	p->match = verdict_can_match(c, p->content, p->left);
	if (p->match || !p->content)
		return 0;
	packet_diverges(p, buf);
	return VSR_CONN_DIVERGED;
}

/* Hashes the packet's payload, and compares it. Returns the flags that it raises. */
static __always_inline __u32 packet_hash(struct packet *p)
{
	int match = p->match;

	if (p->left)
		bpf_loop(VSR_PACKET_MAX / VSR_BLOCK_SIZE + 1, packet_hash_part, p, 0);
	if (p->failed)
		return VSR_CONN_BAD_PACKET;
	p->conn->match_left = p->match ? p->content - p->conn->payload : 0;
	return match && !p->match ? VSR_CONN_DIVERGED : 0;
}

/* What becomes of a packet, beside the flags that it raises. */
enum fate {
	FATE_PASS,
	FATE_KNOWN, /* dropped: the daemon's cache has it */
	FATE_DROP,
};

/*
 * Everything that can be said of a packet. Returns the flags that it raises; it is dropped if one
 * of VSR_CONN_REFUSED is among them, or as *ret_fate says. Where it is compared it is charged only
 * after that: a packet that is dropped as known costs nothing.
 */
static __always_inline __u32 packet_judge(struct packet *p, enum fate *ret_fate)
{
	struct vsr_conn *c = p->conn;
	__u32 raised;
	int compared;

	raised = verdict_gate(p->len, p->cost.wmem);
	if (raised)
		return raised;

	/* Later bytes only close a complete frame; they are no violation. */
	if (c->flags & (VSR_CONN_REFUSED | VSR_CONN_FRAME_DONE)) {
		*ret_fate = FATE_DROP;
		return 0;
	}

	raised = packet_header(p);
	if (raised & VSR_CONN_REFUSED)
		return raised;
	raised |= verdict_payload(c, p->len - p->off, vsr_report_limit, &p->left);
	if (raised & VSR_CONN_REFUSED)
		return raised;

	raised |= packet_match(p);
	compared = p->match;
	if (!compared)
		raised |= packet_afford(p);
	if (raised & VSR_CONN_REFUSED)
		return raised;

	raised |= packet_hash(p);
	if (p->match)
		*ret_fate = FATE_KNOWN;
	else if (compared)
		raised |= packet_afford(p);
	if (raised & VSR_CONN_REFUSED)
		return raised;

	/* A packet with the frame's end and more is passed whole: it cannot be split, and the
	 * daemon reads no more than it needs. */
	if (verdict_frame_done(c))
		raised |= VSR_CONN_FRAME_DONE;
	return raised;
}

/* The VM's entry, made if there is none. NULL if that failed. */
static __always_inline struct vsr_vm_seen *vm_seen(struct packet *p, __u64 now)
{
	struct vsr_vm_id id = p->conn->vm;
	struct vsr_vm_seen *vm = bpf_map_lookup_elem(&vsr_vms, &id);

	if (!vm) {
		struct vsr_vm_seen fresh = { .first_seen_ns = now };

		/* EEXIST: another connection of the VM was faster. */
		bpf_map_update_elem(&vsr_vms, &id, &fresh, BPF_NOEXIST);
		vm = bpf_map_lookup_elem(&vsr_vms, &id);
		if (!vm)
			COUNT(p->stats, vm_insert_failed, 1);
	}
	return vm;
}

/* Counts the flags that are new, for the VM and in the totals. */
#define COUNT_FLAG(flag, field)                      \
	do {                                         \
		if (fresh & (flag)) {                \
			COUNT(p->stats, field, 1);   \
			if (vm)                      \
				COUNT(vm, field, 1); \
		}                                    \
	} while (0)

static __always_inline void count_flags(struct packet *p, struct vsr_vm_seen *vm, __u32 fresh)
{
	COUNT_FLAG(VSR_CONN_ZERO_LENGTH, zero_length);
	COUNT_FLAG(VSR_CONN_BAD_HEADER, bad_header);
	COUNT_FLAG(VSR_CONN_TOO_LARGE, too_large);
	COUNT_FLAG(VSR_CONN_BAD_PACKET, bad_packet);
	COUNT_FLAG(VSR_CONN_OVER_BUDGET, over_budget);
	COUNT_FLAG(VSR_CONN_UNREAD_UPDATES, unread_updates);
}

/* A stream that is as long as the cached content and equals all its whole blocks is a duplicate, as
 * far as can be seen here: until it goes on. */
static __always_inline void count_duplicate(const struct packet *p, struct vsr_vm_seen *vm)
{
	if (!p->content || p->conn->payload == p->from)
		return;
	if (p->match && p->conn->payload == p->content)
		COUNT(vm, duplicates, 1);
	else if (p->from == p->content)
		COUNT(vm, duplicates, -1);
}

/* Counts the packet for its connection, its VM, and in the totals. */
static __always_inline void packet_count(struct packet *p, struct vsr_vm_seen *vm, enum fate fate,
					 __u64 now)
{
	struct vsr_conn *c = p->conn;

	if (vm) {
		vm->last_seen_ns = now;
		if (c->packets == 0)
			COUNT(vm, connections, 1);
		COUNT(vm, packets, 1);
		COUNT(vm, bytes, p->len);
		if (fate == FATE_KNOWN)
			COUNT(vm, bytes_known, p->len);
		count_duplicate(p, vm);
	}
	COUNT(p->stats, packets, 1);
	COUNT(p->stats, bytes, p->len);

	if (c->packets == 0)
		c->first_ns = now;
	c->last_ns = now;
	c->packets++;
	c->seen += p->len;
	switch (fate) {
	case FATE_PASS:
		c->passed += p->len;
		c->packets_queued++;
		COUNT(p->stats, bytes_passed, p->len);
		break;
	case FATE_KNOWN:
		c->known += p->len;
		COUNT(p->stats, bytes_known, p->len);
		break;
	case FATE_DROP:
		c->refused += p->len;
		COUNT(p->stats, bytes_refused, p->len);
		break;
	}
}

static __always_inline void announce(struct packet *p, __u64 cookie, __u32 kind)
{
	struct vsr_event *e = bpf_ringbuf_reserve(&vsr_events, sizeof(*e), 0);

	if (!e) {
		COUNT(p->stats, event_lost, 1);
		p->conn->flags |= VSR_CONN_EVENT_LOST;
		return;
	}
	e->cookie = cookie;
	e->kind = kind;
	e->slot = p->conn->slot;
	bpf_ringbuf_submit(e, 0);
}

/* Wakes the daemon up for the flags that are new. Events only wake: an offer is the one header
 * that somebody waits for, the header of VSR1 is a flag only. */
static __always_inline void announce_flags(struct packet *p, __u64 cookie, __u32 before,
					   __u32 fresh)
{
	if (fresh & VSR_CONN_HALF)
		announce(p, cookie, VSR_EVENT_HALF);
	if (fresh & VSR_CONN_OVER_BUDGET)
		announce(p, cookie, VSR_EVENT_OVER_BUDGET);
	if (fresh & VSR_CONN_UNREAD_UPDATES)
		announce(p, cookie, VSR_EVENT_UNREAD_UPDATES);
	if ((fresh & VSR_CONN_HEADER_DONE) && p->conn->mode == VSR_MODE_VSR2)
		announce(p, cookie, VSR_EVENT_HEADER);
	if (fresh & VSR_CONN_DIVERGED)
		announce(p, cookie, VSR_EVENT_DIVERGED);
	if (fresh & VSR_CONN_FRAME_DONE)
		announce(p, cookie, VSR_EVENT_FRAME);
	if ((fresh & VSR_CONN_VIOLATIONS) && !(before & VSR_CONN_VIOLATIONS))
		announce(p, cookie, VSR_EVENT_VIOLATION);
}

SEC("sk_skb/stream_verdict")
int vsr_ingest(struct __sk_buff *skb)
{
	__u64 cookie = bpf_get_socket_cookie(skb);
	__u64 now = bpf_ktime_get_boot_ns();
	struct packet p = { .skb = skb, .len = skb->len };
	struct vsr_vm_seen *vm;
	__u32 zero = 0, raised, before, fresh;
	enum fate fate = FATE_PASS;

	p.stats = bpf_map_lookup_elem(&vsr_stats, &zero);
	if (!p.stats)
		return SK_DROP;
	p.conn = bpf_map_lookup_elem(&vsr_conns, &cookie);
	if (!p.conn) {
		COUNT(p.stats, no_conn, 1);
		return SK_DROP;
	}

	packet_cost(&p);
	raised = packet_judge(&p, &fate);
	if (raised & VSR_CONN_REFUSED)
		fate = FATE_DROP;
	vm = vm_seen(&p, now);
	packet_count(&p, vm, fate, now);

	/* The flags come last, behind a full barrier (an atomic that returns a value is one): who
	 * reads a flag and then the rest finds the rest as new as the flag. */
	before = p.conn->flags;
	fresh = raised & ~before;
	if (fresh) {
		before = __sync_fetch_and_or(&p.conn->flags, fresh);
		fresh &= ~before;
		count_flags(&p, vm, fresh);
		announce_flags(&p, cookie, before, fresh);
	}
	return fate == FATE_PASS ? SK_PASS : SK_DROP;
}
