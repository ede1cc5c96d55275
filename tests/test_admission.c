/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Each test is named after the rule of SPEC 3 that it proves. The last ones are random: 500 VMs,
 * polite and hostile, against a shadow that adds everything up again after each step. The seed is
 * printed; VSR_SEED=n runs it again.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <time.h>

#include <cmocka.h>

#include "admission.h"

#define SEC USEC_PER_SEC
#define T0  (1000 * SEC)

static const struct bucket_rate unlimited = { 0 };

/* A table, an admission, and tickets to play with. */
struct world {
	struct vm_table *vms;
	struct admission *a;
	struct admission_ticket tickets[1200];
	size_t n;
	uint64_t now;
};

static void world_open(struct world *w, struct admission_settings s, struct bucket_rate grants)
{
	memset(w, 0, sizeof(*w));
	w->now = T0;
	assert_int_equal(vm_table_new(VM_TABLE_MAX, grants, unlimited, &w->vms), 0);
	assert_int_equal(admission_new(w->vms, &s, &w->a), 0);
}

static void world_close(struct world *w)
{
	for (size_t i = 0; i < w->n; i++)
		admission_close(w->a, &w->tickets[i], 0, w->now);
	w->a = admission_free(w->a);
	w->vms = vm_table_free(w->vms);
}

static struct vm *unknown(struct world *w, uint32_t cid)
{
	struct vm *vm = NULL;

	assert_int_equal(vm_table_obtain(w->vms, (struct vsr_vm_id){ .cid = cid }, w->now, &vm), 0);
	return vm;
}

static struct vm *known(struct world *w, uint32_t cid, uint64_t length)
{
	struct vm *vm = unknown(w, cid);

	vm->accepted = true;
	vm->last_length = length;
	return vm;
}

/* A connection that must be let wait. */
static struct admission_ticket *arrive(struct world *w, struct vm *vm)
{
	struct admission_ticket *t = &w->tickets[w->n++];
	enum reason reason = REASON_NONE;

	assert_true(w->n <= ARRAY_SIZE(w->tickets));
	assert_int_equal(admission_arrive(w->a, t, vm, w->now, &reason), 0);
	return t;
}

static enum reason arrive_refused(struct world *w, struct vm *vm)
{
	struct admission_ticket t = { 0 };
	enum reason reason = REASON_NONE;

	assert_int_equal(admission_arrive(w->a, &t, vm, w->now, &reason), -EBUSY);
	assert_int_equal(t.state, ADMISSION_NONE);
	return reason;
}

static struct admission_ticket *next(struct world *w)
{
	return admission_next(w->a, w->now);
}

/* Arrives and is granted at once. */
static struct admission_ticket *served(struct world *w, struct vm *vm)
{
	struct admission_ticket *t = arrive(w, vm);

	assert_ptr_equal(next(w), t);
	assert_int_equal(t->state, ADMISSION_SERVED);
	return t;
}

static void finish(struct world *w, struct admission_ticket *t, enum reason reason, uint64_t length)
{
	admission_release(w->a, t, reason, length, 0);
	admission_close(w->a, t, 0, w->now);
}

static struct admission_figures figures(const struct world *w)
{
	struct admission_figures f;

	admission_figures(w->a, &f);
	return f;
}

/* ---- places ----------------------------------------------------------------------------------- */

static void test_50_known_guests_of_1_mb_at_once_and_a_51st_waits_its_turn(void **state)
{
	struct world w;
	struct admission_ticket *t[51];

	(void)state;
	world_open(&w, admission_defaults, bucket_rate_per(1, SEC, 5));
	for (uint32_t i = 0; i < 51; i++)
		t[i] = arrive(&w, known(&w, 100 + i, 1000000));
	for (uint32_t i = 0; i < 50; i++)
		assert_ptr_equal(next(&w), t[i]);
	assert_null(next(&w));
	assert_int_equal(figures(&w).places_used, 50);
	assert_int_equal(figures(&w).waiting, 1);
	assert_int_equal(figures(&w).reserved, 50 * 1250000);
	finish(&w, t[17], REASON_NONE, 1000000);
	assert_ptr_equal(next(&w), t[50]);
	world_close(&w);
}

static void test_third_connection_of_a_vm_waits_and_a_fourth_is_refused(void **state)
{
	struct world w;
	struct vm *vm;
	struct admission_ticket *first, *third;

	(void)state;
	world_open(&w, admission_defaults, unlimited);
	vm = known(&w, 42, 1000);
	first = served(&w, vm);
	served(&w, vm);
	third = arrive(&w, vm);
	assert_null(next(&w));
	assert_int_equal(arrive_refused(&w, vm), REASON_VM_CONNECTIONS);
	finish(&w, first, REASON_NONE, 1000);
	assert_ptr_equal(next(&w), third);
	world_close(&w);
}

static void test_refused_arrival_changes_nothing(void **state)
{
	struct world w;
	struct vm *vm;
	struct admission_figures before, after;

	(void)state;
	world_open(&w, admission_defaults, unlimited);
	vm = known(&w, 42, 1000);
	for (int i = 0; i < 3; i++)
		arrive(&w, vm);
	before = figures(&w);
	for (int i = 0; i < 997; i++)
		assert_int_equal(arrive_refused(&w, vm), REASON_VM_CONNECTIONS);
	after = figures(&w);
	assert_int_equal(after.waiting, before.waiting);
	assert_int_equal(after.places_used, before.places_used);
	assert_int_equal(after.reserved, before.reserved);
	assert_int_equal(after.debt, before.debt);
	assert_int_equal(vm->open, 3);
	world_close(&w);
}

static void test_at_most_256_wait_in_all(void **state)
{
	struct admission_settings s = admission_defaults;
	struct world w;

	(void)state;
	s.places = 1;
	world_open(&w, s, unlimited);
	served(&w, known(&w, 10, 1000));
	for (uint32_t i = 0; i < 256; i++)
		arrive(&w, known(&w, 100 + i, 1000));
	assert_int_equal(arrive_refused(&w, known(&w, 11, 1000)), REASON_WAITING_FULL);
	world_close(&w);
}

static void test_waiter_is_refused_after_5_s_and_not_before(void **state)
{
	struct admission_settings s = admission_defaults;
	struct world w;
	struct admission_ticket *t, *later;
	enum reason reason = REASON_NONE;

	(void)state;
	s.places = 1;
	world_open(&w, s, unlimited);
	served(&w, known(&w, 10, 1000));
	t = arrive(&w, known(&w, 11, 1000));
	assert_null(next(&w));
	assert_int_equal(admission_next_event(w.a, w.now), T0 + 5 * SEC);
	w.now = T0 + SEC;
	later = arrive(&w, known(&w, 12, 1000));
	w.now = T0 + 5 * SEC - 1;
	assert_null(admission_expired(w.a, w.now, &reason));
	w.now++;
	assert_ptr_equal(admission_expired(w.a, w.now, &reason), t);
	assert_int_equal(reason, REASON_WAIT_TIMEOUT);
	assert_int_equal(t->state, ADMISSION_DONE);
	assert_int_equal(t->reservation, 0);
	assert_null(admission_expired(w.a, w.now, &reason));
	assert_int_equal(admission_next_event(w.a, w.now), T0 + 6 * SEC);
	admission_close(w.a, t, 0, w.now);
	assert_int_equal(unknown(&w, 11)->open, 0);
	admission_close(w.a, later, 0, w.now); /* its peer left */
	assert_int_equal(admission_next_event(w.a, w.now), USEC_INFINITY);
	assert_int_equal(figures(&w).waiting, 0);
	world_close(&w);
}

static void test_round_robin_gives_each_vm_one_turn(void **state)
{
	struct admission_settings s = admission_defaults;
	struct world w;
	struct admission_ticket *first, *a[2], *b[2], *c, *expected[5];

	(void)state;
	s.places = 1;
	world_open(&w, s, unlimited);
	first = served(&w, known(&w, 9, 1000));
	a[0] = arrive(&w, known(&w, 10, 1000));
	a[1] = arrive(&w, known(&w, 10, 1000));
	b[0] = arrive(&w, known(&w, 11, 1000));
	b[1] = arrive(&w, known(&w, 11, 1000));
	c = arrive(&w, known(&w, 12, 1000));
	memcpy(expected, (struct admission_ticket *[]){ a[0], b[0], c, a[1], b[1] },
	       sizeof(expected));
	for (size_t i = 0; i < ARRAY_SIZE(expected); i++) {
		assert_null(next(&w));
		finish(&w, first, REASON_NONE, 1000);
		first = next(&w);
		assert_ptr_equal(first, expected[i]);
	}
	world_close(&w);
}

static void test_grant_rate_holds_a_vm_back_but_not_the_others(void **state)
{
	struct world w;
	struct vm *vm;
	struct admission_ticket *t;

	(void)state;
	world_open(&w, admission_defaults, bucket_rate_per(1, SEC, 5));
	vm = known(&w, 42, 1000);
	for (int i = 0; i < 5; i++)
		finish(&w, served(&w, vm), REASON_NONE, 1000);
	t = arrive(&w, vm);
	assert_null(next(&w));
	assert_int_equal(admission_next_event(w.a, w.now), T0 + SEC);
	served(&w, known(&w, 43, 1000));
	w.now = T0 + SEC - 1;
	assert_null(next(&w));
	w.now++;
	assert_ptr_equal(next(&w), t);
	world_close(&w);
}

static void test_grant_rate_0_is_unlimited(void **state)
{
	struct world w;
	struct vm *vm;

	(void)state;
	world_open(&w, admission_defaults, unlimited);
	vm = known(&w, 42, 1000);
	for (int i = 0; i < 1000; i++) {
		w.n = 0;
		finish(&w, served(&w, vm), REASON_NONE, 1000);
	}
	world_close(&w);
}

/* ---- classes ---------------------------------------------------------------------------------- */

static void test_unaccepted_vms_hold_at_most_half_of_the_places(void **state)
{
	struct world w;

	(void)state;
	world_open(&w, admission_defaults, unlimited);
	for (uint32_t i = 0; i < 25; i++)
		served(&w, unknown(&w, 100 + i));
	arrive(&w, unknown(&w, 200));
	assert_null(next(&w));
	for (uint32_t i = 0; i < 25; i++)
		served(&w, known(&w, 300 + i, 1000));
	world_close(&w);
}

static void test_second_connections_and_unaccepted_vms_share_one_half(void **state)
{
	struct world w;

	(void)state;
	world_open(&w, admission_defaults, unlimited);
	for (uint32_t i = 0; i < 13; i++) {
		served(&w, known(&w, 100 + i, 1000));
		served(&w, known(&w, 100 + i, 1000)); /* second */
	}
	for (uint32_t i = 0; i < 12; i++)
		served(&w, unknown(&w, 200 + i));
	assert_int_equal(figures(&w).limited_places, 25);
	arrive(&w, unknown(&w, 300));
	arrive(&w, known(&w, 301, 1000));
	assert_non_null(next(&w)); /* 301's first is not in the class */
	arrive(&w, known(&w, 301, 1000));
	assert_null(next(&w));
	world_close(&w);
}

static void test_unaccepted_vms_hold_at_most_half_of_the_memory(void **state)
{
	struct admission_settings s = admission_defaults;
	struct world w;
	struct admission_ticket *t;
	uint64_t half, n;
	uint32_t places, ignored;

	(void)state;
	s.places = 500;
	world_open(&w, s, unlimited);
	admission_limits(w.a, &places, &half, &ignored, &n);
	assert_int_equal(half, 96 * MIB); /* of the 192 MiB that are not the reserve */
	for (uint32_t i = 0; i < 48; i++)
		t = served(&w, unknown(&w, 100 + i)); /* 2 MiB each */
	arrive(&w, unknown(&w, 200));
	assert_null(next(&w));
	assert_int_equal(admission_resize(w.a, t, 2 * MIB + 1), -EAGAIN); /* growth is held too */
	for (uint32_t i = 0; i < 96; i++)
		served(&w, known(&w, 300 + i, 1000)); /* 1 MiB each */
	assert_int_equal(figures(&w).reserved, 192 * MIB);
	world_close(&w);
}

/* An offender: its last connection ended with an offence. */
static struct vm *offender(struct world *w, uint32_t cid)
{
	struct vm *vm = known(w, cid, 1000);

	finish(w, served(w, vm), REASON_ZERO_LENGTH, 0);
	assert_true(vm->offence);
	return vm;
}

static void test_offenders_hold_at_most_a_quarter_of_the_places(void **state)
{
	struct world w;

	(void)state;
	world_open(&w, admission_defaults, unlimited);
	for (uint32_t i = 0; i < 12; i++)
		served(&w, offender(&w, 100 + i));
	arrive(&w, offender(&w, 200));
	assert_null(next(&w));
	served(&w, unknown(&w, 300));
	world_close(&w);
}

static void test_offenders_hold_at_most_a_quarter_of_the_memory_but_always_one_maximum(void **state)
{
	struct admission_settings s = admission_defaults;
	struct world w;
	struct vm *vm;

	(void)state;
	world_open(&w, s, unlimited);
	for (uint32_t i = 0; i < 3; i++) { /* two maxima of 17 MiB fit into 48 MiB */
		vm = offender(&w, 100 + i);
		vm->outgrew = true;
		if (i < 2)
			served(&w, vm);
		else
			arrive(&w, vm);
	}
	assert_null(next(&w));
	world_close(&w);

	s.budget = 34 * MIB; /* a quarter is 6.4 MiB now */
	world_open(&w, s, unlimited);
	vm = offender(&w, 100);
	vm->outgrew = true;
	assert_int_equal(served(&w, vm)->reservation, 17 * MIB);
	arrive(&w, offender(&w, 101));
	assert_null(next(&w));
	world_close(&w);
}

static void test_offenders_wait_last(void **state)
{
	struct admission_settings s = admission_defaults;
	struct world w;
	struct admission_ticket *busy, *bad, *unproven, *good;
	struct vm *vm;

	(void)state;
	s.places = 4;
	world_open(&w, s, unlimited);
	vm = offender(&w, 10);
	for (uint32_t i = 0; i < 3; i++)
		served(&w, known(&w, 20 + i, 1000));
	busy = served(&w, known(&w, 23, 1000));
	bad = arrive(&w, vm);
	unproven = arrive(&w, unknown(&w, 30));
	good = arrive(&w, known(&w, 31, 1000));
	finish(&w, busy, REASON_NONE, 1000);
	assert_ptr_equal(next(&w), unproven);
	finish(&w, unproven, REASON_NONE, 1000);
	assert_ptr_equal(next(&w), good);
	finish(&w, good, REASON_NONE, 1000);
	assert_ptr_equal(next(&w), bad);
	world_close(&w);
}

static void test_deadline_idle_and_violations_are_offences_over_budget_is_not(void **state)
{
	const struct {
		enum reason reason;
		bool offence;
	} cases[] = {
		{ REASON_DEADLINE, true },     { REASON_IDLE, true },
		{ REASON_ZERO_LENGTH, true },  { REASON_BYPASS, true },
		{ REASON_TOO_LARGE, true },    { REASON_UNREAD_UPDATES, true },
		{ REASON_OVER_BUDGET, false }, { REASON_OFFER_BUSY, false },
		{ REASON_MALFORMED, false },   { REASON_NONE, false },
	};
	struct world w;
	struct vm *vm;

	(void)state;
	world_open(&w, admission_defaults, unlimited);
	vm = known(&w, 42, 1000);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		finish(&w, served(&w, vm), cases[i].reason, 1000);
		assert_int_equal(vm->offence, cases[i].offence);
	}
	world_close(&w);
}

static void test_vm_is_unaccepted_until_a_valid_report(void **state)
{
	struct world w;
	struct vm *vm;
	struct admission_ticket *t;

	(void)state;
	world_open(&w, admission_defaults, unlimited);
	vm = unknown(&w, 42);
	t = served(&w, vm);
	assert_true(t->limited);
	finish(&w, t, REASON_CID_MISMATCH, 5000);
	t = served(&w, vm);
	assert_true(t->limited);
	finish(&w, t, REASON_NONE, 3 * MIB);
	t = served(&w, vm);
	assert_false(t->limited);
	assert_int_equal(t->reservation, 3 * MIB + 3 * MIB / 4);
	world_close(&w);
}

/* ---- memory ----------------------------------------------------------------------------------- */

static void
test_reservation_is_125_percent_of_the_last_length_within_1_mib_and_the_maximum(void **state)
{
	struct world w;
	struct vm *vm;

	(void)state;
	world_open(&w, admission_defaults, unlimited);
	assert_int_equal(served(&w, unknown(&w, 10))->reservation, 2 * MIB);
	assert_int_equal(served(&w, known(&w, 11, 1))->reservation, 1 * MIB);
	assert_int_equal(served(&w, known(&w, 12, 1000000))->reservation, 1250000);
	assert_int_equal(served(&w, known(&w, 13, 16 * MIB))->reservation, 17 * MIB);
	vm = known(&w, 14, 1000);
	finish(&w, served(&w, vm), REASON_OVER_BUDGET, 0);
	assert_int_equal(served(&w, vm)->reservation, 17 * MIB);
	world_close(&w);
}

static void test_outgrown_vm_reserves_the_maximum_until_its_length_is_known(void **state)
{
	struct world w;
	struct vm *vm;
	struct admission_ticket *t;

	(void)state;
	world_open(&w, admission_defaults, unlimited);
	vm = known(&w, 14, 1000);
	finish(&w, served(&w, vm), REASON_OVER_BUDGET, 0);
	t = served(&w, vm);
	assert_int_equal(t->reservation, admission_maximum(w.a));
	finish(&w, t, REASON_NONE, 4 * MIB);
	assert_int_equal(served(&w, vm)->reservation, 5 * MIB);
	world_close(&w);
}

static void test_offer_becomes_length_plus_1_mib_or_is_refused(void **state)
{
	struct admission_settings s = admission_defaults;
	struct world w;
	struct admission_ticket *t, *other;

	(void)state;
	s.budget = 34 * MIB; /* 25.5 MiB to be had */
	world_open(&w, s, unlimited);
	t = served(&w, known(&w, 10, 1000));
	other = served(&w, known(&w, 11, 12 * MIB)); /* 15 MiB */
	assert_int_equal(admission_resize(w.a, t, 10 * MIB + 512 * KIB), 0);
	assert_int_equal(figures(&w).reserved, 25 * MIB + 512 * KIB);
	assert_int_equal(admission_resize(w.a, t, 10 * MIB + 512 * KIB + 1), -EAGAIN);
	assert_int_equal(t->reservation, 10 * MIB + 512 * KIB);
	assert_int_equal(admission_resize(w.a, other, 5 * MIB), 0); /* shrinking always works */
	assert_int_equal(admission_resize(w.a, t, 17 * MIB), 0);
	assert_int_equal(admission_resize(w.a, t, 17 * MIB + 1), -EFBIG);
	world_close(&w);
}

static void test_every_report_can_be_received_with_the_smallest_budget_and_all_debt(void **state)
{
	struct admission_settings s = admission_defaults;
	struct world w;
	struct vm *vm;

	(void)state;
	s.budget = 34 * MIB;
	world_open(&w, s, unlimited);
	for (uint32_t i = 0; i < 30; i++)
		admission_debt_add(w.a, unknown(&w, 100 + i), 1 * MIB, w.now);
	assert_int_equal(figures(&w).debt, 30 * MIB);
	assert_int_equal(figures(&w).debt_charged, 8 * MIB + 512 * KIB);
	vm = unknown(&w, 10);
	vm->outgrew = true;
	assert_int_equal(served(&w, vm)->reservation, 17 * MIB);
	world_close(&w);
}

static void test_budget_below_twice_the_maximum_is_refused(void **state)
{
	struct admission_settings s = admission_defaults;
	struct admission *a = NULL;
	struct world w;

	(void)state;
	world_open(&w, admission_defaults, unlimited);
	s.budget = 34 * MIB - 1;
	assert_int_equal(admission_new(w.vms, &s, &a), -EINVAL);
	assert_int_equal(admission_set(w.a, &s), -EINVAL);
	s.budget = 34 * MIB;
	assert_int_equal(admission_set(w.a, &s), 0);
	s.places = 0;
	assert_int_equal(admission_set(w.a, &s), -EINVAL);
	assert_int_equal(figures(&w).places, 50);
	world_close(&w);
}

static void test_reload_to_less_keeps_what_is_granted_and_grants_no_more(void **state)
{
	struct admission_settings s = admission_defaults;
	struct world w;
	struct admission_ticket *t[3], *waiter;

	(void)state;
	world_open(&w, s, unlimited);
	for (uint32_t i = 0; i < 3; i++)
		t[i] = served(&w, known(&w, 10 + i, 12 * MIB));
	s.places = 2;
	s.budget = 34 * MIB;
	assert_int_equal(admission_set(w.a, &s), 0);
	waiter = arrive(&w, known(&w, 20, 1000));
	assert_null(next(&w));
	finish(&w, t[0], REASON_NONE, 1000);
	assert_null(next(&w)); /* two places are all */
	finish(&w, t[1], REASON_NONE, 1000);
	assert_ptr_equal(next(&w), waiter);
	world_close(&w);
}

static void test_waiter_that_does_not_fit_is_passed_over_for_1_s_then_nobody_passes(void **state)
{
	struct admission_settings s = admission_defaults;
	struct world w;
	struct admission_ticket *hog, *large, *bad;
	struct vm *bad_vm;

	(void)state;
	s.budget = 34 * MIB; /* 25.5 MiB to be had */
	world_open(&w, s, unlimited);
	bad_vm = offender(&w, 9);
	hog = served(&w, known(&w, 10, 8 * MIB)); /* 10 MiB */
	large = arrive(&w, known(&w, 11, 16 * MIB));
	bad = arrive(&w, bad_vm);
	finish(&w, served(&w, known(&w, 12, 1000)), REASON_NONE, 1000); /* passes */
	assert_ptr_equal(next(&w), bad);
	finish(&w, bad, REASON_NONE, 1000);
	w.now += SEC - 1;
	finish(&w, served(&w, known(&w, 12, 1000)), REASON_NONE, 1000); /* still passes */
	w.now += 1;
	arrive(&w, known(&w, 12, 1000));
	arrive(&w, bad_vm);
	assert_null(next(&w));
	finish(&w, hog, REASON_NONE, 1000);
	assert_ptr_equal(next(&w), large);
	assert_non_null(next(&w));
	assert_non_null(next(&w));
	world_close(&w);
}

static void test_waiter_short_of_its_class_share_bars_only_its_class(void **state)
{
	struct world w;
	struct vm *big;
	struct admission_ticket *t = NULL;

	(void)state;
	world_open(&w, admission_defaults, unlimited);
	for (uint32_t i = 0; i < 5; i++) { /* 85 of the 96 MiB of the half */
		big = unknown(&w, 100 + i);
		big->outgrew = true;
		t = served(&w, big);
	}
	big = unknown(&w, 110);
	big->outgrew = true;
	arrive(&w, big); /* does not fit into the half */
	assert_null(next(&w));
	served(&w, unknown(&w, 120)); /* 2 MiB pass it */
	w.now += SEC;
	arrive(&w, unknown(&w, 121));
	assert_null(next(&w));		     /* nobody of the class does any more */
	served(&w, known(&w, 10, 10 * MIB)); /* but others do */
	finish(&w, t, REASON_NONE, 1000);
	assert_ptr_equal(next(&w)->vm, big);
	world_close(&w);
}

static void test_vm_that_outgrew_its_reservation_bars_no_known_vm(void **state)
{
	struct world w;
	struct vm *vm;
	struct admission_ticket *t;

	(void)state;
	world_open(&w, admission_defaults, unlimited);
	for (uint32_t i = 0; i < 11; i++) /* 187 of 192 MiB */
		t = served(&w, known(&w, 100 + i, 16 * MIB));
	vm = known(&w, 42, 1000);
	vm->outgrew = true;
	arrive(&w, vm); /* 17 MiB */
	assert_null(next(&w));
	w.now += 2 * SEC;
	served(&w, known(&w, 10, 1000));
	arrive(&w, unknown(&w, 11)); /* who has shown no more than it has still waits behind it */
	assert_null(next(&w));
	finish(&w, t, REASON_NONE, 16 * MIB);
	assert_ptr_equal(next(&w)->vm, vm);
	world_close(&w);
}

static void test_vm_that_may_not_have_one_itself_bars_nobody(void **state)
{
	struct world w;
	struct vm *vm;

	(void)state;
	world_open(&w, admission_defaults, bucket_rate_per(1, USEC_PER_HOUR, 1));
	vm = known(&w, 42, 1000);
	served(&w, vm);
	arrive(&w, vm); /* no token for an hour */
	w.now += 4 * SEC;
	served(&w, known(&w, 43, 1000));
	world_close(&w);
}

static void test_place_and_reservation_are_back_before_the_answer(void **state)
{
	struct admission_settings s = admission_defaults;
	struct world w;
	struct admission_ticket *t, *waiter;

	(void)state;
	s.places = 1;
	world_open(&w, s, unlimited);
	t = served(&w, known(&w, 10, 1000));
	waiter = arrive(&w, known(&w, 11, 1000));
	admission_release(w.a, t, REASON_NONE, 1000, 5000);
	assert_int_equal(figures(&w).places_used, 0);
	assert_int_equal(figures(&w).reserved, 5000); /* what the kernel still has queued */
	assert_ptr_equal(next(&w), waiter);
	admission_close(w.a, t, 3000, w.now);
	assert_int_equal(figures(&w).reserved, MIB);
	assert_int_equal(figures(&w).debt, 3000);
	world_close(&w);
}

/* ---- time of the event loop ------------------------------------------------------------------- */

static void test_vm_that_takes_the_loops_time_waits_while_others_are_there(void **state)
{
	struct world w;
	struct vm *greedy;
	struct admission_ticket *t, *other;

	(void)state;
	world_open(&w, admission_defaults, bucket_rate_per(1, SEC, 5));
	greedy = known(&w, 42, 1000);
	admission_worked(greedy, 50 * USEC_PER_MSEC, w.now); /* a second's share */

	/* Alone it keeps nobody from anything. */
	finish(&w, served(&w, greedy), REASON_NONE, 1000);

	other = served(&w, known(&w, 43, 1000));
	t = arrive(&w, greedy);
	assert_null(next(&w));
	assert_int_equal(admission_next_event(w.a, w.now), T0 + SEC);
	served(&w, known(&w, 44, 1000)); /* it bars nobody */
	w.now += SEC - 1;
	assert_null(next(&w));
	w.now++;
	assert_ptr_equal(next(&w), t);
	finish(&w, other, REASON_NONE, 1000);
	world_close(&w);
}

/* A VM that waits for its share is not refused for it. */
static void test_the_loops_time_holds_a_vm_back_for_less_than_one_may_wait(void **state)
{
	struct world w;
	struct vm *greedy;
	struct admission_ticket *t;

	(void)state;
	world_open(&w, admission_defaults, bucket_rate_per(1, SEC, 5));
	greedy = known(&w, 42, 1000);
	served(&w, known(&w, 43, 1000));
	for (int i = 0; i < 100; i++)
		admission_worked(greedy, SEC, w.now);
	t = arrive(&w, greedy);
	w.now += ADMISSION_BUSY_USEC - 1;
	assert_null(next(&w));
	w.now++;
	assert_ptr_equal(next(&w), t);
	assert_true(ADMISSION_BUSY_USEC < admission_defaults.wait);
	world_close(&w);
}

static void test_without_a_limit_of_grants_there_is_none_of_the_loops_time(void **state)
{
	struct world w;
	struct vm *greedy;

	(void)state;
	world_open(&w, admission_defaults, unlimited);
	greedy = known(&w, 42, 1000);
	served(&w, known(&w, 43, 1000));
	admission_worked(greedy, SEC, w.now);
	served(&w, greedy);
	world_close(&w);
}

/* ---- debt ------------------------------------------------------------------------------------- */

static void test_vm_over_1_mib_of_debt_waits_and_is_refused_for_it(void **state)
{
	struct world w;
	struct vm *vm;
	struct admission_ticket *t;
	enum reason reason = REASON_NONE;

	(void)state;
	world_open(&w, admission_defaults, unlimited);
	vm = known(&w, 42, 1000);
	admission_debt_add(w.a, vm, MIB, w.now);
	t = served(&w, vm); /* exactly 1 MiB is not over it */
	finish(&w, t, REASON_NONE, 1000);
	admission_debt_add(w.a, vm, 1, w.now);
	t = arrive(&w, vm);
	assert_null(next(&w));
	served(&w, known(&w, 43, 1000)); /* only this VM waits */
	w.now += 5 * SEC;
	assert_ptr_equal(admission_expired(w.a, w.now, &reason), t);
	assert_int_equal(reason, REASON_DEBT);
	world_close(&w);
}

static void test_vm_near_its_debt_limit_is_served_one_connection_at_a_time(void **state)
{
	struct world w;
	struct vm *vm;
	struct admission_ticket *first, *second;

	(void)state;
	world_open(&w, admission_defaults, unlimited);
	vm = known(&w, 42, 1000);
	admission_debt_add(w.a, vm, MIB - VSR_UNREAD_UPDATES, w.now);
	first = served(&w, vm);
	second = served(&w, vm); /* what both may leave is not over 1 MiB before the last ends */
	finish(&w, second, REASON_NONE, 1000);
	admission_debt_add(w.a, vm, 1, w.now);
	second = arrive(&w, vm);
	assert_null(next(&w));
	finish(&w, first, REASON_NONE, 1000);
	assert_ptr_equal(next(&w), second);
	world_close(&w);
}

static void test_debt_ends_when_a_later_waiting_connection_shows_wmem_0(void **state)
{
	struct world w;
	struct vm *vm;
	struct admission_ticket *t;

	(void)state;
	world_open(&w, admission_defaults, unlimited);
	vm = known(&w, 42, 1000);
	t = served(&w, vm);
	admission_release(w.a, t, REASON_UNREAD_UPDATES, 0, 600 * KIB);
	admission_close(w.a, t, 2 * MIB, w.now);
	assert_int_equal(vm->debt, 2 * MIB);
	assert_int_equal(figures(&w).debtors, 1);
	admission_backlog_empty(w.a);
	t = arrive(&w, vm);
	assert_true(admission_wants_wmem(t));
	assert_null(next(&w));
	assert_true(admission_drained(w.a, t));
	assert_int_equal(vm->debt, 0);
	assert_int_equal(figures(&w).debt, 0);
	assert_int_equal(figures(&w).debtors, 0);
	assert_ptr_equal(next(&w), t);
	assert_false(admission_drained(w.a, t));
	world_close(&w);
}

/* A connection that was open, or sat in the backlog, when the debt was left has its RESPONSE
 * before the debt in the guest's queue: its WMEM 0 says nothing. */
static void test_connection_requested_before_the_debt_does_not_end_it(void **state)
{
	struct world w;
	struct vm *vm;
	struct admission_ticket *first, *open, *backlog, *later;

	(void)state;
	world_open(&w, admission_defaults, unlimited);
	vm = known(&w, 42, 1000);
	first = served(&w, vm);
	open = served(&w, vm);
	admission_close(w.a, first, 2 * MIB, w.now);
	assert_false(admission_wants_wmem(open));
	assert_false(admission_drained(w.a, open));
	backlog = arrive(&w, vm); /* accepted later, but perhaps requested before */
	assert_false(admission_drained(w.a, backlog));
	admission_backlog_empty(w.a);
	assert_false(admission_drained(w.a, backlog));
	later = arrive(&w, vm);
	assert_int_equal(vm->debt, 2 * MIB);
	assert_true(admission_drained(w.a, later));
	world_close(&w);
}

static void test_debt_ends_when_the_cid_is_gone(void **state)
{
	struct world w;
	struct vm *vm;

	(void)state;
	world_open(&w, admission_defaults, unlimited);
	vm = known(&w, 42, 1000);
	admission_debt_add(w.a, vm, 5 * MIB, w.now);
	admission_vm_gone(w.a, vm);
	admission_vm_gone(w.a, vm);
	assert_int_equal(figures(&w).debt, 0);
	served(&w, vm);
	world_close(&w);
}

/* What a guest has parked in a connection that it does not let go of: the kernel frees it in 8 s. */
static void test_what_the_kernel_keeps_behind_a_close_is_debt_for_as_long(void **state)
{
	struct world w;
	struct vm *vm, *other;
	struct admission_ticket *t;
	enum reason reason = REASON_NONE;

	(void)state;
	world_open(&w, admission_defaults, unlimited);
	vm = known(&w, 42, 1000);
	other = known(&w, 43, 1000);
	admission_kept(w.a, vm, 0, w.now);
	assert_int_equal(figures(&w).debtors, 0);
	admission_kept(w.a, vm, MIB, w.now);
	admission_kept(w.a, other, MIB, w.now + SEC);
	w.now += 2 * SEC;
	admission_kept(w.a, vm, 1,
		       w.now); /* the first MiB is given as long again: never too little */
	assert_int_equal(figures(&w).debt, 2 * MIB + 1);
	assert_int_equal(figures(&w).debtors, 2);
	assert_true(vm_pinned(w.vms, vm, w.now));
	t = arrive(&w, vm);
	assert_null(next(&w));
	assert_int_equal(admission_next_event(w.a, w.now), t->arrived + 5 * SEC);

	/* No proof ends it, only time. */
	admission_backlog_empty(w.a);
	assert_false(admission_drained(w.a, t));
	admission_vm_gone(w.a, vm);
	assert_int_equal(figures(&w).debt, 2 * MIB + 1);

	w.now += 5 * SEC;
	assert_ptr_equal(admission_expired(w.a, w.now, &reason), t);
	assert_int_equal(reason, REASON_DEBT);
	admission_close(w.a, t, 0, w.now);
	assert_int_equal(admission_next_event(w.a, w.now), T0 + SEC + ADMISSION_KEPT_USEC);
	w.now = T0 + SEC + ADMISSION_KEPT_USEC;
	assert_null(next(&w));
	assert_int_equal(figures(&w).debt, MIB + 1);
	t = arrive(&w, vm);
	w.now = T0 + 2 * SEC + ADMISSION_KEPT_USEC - 1;
	assert_null(next(&w));
	w.now++;
	assert_ptr_equal(next(&w), t);
	assert_int_equal(figures(&w).debt, 0);
	assert_int_equal(figures(&w).debtors, 0);
	world_close(&w);
}

/* Both kinds at once: a VM is one debtor, and each kind ends by itself. */
static void test_a_vm_with_both_kinds_of_debt_is_one_debtor(void **state)
{
	struct world w;
	struct vm *vm;

	(void)state;
	world_open(&w, admission_defaults, unlimited);
	vm = known(&w, 42, 1000);
	admission_debt_add(w.a, vm, 1000, w.now);
	admission_kept(w.a, vm, 2000, w.now);
	assert_int_equal(figures(&w).debtors, 1);
	admission_vm_gone(w.a, vm);
	assert_int_equal(figures(&w).debtors, 1);
	admission_debt_add(w.a, vm, 1000, w.now);
	assert_int_equal(figures(&w).debtors, 1);
	w.now += ADMISSION_KEPT_USEC;
	assert_null(next(&w));
	assert_int_equal(figures(&w).debtors, 1);
	assert_int_equal(figures(&w).debt, 1000);
	admission_vm_gone(w.a, vm);
	assert_int_equal(figures(&w).debtors, 0);
	world_close(&w);
}

static void test_cid_with_debt_is_probed_every_10_min(void **state)
{
	struct world w;
	struct vm *a, *b;

	(void)state;
	world_open(&w, admission_defaults, unlimited);
	a = known(&w, 10, 1000);
	b = known(&w, 11, 1000);
	admission_debt_add(w.a, a, 1, T0);
	admission_debt_add(w.a, b, 1, T0 + SEC);
	admission_debt_add(w.a, a, 1, T0 + 2 * SEC); /* more of it moves no probe */
	assert_int_equal(admission_next_event(w.a, T0), T0 + 600 * SEC);
	assert_null(admission_debt_probe(w.a, 0, T0 + 600 * SEC - 1));
	assert_ptr_equal(admission_debt_probe(w.a, 0, T0 + 600 * SEC), a);
	assert_null(admission_debt_probe(w.a, 0, T0 + 600 * SEC));
	assert_ptr_equal(admission_debt_probe(w.a, 0, T0 + 601 * SEC), b);
	admission_vm_gone(w.a, a);
	assert_null(admission_debt_probe(w.a, 0, T0 + 1200 * SEC));
	assert_ptr_equal(admission_debt_probe(w.a, 0, T0 + 1201 * SEC), b);
	world_close(&w);
}

/* Nobody can ask from here whether such a VM is still there. */
static void test_debt_in_another_namespace_ends_when_the_vm_was_silent_for_24_h(void **state)
{
	struct world w;
	struct vm *here, *there;

	(void)state;
	world_open(&w, admission_defaults, unlimited);
	here = known(&w, 3, 1000);
	assert_int_equal(
		vm_table_obtain(w.vms, (struct vsr_vm_id){ .ns = 7, .cid = 3 }, T0, &there), 0);
	admission_debt_add(w.a, there, 2 * MIB, T0);
	admission_debt_add(w.a, here, 1, T0);
	/* It is used again an hour later, without an end to its debt. */
	assert_int_equal(vm_table_obtain(w.vms, there->node.id, T0 + 3600 * SEC, &there), 0);
	for (uint64_t at = 600 * SEC; at < 25 * 3600 * SEC; at += 600 * SEC) {
		assert_int_equal(admission_next_event(w.a, T0 + at - 1), T0 + at);
		assert_ptr_equal(admission_debt_probe(w.a, 0, T0 + at), here);
		assert_null(admission_debt_probe(w.a, 0, T0 + at));
		assert_int_equal(there->debt, 2 * MIB);
		assert_true(vm_pinned(w.vms, there, T0 + at));
	}
	assert_ptr_equal(admission_debt_probe(w.a, 0, T0 + 25 * 3600 * SEC), here);
	assert_null(admission_debt_probe(w.a, 0, T0 + 25 * 3600 * SEC));
	assert_int_equal(there->debt, 0);
	assert_int_equal(figures(&w).debt, 1);
	assert_int_equal(figures(&w).debtors, 1);
	assert_false(vm_pinned(w.vms, there, T0 + 25 * 3600 * SEC));
	world_close(&w);
}

/* A relay whose own number is 7 asks for those of 7. */
static void test_vms_of_the_relays_own_namespace_are_probed_whatever_its_number(void **state)
{
	struct world w;
	struct vm *there;

	(void)state;
	world_open(&w, admission_defaults, unlimited);
	assert_int_equal(
		vm_table_obtain(w.vms, (struct vsr_vm_id){ .ns = 7, .cid = 3 }, T0, &there), 0);
	admission_debt_add(w.a, there, 1, T0);
	assert_null(admission_debt_probe(w.a, 7, T0 + 600 * SEC - 1));
	assert_ptr_equal(admission_debt_probe(w.a, 7, T0 + 48 * 3600 * SEC), there);
	assert_int_equal(there->debt, 1);
	world_close(&w);
}

static void test_beyond_a_quarter_of_the_budget_only_vms_with_debt_are_refused(void **state)
{
	struct world w;
	struct vm *small;
	struct admission_ticket *t;
	enum reason reason = REASON_NONE;

	(void)state;
	world_open(&w, admission_defaults, unlimited);
	small = known(&w, 10, 1000);
	admission_debt_add(w.a, small, 1, w.now);
	for (uint32_t i = 0; i < 63; i++)
		admission_debt_add(w.a, known(&w, 100 + i, 1000), MIB, w.now);
	finish(&w, served(&w, small), REASON_NONE, 1000); /* 63 MiB and 1 byte */
	admission_debt_add(w.a, known(&w, 200, 1000), MIB, w.now);
	t = arrive(&w, small);
	assert_null(next(&w));
	served(&w, known(&w, 11, 1000)); /* no debt: served */
	w.now += 5 * SEC;
	assert_ptr_equal(admission_expired(w.a, w.now, &reason), t);
	assert_int_equal(reason, REASON_DEBT);
	admission_close(w.a, t, 0, w.now);
	admission_backlog_empty(w.a);
	t = arrive(&w, small);
	assert_null(next(&w));
	assert_true(admission_drained(w.a, t)); /* even then it can show that it owes nothing */
	assert_ptr_equal(next(&w), t);
	world_close(&w);
}

static void test_debt_counts_against_the_budget(void **state)
{
	struct admission_settings s = admission_defaults;
	struct world w;

	(void)state;
	s.budget = 64 * MIB; /* 48 to be had, 16 of debt at most */
	world_open(&w, s, unlimited);
	for (uint32_t i = 0; i < 10; i++)
		admission_debt_add(w.a, known(&w, 100 + i, 1000), MIB, w.now);
	served(&w, known(&w, 10, 16 * MIB));
	served(&w, known(&w, 11, 16 * MIB));
	arrive(&w, known(&w, 12, 4 * MIB)); /* 34 + 10 + 5 */
	assert_null(next(&w));
	admission_vm_gone(w.a, known(&w, 100, 1000));
	assert_non_null(next(&w));
	assert_int_equal(figures(&w).reserved + figures(&w).debt, 48 * MIB);
	world_close(&w);
}

/* ---- one hostile CID -------------------------------------------------------------------------- */

static void test_1000_connections_of_one_cid_do_not_delay_anothers_grant(void **state)
{
	struct admission_settings s = admission_defaults;
	struct world w;
	struct vm *hostile, *polite;

	(void)state;
	s.places = 2;
	world_open(&w, s, bucket_rate_per(1, SEC, 5));
	hostile = unknown(&w, 66);
	polite = known(&w, 42, 1000);
	for (int round = 0; round < 5; round++) {
		struct admission_ticket *t;
		int let_in = 0;

		w.n = 0;
		for (int i = 0; i < 1000; i++) {
			enum reason reason;

			memset(&w.tickets[i], 0, sizeof(w.tickets[i]));
			let_in +=
				admission_arrive(w.a, &w.tickets[i], hostile, w.now, &reason) == 0;
		}
		w.n = 1000;
		assert_int_equal(let_in, 3);
		t = next(&w);
		assert_ptr_equal(t->vm, hostile);
		assert_null(next(&w));	/* the half of two places is one */
		t = served(&w, polite); /* at once */
		finish(&w, t, REASON_NONE, 1000);
		for (int i = 0; i < 1000; i++)
			if (w.tickets[i].state == ADMISSION_SERVED)
				finish(&w, &w.tickets[i], REASON_DEADLINE, 0);
			else
				admission_close(w.a, &w.tickets[i], 0, w.now);
		w.now += 10 * SEC;
	}
	assert_int_equal(figures(&w).places_used, 0);
	assert_int_equal(figures(&w).reserved, 0);
	assert_int_equal(figures(&w).waiting, 0);
	world_close(&w);
}

/* ---- random ----------------------------------------------------------------------------------- */

#define VMS	    500
#define CONNECTIONS 1000
#define STEPS	    4000 /* of 10 ms on average */

static uint64_t rng;

static uint64_t random_below(uint64_t n)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return rng % n;
}

static void seed_random(void)
{
	const char *given = getenv("VSR_SEED");
	uint64_t seed = given ? strtoull(given, NULL, 10) : (uint64_t)time(NULL);

	print_message("VSR_SEED=%llu\n", (unsigned long long)seed);
	rng = seed * 0x9E3779B97F4A7C15ULL + 1;
}

struct conn {
	struct admission_ticket ticket;
	bool polite;
	/* grants of each VM since this one arrived, for the polite */
	uint8_t *passed;
};

struct crowd {
	struct vm_table *vms;
	struct admission *a;
	struct conn conns[CONNECTIONS];
	uint64_t now;
	uint64_t max_wait;   /* of a polite one that was granted */
	uint64_t unreserved; /* debt of refused waiters, which had no reservation to become it */
	unsigned granted, granted_polite, expired_polite, expired, refused;
};

/* The first hundred VMs are polite: known, small, one connection at a time, no offence, no debt.
 * The rest does what it likes. */
static bool is_polite(uint32_t cid)
{
	return cid < 100;
}

static struct vm *crowd_vm(struct crowd *c, uint32_t cid)
{
	struct vm *vm = NULL;

	assert_int_equal(vm_table_obtain(c->vms, (struct vsr_vm_id){ .cid = cid }, c->now, &vm), 0);
	if (is_polite(cid) && !vm->accepted) {
		vm->accepted = true;
		vm->last_length = 500000;
	}
	return vm;
}

/* Everything added up again from the tickets and the records, and held against the limits. */
static void check_invariants(const struct crowd *c)
{
	struct admission_figures f;
	uint32_t limited_places, offender_places, used = 0, limited = 0, bad = 0, waiting = 0;
	uint64_t limited_bytes, offender_bytes, reserved = 0, limited_sum = 0, bad_sum = 0;
	uint64_t debt = 0;
	uint32_t debtors = 0;
	uint16_t by_vm[VMS][2] = { 0 };

	admission_figures(c->a, &f);
	admission_limits(c->a, &limited_places, &limited_bytes, &offender_places, &offender_bytes);
	for (size_t i = 0; i < CONNECTIONS; i++) {
		const struct admission_ticket *t = &c->conns[i].ticket;

		if (t->state == ADMISSION_WAITING) {
			assert_int_equal(t->reservation, 0); /* holds nothing while it waits */
			waiting++;
			by_vm[t->vm->node.id.cid][0]++;
		}
		if (t->state == ADMISSION_SERVED) {
			used++;
			limited += t->limited;
			bad += t->offender;
			by_vm[t->vm->node.id.cid][1]++;
			assert_true(t->reservation <= admission_maximum(c->a));
			assert_true(!t->offender || t->limited);
		}
		reserved += t->reservation;
		limited_sum += t->limited ? t->reservation : 0;
		bad_sum += t->offender ? t->reservation : 0;
	}
	for (const struct vm *vm = vm_table_next(c->vms, NULL); vm;
	     vm = vm_table_next(c->vms, vm)) {
		debt += vm->debt;
		debtors += vm->debt > 0;
		assert_int_equal(vm->waiting, by_vm[vm->node.id.cid][0]);
		assert_int_equal(vm->served, by_vm[vm->node.id.cid][1]);
		assert_true(vm->served <= 2);
		assert_true(vm->served + vm->waiting <= 3);
	}
	assert_int_equal(f.places_used, used);
	assert_int_equal(f.waiting, waiting);
	assert_int_equal(f.limited_places, limited);
	assert_int_equal(f.offender_places, bad);
	assert_int_equal(f.reserved, reserved);
	assert_int_equal(f.limited_reserved, limited_sum);
	assert_int_equal(f.offender_reserved, bad_sum);
	assert_int_equal(f.debt, debt);
	assert_int_equal(f.debtors, debtors);
	assert_true(used <= f.places);
	assert_true(waiting <= 256);
	assert_true(limited <= limited_places);
	assert_true(bad <= offender_places);
	assert_true(limited_sum <= limited_bytes);
	assert_true(bad_sum <= offender_bytes);
	assert_true(f.debt_charged <= f.budget / 4);
	/* Of what connections with a place left; what waiters leave comes on top of it. */
	assert_true(reserved + f.debt_charged <= f.budget - f.reserve + c->unreserved);
}

static void crowd_connect(struct crowd *c)
{
	uint32_t cid = (uint32_t)(random_below(4) ? random_below(VMS) : random_below(110));
	struct vm *vm = crowd_vm(c, cid);
	struct conn *conn = NULL;
	enum reason reason = REASON_NONE;

	if (is_polite(cid) && vm->open > 0)
		return;
	for (size_t i = 0; i < CONNECTIONS && !conn; i++)
		if (c->conns[i].ticket.state == ADMISSION_NONE)
			conn = &c->conns[i];
	if (!conn)
		return;
	if (admission_arrive(c->a, &conn->ticket, vm, c->now, &reason) < 0) {
		c->refused++;
		assert_int_equal(conn->ticket.state, ADMISSION_NONE);
		assert_true(reason == REASON_VM_CONNECTIONS || reason == REASON_WAITING_FULL);
		return;
	}
	conn->polite = is_polite(cid);
	if (conn->polite)
		memset(conn->passed, 0, VMS);
}

/*
 * The fairness that a polite VM is owed: while it waits with a token, no other VM has two turns,
 * since it never needs more than the smallest reservation.
 */
static void crowd_grant(struct crowd *c)
{
	struct admission_ticket *t;

	while ((t = admission_next(c->a, c->now))) {
		struct conn *conn = container_of(t, struct conn, ticket);

		c->granted++;
		if (conn->polite) {
			c->granted_polite++;
			c->max_wait = MAX(c->max_wait, c->now - t->arrived);
		}
		for (size_t i = 0; i < CONNECTIONS; i++) {
			struct conn *other = &c->conns[i];

			if (other == conn || !other->polite ||
			    other->ticket.state != ADMISSION_WAITING ||
			    vm_next_grant(c->vms, other->ticket.vm, c->now) > c->now)
				continue;
			assert_true(++other->passed[t->vm->node.id.cid] <= 1);
		}
		check_invariants(c);
	}
}

static void crowd_expire(struct crowd *c)
{
	struct admission_ticket *t;
	enum reason reason = REASON_NONE;
	uint64_t wmem;

	while ((t = admission_expired(c->a, c->now, &reason))) {
		struct conn *conn = container_of(t, struct conn, ticket);

		assert_true(c->now >= t->arrived + 5 * SEC);
		assert_true(reason == REASON_WAIT_TIMEOUT || reason == REASON_DEBT);
		assert_true(!conn->polite || reason == REASON_WAIT_TIMEOUT);
		c->expired++;
		c->expired_polite += conn->polite;
		wmem = conn->polite ? 0 : random_below(2000);
		c->unreserved += wmem;
		admission_close(c->a, t, wmem, c->now);
	}
}

/* One thing happens to one open connection. */
static void crowd_act(struct crowd *c, struct conn *conn)
{
	static const enum reason reasons[] = {
		REASON_NONE,	REASON_NONE,	    REASON_DEADLINE,  REASON_OVER_BUDGET,
		REASON_ABORTED, REASON_ZERO_LENGTH, REASON_MALFORMED, REASON_UNREAD_UPDATES,
	};
	struct admission_ticket *t = &conn->ticket;
	uint64_t wmem;

	if (t->state == ADMISSION_NONE)
		return;
	if (conn->polite) {
		if (t->state != ADMISSION_SERVED)
			return;
		admission_release(c->a, t, REASON_NONE, 400000 + random_below(200000), 0);
		admission_close(c->a, t, 0, c->now);
		return;
	}
	wmem = random_below(8) ? 0 : random_below(MIN(t->reservation + 1, 512 * KIB));
	if (admission_wants_wmem(t) && random_below(3) == 0) {
		admission_drained(c->a, t);
		return;
	}
	switch (random_below(4)) {
	case 0: /* offers, growth and shrinking */
		if (t->state == ADMISSION_SERVED) {
			uint64_t before = t->reservation, bytes = random_below(18 * MIB);
			int r = admission_resize(c->a, t, bytes);

			assert_int_equal(t->reservation, r < 0 ? before : bytes);
			assert_true(r == 0 || bytes > before);
		}
		break;
	case 1: /* vanishes */
		admission_close(c->a, t, MIN(wmem, t->reservation), c->now);
		break;
	default:
		if (t->state != ADMISSION_SERVED)
			break;
		admission_release(c->a, t, reasons[random_below(ARRAY_SIZE(reasons))],
				  random_below(16 * MIB), wmem);
		if (random_below(2))
			admission_close(c->a, t, wmem, c->now);
		break;
	}
}

/* The fewer of the connections act in a step, the longer they hold what they have. */
static void crowd_run(struct crowd *c, const struct admission_settings *s, unsigned acts)
{
	_cleanup_free_ uint8_t *passed = calloc(CONNECTIONS, VMS);

	assert_non_null(passed);
	c->now = T0;
	c->unreserved = 0;
	assert_int_equal(vm_table_new(VM_TABLE_MAX, bucket_rate_per(1, SEC, 5), unlimited, &c->vms),
			 0);
	assert_int_equal(admission_new(c->vms, s, &c->a), 0);
	for (size_t i = 0; i < CONNECTIONS; i++)
		c->conns[i].passed = passed + i * VMS;
	for (unsigned i = 0; i < STEPS; i++) {
		struct vm *vm;

		c->now += random_below(20000);
		for (uint64_t n = random_below(4); n > 0; n--)
			crowd_connect(c);
		if (random_below(3) == 0)
			admission_backlog_empty(c->a);
		for (unsigned n = 0; n < acts; n++)
			crowd_act(c, &c->conns[random_below(CONNECTIONS)]);
		while ((vm = admission_debt_probe(c->a, 0, c->now)))
			if (random_below(2))
				admission_vm_gone(c->a, vm);
		check_invariants(c);
		crowd_grant(c);
		crowd_expire(c);
		assert_true(admission_next_event(c->a, c->now) > c->now);
	}
	for (size_t i = 0; i < CONNECTIONS; i++)
		admission_close(c->a, &c->conns[i].ticket, 0, c->now);
	for (struct vm *vm = vm_table_next(c->vms, NULL); vm; vm = vm_table_next(c->vms, vm)) {
		assert_int_equal(vm->open, 0);
		admission_vm_gone(c->a, vm);
	}
	check_invariants(c);
	c->a = admission_free(c->a);
	c->vms = vm_table_free(c->vms);
}

static void crowd_story(const struct crowd *c)
{
	print_message("granted %u (polite %u, longest wait %llu ms), refused %u, expired %u "
		      "(polite %u)\n",
		      c->granted, c->granted_polite, (unsigned long long)c->max_wait / 1000,
		      c->refused, c->expired, c->expired_polite);
}

static void test_random_crowd_never_breaks_a_limit_nor_starves_the_polite(void **state)
{
	static const unsigned acts[] = { 30, 8, 3 };
	static struct crowd c;

	(void)state;
	seed_random();
	for (size_t round = 0; round < ARRAY_SIZE(acts); round++) {
		memset(&c, 0, sizeof(c));
		crowd_run(&c, &admission_defaults, acts[round]);
		crowd_story(&c);
		assert_true(c.granted_polite > 100);
		assert_true(c.granted > c.granted_polite);
		assert_true(round == 0 || c.expired > 0);
	}
}

static void test_random_crowd_keeps_the_limits_of_a_small_budget(void **state)
{
	struct admission_settings s = admission_defaults;
	static struct crowd c;

	(void)state;
	seed_random();
	for (int round = 0; round < 3; round++) {
		memset(&c, 0, sizeof(c));
		s.budget = (34 + random_below(40)) * MIB;
		s.places = 1 + (uint32_t)random_below(20);
		crowd_run(&c, &s, 60);
		crowd_story(&c);
		assert_true(c.granted > 50);
	}
}

static void test_limits_that_contradict_each_other_are_refused(void **state)
{
	struct admission *a = NULL;
	struct vm_table *vms = NULL;
	struct admission_settings bad[5];

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		bad[i] = admission_defaults;
	bad[0].places = 0;
	bad[1].waiting = 0;
	bad[2].report_limit = 1ULL << 32;
	bad[3].budget = 1ULL << 63;
	bad[4].budget = 2 * (bad[4].report_limit + MIB) - 2; /* not twice the maximum */
	assert_int_equal(vm_table_new(10, unlimited, unlimited, &vms), 0);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		assert_int_equal(admission_new(vms, &bad[i], &a), -EINVAL);
		assert_null(a);
	}
	vm_table_free(vms);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_limits_that_contradict_each_other_are_refused),
		cmocka_unit_test(test_50_known_guests_of_1_mb_at_once_and_a_51st_waits_its_turn),
		cmocka_unit_test(test_third_connection_of_a_vm_waits_and_a_fourth_is_refused),
		cmocka_unit_test(test_refused_arrival_changes_nothing),
		cmocka_unit_test(test_at_most_256_wait_in_all),
		cmocka_unit_test(test_waiter_is_refused_after_5_s_and_not_before),
		cmocka_unit_test(test_round_robin_gives_each_vm_one_turn),
		cmocka_unit_test(test_grant_rate_holds_a_vm_back_but_not_the_others),
		cmocka_unit_test(test_grant_rate_0_is_unlimited),
		cmocka_unit_test(test_unaccepted_vms_hold_at_most_half_of_the_places),
		cmocka_unit_test(test_second_connections_and_unaccepted_vms_share_one_half),
		cmocka_unit_test(test_unaccepted_vms_hold_at_most_half_of_the_memory),
		cmocka_unit_test(test_offenders_hold_at_most_a_quarter_of_the_places),
		cmocka_unit_test(
			test_offenders_hold_at_most_a_quarter_of_the_memory_but_always_one_maximum),
		cmocka_unit_test(test_offenders_wait_last),
		cmocka_unit_test(test_deadline_idle_and_violations_are_offences_over_budget_is_not),
		cmocka_unit_test(test_vm_is_unaccepted_until_a_valid_report),
		cmocka_unit_test(
			test_reservation_is_125_percent_of_the_last_length_within_1_mib_and_the_maximum),
		cmocka_unit_test(test_outgrown_vm_reserves_the_maximum_until_its_length_is_known),
		cmocka_unit_test(test_offer_becomes_length_plus_1_mib_or_is_refused),
		cmocka_unit_test(
			test_every_report_can_be_received_with_the_smallest_budget_and_all_debt),
		cmocka_unit_test(test_budget_below_twice_the_maximum_is_refused),
		cmocka_unit_test(test_reload_to_less_keeps_what_is_granted_and_grants_no_more),
		cmocka_unit_test(
			test_waiter_that_does_not_fit_is_passed_over_for_1_s_then_nobody_passes),
		cmocka_unit_test(test_waiter_short_of_its_class_share_bars_only_its_class),
		cmocka_unit_test(test_vm_that_outgrew_its_reservation_bars_no_known_vm),
		cmocka_unit_test(test_vm_that_may_not_have_one_itself_bars_nobody),
		cmocka_unit_test(test_place_and_reservation_are_back_before_the_answer),
		cmocka_unit_test(test_vm_that_takes_the_loops_time_waits_while_others_are_there),
		cmocka_unit_test(test_the_loops_time_holds_a_vm_back_for_less_than_one_may_wait),
		cmocka_unit_test(test_without_a_limit_of_grants_there_is_none_of_the_loops_time),
		cmocka_unit_test(test_vm_over_1_mib_of_debt_waits_and_is_refused_for_it),
		cmocka_unit_test(test_vm_near_its_debt_limit_is_served_one_connection_at_a_time),
		cmocka_unit_test(test_debt_ends_when_a_later_waiting_connection_shows_wmem_0),
		cmocka_unit_test(test_connection_requested_before_the_debt_does_not_end_it),
		cmocka_unit_test(test_debt_ends_when_the_cid_is_gone),
		cmocka_unit_test(test_what_the_kernel_keeps_behind_a_close_is_debt_for_as_long),
		cmocka_unit_test(test_a_vm_with_both_kinds_of_debt_is_one_debtor),
		cmocka_unit_test(test_cid_with_debt_is_probed_every_10_min),
		cmocka_unit_test(
			test_debt_in_another_namespace_ends_when_the_vm_was_silent_for_24_h),
		cmocka_unit_test(
			test_vms_of_the_relays_own_namespace_are_probed_whatever_its_number),
		cmocka_unit_test(
			test_beyond_a_quarter_of_the_budget_only_vms_with_debt_are_refused),
		cmocka_unit_test(test_debt_counts_against_the_budget),
		cmocka_unit_test(test_1000_connections_of_one_cid_do_not_delay_anothers_grant),
		cmocka_unit_test(test_random_crowd_never_breaks_a_limit_nor_starves_the_polite),
		cmocka_unit_test(test_random_crowd_keeps_the_limits_of_a_small_budget),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
