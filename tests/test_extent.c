/* SPDX-License-Identifier: Apache-2.0 */
/* Ranges of vsr_blocks: they never overlap, and what is given back can be had again. The random part
 * prints its seed; EXTENT_TEST_SEED repeats a run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <time.h>

#include <cmocka.h>

#include "extent.h"

static void ranges_are_disjoint_and_joined_again(void **state _unused_)
{
	_cleanup_(extent_space_freep)
	struct extent_space *s = NULL;
	struct extent *a, *b, *c, *d;

	assert_int_equal(extent_space_new(10, &s), 0);
	assert_int_equal(extent_take(s, 4, &a), 0);
	assert_int_equal(extent_take(s, 3, &b), 0);
	assert_int_equal(extent_take(s, 3, &c), 0);
	assert_int_equal(extent_first(a), 0);
	assert_int_equal(extent_first(b), 4);
	assert_int_equal(extent_first(c), 7);
	assert_int_equal(extent_taken(s), 10);
	assert_int_equal(extent_take(s, 1, &d), -ENOSPC);

	/* The middle last: it joins both its neighbours. */
	extent_give_back(s, a);
	extent_give_back(s, c);
	assert_int_equal(extent_take(s, 5, &d), -ENOSPC);
	extent_give_back(s, b);
	assert_int_equal(extent_taken(s), 0);
	assert_int_equal(extent_take(s, 10, &d), 0);
	extent_give_back(s, d);
	assert_null(extent_give_back(s, NULL));
}

static void a_space_of_nothing_has_nothing(void **state _unused_)
{
	_cleanup_(extent_space_freep)
	struct extent_space *s = NULL;
	struct extent *e;

	assert_int_equal(extent_space_new(0, &s), 0);
	assert_int_equal(extent_take(s, 1, &e), -ENOSPC);
	assert_null(extent_space_free(NULL));
}

#define N     5000
#define HELD  200
#define STEPS 200000

static void random_takes_never_overlap(void **state _unused_)
{
	_cleanup_(extent_space_freep)
	struct extent_space *s = NULL;
	static uint16_t owner[N]; /* 0: nobody */
	static struct {
		struct extent *e;
		uint32_t length;
	} held[HELD];
	const char *given = getenv("EXTENT_TEST_SEED");
	unsigned seed = given ? (unsigned)strtoul(given, NULL, 0) : (unsigned)time(NULL);
	uint32_t taken = 0, refused = 0;
	struct extent *all;

	print_message("EXTENT_TEST_SEED=%u\n", seed);
	srandom(seed);
	assert_int_equal(extent_space_new(N, &s), 0);
	for (int step = 0; step < STEPS; step++) {
		size_t i = (size_t)random() % HELD;
		uint32_t first;

		if (held[i].e) {
			first = extent_first(held[i].e);
			for (uint32_t k = 0; k < held[i].length; k++) {
				assert_int_equal(owner[first + k], i + 1);
				owner[first + k] = 0;
			}
			taken -= held[i].length;
			held[i].e = extent_give_back(s, held[i].e);
		} else {
			held[i].length = 1 + (uint32_t)(random() % (random() % 8 ? 30 : 600));
			if (extent_take(s, held[i].length, &held[i].e) < 0) {
				refused++;
				continue;
			}
			first = extent_first(held[i].e);
			assert_true(first + held[i].length <= N);
			for (uint32_t k = 0; k < held[i].length; k++) {
				assert_int_equal(owner[first + k], 0);
				owner[first + k] = (uint16_t)(i + 1);
			}
			taken += held[i].length;
		}
		assert_int_equal(extent_taken(s), taken);
	}
	for (size_t i = 0; i < HELD; i++)
		held[i].e = extent_give_back(s, held[i].e);
	assert_int_equal(extent_taken(s), 0);
	assert_int_equal(extent_take(s, N, &all), 0);
	extent_give_back(s, all);
	assert_in_range(refused, 1, STEPS / 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(ranges_are_disjoint_and_joined_again),
		cmocka_unit_test(a_space_of_nothing_has_nothing),
		cmocka_unit_test(random_takes_never_overlap),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
