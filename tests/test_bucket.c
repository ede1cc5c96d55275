/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <time.h>

#include <cmocka.h>

#include "bucket.h"

static void test_full_bucket_gives_its_burst_then_one_per_interval(void **state)
{
	struct bucket_rate r = bucket_rate_per(1.0, USEC_PER_SEC, 5);
	struct bucket b = { 0 };
	uint64_t now = 100 * USEC_PER_SEC;

	(void)state;
	for (unsigned i = 0; i < 5; i++) {
		assert_int_equal(bucket_peek(&b, &r, now), 5 - i);
		assert_true(bucket_take(&b, &r, now));
	}
	assert_int_equal(bucket_peek(&b, &r, now), 0);
	assert_false(bucket_take(&b, &r, now));
	assert_int_equal(bucket_next(&b, &r, now), now + USEC_PER_SEC);
	assert_false(bucket_take(&b, &r, now + USEC_PER_SEC - 1));
	assert_true(bucket_take(&b, &r, now + USEC_PER_SEC));
	assert_false(bucket_take(&b, &r, now + USEC_PER_SEC));
	assert_int_equal(bucket_peek(&b, &r, now + 4 * USEC_PER_SEC), 3);
	assert_int_equal(bucket_peek(&b, &r, now + USEC_PER_HOUR), 5);
}

static void test_a_burst_of_nothing_is_one(void **state)
{
	struct bucket_rate r = { .interval = USEC_PER_SEC };
	struct bucket b = { 0 };

	(void)state;
	assert_true(bucket_take(&b, &r, 0));
	assert_false(bucket_take(&b, &r, USEC_PER_SEC - 1));
	assert_true(bucket_take(&b, &r, USEC_PER_SEC));
	assert_int_equal(bucket_peek(&b, &r, USEC_PER_HOUR), 1);
}

static void test_reference_rate_is_one_report_a_minute(void **state)
{
	struct bucket_rate r = bucket_rate_per(1.0, USEC_PER_MIN, 1);
	struct bucket b = { 0 };

	(void)state;
	assert_true(bucket_take(&b, &r, 0));
	assert_false(bucket_take(&b, &r, 59999999));
	assert_int_equal(bucket_next(&b, &r, 30 * USEC_PER_SEC), USEC_PER_MIN);
	assert_true(bucket_take(&b, &r, USEC_PER_MIN));
}

static void test_rate_zero_negative_or_nan_is_unlimited(void **state)
{
	const double rates[] = { 0, -1, NAN };

	(void)state;
	assert_int_equal(bucket_rate_per(1, 0, 1).interval, 0); /* per no time at all */
	for (size_t i = 0; i < ARRAY_SIZE(rates); i++) {
		struct bucket_rate r = bucket_rate_per(rates[i], USEC_PER_SEC, 1);
		struct bucket b = { 0 };

		for (int n = 0; n < 1000; n++)
			assert_true(bucket_take(&b, &r, 7));
		bucket_give_back(&b, &r);
		assert_int_equal(bucket_peek(&b, &r, 7), UINT32_MAX);
		assert_int_equal(bucket_next(&b, &r, 7), 7);
	}
}

static void test_given_back_token_can_be_taken_again_but_never_adds_to_the_burst(void **state)
{
	struct bucket_rate r = bucket_rate_per(1.0, USEC_PER_MIN, 2);
	struct bucket b = { 0 };
	uint64_t now = USEC_PER_HOUR;

	(void)state;
	assert_true(bucket_take(&b, &r, now));
	assert_true(bucket_take(&b, &r, now));
	assert_false(bucket_take(&b, &r, now));
	bucket_give_back(&b, &r);
	assert_int_equal(bucket_peek(&b, &r, now), 1);
	assert_true(bucket_take(&b, &r, now));
	for (int i = 0; i < 10; i++)
		bucket_give_back(&b, &r);
	assert_int_equal(bucket_peek(&b, &r, now), 2);
}

static void test_bucket_emptied_at_a_slow_rate_is_not_held_back_by_a_faster_one(void **state)
{
	struct bucket_rate slow = bucket_rate_per(1.0, USEC_PER_HOUR, 1);
	struct bucket_rate fast = bucket_rate_per(1.0, USEC_PER_SEC, 1);
	struct bucket b = { 0 };

	(void)state;
	assert_true(bucket_take(&b, &slow, 0));
	assert_int_equal(bucket_next(&b, &slow, 0), USEC_PER_HOUR);
	assert_int_equal(bucket_next(&b, &fast, 0), USEC_PER_SEC);
}

static void test_extreme_rates_and_times_do_not_wrap(void **state)
{
	struct bucket_rate slow = bucket_rate_per(1e-300, USEC_PER_HOUR, UINT32_MAX);
	struct bucket_rate fast = bucket_rate_per(1e300, 1, 1);
	struct bucket b = { 0 };

	(void)state;
	assert_true(bucket_take(&b, &slow, USEC_INFINITY - 5));
	assert_true(bucket_next(&b, &slow, 3) >= 3);
	assert_int_equal(fast.interval, 1);
	b = (struct bucket){ 0 };
	assert_true(bucket_take(&b, &fast, USEC_INFINITY - 5));
	assert_true(bucket_take(&b, &fast, USEC_INFINITY - 4));
}

static uint64_t rng;
static uint64_t random_below(uint64_t n)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return rng % n;
}

/* Against a model that counts: from any take on, there are never more takes than the burst and
 * what the time in between refilled; and a refusal comes only when it would be one too many. */
static void test_takes_equal_those_of_a_counting_model(void **state)
{
	uint64_t seed = (uint64_t)time(NULL);

	(void)state;
	print_message("seed %llu\n", (unsigned long long)seed);
	rng = seed * 2654435761 + 1;
	for (int round = 0; round < 200; round++) {
		uint32_t burst = 1 + (uint32_t)random_below(6);
		struct bucket_rate r = { .interval = 1 + random_below(1000), .burst = burst };
		struct bucket b = { 0 };
		uint64_t level = burst * r.interval, now = random_below(1000000);

		for (int i = 0; i < 500; i++) {
			uint64_t step = random_below(2 * r.interval);
			bool expected;

			now += step;
			level = MIN(level + step, burst * r.interval);
			expected = level >= r.interval;
			assert_int_equal(bucket_peek(&b, &r, now), level / r.interval);
			assert_int_equal(bucket_next(&b, &r, now),
					 expected ? now : now + r.interval - level);
			assert_int_equal(bucket_take(&b, &r, now), expected);
			if (expected)
				level -= r.interval;
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_full_bucket_gives_its_burst_then_one_per_interval),
		cmocka_unit_test(test_a_burst_of_nothing_is_one),
		cmocka_unit_test(test_reference_rate_is_one_report_a_minute),
		cmocka_unit_test(test_rate_zero_negative_or_nan_is_unlimited),
		cmocka_unit_test(
			test_given_back_token_can_be_taken_again_but_never_adds_to_the_burst),
		cmocka_unit_test(
			test_bucket_emptied_at_a_slow_rate_is_not_held_back_by_a_faster_one),
		cmocka_unit_test(test_extreme_rates_and_times_do_not_wrap),
		cmocka_unit_test(test_takes_equal_those_of_a_counting_model),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
