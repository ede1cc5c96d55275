/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Payload buffers: the bytes of a report are copied once from the kernel into one of these, and
 * cache, disk worker and upstream all hold references to it. Nobody writes to it after
 * buf_seal(). References may be dropped by another thread (the disk worker), so the count is
 * atomic; everything else belongs to the event loop.
 *
 * A buffer is its own memory mapping: it grows without copying, and a page costs nothing before
 * it is filled. Memory that is given back is recycled for the next report, up to a bound: fresh
 * pages cost several times what receiving into them costs (figures in user/buf.c).
 */
#ifndef VSR_BUF_H
#define VSR_BUF_H

#include "util.h"

struct buf;

/* A new empty buffer that can hold up to max bytes (address space only: memory is used as it is
 * filled). Recycled memory is not cleared: never read beyond buf_len(). Returns 0, -ENOMEM. */
int buf_new(size_t max, struct buf **ret);

/* A further reference, from any thread that holds one. */
struct buf *buf_ref(struct buf *b);
/* Drops a reference, in any thread; the last one frees. NULL is accepted; returns NULL. */
struct buf *buf_unref(struct buf *b);
DEFINE_CLEANUP(struct buf, buf_unref);

/* Where the next byte goes, and how many more fit. Not after buf_seal(). */
uint8_t *buf_tail(struct buf *b);
size_t buf_room(const struct buf *b);
/* n bytes were written at the tail. */
void buf_advance(struct buf *b, size_t n);

/* Forgets the bytes so far (a header that was read): the next one is the content's first, at the
 * start of a page again, as direct writes to a disk need it. */
void buf_restart(struct buf *b);
/* The bytes end here: gives back what is beyond them, and makes the buffer immutable. */
void buf_seal(struct buf *b);

/* Seals what is not a content of `length` bytes but stands for it: user/pack.h makes it and reads
 * it. */
void buf_seal_packed(struct buf *b, size_t length);
/* Whether the buffer holds a packed content. Contents that were in the cache may: buf_data() is not
 * for them. */
bool buf_packed(const struct buf *b);
/* The bytes as they lie there, packed or not, and how many. */
const uint8_t *buf_stored(const struct buf *b, size_t *ret_len);

/* The content, before buf_seal() all bytes so far: valid, and in the same place, the start of a
 * page, as long as the reference is held. Not of a packed buffer. */
const uint8_t *buf_data(const struct buf *b);
/* Bytes of the content, also where it is packed. */
size_t buf_len(const struct buf *b);
/* Bytes of memory that the buffer costs now: whole pages, its own bookkeeping left out. */
size_t buf_cost(const struct buf *b);
/* What a sealed buffer with this much content costs. */
size_t buf_cost_of(size_t length);

/* Memory that waits to be filled, in bytes: free for recycling, or recycled into a buffer that
 * has not filled it yet. It never exceeds the limit (default BUF_POOL_DEFAULT); beyond it memory
 * goes back to the system. It is on top of what buf_cost() says of all buffers. A lower limit
 * frees at once. Both from any thread. */
#define BUF_POOL_DEFAULT (16 * MIB)
size_t buf_pool_bytes(void);
void buf_pool_set_limit(size_t bytes);
/* Gives back to the system what nobody has used since the last call, so that a relay that has
 * nothing to do keeps nothing. From any thread. */
void buf_pool_trim(void);

#endif
