// SPDX-License-Identifier: Apache-2.0
#include "digest.h"

#include <xxhash.h>

void digest_init(struct digest *d, uint64_t seed)
{
	d->seed = seed;
	d->fold = seed;
	d->length = 0;
	d->blocks = NULL;
}

void digest_keep_blocks(struct digest *d, uint64_t *blocks)
{
	d->blocks = blocks;
}

static void fold_block(struct digest *d, const void *block)
{
	uint64_t hash = XXH64(block, VSR_BLOCK_SIZE, d->seed);

	d->fold = vsr_digest_fold(d->fold, hash);
	if (d->blocks)
		d->blocks[d->length / VSR_BLOCK_SIZE] = hash;
}

void digest_update(struct digest *d, const void *p, size_t n)
{
	const uint8_t *bytes = p;

	while (n > 0) {
		size_t fill = d->length % VSR_BLOCK_SIZE;
		size_t part = MIN(n, VSR_BLOCK_SIZE - fill);

		/* Whole blocks are hashed where they are. */
		if (part == VSR_BLOCK_SIZE) {
			fold_block(d, bytes);
		} else {
			memcpy(d->block + fill, bytes, part);
			if (fill + part == VSR_BLOCK_SIZE)
				fold_block(d, d->block);
		}
		d->length += part;
		bytes += part;
		n -= part;
	}
}

uint64_t digest_final(const struct digest *d)
{
	return digest_finish_partial(d->seed, d->fold, d->length, d->block);
}

uint64_t digest_bytes(uint64_t seed, const void *p, size_t n)
{
	return digest_blocks(seed, p, n, NULL);
}

uint64_t digest_blocks(uint64_t seed, const void *p, size_t n, uint64_t *ret_blocks)
{
	struct digest d;

	digest_init(&d, seed);
	digest_keep_blocks(&d, ret_blocks);
	digest_update(&d, p, n);
	return digest_final(&d);
}

uint64_t digest_finish_partial(uint64_t seed, uint64_t fold, uint64_t length,
			       const uint8_t block[VSR_BLOCK_SIZE])
{
	size_t fill = length % VSR_BLOCK_SIZE;
	uint8_t padded[VSR_BLOCK_SIZE];

	if (fill > 0) {
		memcpy(padded, block, fill);
		memset(padded + fill, 0, sizeof(padded) - fill);
		fold = vsr_digest_fold(fold, XXH64(padded, sizeof(padded), seed));
	}
	return vsr_digest_finish(fold, length);
}
