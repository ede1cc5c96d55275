/* SPDX-License-Identifier: Apache-2.0 */
#include "pack.h"

#include <xxhash.h>
#include <zstd.h>

#define LEVEL	   1
#define WINDOW_LOG 17
#define PAGE	   4096
/* Behind the frame: XXH64 of the content, in the machine's own order of bytes. */
#define TRAILER sizeof(uint64_t)
/* Compared at a time; on the stack. */
#define PIECE (16 * KIB)

struct packer {
	ZSTD_CCtx *z;
	XXH64_state_t *hash;
	struct buf *content; /* NULL: nothing to do */
	struct buf *packed;
	size_t done; /* bytes of content */
};

struct reader {
	const struct buf *content;
	ZSTD_DCtx *z; /* NULL: not packed */
	size_t taken; /* bytes of what is stored */
	size_t read;  /* bytes of content */
};

/* ---- packing ------------------------------------------------------------------------------------ */

int packer_new(struct packer **ret)
{
	struct packer *p = calloc(1, sizeof(*p));

	if (!p)
		return -ENOMEM;
	p->z = ZSTD_createCCtx();
	p->hash = XXH64_createState();
	if (!p->z || !p->hash) {
		packer_free(p);
		return -ENOMEM;
	}
	ZSTD_CCtx_setParameter(p->z, ZSTD_c_compressionLevel, LEVEL);
	ZSTD_CCtx_setParameter(p->z, ZSTD_c_windowLog, WINDOW_LOG);
	ZSTD_CCtx_setParameter(p->z, ZSTD_c_checksumFlag, 1);
	*ret = p;
	return 0;
}

void packer_cancel(struct packer *p)
{
	p->content = buf_unref(p->content);
	p->packed = buf_unref(p->packed);
}

struct packer *packer_free(struct packer *p)
{
	if (!p)
		return NULL;
	packer_cancel(p);
	ZSTD_freeCCtx(p->z);
	XXH64_freeState(p->hash);
	free(p);
	return NULL;
}

int packer_begin(struct packer *p, struct buf *content)
{
	size_t cost = buf_cost(content), room = cost > PAGE ? cost - PAGE : 0;
	int r;

	packer_cancel(p);
	r = buf_new(room, &p->packed);
	if (r < 0)
		return r;
	ZSTD_CCtx_reset(p->z, ZSTD_reset_session_only);
	ZSTD_CCtx_setPledgedSrcSize(p->z, buf_len(content));
	XXH64_reset(p->hash, 0);
	p->content = buf_ref(content);
	p->done = 0;
	return 0;
}

/* Packs the input. Returns 0, or 1 when it was the last and all is written; -E2BIG, -ENOMEM. */
static int compress(struct packer *p, ZSTD_inBuffer *in, bool last)
{
	for (;;) {
		size_t room = buf_room(p->packed), left;
		ZSTD_outBuffer out = { buf_tail(p->packed), room, 0 };

		left = ZSTD_compressStream2(p->z, &out, in, last ? ZSTD_e_end : ZSTD_e_continue);
		if (ZSTD_isError(left))
			return -ENOMEM; /* it has no other reason to fail */
		buf_advance(p->packed, out.pos);
		if (last ? left == 0 : in->pos == in->size)
			return last;
		if (out.pos == room)
			return -E2BIG;
	}
}

static int add_trailer(struct packer *p)
{
	uint64_t hash = XXH64_digest(p->hash);

	if (buf_room(p->packed) < TRAILER)
		return -E2BIG;
	memcpy(buf_tail(p->packed), &hash, TRAILER);
	buf_advance(p->packed, TRAILER);
	return 1;
}

int packer_step(struct packer *p, size_t slice, struct buf **ret)
{
	size_t length = buf_len(p->content), n = MIN(slice, length - p->done);
	ZSTD_inBuffer in = { buf_data(p->content) + p->done, n, 0 };
	int r;

	p->done += n;
	XXH64_update(p->hash, in.src, n);
	r = compress(p, &in, p->done == length);
	if (r == 1)
		r = add_trailer(p);
	if (r == 1) {
		buf_seal_packed(p->packed, length);
		*ret = TAKE_PTR(p->packed);
	}
	if (r != 0)
		packer_cancel(p);
	return r;
}

/* ---- reading ------------------------------------------------------------------------------------ */

int reader_new(const struct buf *content, struct reader **ret)
{
	struct reader *r = calloc(1, sizeof(*r));

	if (!r)
		return -ENOMEM;
	r->content = content;
	if (buf_packed(content)) {
		r->z = ZSTD_createDCtx();
		if (!r->z) {
			free(r);
			return -ENOMEM;
		}
	}
	*ret = r;
	return 0;
}

struct reader *reader_free(struct reader *r)
{
	if (!r)
		return NULL;
	ZSTD_freeDCtx(r->z);
	free(r);
	return NULL;
}

/* The next n bytes; after the last of all, the frame must end there, with its checksum. */
static int decompress(struct reader *r, uint8_t *to, size_t n)
{
	bool last = r->read + n == buf_len(r->content);
	ZSTD_outBuffer out = { to, n, 0 };
	ZSTD_inBuffer in = { .src = buf_stored(r->content, &in.size), .pos = r->taken };
	size_t left = 1;

	while (out.pos < n || (last && left > 0)) {
		size_t before = in.pos + out.pos;

		left = ZSTD_decompressStream(r->z, &out, &in);
		if (ZSTD_isError(left))
			return -EBADMSG;
		if (left > 0 && in.pos + out.pos == before)
			return -EBADMSG; /* there is nothing more to come */
		if (left == 0 && out.pos < n)
			return -EBADMSG;
	}
	r->taken = in.pos;
	return 0;
}

int reader_read(struct reader *r, uint8_t *to, size_t n)
{
	int result = 0;

	if (r->z)
		result = decompress(r, to, n);
	else
		memcpy(to, buf_data(r->content) + r->read, n);
	if (result == 0)
		r->read += n;
	return result;
}

int reader_copy(const struct buf *content, uint8_t *to, size_t n)
{
	_cleanup_(reader_freep)
	struct reader *r = NULL;
	int result = reader_new(content, &r);

	return result < 0 ? result : reader_read(r, to, n);
}

uint64_t content_xxh64(const struct buf *content)
{
	const uint8_t *stored;
	uint64_t hash;
	size_t n;

	if (!buf_packed(content))
		return XXH64(buf_data(content), buf_len(content), 0);
	stored = buf_stored(content, &n);
	memcpy(&hash, stored + n - TRAILER, TRAILER);
	return hash;
}

bool content_equal(const struct buf *a, const struct buf *b)
{
	_cleanup_(reader_freep)
	struct reader *ra = NULL, *rb = NULL;
	uint8_t pa[PIECE], pb[PIECE];

	if (a == b)
		return true;
	if (buf_len(a) != buf_len(b))
		return false;
	if (!buf_packed(a) && !buf_packed(b))
		return memcmp(buf_data(a), buf_data(b), buf_len(a)) == 0;
	if (reader_new(a, &ra) < 0 || reader_new(b, &rb) < 0)
		return false;
	for (size_t at = 0, n; at < buf_len(a); at += n) {
		n = MIN(buf_len(a) - at, (size_t)PIECE);
		if (reader_read(ra, pa, n) < 0 || reader_read(rb, pb, n) < 0 ||
		    memcmp(pa, pb, n) != 0)
			return false;
	}
	return true;
}
