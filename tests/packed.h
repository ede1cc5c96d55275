/* SPDX-License-Identifier: Apache-2.0 */
/* Contents, and packed ones, for the tests of who has to read them. */
#ifndef VSR_TEST_PACKED_H
#define VSR_TEST_PACKED_H

#include "pack.h"

/* A sealed content; the bytes repeat enough to be packed, and no two pieces are equal. */
static inline struct buf *packable(size_t len)
{
	struct buf *b = NULL;

	if (buf_new(len, &b) < 0)
		abort();
	for (size_t i = 0; i < len; i++)
		buf_tail(b)[i] = (uint8_t)(i % 64 < 8 ? i / 64 >> i % 8 * 4 : i % 64);
	buf_advance(b, len);
	buf_seal(b);
	return b;
}

/* The content packed, in steps of `slice`; NULL: it does not get smaller. */
static inline struct buf *pack_in_steps(struct buf *content, size_t slice)
{
	_cleanup_(packer_freep)
	struct packer *p = NULL;
	struct buf *packed = NULL;
	int r;

	if (packer_new(&p) < 0 || packer_begin(p, content) < 0)
		abort();
	do
		r = packer_step(p, slice, &packed);
	while (r == 0);
	return r == 1 ? packed : NULL;
}

/* The same, its stored byte number `at` turned over. */
static inline struct buf *with_damage(const struct buf *packed, size_t at)
{
	struct buf *b = NULL;
	const uint8_t *stored;
	size_t len;

	stored = buf_stored(packed, &len);
	if (buf_new(len, &b) < 0)
		abort();
	memcpy(buf_tail(b), stored, len);
	buf_tail(b)[at] ^= 0xff;
	buf_advance(b, len);
	buf_seal_packed(b, buf_len(packed));
	return b;
}

#endif
