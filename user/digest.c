// SPDX-License-Identifier: Apache-2.0
#include "digest.h"

#include <xxhash.h>

#include "block_hash.h"

/* Blocks that are hashed at once: they are still in the nearest cache when they are folded. */
#define HASHES 32

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

/* The n whole blocks at p, at most HASHES, are the next ones, or complete the pending one. */
static void fold_blocks(struct digest *d, const uint8_t *p, size_t n)
{
	uint64_t hashes[HASHES];

	block_hashes(p, n, d->seed, hashes);
	for (size_t i = 0; i < n; i++)
		d->fold = vsr_digest_fold(d->fold, hashes[i]);
	if (d->blocks)
		memcpy(d->blocks + d->length / VSR_BLOCK_SIZE, hashes, n * sizeof(*hashes));
}

void digest_update(struct digest *d, const void *p, size_t n)
{
	const uint8_t *bytes = p;

	while (n > 0) {
		size_t fill = d->length % VSR_BLOCK_SIZE;
		size_t whole = fill == 0 ? MIN(n / VSR_BLOCK_SIZE, (size_t)HASHES) : 0;
		size_t part = whole > 0 ? whole * VSR_BLOCK_SIZE : MIN(n, VSR_BLOCK_SIZE - fill);

		/* Whole blocks are hashed where they are. */
		if (whole > 0) {
			fold_blocks(d, bytes, whole);
		} else {
			memcpy(d->block + fill, bytes, part);
			if (fill + part == VSR_BLOCK_SIZE)
				fold_blocks(d, d->block, 1);
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
