/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "duration.h"

static void expect(const char *text, uint64_t usec)
{
	uint64_t v = 42;

	if (duration_parse(text, &v) != 0 || v != usec)
		fail_msg("\"%s\" gave %llu", text, (unsigned long long)v);
}

static void expect_error(const char *text, int error)
{
	uint64_t v = 42;

	if (duration_parse(text, &v) != error)
		fail_msg("\"%s\" is not refused as expected", text);
	assert_int_equal(v, 42);
}

static void test_the_specs_examples_are_read(void **state)
{
	(void)state;
	expect("4h", 4 * USEC_PER_HOUR);
	expect("1m30s", 90 * USEC_PER_SEC);
	expect("250ms", 250 * USEC_PER_MSEC);
	expect("1.5h", 90 * USEC_PER_MIN);
}

static void test_gos_grammar_is_taken_whole(void **state)
{
	(void)state;
	expect("0", 0);
	expect("-0", 0);
	expect("+5s", 5 * USEC_PER_SEC);
	expect("0s", 0);
	expect("-0s", 0);
	expect(".5s", 500 * USEC_PER_MSEC);
	expect("1.s", USEC_PER_SEC);
	expect("3us", 3);
	expect("3\xc2\xb5s", 3);
	expect("3\xce\xbcs", 3);
	expect("5000ns", 5);
	expect("1h2m3.5s4ms5us6000ns", USEC_PER_HOUR + 2 * USEC_PER_MIN + 3504011);
	expect("1s1h", USEC_PER_HOUR + USEC_PER_SEC);
	expect("0.333333333333333333333s", 333334);
	expect("0.100000000000000000000h", 6 * USEC_PER_MIN);
}

static void test_what_is_not_a_duration_is_refused(void **state)
{
	static const char *const bad[] = { "",	   "5",	   "-",	   "+",	  "s",	   ".s",    "3000",
					   "1x",   "1h ",  " 1h",  "1h1", "1..5s", "1d",    "1S",
					   "--1s", "+-1s", "1e3s", ".",	  "0x1s",  "5\xc2s" };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		expect_error(bad[i], -EINVAL);
}

static void test_the_range_is_gos(void **state)
{
	(void)state;
	expect("9223372036854775807ns", DURATION_MAX_USEC);
	expect_error("9223372036854775808ns", -ERANGE);
	expect("2562047h", 2562047 * USEC_PER_HOUR);
	expect_error("2562048h", -ERANGE);
	expect_error("2562047h2562047h", -ERANGE);
	expect_error("99999999999999999999s", -ERANGE);
	expect_error("18446744073709551615h", -ERANGE);
}

static void test_a_negative_duration_needs_the_signed_function(void **state)
{
	int64_t v = 42;

	(void)state;
	expect_error("-5s", -ERANGE);
	expect_error("-1ns", -ERANGE);
	assert_int_equal(duration_parse_signed("-5s", &v), 0);
	assert_int_equal(v, -5 * (int64_t)USEC_PER_SEC);
	assert_int_equal(duration_parse_signed("1m", &v), 0);
	assert_int_equal(v, 60 * (int64_t)USEC_PER_SEC);
}

static void test_what_is_not_zero_never_becomes_zero(void **state)
{
	(void)state;
	expect("1ns", 1);
	expect("0.5us", 1);
	expect("1001ns", 2);
}

static void expect_text(uint64_t usec, const char *text)
{
	char buf[DURATION_TEXT_MAX];

	assert_string_equal(duration_format(usec, buf), text);
}

static void test_durations_are_written_short(void **state)
{
	(void)state;
	expect_text(0, "0s");
	expect_text(1, "1us");
	expect_text(1500, "1.5ms");
	expect_text(250 * USEC_PER_MSEC, "250ms");
	expect_text(1500 * USEC_PER_MSEC, "1.5s");
	expect_text(90 * USEC_PER_SEC, "1m30s");
	expect_text(4 * USEC_PER_HOUR, "4h");
	expect_text(90 * USEC_PER_MIN, "1h30m");
	expect_text(USEC_PER_HOUR + 5, "1h5us");
	expect_text(100 * USEC_PER_SEC, "1m40s");
	expect_text(10 * USEC_PER_SEC, "10s");
	expect_text(USEC_INFINITY, "infinity");
}

static void test_written_durations_are_read_back_exactly(void **state)
{
	static const uint64_t edges[] = { 0,	    1,		999,
					  1000,	    1001,	59999999,
					  60000000, 3599999999, DURATION_MAX_USEC - 1 };
	uint64_t x = 88172645463325252, back;
	char buf[DURATION_TEXT_MAX];

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(edges); i++)
		expect(duration_format(edges[i], buf), edges[i]);
	for (int i = 0; i < 100000; i++) {
		uint64_t usec;

		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		usec = (x >> (x % 60)) % DURATION_MAX_USEC;
		assert_int_equal(duration_parse(duration_format(usec, buf), &back), 0);
		assert_true(back == usec);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_the_specs_examples_are_read),
		cmocka_unit_test(test_gos_grammar_is_taken_whole),
		cmocka_unit_test(test_what_is_not_a_duration_is_refused),
		cmocka_unit_test(test_the_range_is_gos),
		cmocka_unit_test(test_a_negative_duration_needs_the_signed_function),
		cmocka_unit_test(test_what_is_not_zero_never_becomes_zero),
		cmocka_unit_test(test_durations_are_written_short),
		cmocka_unit_test(test_written_durations_are_read_back_exactly),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
