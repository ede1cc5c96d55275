/* SPDX-License-Identifier: Apache-2.0 */
/* What streams are compared with: digests in vsr_blocks, and a content that stays as long as anybody
 * compares, whatever the cache does. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "cache.h"
#include "metrics.h"

#define BLOCKS 16

static uint64_t blocks[BLOCKS];

static int start(void **state)
{
	memset(blocks, 0xee, sizeof(blocks));
	metrics_reset();
	return match_table_new(blocks, BLOCKS, (struct match_table **)state);
}

static int stop(void **state)
{
	struct match_figures f;

	match_table_figures(*state, &f);
	assert_int_equal(f.blocks_used, 0);
	assert_int_equal(f.pinned, 0);
	*state = match_table_free(*state);
	return 0;
}

static struct buf *content_of(size_t n, uint8_t byte)
{
	struct buf *b;

	assert_int_equal(buf_new(n, &b), 0);
	memset(buf_tail(b), byte, n);
	buf_advance(b, n);
	buf_seal(b);
	return b;
}

static const uint64_t hashes[BLOCKS + 1] = { 11, 22, 33, 44, 55 };

static void digests_of_whole_blocks_lie_in_the_extent(void **state)
{
	_cleanup_(buf_unrefp)
	struct buf *b = content_of(3 * VSR_BLOCK_SIZE + 5, 'x');
	struct match *m = match_new(*state, b, 1, hashes);
	uint64_t first = 99;

	assert_non_null(m);
	assert_int_equal(match_length(m), 3 * VSR_BLOCK_SIZE + 5);
	assert_int_equal(match_digest(m), 1);
	assert_ptr_equal(match_content(m), b);
	assert_true(match_extent(m, &first));
	assert_int_equal(first, 0);
	assert_memory_equal(blocks, hashes, 3 * sizeof(*blocks));
	assert_int_equal(blocks[3], 0xeeeeeeeeeeeeeeee); /* the tail is not in there */
	assert_null(match_uncache(m));
}

static void less_than_a_block_needs_no_extent(void **state)
{
	_cleanup_(buf_unrefp)
	struct buf *b = content_of(VSR_BLOCK_SIZE - 1, 'x');
	struct match *m = match_new(*state, b, 1, hashes);
	struct match_figures f;
	uint64_t first = 99;

	assert_true(match_extent(m, &first));
	match_table_figures(*state, &f);
	assert_int_equal(f.blocks_used, 0);
	match_uncache(m);
}

static void without_a_free_extent_only_user_space_compares(void **state)
{
	_cleanup_(buf_unrefp)
	struct buf *b = content_of((BLOCKS + 1) * VSR_BLOCK_SIZE, 'x');
	struct match *m = match_new(*state, b, 1, hashes);
	uint64_t first = 99;
	uint8_t byte = 0;

	assert_false(match_extent(m, &first));
	assert_int_equal(first, 99);
	assert_int_equal(metric_get(METRIC_MATCH_NO_ROOM, 0), 1);
	assert_int_equal(match_copy(m, &byte, 1), 0);
	assert_int_equal(byte, 'x');
	match_uncache(m);
	/* Nor where nobody knows the digests. */
	m = match_new(*state, b, 1, NULL);
	assert_false(match_extent(m, &first));
	match_uncache(m);
}

static void what_is_compared_stays_when_the_cache_lets_go(void **state)
{
	struct cache_limits limits = { .slots = 1, .bytes = MIB, .ttl = 1000 };
	struct vsr_vm_id id = { .cid = 42 }, other = { .cid = 43 };
	_cleanup_(cache_freep)
	struct cache *c = NULL;
	struct match_figures f;
	struct match *pin;
	uint8_t byte = 0;

	assert_int_equal(cache_new(&limits, NULL, NULL, &c), 0);
	for (unsigned how = 0; how < 4; how++) {
		_cleanup_(buf_unrefp)
		struct buf *b = content_of(2 * VSR_BLOCK_SIZE, 'x');
		_cleanup_(buf_unrefp)
		struct buf *next = content_of(2 * VSR_BLOCK_SIZE, 'y');

		assert_int_equal(cache_insert(c, id, b, 1, 1, CACHE_HOLD_NONE, 0), CACHE_ADDED);
		cache_set_match(c, id, match_new(*state, b, 1, hashes));
		pin = match_ref(cache_peek(c, id)->match);
		assert_true(match_cached(pin));
		if (how == 0)
			cache_remove(c, id, 1, CACHE_END_ACKED, 1);
		else if (how == 1)
			assert_int_equal(cache_insert(c, id, next, 3, 2, CACHE_HOLD_NONE, 1),
					 CACHE_CHANGED);
		else if (how == 2)
			assert_int_equal(cache_insert(c, other, next, 3, 1, CACHE_HOLD_NONE, 1),
					 CACHE_ADDED);
		else
			cache_sweep(c, 10, 2000);
		assert_false(match_cached(pin));
		if (how == 1)
			assert_null(cache_peek(c, id)->match);
		match_table_figures(*state, &f);
		assert_int_equal(f.pinned, 2 * VSR_BLOCK_SIZE);
		assert_int_equal(f.blocks_used, 2);
		assert_memory_equal(blocks, hashes, 2 * sizeof(*blocks));
		buf_unref(TAKE_PTR(b));
		assert_int_equal(match_copy(pin, &byte, 1), 0);
		assert_int_equal(byte, 'x');
		match_unref(pin);
		match_table_figures(*state, &f);
		assert_int_equal(f.blocks_used, 0);
		assert_int_equal(f.pinned, 0);
		cache_remove(c, id, 2, CACHE_END_ACKED, 2);
		cache_remove(c, other, 1, CACHE_END_ACKED, 2);
	}
}

static int unpack_zeros(const struct buf *packed, uint8_t *to, size_t n)
{
	assert_int_equal(buf_len(packed), 1);
	memset(to, *buf_data(packed), n);
	return 0;
}

static void packed_content_is_unpacked_for_its_prefix(void **state)
{
	_cleanup_(buf_unrefp)
	struct buf *b = content_of(10 * VSR_BLOCK_SIZE, 'x');
	_cleanup_(buf_unrefp)
	struct buf *packed = content_of(1, 'x');
	struct match *m = match_new(*state, b, 1, hashes);
	uint8_t bytes[100] = { 0 };
	uint64_t first;

	match_pack(m, packed, unpack_zeros);
	assert_null(match_content(m));
	assert_true(match_extent(m, &first)); /* the verdict goes on comparing */
	assert_int_equal(match_length(m), 10 * VSR_BLOCK_SIZE);
	assert_int_equal(match_cost(m), VSR_BLOCK_SIZE);
	assert_int_equal(match_copy(m, bytes, sizeof(bytes)), 0);
	assert_memory_equal(bytes, buf_data(b), sizeof(bytes));
	match_uncache(m);
}

static void nothing_is_released_without_harm(void **state _unused_)
{
	assert_null(match_ref(NULL));
	assert_null(match_unref(NULL));
	assert_null(match_uncache(NULL));
	assert_null(match_table_free(NULL));
}

#define match_test(f) cmocka_unit_test_setup_teardown(f, start, stop)

int main(void)
{
	const struct CMUnitTest tests[] = {
		match_test(digests_of_whole_blocks_lie_in_the_extent),
		match_test(less_than_a_block_needs_no_extent),
		match_test(without_a_free_extent_only_user_space_compares),
		match_test(what_is_compared_stays_when_the_cache_lets_go),
		match_test(packed_content_is_unpacked_for_its_prefix),
		match_test(nothing_is_released_without_harm),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
