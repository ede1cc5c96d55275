/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * The one header that the BPF programs and user space share: names, keys and values of the maps
 * (SPEC section 11), and nothing else. Fixed-width types, explicit padding, sizes and offsets
 * asserted: a change of any of them must raise VSR_ABI_VERSION, because pinned maps outlive us.
 *
 * BPF includes it after vmlinux.h, user space after <linux/types.h>.
 */
#ifndef VSR_ABI_H
#define VSR_ABI_H

#ifndef __VMLINUX_H__
#include <linux/types.h>
#endif

#define VSR_ABI_VERSION 1

#define VSR_PIN_DIR "/sys/fs/bpf/vsock_relay"

/* Bytes of one block of the digest, and of one block buffer (include/vsr_digest.h). */
#define VSR_BLOCK_SIZE 4096
/* The most payload that one vsock packet carries: VIRTIO_VSOCK_MAX_PKT_BUF_SIZE in Linux. */
#define VSR_PACKET_MAX 65536
/* What the kernel spends for each packet that it queues for us, beyond its truesize: one sk_msg
 * (KERNEL.md 1b row 22; measured 2.0 KB for a packet of one byte). */
#define VSR_PACKET_OVERHEAD 2048
/* No packet in the receive queue has a smaller truesize: sk_buff and skb_shared_info alone are
 * more. So rmem / this bounds the number of packets that can still be queued. */
#define VSR_PACKET_TRUESIZE_MIN 512
/* Unread credit updates after which a connection is given up (SPEC 11, unread_updates). */
#define VSR_UNREAD_UPDATES (512 * 1024)

/* Identifies a VM on this node: the namespace's configured number, and the peer's CID as the
 * kernel reports it. */
struct vsr_vm_id {
	__u32 ns;
	__u32 cid;
};

/* How the bytes of a connection are framed. The first byte tells: a VMReport never begins with
 * 'V' (it would be field 10 with wire type 6, which does not exist). */
enum vsr_mode {
	VSR_MODE_UNKNOWN = 0, /* no byte, or not yet 4 bytes that begin with 'V' */
	VSR_MODE_RAW = 1,
	VSR_MODE_VSR1 = 2,
	VSR_MODE_VSR2 = 3,
};

/* Flags of a connection: the truth; events only wake the daemon up. */
enum vsr_conn_flag {
	VSR_CONN_HALF = 1 << 0,		  /* charge passed half of the reservation: read now */
	VSR_CONN_OVER_BUDGET = 1 << 1,	  /* charge passed the reservation: a packet was dropped */
	VSR_CONN_UNREAD_UPDATES = 1 << 2, /* the guest does not read its credit updates */
	VSR_CONN_HEADER_DONE = 1 << 3,	  /* all 16 bytes of the header were seen */
	VSR_CONN_FRAME_DONE = 1 << 4,	  /* all bytes of the frame were seen */
	VSR_CONN_DIVERGED = 1 << 5,	  /* stopped matching the cached content */
	VSR_CONN_ZERO_LENGTH = 1 << 6,	  /* violation: a packet without payload (KERNEL.md 0.1) */
	VSR_CONN_BAD_HEADER = 1 << 7,	  /* violation: begins with 'V', but is no known magic */
	VSR_CONN_TOO_LARGE = 1 << 8,	  /* violation: more bytes than the report limit */
	VSR_CONN_BAD_PACKET = 1 << 9,  /* violation: length out of bounds, or bytes not readable */
	VSR_CONN_EVENT_LOST = 1 << 10, /* the ring buffer was full; must stay 0 */
};
#define VSR_CONN_VIOLATIONS \
	(VSR_CONN_ZERO_LENGTH | VSR_CONN_BAD_HEADER | VSR_CONN_TOO_LARGE | VSR_CONN_BAD_PACKET)
/* With any of these the connection has no report any more: BPF drops every further packet. */
#define VSR_CONN_REFUSED (VSR_CONN_VIOLATIONS | VSR_CONN_OVER_BUDGET | VSR_CONN_UNREAD_UPDATES)

#define VSR_HEADER_SIZE 16

/*
 * vsr_conns: HASH, socket cookie -> this. The daemon inserts it before it attaches the socket;
 * from then on only BPF writes it. BPF runs under the socket's lock, so one writer at a time.
 */
struct vsr_conn {
	struct vsr_vm_id vm;
	__u32 slot;	      /* index into vsr_grants and vsr_bufs */
	__u32 flags;	      /* enum vsr_conn_flag */
	__u64 seen;	      /* bytes of the stream shown to BPF, header included */
	__u64 passed;	      /* of those, bytes queued for the daemon */
	__u64 known;	      /* of those, bytes dropped because the daemon's cache has them */
	__u64 refused;	      /* of those, bytes dropped because of a limit or a violation */
	__u64 packets;	      /* packets shown to BPF, those without payload included */
	__u64 packets_queued; /* most packets that can be in the receive queue: those passed since
			       * it was last empty, and no more than its memory allows */
	__u64 pool_share;     /* bytes drawn from vsr_pool, given back by the daemon at the end */
	__u64 first_ns;	      /* CLOCK_BOOTTIME of the first packet */
	__u64 last_ns;	      /* CLOCK_BOOTTIME of the last packet */
	__u8 header[VSR_HEADER_SIZE];
	__u32 header_len; /* bytes in header */
	__u32 mode;	  /* enum vsr_mode */
	__u64 frame_len;  /* payload length that the header announced */
	__u64 payload;	  /* payload bytes hashed so far (a partial block included) */
	__u64 fold;	  /* digest of the full blocks so far; the daemon finishes it with the
			   * partial block in vsr_bufs (user/digest.h) */
	__u64 matched;	  /* payload bytes that equal the cached content, whole blocks */
	__u64 match_left; /* payload bytes still to be compared with the cached content */
};
_Static_assert(sizeof(struct vsr_vm_id) == 8, "ABI");
_Static_assert(sizeof(struct vsr_conn) == 152, "ABI");

/* vsr_grants: ARRAY, mmapable, slot -> this. Written by the daemon with aligned 8-byte stores. */
struct vsr_grant {
	__u64 reservation;  /* bytes that the connection may cost in all; 0: no grant */
	__u64 buffered;	    /* bytes of it held by the daemon's receive buffer */
	__u64 extent;	    /* first index into vsr_blocks of the content to compare with */
	__u64 extent_bytes; /* length of that content; 0: nothing to compare with */
};
_Static_assert(sizeof(struct vsr_grant) == 32, "ABI");

/* vsr_bufs: ARRAY, slot -> this. */
struct vsr_buf {
	__u8 block[VSR_BLOCK_SIZE];    /* the block that is being filled */
	__u8 diverged[VSR_BLOCK_SIZE]; /* the partial block at the first difference, written once */
};
_Static_assert(sizeof(struct vsr_buf) == 8192, "ABI");

/* vsr_pool: ARRAY, mmapable, 0 -> this. Both sides change it, with atomics only. */
struct vsr_pool {
	__u64 limit; /* bytes of the shared reserve */
	__u64 drawn; /* bytes of it that connections have drawn */
};
_Static_assert(sizeof(struct vsr_pool) == 16, "ABI");

/* vsr_vms: LRU_HASH, struct vsr_vm_id -> this: what the kernel saw of a VM. Survives a restart. */
struct vsr_vm_seen {
	__u64 first_seen_ns; /* CLOCK_BOOTTIME */
	__u64 last_seen_ns;  /* CLOCK_BOOTTIME */
	__u64 connections;   /* that sent at least one packet */
	__u64 packets;
	__u64 bytes;
	__u64 bytes_known; /* dropped in the kernel because the cache has them */
	__u64 duplicates;  /* streams dropped to their end as known */
	__u64 zero_length; /* violations by kind, one per connection */
	__u64 bad_header;
	__u64 too_large;
	__u64 bad_packet;
	__u64 over_budget;
	__u64 unread_updates;
};
_Static_assert(sizeof(struct vsr_vm_seen) == 104, "ABI");

/* vsr_vm_state: LRU_HASH, struct vsr_vm_id -> this: what the daemon knows of a VM, for people to
 * read; it never decides anything. Survives a restart. */
struct vsr_vm_state {
	__u64 received;	     /* valid reports */
	__u64 accepted;	     /* reports taken into custody */
	__u64 duplicates;    /* reports recognised as a repeat */
	__u64 refused;	     /* connections refused, for whatever reason */
	__u64 record_length; /* length of the content of record, bytes */
	__u64 record_digest; /* its digest; 0 with length 0: none */
	__u64 generation;    /* the newest */
	__u32 custody;	     /* 1: the relay owes the delivery of that generation */
	__u32 pad;
	__u64 last_accepted_ns; /* CLOCK_BOOTTIME; 0: never */
	__u64 last_ack_ns;	/* CLOCK_BOOTTIME; 0: never */
	__u64 debt;		/* bytes left queued for the guest by closed connections */
};
_Static_assert(sizeof(struct vsr_vm_state) == 88, "ABI");

/* vsr_events: RINGBUF of this. Each kind at most once a connection. */
enum vsr_event_kind {
	VSR_EVENT_HALF = 1,
	VSR_EVENT_OVER_BUDGET = 2,
	VSR_EVENT_UNREAD_UPDATES = 3,
	VSR_EVENT_HEADER = 4, /* header of an offer (VSR2) complete: it can be answered */
	VSR_EVENT_FRAME = 5,  /* framed report complete */
	VSR_EVENT_DIVERGED = 6,
	VSR_EVENT_VIOLATION = 7,
};

struct vsr_event {
	__u64 cookie;
	__u32 kind; /* enum vsr_event_kind */
	__u32 slot;
};
_Static_assert(sizeof(struct vsr_event) == 16, "ABI");

/* vsr_abi: ARRAY, 0 -> this: pinned beside vsr_vms and vsr_vm_state, says which layout they have.
 * Tells the next start of the daemon whether it can re-use them; written once, before the pin. */
struct vsr_abi_info {
	__u32 version; /* VSR_ABI_VERSION */
	__u32 pad;
};
_Static_assert(sizeof(struct vsr_abi_info) == 8, "ABI");

/* vsr_stats: PERCPU_ARRAY, 0 -> this: totals, and a count for every error path of BPF. */
struct vsr_stats {
	__u64 packets;
	__u64 bytes;
	__u64 bytes_passed;
	__u64 bytes_known;
	__u64 bytes_refused;
	__u64 zero_length;
	__u64 bad_header;
	__u64 too_large;
	__u64 bad_packet;
	__u64 over_budget;
	__u64 unread_updates;
	__u64 pool_draws;	/* packets that were paid from the shared reserve */
	__u64 no_conn;		/* packets of a socket without an entry in vsr_conns */
	__u64 no_slot;		/* must stay 0: entry with a slot out of range */
	__u64 load_failed;	/* must stay 0: bpf_skb_load_bytes failed */
	__u64 event_lost;	/* must stay 0: vsr_events was full */
	__u64 vm_insert_failed; /* must stay 0: vsr_vms took no entry */
};
_Static_assert(sizeof(struct vsr_stats) == 136, "ABI");

#endif
