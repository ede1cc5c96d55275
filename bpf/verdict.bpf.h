/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the verdict program decides about a packet, as pure functions on the connection's entry:
 * the header's state machine, the limit, the charge, the split into blocks, the comparison with
 * cached content. Everything here compiles natively too (tests/test_verdict.c); what needs the kernel is in ingest.bpf.c.
 */
#ifndef VSR_VERDICT_BPF_H
#define VSR_VERDICT_BPF_H

#include "vsr_frame.h"

#define verdict_inline static inline __attribute__((always_inline))

/* What the kernel charges, in bytes. */
struct verdict_cost {
	__u64 rmem;	/* receive queue: packets passed and not yet read */
	__u64 wmem;	/* send queue: credit updates that the guest has not read */
	__u64 truesize; /* of the packet at hand */
};

/* What must be known of a packet before a byte of it is read. Returns the flag that it raises, 0
 * if it may be looked at. A packet without payload raises its flag whatever went before. */
verdict_inline __u32 verdict_gate(__u32 len, __u64 wmem)
{
	if (len == 0)
		return VSR_CONN_ZERO_LENGTH;
	if (len > VSR_PACKET_MAX)
		return VSR_CONN_BAD_PACKET;
	if (wmem > VSR_UNREAD_UPDATES)
		return VSR_CONN_UNREAD_UPDATES;
	return 0;
}

/* True while the next byte of the stream belongs to the header, or decides that there is none. */
verdict_inline int verdict_in_header(const struct vsr_conn *c)
{
	return c->mode != VSR_MODE_RAW && c->header_len < VSR_HEADER_SIZE;
}

/*
 * Takes the next byte of the stream into the header; only while verdict_in_header(). Returns the
 * flag that it raises, or 0. After a first byte that is not 'V' the mode is VSR_MODE_RAW, nothing
 * was taken, and the byte is the payload's first. Refuses as soon as the bytes rule every magic
 * out, so that a guest learns nothing by waiting.
 */
verdict_inline __u32 verdict_header_byte(struct vsr_conn *c, __u8 byte, __u64 limit)
{
	__u32 at = c->header_len;

	if (at == 0 && byte != 'V') {
		c->mode = VSR_MODE_RAW;
		return 0;
	}
	c->header[at & (VSR_HEADER_SIZE - 1)] = byte;
	c->header_len = at + 1;

	if (at < VSR_MAGIC_SIZE) {
		if (!vsr_magic_possible(c->header, at + 1))
			return VSR_CONN_BAD_HEADER;
		if (at == VSR_MAGIC_SIZE - 1)
			c->mode = vsr_magic_mode(c->header);
		return 0;
	}
	if (at == VSR_HEADER_SIZE - 1) {
		c->frame_len = vsr_get_be32(c->header + VSR_MAGIC_SIZE);
		return c->frame_len > limit ? VSR_CONN_TOO_LARGE : VSR_CONN_HEADER_DONE;
	}
	return 0;
}

/*
 * How many of the len bytes that follow the header's end are payload: all in raw mode, those of
 * the frame in framed mode. Returns VSR_CONN_TOO_LARGE where a raw report would outgrow limit
 * (exactly limit is allowed), else 0.
 */
verdict_inline __u32 verdict_payload(const struct vsr_conn *c, __u32 len, __u64 limit,
				     __u32 *ret_payload)
{
	__u64 left;

	if (c->mode == VSR_MODE_RAW) {
		if (c->payload + len > limit)
			return VSR_CONN_TOO_LARGE;
		*ret_payload = len;
		return 0;
	}
	if (c->header_len < VSR_HEADER_SIZE) {
		*ret_payload = 0;
		return 0;
	}
	left = c->frame_len - c->payload;
	*ret_payload = len < left ? len : left;
	return 0;
}

/* True when the bytes counted so far are a whole frame. */
verdict_inline int verdict_frame_done(const struct vsr_conn *c)
{
	return c->mode != VSR_MODE_RAW && c->header_len == VSR_HEADER_SIZE &&
	       c->payload == c->frame_len;
}

/*
 * Brings packets_queued down to what the receive queue can still hold: 0 when it is empty, and
 * never more packets than its memory has room for, so that a reader that keeps pace but never
 * quite empties the queue is not charged for packets that it read long ago.
 */
verdict_inline void verdict_requeue(struct vsr_conn *c, __u64 rmem)
{
	__u64 most = rmem / VSR_PACKET_TRUESIZE_MIN;

	if (c->packets_queued > most)
		c->packets_queued = most;
}

/* Bytes that the connection costs with the packet at hand in its queue (DESIGN 2, charge). What was
 * dropped as known is among them, since the daemon restores it from its cache as soon as it reads;
 * buffered is without it. */
verdict_inline __u64 verdict_charge(const struct vsr_conn *c, __u64 buffered,
				    const struct verdict_cost *cost)
{
	return buffered + c->known + cost->rmem + cost->wmem + cost->truesize +
	       VSR_PACKET_OVERHEAD * (c->packets_queued + 1);
}

/* Draws n bytes of the shared reserve for this connection. Returns whether it had them. */
verdict_inline int verdict_draw(struct vsr_conn *c, struct vsr_pool *pool, __u64 n)
{
	__u64 limit = *(volatile __u64 *)&pool->limit;
	__u64 drawn = *(volatile __u64 *)&pool->drawn;

	/* A draw without hope must not be seen by others, not even until it is undone. */
	if (drawn + n > limit)
		return 0;
	drawn = __sync_fetch_and_add(&pool->drawn, n);
	if (drawn + n > limit) {
		__sync_fetch_and_add(&pool->drawn, -n);
		return 0;
	}
	c->pool_share += n;
	return 1;
}

/*
 * Whether the connection may cost charge bytes, of the reservation that the daemon published and
 * what it has of the shared reserve; what is missing is drawn from there. Returns 0,
 * VSR_CONN_HALF when more than half is in use, or VSR_CONN_OVER_BUDGET when it does not fit.
 */
verdict_inline __u32 verdict_afford(struct vsr_conn *c, struct vsr_pool *pool, __u64 reservation,
				    __u64 charge)
{
	__u64 have = reservation + c->pool_share;

	if (charge <= have / 2)
		return 0;
	if (charge <= have)
		return VSR_CONN_HALF;
	/* No grant, no reserve: such a guest sends in spite of zero credit. */
	if (reservation == 0 || !verdict_draw(c, pool, charge - have))
		return VSR_CONN_OVER_BUDGET;
	return VSR_CONN_HALF;
}

/* How many of left bytes go into the block that is being filled. */
verdict_inline __u32 verdict_block_part(__u64 payload, __u32 left)
{
	__u32 room = VSR_BLOCK_SIZE - (payload & (VSR_BLOCK_SIZE - 1));

	return left < room ? left : room;
}

/*
 * Comparison (DESIGN 2). While all that a stream has brought equals a content that the daemon has
 * cached, its packets are dropped. Only whole blocks are compared, since only their digests are
 * known; bytes that do not fill a block yet are believed, and stay in the block's buffer, where the
 * daemon finds them: at the end it compares them itself. A padded last block is never compared: a
 * stream that goes on with zeros would equal it.
 */

/* Whether the connection's stream, about to bring `left` bytes of payload, can still equal a content
 * of this length (0: there is none to compare with). Bytes past its end differ. */
verdict_inline int verdict_can_match(const struct vsr_conn *c, __u64 content, __u32 left)
{
	return content > 0 && !(c->flags & VSR_CONN_DIVERGED) && c->payload + left <= content;
}

/* The block at c->payload was filled: whether it equals the content's there, whose digest is
 * `cached`. */
verdict_inline int verdict_block_matches(struct vsr_conn *c, __u64 hash, __u64 cached)
{
	if (hash != cached)
		return 0;
	c->matched += VSR_BLOCK_SIZE;
	return 1;
}

#endif
