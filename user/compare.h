/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Compares a stream with a content whose bytes are not at hand, as the cache has packed them: in user
 * space as the verdict does it, by the digests of whole blocks, and of what is behind the last one by
 * the digest of all.
 */
#ifndef VSR_COMPARE_H
#define VSR_COMPARE_H

#include "match.h"

struct compare;

/* A comparison with m, which must have match_blocks() or be shorter than a block, from its first byte on.
 * The caller keeps its reference of m meanwhile. seed: of the digests. Returns 0, -ENOMEM. */
int compare_new(const struct match *m, uint64_t seed, struct compare **ret);
struct compare *compare_free(struct compare *c);
DEFINE_CLEANUP(struct compare, compare_free);

/* The next n bytes of the stream. Returns false if a block that they complete differs, or if there are more
 * than the content has: then they have changed nothing. True does not mean that a part of a block is
 * equal. */
bool compare_more(struct compare *c, const uint8_t *p, size_t n);

/* The bytes so far that make no whole block yet, VSR_BLOCK_SIZE at most: what equals the content for
 * certain ends before them. */
const uint8_t *compare_partial(const struct compare *c);

/* Whether the bytes so far are the content, by length and digest. */
bool compare_complete(const struct compare *c);

#endif
