/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a stream can be compared with (SPEC 11, vsr_blocks): a content that the cache holds, with
 * the digests of its whole blocks. The digests are hashed once, when the content is received, and
 * lie in an extent of vsr_blocks where the verdict reads them; in user space the bytes themselves
 * are compared, as long as the cache has them uncompressed, and then the digests (compare.h).
 *
 * References: the cache entry has one (cache_set_match()) and every connection that compares one of
 * its own. The content and its extent stay as they are until the last one is gone, whatever the
 * cache does meanwhile: eviction, replacement, ACK. match_cached() then says false, and the
 * connection is charged for the memory.
 *
 * One thread: the event loop.
 */
#ifndef VSR_MATCH_H
#define VSR_MATCH_H

#include "buf.h"
#include "vsr_abi.h"

struct match_table;
struct match;

/* A table over the n entries of vsr_blocks, mapped at `blocks`, which must outlive it. Where no verdict
 * runs NULL, and n entries of its own, of which those that are used take memory; 0: no digests are kept.
 * Returns 0, -ENOMEM. */
int match_table_new(uint64_t *blocks, uint32_t n, struct match_table **ret);
/* No match of it may be in use any more. Returns NULL. */
struct match_table *match_table_free(struct match_table *t);
DEFINE_CLEANUP(struct match_table, match_table_free);

struct match_figures {
	uint64_t blocks, blocks_used; /* entries of vsr_blocks */
	uint64_t pinned;	      /* bytes that are held by comparing connections alone */
};
void match_table_figures(const struct match_table *t, struct match_figures *ret);

/*
 * A match for this sealed content: takes a reference of it. digest is its own, blocks the XXH64 of its length / VSR_BLOCK_SIZE whole blocks with the node's seed (digest_blocks()), or
 * NULL: not known, then only user space compares, as well as where no extent is free. The
 * reference that is returned is the cache's. NULL: no memory.
 */
struct match *match_new(struct match_table *t, struct buf *content, uint64_t digest,
			const uint64_t *blocks);

/* A connection's reference. NULL is accepted; match_unref() returns NULL. */
struct match *match_ref(struct match *m);
struct match *match_unref(struct match *m);
DEFINE_CLEANUP(struct match, match_unref);

/* The cache's reference goes: the content is none of the cache's memory any more. NULL is
 * accepted; returns NULL. */
struct match *match_uncache(struct match *m);
/* False once the cache has let go. */
bool match_cached(const struct match *m);

/* For a cache that compresses. unpack() writes the first n bytes of the content that `packed`
 * stands for to `to`; it returns 0, or -errno. */
typedef int (*match_unpack_t)(const struct buf *packed, uint8_t *to, size_t n);
/* The cache keeps the content as `packed` now: the match lets go of the bytes. */
void match_pack(struct match *m, struct buf *packed, match_unpack_t unpack);

uint64_t match_length(const struct match *m);
uint64_t match_digest(const struct match *m);

/* Bytes of memory that the match holds. */
size_t match_cost(const struct match *m);

/* The extent in vsr_blocks, of match_length() / VSR_BLOCK_SIZE entries. False: it has none, the
 * verdict cannot compare. */
bool match_extent(const struct match *m, uint64_t *ret_first);

/* The digests there, NULL if there are none. */
const uint64_t *match_blocks(const struct match *m);

/* The content itself, or NULL while it is packed. Valid, and in the same place, until the cache
 * packs it: never kept over a turn of the loop. */
struct buf *match_content(const struct match *m);

/* Copies the first n bytes of the content. Returns 0, or what unpack() says. */
int match_copy(const struct match *m, uint8_t *to, size_t n);

#endif
