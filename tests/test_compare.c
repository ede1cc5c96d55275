/* SPDX-License-Identifier: Apache-2.0 */
/* Comparison by digests of blocks, with content whose bytes are not at hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "compare.h"
#include "digest.h"

#define SEED 77
#define MOST 70000

static uint8_t content[MOST + 1];

static int fill(void **state)
{
	for (size_t i = 0; i < sizeof(content); i++)
		content[i] = (uint8_t)(i * 2654435761U >> 13);
	return match_table_new(NULL, 1024, (struct match_table **)state);
}

static int done(void **state)
{
	*state = match_table_free(*state);
	return 0;
}

static struct match *match_of(struct match_table *t, size_t n)
{
	static uint64_t blocks[MOST / VSR_BLOCK_SIZE + 1];
	_cleanup_(buf_unrefp)
	struct buf *b = NULL;
	struct match *m;

	assert_int_equal(buf_new(n, &b), 0);
	memcpy(buf_tail(b), content, n);
	buf_advance(b, n);
	buf_seal(b);
	m = match_new(t, b, digest_blocks(SEED, content, n, blocks), blocks);
	assert_non_null(m);
	return m;
}

static const size_t sizes[] = { 1, 4095, 4096, 4097, 65536, MOST };

static void content_in_any_pieces_is_complete(void **state)
{
	static const size_t pieces[] = { 1, 16, 1000, 4096, 5000, 65536 };

	for (size_t k = 0; k < ARRAY_SIZE(sizes) * ARRAY_SIZE(pieces); k++) {
		size_t n = sizes[k / ARRAY_SIZE(pieces)], piece = pieces[k % ARRAY_SIZE(pieces)];
		struct match *m = match_of(*state, n);
		struct compare *c;

		assert_int_equal(compare_new(m, SEED, &c), 0);
		for (size_t at = 0, part; at < n; at += part) {
			assert_false(compare_complete(c));
			part = MIN(piece, n - at);
			assert_true(compare_more(c, content + at, part));
			assert_memory_equal(compare_partial(c),
					    content + (at + part) / VSR_BLOCK_SIZE * VSR_BLOCK_SIZE,
					    (at + part) % VSR_BLOCK_SIZE);
		}
		assert_true(compare_complete(c));
		/* And not one byte more. */
		assert_false(compare_more(c, content + n, 1));
		assert_true(compare_complete(c));
		compare_free(c);
		match_uncache(m);
	}
}

/* So that whoever restores the beginning finds the bytes that came before. */
static void a_block_that_differs_changes_nothing(void **state)
{
	struct match *m = match_of(*state, MOST);
	uint8_t other[3 * VSR_BLOCK_SIZE];

	for (size_t at = 0; at < sizeof(other) - VSR_BLOCK_SIZE; at += 37) {
		size_t before = 100;
		struct compare *c;

		memcpy(other, content, sizeof(other));
		other[before + at] ^= 1;
		assert_int_equal(compare_new(m, SEED, &c), 0);
		assert_true(compare_more(c, other, before));
		assert_false(compare_more(c, other + before, sizeof(other) - before));
		assert_memory_equal(compare_partial(c), content, before);
		assert_true(compare_more(c, content + before, MOST - before));
		assert_true(compare_complete(c));
		compare_free(c);
	}
	match_uncache(m);
}

/* Within the last block, which is not whole, a difference shows at the end. */
static void another_tail_is_not_complete(void **state)
{
	struct match *m = match_of(*state, 5000);
	struct compare *c;
	uint8_t last = content[4999] ^ 1;

	assert_int_equal(compare_new(m, SEED, &c), 0);
	assert_true(compare_more(c, content, 4999));
	assert_true(compare_more(c, &last, 1));
	assert_false(compare_complete(c));
	compare_free(c);
	match_uncache(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(content_in_any_pieces_is_complete),
		cmocka_unit_test(a_block_that_differs_changes_nothing),
		cmocka_unit_test(another_tail_is_not_complete),
	};

	return cmocka_run_group_tests(tests, fill, done);
}
