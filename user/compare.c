/* SPDX-License-Identifier: Apache-2.0 */
#include "compare.h"

#include <xxhash.h>

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

/* The block's hash is the ith of the content, and so goes into the fold. */
static bool same_block(const struct compare *c, const uint8_t *block, uint64_t i, uint64_t *fold)
{
	uint64_t hash = XXH64(block, VSR_BLOCK_SIZE, c->seed);

	*fold = vsr_digest_fold(*fold, hash);
	return hash == match_blocks(c->match)[i];
}

bool compare_more(struct compare *c, const uint8_t *p, size_t n)
{
	size_t fill = c->length % VSR_BLOCK_SIZE, all = n, part = VSR_BLOCK_SIZE - fill;
	uint64_t i = c->length / VSR_BLOCK_SIZE, fold = c->fold;
	uint8_t joined[VSR_BLOCK_SIZE];

	if (n > match_length(c->match) - c->length)
		return false;
	if (fill > 0 && n >= part) {
		memcpy(joined, c->partial, fill);
		memcpy(joined + fill, p, part);
		if (!same_block(c, joined, i++, &fold))
			return false;
		p += part;
		n -= part;
		fill = 0;
	}
	for (; fill == 0 && n >= VSR_BLOCK_SIZE; p += VSR_BLOCK_SIZE, n -= VSR_BLOCK_SIZE)
		if (!same_block(c, p, i++, &fold))
			return false;
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
