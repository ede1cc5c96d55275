/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * The framed mode (SPEC section 3): a header of 16 bytes before the payload, an answer of 8
 * bytes. Pure inline functions on bytes; BPF, the daemon, the agent and the tests share them.
 */
#ifndef VSR_FRAME_H
#define VSR_FRAME_H

#include "vsr_abi.h"

#define VSR_ANSWER_SIZE 8
#define VSR_MAGIC_SIZE	4

/* What the relay answers. */
enum vsr_status {
	VSR_STATUS_ACCEPTED = 0,      /* custody has begun */
	VSR_STATUS_NOTHING_TO_DO = 1, /* in custody already, or ACKed and unchanged */
	VSR_STATUS_BUSY = 2,
	VSR_STATUS_TOO_LARGE = 3,
	VSR_STATUS_MALFORMED = 4,
	VSR_STATUS_CID_MISMATCH = 5,
	VSR_STATUS_DIGEST_MISMATCH = 6,
	VSR_STATUS_INTERNAL = 7,
	VSR_STATUS_REFUSED = 8, /* by policy */
	VSR_STATUS_DEADLINE = 9,
	VSR_STATUS_GO_ON = 100, /* send the payload of the offer; it is reserved now */
};

struct vsr_header {
	__u32 mode;   /* enum vsr_mode */
	__u32 length; /* payload bytes */
	__u64 xxh64;  /* XXH64, seed 0, of the payload */
};

static inline __attribute__((always_inline)) __u32 vsr_get_be32(const __u8 *p)
{
	return (__u32)p[0] << 24 | (__u32)p[1] << 16 | (__u32)p[2] << 8 | p[3];
}

static inline __attribute__((always_inline)) __u64 vsr_get_be64(const __u8 *p)
{
	return (__u64)vsr_get_be32(p) << 32 | vsr_get_be32(p + 4);
}

static inline __attribute__((always_inline)) void vsr_put_be32(__u8 *p, __u32 v)
{
	p[0] = v >> 24;
	p[1] = v >> 16;
	p[2] = v >> 8;
	p[3] = v;
}

/* The mode that four bytes announce; VSR_MODE_UNKNOWN if they begin with 'V' but are no magic. */
static inline __attribute__((always_inline)) __u32 vsr_magic_mode(const __u8 *p)
{
	if (p[0] != 'V')
		return VSR_MODE_RAW;
	if (p[1] != 'S' || p[2] != 'R')
		return VSR_MODE_UNKNOWN;
	if (p[3] == '1')
		return VSR_MODE_VSR1;
	if (p[3] == '2')
		return VSR_MODE_VSR2;
	return VSR_MODE_UNKNOWN;
}

/* Whether the first n bytes of a stream that begins with 'V' can still become a magic. */
static inline __attribute__((always_inline)) int vsr_magic_possible(const __u8 *p, __u32 n)
{
	if (n > 1 && p[1] != 'S')
		return 0;
	if (n > 2 && p[2] != 'R')
		return 0;
	return n < 4 || p[3] == '1' || p[3] == '2';
}

/* Reads a header of VSR_HEADER_SIZE bytes. ret->mode is VSR_MODE_UNKNOWN for a bad magic. */
static inline __attribute__((always_inline)) void vsr_header_read(const __u8 *p,
								  struct vsr_header *ret)
{
	ret->mode = vsr_magic_mode(p);
	ret->length = vsr_get_be32(p + 4);
	ret->xxh64 = vsr_get_be64(p + 8);
}

/* Writes a header; mode is VSR_MODE_VSR1 or VSR_MODE_VSR2. */
static inline void vsr_header_write(__u8 *p, const struct vsr_header *h)
{
	p[0] = 'V';
	p[1] = 'S';
	p[2] = 'R';
	p[3] = h->mode == VSR_MODE_VSR2 ? '2' : '1';
	vsr_put_be32(p + 4, h->length);
	vsr_put_be32(p + 8, h->xxh64 >> 32);
	vsr_put_be32(p + 12, h->xxh64);
}

static inline void vsr_answer_write(__u8 *p, __u32 status)
{
	p[0] = 'V';
	p[1] = 'S';
	p[2] = 'A';
	p[3] = '1';
	vsr_put_be32(p + 4, status);
}

/* Reads an answer of VSR_ANSWER_SIZE bytes. Returns 0, or -1 if the magic is wrong. */
static inline int vsr_answer_read(const __u8 *p, __u32 *ret_status)
{
	if (p[0] != 'V' || p[1] != 'S' || p[2] != 'A' || p[3] != '1')
		return -1;
	*ret_status = vsr_get_be32(p + 4);
	return 0;
}

#endif
