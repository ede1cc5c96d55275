/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <time.h>

#include <cmocka.h>

#include "credit.h"
#include "pool.h"
#include "unseen.h"

static void what_credit_may_hide_is_drawn_as_long_as_it_is_given(void **state _unused_)
{
	struct vsr_pool pool = { .limit = 64 * MIB };
	struct credit c = credit_choose(&pool, CREDIT_MOST);

	assert_int_equal(c.bytes, 128 * KIB);
	assert_int_equal(c.drawn, unseen_most(c.bytes));
	assert_int_equal(c.charged, 0);
	assert_int_equal(pool.drawn, c.drawn);
	credit_give_back(&c, &pool);
	assert_int_equal(pool.drawn, 0);
}

static void a_large_reserve_gives_the_most_and_never_more(void **state _unused_)
{
	struct vsr_pool pool = { .limit = 4096 * MIB };

	assert_int_equal(credit_choose(&pool, CREDIT_MOST).bytes, CREDIT_MOST);
	assert_int_equal(credit_choose(&pool, CREDIT_MOST_USER).bytes, CREDIT_MOST_USER);
}

/* However many there are: each gets some, what they may hide in all is within the reserve or charged
 * to their reservations, and half of the reserve is left to those who outgrow theirs. */
static void credit_shrinks_with_what_is_left_of_the_reserve(void **state _unused_)
{
	static const uint64_t limits[] = { 0, 8 * MIB, 16 * MIB, 64 * MIB, 1024 * MIB };

	for (size_t i = 0; i < ARRAY_SIZE(limits); i++) {
		struct vsr_pool pool = { .limit = limits[i] };
		uint64_t before = UINT64_MAX, hidden = 0, paid = 0;

		for (int n = 0; n < 200; n++) {
			struct credit c = credit_choose(&pool, CREDIT_MOST);

			assert_true(c.bytes >= CREDIT_LEAST && c.bytes <= before);
			assert_true(c.charged == 0 || c.bytes == CREDIT_LEAST);
			before = c.bytes;
			hidden += unseen_most(c.bytes);
			paid += c.drawn + c.charged;
		}
		assert_int_equal(paid, hidden);
		assert_true(pool.drawn <= pool.limit);
		assert_true(pool_left(&pool) >= pool.limit / 2);
	}
}

static void a_draw_without_hope_is_never_seen(void **state _unused_)
{
	struct vsr_pool pool = { .limit = 100, .drawn = 60 };

	assert_false(pool_draw(&pool, 41));
	assert_int_equal(pool.drawn, 60);
	assert_true(pool_draw(&pool, 40));
	assert_int_equal(pool_left(&pool), 0);
	pool.limit = 10; /* reload: less than is drawn */
	assert_int_equal(pool_left(&pool), 0);
	assert_false(pool_draw(&pool, 1));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_credit_may_hide_is_drawn_as_long_as_it_is_given),
		cmocka_unit_test(a_large_reserve_gives_the_most_and_never_more),
		cmocka_unit_test(credit_shrinks_with_what_is_left_of_the_reserve),
		cmocka_unit_test(a_draw_without_hope_is_never_seen),
	};

	return cmocka_run_group_tests_name("credit", tests, NULL, NULL);
}
