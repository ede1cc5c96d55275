/* SPDX-License-Identifier: Apache-2.0 */
/* How often a VM may appear in the log. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "log_limit.h"

#define S USEC_PER_SEC

static const struct vsr_vm_id a = { 0, 42 }, b = { 0, 43 }, other_ns = { 1, 42 };
static struct log_limit l;
static uint32_t held;

static int setup(void **state _unused_)
{
	memset(&l, 0, sizeof(l));
	held = 99;
	return 0;
}

static void once_in_10_seconds_for_each_vm_and_reason(void **state _unused_)
{
	assert_true(log_limit_pass(&l, a, 1, 0, &held));
	assert_int_equal(held, 0);
	assert_false(log_limit_pass(&l, a, 1, 1, &held));
	assert_true(log_limit_pass(&l, a, 2, 1, &held));
	assert_true(log_limit_pass(&l, b, 1, 1, &held));
	assert_true(log_limit_pass(&l, other_ns, 1, 1, &held));
	assert_false(log_limit_pass(&l, a, 1, 10 * S - 1, &held));
	assert_true(log_limit_pass(&l, a, 1, 10 * S, &held));
	assert_int_equal(held, 2);
	assert_false(log_limit_pass(&l, a, 1, 10 * S, &held));
}

static void what_was_held_back_is_said_when_the_time_is_over(void **state _unused_)
{
	struct vsr_vm_id vm;
	uint32_t reason;

	assert_true(log_limit_pass(&l, a, 1, 5 * S, &held));
	assert_int_equal(log_limit_next_event(&l), USEC_INFINITY);
	for (int i = 0; i < 3; i++)
		assert_false(log_limit_pass(&l, a, 1, 6 * S, &held));
	assert_int_equal(log_limit_next_event(&l), 15 * S);
	assert_false(log_limit_next(&l, 15 * S - 1, &vm, &reason, &held));
	assert_true(log_limit_next(&l, 15 * S, &vm, &reason, &held));
	assert_int_equal(vm.cid, 42);
	assert_int_equal(reason, 1);
	assert_int_equal(held, 3);
	assert_false(log_limit_next(&l, 15 * S, &vm, &reason, &held));
	/* A line was written: the next is due 10 s later. */
	assert_false(log_limit_pass(&l, a, 1, 24 * S, &held));
	assert_true(log_limit_pass(&l, a, 1, 25 * S, &held));
	assert_int_equal(held, 1);
	assert_int_equal(log_limit_next_event(&l), USEC_INFINITY);
}

/* Wherever the two of them are kept. */
static void what_one_logs_holds_no_other_back(void **state _unused_)
{
	for (uint32_t n = 1; n <= 4 * LOG_LIMIT_SETS; n++) {
		const struct vsr_vm_id vm = { n, a.cid };

		setup(NULL);
		assert_true(log_limit_pass(&l, a, 1, 1, &held));
		assert_true(log_limit_pass(&l, vm, 1, 1, &held));
		assert_true(log_limit_pass(&l, a, 1 + n, 1, &held));
		assert_false(log_limit_pass(&l, a, 1, 1, &held));
	}
}

/* Whoever comes is logged at least once, and what is still limited stays right. */
static void more_than_fit_are_logged_and_forgotten(void **state _unused_)
{
	uint32_t n = 0, before;

	for (uint32_t cid = 3; cid < 3 + 4 * LOG_LIMIT_ENTRIES; cid++) {
		const struct vsr_vm_id vm = { 0, cid };

		assert_true(log_limit_pass(&l, vm, 1, S, &before));
		assert_int_equal(before, 0);
		assert_false(log_limit_pass(&l, vm, 1, S, &before));
	}
	for (size_t i = 0; i < LOG_LIMIT_ENTRIES; i++)
		n += l.entries[i].held_back > 0;
	assert_int_equal(n, l.n_holding);
	assert_in_range(n, LOG_LIMIT_ENTRIES / 2, LOG_LIMIT_ENTRIES);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(once_in_10_seconds_for_each_vm_and_reason, setup),
		cmocka_unit_test_setup(what_was_held_back_is_said_when_the_time_is_over, setup),
		cmocka_unit_test_setup(what_one_logs_holds_no_other_back, setup),
		cmocka_unit_test_setup(more_than_fit_are_logged_and_forgotten, setup),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
