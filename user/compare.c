/* SPDX-License-Identifier: Apache-2.0 */
#include "compare.h"

#include "block_hash.h"
#include "digest.h"

struct compare {
	const struct match *match;
	uint64_t seed, fold, length; /* as of struct digest */
	uint8_t partial[VSR_BLOCK_SIZE];
};

int compare_new(const struct match *m, uint64_t seed, struct compare **ret)
{
	struct compare *c = malloc(sizeof(*c));

	if (!c)
		return -ENOMEM;
	c->match = m;
	c->seed = c->fold = seed;
	c->length = 0;
	*ret = c;
	return 0;
}

struct compare *compare_free(struct compare *c)
{
	free(c);
	return NULL;
}

/* Blocks that are hashed at a time. */
#define BATCH 16

/* Whether the n blocks at p are those of the content from the ith on. They go into the fold. */
static bool same_blocks(const struct compare *c, const uint8_t *p, size_t n, uint64_t i,
			uint64_t *fold)
{
	uint64_t hashes[BATCH];

	for (size_t part; n > 0; p += part * VSR_BLOCK_SIZE, i += part, n -= part) {
		part = MIN(n, (size_t)BATCH);
		block_hashes(p, part, c->seed, hashes);
		if (memcmp(hashes, match_blocks(c->match) + i, part * sizeof(*hashes)) != 0)
			return false;
		for (size_t k = 0; k < part; k++)
			*fold = vsr_digest_fold(*fold, hashes[k]);
	}
	return true;
}

bool compare_more(struct compare *c, const uint8_t *p, size_t n)
{
	size_t fill = c->length % VSR_BLOCK_SIZE, all = n, part = VSR_BLOCK_SIZE - fill, whole;
	uint64_t i = c->length / VSR_BLOCK_SIZE, fold = c->fold;
	uint8_t joined[VSR_BLOCK_SIZE];

	if (n > match_length(c->match) - c->length)
		return false;
	if (fill > 0 && n >= part) {
		memcpy(joined, c->partial, fill);
		memcpy(joined + fill, p, part);
		if (!same_blocks(c, joined, 1, i++, &fold))
			return false;
		p += part;
		n -= part;
		fill = 0;
	}
	whole = fill == 0 ? n / VSR_BLOCK_SIZE : 0;
	if (!same_blocks(c, p, whole, i, &fold))
		return false;
	p += whole * VSR_BLOCK_SIZE;
	n -= whole * VSR_BLOCK_SIZE;
	memcpy(c->partial + fill, p, n);
	c->length += all;
	c->fold = fold;
	return true;
}

const uint8_t *compare_partial(const struct compare *c)
{
	return c->partial;
}

bool compare_complete(const struct compare *c)
{
	return c->length == match_length(c->match) &&
	       digest_finish_partial(c->seed, c->fold, c->length, c->partial) ==
		       match_digest(c->match);
}
