/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Compression of contents that stay (zstd). A packed content is a buffer of its own (buf_packed()):
 * a frame of zstd with a checksum, and the content's XXH64. Nothing is ever unpacked as a whole to be kept: who needs the
 * bytes reads them piece by piece.
 *
 * Packing goes in steps, so that the event loop can do one at a time. Reading works in any thread
 * that holds a reference.
 *
 * Figures, for a report of 2.5 MB as tests/synthetic.h makes them (zstd 1.5.4, one CPU of a VM):
 * level 1 with a window of 128 KiB makes 91 KB of it in 2.2 ms, and reads them in 1.1 ms; a window
 * of 512 KiB would make 80 KB, and each reader would need 1 MiB instead of 0.6. A higher level
 * finds more, at up to 4 times the memory.
 */
#ifndef VSR_PACK_H
#define VSR_PACK_H

#include "buf.h"

/* ---- packing ---- */

struct packer;

/* Memory for packing, about 1 MiB once it is used. Returns 0, -ENOMEM. */
int packer_new(struct packer **ret);
/* What it was at is given up. */
struct packer *packer_free(struct packer *p);
DEFINE_CLEANUP(struct packer, packer_free);

/* Begins with this content, which is not packed, and keeps a reference until the end. What it was
 * at is given up. Returns 0, -ENOMEM. */
int packer_begin(struct packer *p, struct buf *content);
/* Gives up. */
void packer_cancel(struct packer *p);

/* Packs the next `slice` bytes. Returns 0: there is more to do; 1: done, *ret is the packed content,
 * the caller's; -E2BIG: it does not get smaller by a page at least, and was given up; -ENOMEM:
 * likewise. */
int packer_step(struct packer *p, size_t slice, struct buf **ret);

/* ---- reading ---- */

struct reader;

/* Reads a content, packed or not, from its first byte on; the caller keeps a reference of it
 * meanwhile. Returns 0, -ENOMEM. */
int reader_new(const struct buf *content, struct reader **ret);
struct reader *reader_free(struct reader *r);
DEFINE_CLEANUP(struct reader, reader_free);

/* Copies the next n bytes; there must be as many. Returns 0; -EBADMSG: what was packed is damaged.
 * The checksum is looked at with the last byte: who acts on all of it sees damage anywhere. */
int reader_read(struct reader *r, uint8_t *to, size_t n);

/* The first n bytes at once. Returns 0, -ENOMEM, -EBADMSG. */
int reader_copy(const struct buf *content, uint8_t *to, size_t n);

/* XXH64, seed 0, of a content. Of a packed one it was taken when that was packed, and costs nothing. */
uint64_t content_xxh64(const struct buf *content);

/* Whether two contents, packed or not, have the same bytes. One that cannot be read equals none. */
bool content_equal(const struct buf *a, const struct buf *b);

#endif
