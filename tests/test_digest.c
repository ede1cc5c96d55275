// SPDX-License-Identifier: Apache-2.0
/*
 * The digest of user/digest.c against its definition in SPEC section 5, written down here once
 * more in the plainest way. Random parts print their seed; DIGEST_TEST_SEED repeats a run.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <time.h>
#include <xxhash.h>

#include <cmocka.h>

#include "block_hash.h"
#include "digest.h"

#define LENGTH_MAX (1 << 20)

static uint64_t rng;

static uint64_t rnd(void)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return rng;
}

static uint8_t *random_bytes(size_t n)
{
	uint8_t *p = malloc(n ? n : 1);
	size_t i;

	assert_non_null(p);
	for (i = 0; i < n; i++)
		p[i] = rnd();
	return p;
}

/* The definition, block by block, each copied and padded. */
static uint64_t by_definition(uint64_t seed, const uint8_t *p, size_t n)
{
	uint64_t fold = seed;
	size_t at;

	for (at = 0; at < n; at += VSR_BLOCK_SIZE) {
		uint8_t block[VSR_BLOCK_SIZE] = {};

		memcpy(block, p + at, MIN(n - at, (size_t)VSR_BLOCK_SIZE));
		fold = vsr_digest_fold(fold, XXH64(block, sizeof(block), seed));
	}
	return vsr_digest_finish(fold, n);
}

static const size_t edges[] = { 0,	   1,	 2,    31,   32,    33,	   4095,  4096,
				4097,	   8191, 8192, 8193, 65535, 65536, 65537, LENGTH_MAX - 1,
				LENGTH_MAX };

static void digest_of_every_edge_length_is_the_definition(void **state _unused_)
{
	_cleanup_free_ uint8_t *p = random_bytes(LENGTH_MAX);
	uint64_t seed = rnd();
	size_t i;

	for (i = 0; i < ARRAY_SIZE(edges); i++)
		assert_int_equal(digest_bytes(seed, p, edges[i]), by_definition(seed, p, edges[i]));
}

static void any_split_of_the_same_bytes_gives_the_same_digest(void **state _unused_)
{
	int round;

	for (round = 0; round < 300; round++) {
		size_t n = rnd() % 40000, at = 0;
		size_t most = 1 + rnd() % (round % 3 == 0 ? 10 : 9000);
		_cleanup_free_ uint8_t *p = random_bytes(n);
		uint64_t seed = rnd();
		struct digest d;

		digest_init(&d, seed);
		while (at < n) {
			size_t part = MIN(n - at, 1 + rnd() % most);

			digest_update(&d, p + at, part);
			at += part;
			if (rnd() % 16 == 0)
				assert_int_equal(digest_final(&d), by_definition(seed, p, at));
		}
		assert_int_equal(digest_final(&d), by_definition(seed, p, n));
	}
}

static void blocks_are_hashed_as_libxxhash_does_side_by_side_or_not(void **state _unused_)
{
	_cleanup_free_ uint8_t *p = random_bytes(16 * VSR_BLOCK_SIZE + 64);
	uint64_t seed = rnd(), hashes[16];

	for (size_t n = 0; n <= ARRAY_SIZE(hashes); n++)
		for (size_t shift = 0; shift < 64; shift += 13) {
			block_hashes(p + shift, n, seed, hashes);
			for (size_t i = 0; i < n; i++)
				assert_int_equal(hashes[i], XXH64(p + shift + i * VSR_BLOCK_SIZE,
								  VSR_BLOCK_SIZE, seed));
		}
}

static void padding_does_not_make_streams_of_zeros_equal(void **state _unused_)
{
	static const uint8_t zeros[3 * VSR_BLOCK_SIZE];
	uint64_t seen[3];

	seen[0] = digest_bytes(7, zeros, 4095);
	seen[1] = digest_bytes(7, zeros, 4096);
	seen[2] = digest_bytes(7, zeros, 4097);
	assert_int_not_equal(seen[0], seen[1]);
	assert_int_not_equal(seen[1], seen[2]);
	assert_int_not_equal(digest_bytes(7, zeros, 0), digest_bytes(7, zeros, 1));
}

static void order_of_blocks_and_seed_matter(void **state _unused_)
{
	_cleanup_free_ uint8_t *p = random_bytes(2 * VSR_BLOCK_SIZE);
	uint8_t swapped[2 * VSR_BLOCK_SIZE];

	memcpy(swapped, p + VSR_BLOCK_SIZE, VSR_BLOCK_SIZE);
	memcpy(swapped + VSR_BLOCK_SIZE, p, VSR_BLOCK_SIZE);
	assert_int_not_equal(digest_bytes(1, p, sizeof(swapped)),
			     digest_bytes(1, swapped, sizeof(swapped)));
	assert_int_not_equal(digest_bytes(1, p, sizeof(swapped)),
			     digest_bytes(2, p, sizeof(swapped)));
}

/* What BPF hands over: fold and length, and a buffer with older bytes behind the partial block. */
static void finishing_a_partial_block_ignores_what_is_behind_it(void **state _unused_)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(edges); i++) {
		size_t n = edges[i], whole = n / VSR_BLOCK_SIZE * VSR_BLOCK_SIZE;
		_cleanup_free_ uint8_t *p = random_bytes(n);
		_cleanup_free_ uint8_t *block = random_bytes(VSR_BLOCK_SIZE);
		uint64_t seed = rnd();
		struct digest d;

		digest_init(&d, seed);
		digest_update(&d, p, whole);
		memcpy(block, p + whole, n - whole);
		assert_int_equal(digest_finish_partial(seed, d.fold, n, block),
				 by_definition(seed, p, n));
	}
}

/* Digests are stored in spool files: they must not change with a version of ours. */
static void digests_stay_what_they_were(void **state _unused_)
{
	uint8_t p[5000];
	size_t i;

	for (i = 0; i < sizeof(p); i++)
		p[i] = i * 7 + i / 256;
	assert_int_equal(digest_bytes(0, p, 0), 0x0ULL);
	assert_int_equal(digest_bytes(0x0123456789abcdef, p, 4096), 0x4a7eb37c1792105dULL);
	assert_int_equal(digest_bytes(0x0123456789abcdef, p, 5000), 0xb4c9dd87feb79cebULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(digest_of_every_edge_length_is_the_definition),
		cmocka_unit_test(any_split_of_the_same_bytes_gives_the_same_digest),
		cmocka_unit_test(blocks_are_hashed_as_libxxhash_does_side_by_side_or_not),
		cmocka_unit_test(padding_does_not_make_streams_of_zeros_equal),
		cmocka_unit_test(order_of_blocks_and_seed_matter),
		cmocka_unit_test(finishing_a_partial_block_ignores_what_is_behind_it),
		cmocka_unit_test(digests_stay_what_they_were),
	};
	const char *given = getenv("DIGEST_TEST_SEED");

	rng = given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL) * 2654435761U;
	rng |= 1;
	printf("# DIGEST_TEST_SEED=%llu\n", (unsigned long long)rng);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
