/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ACKs and retries (SPEC 7), each test named after its rule. The reference's scenarios run with
 * base 1 s and no rate limit on a fake clock. The last test is random, against a naive model; the
 * first seed is printed; VSR_SEED=n runs one again, VSR_SEEDS=n that many from it on.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <time.h>

#include <cmocka.h>

#include "tracker.h"

#define MSEC USEC_PER_MSEC
#define SEC  USEC_PER_SEC
#define MIN1 USEC_PER_MIN
#define T0   (1000 * SEC)

static const struct bucket_rate unlimited = { 0 };

struct world {
	struct vm_table *vms;
	struct tracker *t;
	double random; /* what the random function says */
};

static double world_random(void *userdata)
{
	return ((struct world *)userdata)->random;
}

static void world_open(struct world *w, struct tracker_settings s)
{
	memset(w, 0, sizeof(*w));
	w->random = 0.5;
	assert_int_equal(vm_table_new(VM_TABLE_MAX, unlimited, unlimited, &w->vms), 0);
	assert_int_equal(tracker_new(&s, world_random, w, &w->t), 0);
}

static void world_close(struct world *w)
{
	w->t = tracker_free(w->t);
	for (struct vm *vm = vm_table_next(w->vms, NULL); vm; vm = vm_table_next(w->vms, vm))
		assert_null(vm->acks);
	w->vms = vm_table_free(w->vms);
}

static struct tracker_settings base(int64_t usec)
{
	struct tracker_settings s = tracker_defaults;

	s.base = usec;
	return s;
}

static struct vm *vm_of(struct world *w, uint32_t cid)
{
	struct vm *vm = NULL;

	assert_int_equal(vm_table_obtain(w->vms, (struct vsr_vm_id){ .cid = cid }, T0, &vm), 0);
	return vm;
}

static uint64_t send_as(struct world *w, struct vm *vm, const char *vm_id, uint64_t now)
{
	uint64_t id = 0, until = 0;

	assert_int_equal(tracker_send(w->t, vm, tracker_vm_id_hash(vm_id, strlen(vm_id)), now, &id,
				      &until),
			 0);
	return id;
}

static uint64_t send_now(struct world *w, struct vm *vm, uint64_t now)
{
	return send_as(w, vm, "", now);
}

/* A content of this generation comes and is sent at once. */
static uint64_t deliver(struct world *w, struct vm *vm, uint64_t generation, uint64_t now)
{
	assert_int_equal(tracker_want(w->t, vm, generation, now), 0);
	assert_ptr_equal(tracker_next(w->t, now), vm);
	return send_now(w, vm, now);
}

static enum tracker_match ack(struct world *w, struct vm *vm, uint64_t now, uint64_t *ret_gen)
{
	return tracker_ack(w->t, vm, 0, now, ret_gen);
}

static enum tracker_match nack(struct world *w, struct vm *vm, const char *reason, uint64_t now)
{
	uint64_t gen;

	return tracker_nack(w->t, vm, 0, reason, now, &gen);
}

/* Lets time run until `until`; each retry is sent as it comes, and its time is noted. */
static size_t retries_until(struct world *w, uint64_t until, uint64_t *times, size_t max)
{
	size_t n = 0;

	while (tracker_next_event(w->t) <= until) {
		uint64_t now = tracker_next_event(w->t);
		struct vm *vm;

		while ((vm = tracker_next(w->t, now))) {
			assert_true(n < max);
			times[n++] = now;
			send_now(w, vm, now);
		}
	}
	return n;
}

#define assert_retries(w, until, ...)                                                   \
	do {                                                                            \
		const uint64_t _due[] = { __VA_ARGS__ };                                \
		uint64_t _times[64];                                                    \
		size_t _n = retries_until(w, T0 + (until), _times, ARRAY_SIZE(_times)); \
		assert_int_equal(_n, ARRAY_SIZE(_due));                                 \
		for (size_t _i = 0; _i < _n; _i++)                                      \
			assert_int_equal(_times[_i] - T0, _due[_i]);                    \
	} while (0)

static void assert_no_retry(struct world *w, uint64_t until)
{
	uint64_t times[1];

	assert_int_equal(retries_until(w, T0 + until, times, 0), 0);
}

static void assert_nothing_left(const struct world *w)
{
	struct tracker_figures f;

	tracker_figures(w->t, &f);
	assert_int_equal(f.contents, 0);
	assert_int_equal(f.sends, 0);
	assert_int_equal(tracker_next_event(w->t), USEC_INFINITY);
}

/* ---- the reference's scenarios ---------------------------------------------------------------- */

static void test_unacked_is_retried_at_1_3_and_6_s_and_only_3_times_by_6_1_s(void **state)
{
	struct world w;

	(void)state;
	world_open(&w, base(SEC));
	deliver(&w, vm_of(&w, 100), 1, T0);
	assert_retries(&w, 6100 * MSEC, 1 * SEC, 3 * SEC, 6 * SEC);
	world_close(&w);
}

static void test_second_send_moves_no_due_time(void **state)
{
	struct world w;
	struct vm *vm;

	(void)state;
	world_open(&w, base(SEC));
	vm = vm_of(&w, 100);
	deliver(&w, vm, 1, T0);
	assert_retries(&w, 4 * SEC, 1 * SEC, 3 * SEC);
	assert_int_equal(tracker_want(w.t, vm, 1, T0 + 4100 * MSEC), 0);
	assert_ptr_equal(tracker_next(w.t, T0 + 4100 * MSEC), vm);
	send_now(&w, vm, T0 + 4100 * MSEC);
	assert_retries(&w, 10100 * MSEC, 6 * SEC, 10 * SEC);
	world_close(&w);
}

static void test_ack_after_10_ms_ends_the_retries_and_leaves_nothing(void **state)
{
	struct world w;
	struct vm *vm;
	uint64_t gen = 0;

	(void)state;
	world_open(&w, base(SEC));
	vm = vm_of(&w, 100);
	deliver(&w, vm, 7, T0);
	assert_int_equal(ack(&w, vm, T0 + 10 * MSEC, &gen), TRACKER_SETTLED);
	assert_int_equal(gen, 7);
	tracker_end(w.t, vm);
	assert_null(vm->acks);
	assert_nothing_left(&w);
	world_close(&w);
}

static void test_nack_after_3_ms_keeps_the_due_times(void **state)
{
	struct world w;
	struct vm *vm;

	(void)state;
	world_open(&w, base(SEC));
	vm = vm_of(&w, 100);
	deliver(&w, vm, 1, T0);
	assert_int_equal(nack(&w, vm, "cannot enrich", T0 + 3 * MSEC), TRACKER_SETTLED);
	assert_retries(&w, 1100 * MSEC, 1 * SEC);
	world_close(&w);
}

static void test_of_two_vms_only_the_unacked_one_is_retried(void **state)
{
	struct world w;
	struct vm *a, *b;
	uint64_t gen;

	(void)state;
	world_open(&w, base(SEC));
	a = vm_of(&w, 100);
	b = vm_of(&w, 101);
	deliver(&w, a, 1, T0);
	deliver(&w, b, 1, T0);
	assert_int_equal(ack(&w, a, T0 + 10 * MSEC, &gen), TRACKER_SETTLED);
	tracker_end(w.t, a);
	assert_null(tracker_next(w.t, T0 + SEC - 1));
	assert_ptr_equal(tracker_next(w.t, T0 + SEC), b);
	assert_null(tracker_next(w.t, T0 + SEC));
	world_close(&w);
}

static void test_ack_that_overtakes_the_sends_completion_leaves_nothing_behind(void **state)
{
	struct world w;
	struct vm *vm;
	uint64_t id, gen;

	(void)state;
	world_open(&w, base(SEC));
	vm = vm_of(&w, 100);
	id = deliver(&w, vm, 1, T0);
	assert_int_equal(ack(&w, vm, T0 + 1, &gen), TRACKER_SETTLED);
	tracker_end(w.t, vm);
	tracker_settle(w.t, vm, id); /* the completion, whatever it was */
	assert_nothing_left(&w);
	world_close(&w);
}

/* ---- due times -------------------------------------------------------------------------------- */

static void test_default_is_linear_30_90_180_300_s_after_the_first_send(void **state)
{
	struct world w;

	(void)state;
	world_open(&w, tracker_defaults);
	assert_int_equal(tracker_want(w.t, vm_of(&w, 100), 1, T0 - 500 * SEC), 0);
	assert_non_null(tracker_next(w.t, T0 - 500 * SEC));
	tracker_defer(w.t, vm_of(&w, 100), T0); /* nothing runs before the first send */
	assert_int_equal(tracker_next_event(w.t), T0);
	assert_non_null(tracker_next(w.t, T0));
	send_now(&w, vm_of(&w, 100), T0);
	assert_retries(&w, 300 * SEC, 30 * SEC, 90 * SEC, 180 * SEC, 300 * SEC);
	world_close(&w);
}

static void test_non_positive_base_means_1_min(void **state)
{
	const int64_t bases[] = { 0, -1, INT64_MIN };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bases); i++) {
		struct world w;

		world_open(&w, base(bases[i]));
		deliver(&w, vm_of(&w, 100), 1, T0);
		assert_retries(&w, 200 * SEC, 60 * SEC, 180 * SEC);
		world_close(&w);
	}
}

static void test_several_missed_due_times_are_one_send(void **state)
{
	struct world w;
	struct vm *vm;

	(void)state;
	world_open(&w, base(SEC));
	vm = vm_of(&w, 100);
	deliver(&w, vm, 1, T0);
	assert_ptr_equal(tracker_next(w.t, T0 + 8 * SEC), vm); /* 1, 3 and 6 s */
	send_now(&w, vm, T0 + 8 * SEC);
	assert_null(tracker_next(w.t, T0 + 10 * SEC - 1));
	assert_ptr_equal(tracker_next(w.t, T0 + 10 * SEC), vm);
	world_close(&w);
}

static void test_due_retry_without_a_token_waits_and_is_one_send(void **state)
{
	struct world w;
	struct vm *vm;

	(void)state;
	world_open(&w, tracker_defaults);
	vm = vm_of(&w, 100);
	deliver(&w, vm, 1, T0);
	assert_ptr_equal(tracker_next(w.t, T0 + 30 * SEC), vm);
	tracker_defer(w.t, vm, T0 + 60 * SEC); /* one report a minute */
	assert_null(tracker_next(w.t, T0 + 60 * SEC - 1));
	assert_ptr_equal(tracker_next(w.t, T0 + 60 * SEC), vm);
	send_now(&w, vm, T0 + 60 * SEC);
	assert_null(tracker_next(w.t, T0 + 90 * SEC - 1));
	assert_ptr_equal(tracker_next(w.t, T0 + 90 * SEC), vm);
	tracker_defer(w.t, vm, T0 + 200 * SEC);
	assert_null(tracker_next(w.t, T0 + 180 * SEC)); /* a due time passes while it waits */
	assert_ptr_equal(tracker_next(w.t, T0 + 200 * SEC), vm);
	send_now(&w, vm, T0 + 200 * SEC);
	assert_int_equal(tracker_due(w.t, vm), T0 + 300 * SEC);
	assert_null(tracker_next(w.t, T0 + 300 * SEC - 1));
	world_close(&w);
}

static void test_newer_content_ends_the_older_retry_and_has_its_own_times(void **state)
{
	struct world w;
	struct vm *vm;

	(void)state;
	world_open(&w, base(SEC));
	vm = vm_of(&w, 100);
	deliver(&w, vm, 1, T0);
	assert_int_equal(tracker_want(w.t, vm, 2, T0 + 500 * MSEC), 0);
	assert_ptr_equal(tracker_next(w.t, T0 + 500 * MSEC), vm);
	tracker_defer(w.t, vm, T0 + 2500 * MSEC);
	assert_null(tracker_next(w.t, T0 + 2499 * MSEC)); /* not at 1 s */
	assert_ptr_equal(tracker_next(w.t, T0 + 2500 * MSEC), vm);
	send_now(&w, vm, T0 + 2500 * MSEC);
	assert_retries(&w, 6 * SEC, 3500 * MSEC, 5500 * MSEC);
	world_close(&w);
}

static void test_exponential_grows_by_the_factor_to_the_cap(void **state)
{
	struct tracker_settings s = base(SEC);
	struct world w;

	(void)state;
	s.exponential = true;
	s.factor = 3;
	s.cap = 10 * SEC;
	world_open(&w, s); /* the random function says 0.5: no jitter */
	deliver(&w, vm_of(&w, 100), 1, T0);
	assert_retries(&w, 40 * SEC, 1 * SEC, 4 * SEC, 13 * SEC, 23 * SEC, 33 * SEC);
	world_close(&w);
}

static void test_exponential_jitter_is_at_most_10_percent_either_way(void **state)
{
	struct tracker_settings s = base(10 * SEC);
	struct world w;

	(void)state;
	s.exponential = true;
	world_open(&w, s);
	w.random = 0;
	deliver(&w, vm_of(&w, 100), 1, T0);
	assert_int_equal(tracker_due(w.t, vm_of(&w, 100)), T0 + 9 * SEC);
	w.random = 0.75;
	deliver(&w, vm_of(&w, 101), 1, T0);
	assert_int_equal(tracker_due(w.t, vm_of(&w, 101)), T0 + 10500 * MSEC);
	world_close(&w);
}

static void test_long_gap_is_skipped_at_once(void **state)
{
	struct tracker_settings s = base(1);
	struct world w;
	struct vm *vm;

	(void)state;
	s.exponential = true;
	s.factor = 1;
	world_open(&w, s);
	vm = vm_of(&w, 100);
	deliver(&w, vm, 1, T0);
	/* 86400 million steps of 1 us: one send, and no time is spent on the others. */
	assert_ptr_equal(tracker_next(w.t, T0 + 24 * USEC_PER_HOUR), vm);
	send_now(&w, vm, T0 + 24 * USEC_PER_HOUR);
	assert_int_equal(tracker_due(w.t, vm), T0 + 24 * USEC_PER_HOUR + 1);
	world_close(&w);
}

static void test_bad_settings_are_refused(void **state)
{
	struct tracker_settings s = tracker_defaults;
	struct tracker *t = NULL;
	struct world w;

	(void)state;
	world_open(&w, s);
	s.factor = 0.5;
	assert_int_equal(tracker_new(&s, world_random, &w, &t), -EINVAL);
	s.factor = 1;
	s.jitter = 1.5;
	assert_int_equal(tracker_set(w.t, &s), -EINVAL);
	s.jitter = -0.1;
	assert_int_equal(tracker_set(w.t, &s), -EINVAL);
	s.jitter = 0;
	s.cap = 0;
	assert_int_equal(tracker_set(w.t, &s), -EINVAL);
	s.cap = USEC_PER_HOUR;
	assert_int_equal(tracker_set(w.t, &s), 0);
	world_close(&w);
}

static void test_steps_beyond_all_time_are_never_due(void **state)
{
	struct world w;
	struct vm *vm;

	(void)state;
	world_open(&w, base(INT64_MAX));
	vm = vm_of(&w, 100);
	deliver(&w, vm, 1, T0);
	assert_ptr_equal(tracker_next(w.t, (uint64_t)INT64_MAX + T0), vm);
	send_now(&w, vm, (uint64_t)INT64_MAX + T0);
	assert_int_equal(tracker_due(w.t, vm), USEC_INFINITY);
	assert_null(tracker_next(w.t, USEC_INFINITY - 1));
	tracker_end(w.t, vm);
	world_close(&w);
}

static void test_exponential_without_jitter_is_exact(void **state)
{
	struct tracker_settings s = base(SEC);
	struct world w;
	struct vm *vm;

	(void)state;
	s.exponential = true;
	s.jitter = 0;
	world_open(&w, s);
	w.random = 1;
	vm = vm_of(&w, 100);
	deliver(&w, vm, 1, T0);
	assert_int_equal(tracker_due(w.t, vm), T0 + SEC);
	tracker_end(w.t, vm);
	world_close(&w);
}

static void test_vm_without_content_is_neither_deferred_nor_sent(void **state)
{
	struct world w;
	struct vm *vm;
	uint64_t id;

	(void)state;
	world_open(&w, base(SEC));
	vm = vm_of(&w, 100);
	tracker_defer(w.t, vm, T0);
	assert_null(vm->acks);
	assert_int_equal(tracker_send(w.t, vm, 0, T0, &id, &id), -ENOENT);
	/* Pausing twice, and going on twice, is once. */
	tracker_pause(w.t, T0);
	tracker_pause(w.t, T0 + SEC);
	tracker_resume(w.t, T0 + SEC);
	tracker_resume(w.t, T0 + SEC);
	assert_nothing_left(&w);
	world_close(&w);
}

static void test_retries_end_with_the_content(void **state)
{
	struct world w;
	struct vm *vm;
	uint64_t id;

	(void)state;
	world_open(&w, base(SEC));
	vm = vm_of(&w, 100);
	id = deliver(&w, vm, 1, T0);
	tracker_end(w.t, vm); /* evicted, say */
	assert_no_retry(&w, 599 * SEC);
	tracker_settle(w.t, vm, id);
	assert_nothing_left(&w);
	/* Also while it waits for a token, and while the relay has it in its queue. */
	assert_int_equal(tracker_want(w.t, vm, 2, T0), 0);
	assert_ptr_equal(tracker_next(w.t, T0), vm);
	tracker_end(w.t, vm);
	tracker_defer(w.t, vm, T0 + SEC);
	assert_nothing_left(&w);
	assert_int_equal(tracker_send(w.t, vm, 0, T0, &id, &id), -ENOENT);
	world_close(&w);
}

static void test_failed_first_send_is_retried(void **state)
{
	struct world w;
	struct vm *vm;

	(void)state;
	world_open(&w, base(SEC));
	vm = vm_of(&w, 100);
	tracker_settle(w.t, vm, deliver(&w, vm, 1, T0)); /* nothing was delivered */
	assert_retries(&w, 3 * SEC, 1 * SEC, 3 * SEC);
	world_close(&w);
}

static void test_send_that_the_upstream_did_not_take_is_deferred_and_moves_no_due_time(void **state)
{
	struct world w;
	struct vm *vm;

	(void)state;
	world_open(&w, base(10 * SEC));
	vm = vm_of(&w, 100);
	tracker_settle(w.t, vm, deliver(&w, vm, 1, T0));
	tracker_defer(w.t, vm, T0 + SEC);
	assert_retries(&w, 10 * SEC, 1 * SEC, 10 * SEC);
	world_close(&w);
}

#ifndef __SANITIZE_ADDRESS__	  /* which has its own allocator */
static volatile unsigned fail_in; /* that allocation fails, from 1; 0: none. volatile, as compilers
				  * take calloc() for a function that reads no variable of ours */
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t size);

static bool fail_now(void)
{
	return fail_in > 0 && --fail_in == 0;
}

__attribute__((noinline)) void *calloc(size_t n, size_t size)
{
	return fail_now() ? NULL : __libc_calloc(n, size);
}

void *realloc(void *p, size_t size)
{
	return fail_now() ? NULL : __libc_realloc(p, size);
}

/* valgrind puts its own functions in the place of ours, where these are not inlined. */
static bool can_fail(void)
{
	void *volatile p; /* or the compiler leaves both calls out */
	bool failed;

	fail_in = 1;
	p = calloc(1, 1);
	fail_in = 0;
	failed = !p;
	free(p);
	return failed;
}

static void test_want_without_memory_changes_nothing(void **state)
{
	unsigned failures = 0;
	struct world w;
	struct vm *vm;

	(void)state;
	if (!can_fail())
		skip();
	world_open(&w, base(SEC));
	vm = vm_of(&w, 100);
	for (unsigned nth = 1;; nth++) {
		int r;

		fail_in = nth;
		r = tracker_want(w.t, vm, 1, T0);
		if (fail_in > 0) {
			fail_in = 0;
			assert_int_equal(r, 0);
			break;
		}
		assert_int_equal(r, -ENOMEM);
		assert_null(vm->acks);
		assert_nothing_left(&w);
		failures++;
	}
	assert_true(failures > 0);
	/* Whatever comes after the first want needs no more memory. */
	for (uint64_t gen = 2; gen < 6; gen++) {
		fail_in = 1;
		deliver(&w, vm, gen, T0);
		tracker_defer(w.t, vm, T0 + gen);
		assert_int_equal(fail_in, 1);
	}
	fail_in = 0;
	world_close(&w);
}
#endif

/* ---- ACKs act on one generation --------------------------------------------------------------- */

static void test_late_ack_of_older_content_does_not_end_newer_content_already_sent(void **state)
{
	struct world w;
	struct vm *vm;
	uint64_t gen = 0;

	(void)state;
	world_open(&w, base(SEC));
	vm = vm_of(&w, 100);
	deliver(&w, vm, 1, T0);
	deliver(&w, vm, 2, T0 + 500 * MSEC);
	assert_int_equal(ack(&w, vm, T0 + 600 * MSEC, &gen), TRACKER_SETTLED);
	assert_int_equal(gen, 1);
	assert_int_equal(ack(&w, vm, T0 + 700 * MSEC, &gen), TRACKER_SETTLED);
	assert_int_equal(gen, 2);
	world_close(&w);
}

static void test_content_that_was_never_sent_is_not_ended_by_an_ack(void **state)
{
	struct world w;
	struct vm *vm;
	uint64_t gen = 99;

	(void)state;
	world_open(&w, base(SEC));
	vm = vm_of(&w, 100);
	assert_int_equal(tracker_want(w.t, vm, 1, T0), 0); /* as after a restart */
	assert_int_equal(ack(&w, vm, T0, &gen), TRACKER_UNMATCHED);
	assert_int_equal(gen, 99);
	assert_ptr_equal(tracker_next(w.t, T0), vm);
	world_close(&w);
}

/* The second ACK of a content that was sent twice arrives when newer content is on its way. */
static void test_sends_are_remembered_beyond_the_end_of_their_content(void **state)
{
	struct world w;
	struct vm *vm;
	uint64_t gen = 0;

	(void)state;
	world_open(&w, base(SEC));
	vm = vm_of(&w, 100);
	deliver(&w, vm, 1, T0);
	assert_retries(&w, SEC, SEC);
	assert_int_equal(ack(&w, vm, T0 + 1100 * MSEC, &gen), TRACKER_SETTLED);
	assert_int_equal(gen, 1);
	tracker_end(w.t, vm);
	assert_non_null(vm->acks);
	assert_true(vm_pinned(w.vms, vm, T0));
	deliver(&w, vm, 2, T0 + 2 * SEC);
	assert_int_equal(ack(&w, vm, T0 + 3 * SEC, &gen), TRACKER_SETTLED);
	assert_int_equal(gen, 1);
	world_close(&w);
}

static void test_sends_are_remembered_for_10_min(void **state)
{
	struct world w;
	struct vm *vm;
	uint64_t gen = 0;

	(void)state;
	world_open(&w, base(SEC));
	vm = vm_of(&w, 100);
	deliver(&w, vm, 1, T0);
	tracker_end(w.t, vm);
	assert_int_equal(tracker_next_event(w.t), T0 + 10 * MIN1);
	assert_int_equal(ack(&w, vm, T0 + 10 * MIN1 - 1, &gen), TRACKER_SETTLED);
	assert_nothing_left(&w);
	deliver(&w, vm, 2, T0);
	assert_int_equal(ack(&w, vm, T0 + 10 * MIN1, &gen), TRACKER_UNMATCHED);
	tracker_end(w.t, vm);
	deliver(&w, vm, 3, T0);
	tracker_end(w.t, vm);
	assert_null(tracker_next(w.t, T0 + 10 * MIN1)); /* without any ACK */
	assert_nothing_left(&w);
	world_close(&w);
}

static void test_with_8_unsettled_the_next_send_waits(void **state)
{
	struct world w;
	struct vm *vm;
	uint64_t id = 0, until = 0, gen;

	(void)state;
	world_open(&w, base(100 * SEC));
	vm = vm_of(&w, 100);
	for (uint64_t i = 0; i < 8; i++)
		deliver(&w, vm, 1 + i, T0 + i * SEC);
	assert_int_equal(tracker_want(w.t, vm, 9, T0 + 8 * SEC), 0);
	assert_ptr_equal(tracker_next(w.t, T0 + 8 * SEC), vm);
	assert_int_equal(tracker_send(w.t, vm, 0, T0 + 8 * SEC, &id, &until), -EAGAIN);
	assert_int_equal(until, T0 + 10 * MIN1);
	tracker_defer(w.t, vm, until);
	assert_null(tracker_next(w.t, T0 + 9 * SEC));
	/* An ACK makes room at once. */
	assert_int_equal(ack(&w, vm, T0 + 9 * SEC, &gen), TRACKER_SETTLED);
	assert_ptr_equal(tracker_next(w.t, T0 + 9 * SEC), vm);
	send_now(&w, vm, T0 + 9 * SEC);
	/* So does the oldest one's age. */
	assert_int_equal(tracker_want(w.t, vm, 10, T0 + 10 * SEC), 0);
	assert_ptr_equal(tracker_next(w.t, T0 + 10 * SEC), vm);
	assert_int_equal(tracker_send(w.t, vm, 0, T0 + 10 * SEC, &id, &until), -EAGAIN);
	assert_int_equal(until, T0 + SEC + 10 * MIN1);
	tracker_defer(w.t, vm, until);
	assert_null(tracker_next(w.t, until - 1));
	assert_ptr_equal(tracker_next(w.t, until), vm);
	send_now(&w, vm, until);
	world_close(&w);
}

static void test_ack_that_settles_nothing_is_unmatched(void **state)
{
	struct world w;
	struct vm *vm;
	uint64_t gen = 99;

	(void)state;
	world_open(&w, base(SEC));
	vm = vm_of(&w, 100);
	assert_int_equal(ack(&w, NULL, T0, &gen), TRACKER_UNMATCHED); /* unknown CID */
	assert_int_equal(ack(&w, vm, T0, &gen), TRACKER_UNMATCHED);
	deliver(&w, vm, 1, T0);
	assert_int_equal(ack(&w, vm, T0, &gen), TRACKER_SETTLED);
	assert_int_equal(ack(&w, vm, T0, &gen), TRACKER_UNMATCHED); /* duplicate */
	assert_int_equal(nack(&w, vm, "unsupported action", T0), TRACKER_UNMATCHED);
	world_close(&w);
}

static void test_ack_with_another_vm_id_is_stale(void **state)
{
	struct world w;
	struct vm *vm;
	uint64_t one = tracker_vm_id_hash("vm-1", 4), two = tracker_vm_id_hash("vm-2", 4), gen = 9;

	(void)state;
	world_open(&w, base(SEC));
	vm = vm_of(&w, 100);
	assert_int_equal(tracker_want(w.t, vm, 1, T0), 0);
	send_as(&w, vm, "vm-1", T0);
	assert_int_equal(tracker_ack(w.t, vm, two, T0, &gen), TRACKER_STALE);
	assert_int_equal(gen, 9);
	/* The CID now belongs to vm-2: its ACK is not used up by the send of vm-1. */
	assert_int_equal(tracker_want(w.t, vm, 2, T0), 0);
	send_as(&w, vm, "vm-2", T0);
	assert_int_equal(tracker_ack(w.t, vm, two, T0, &gen), TRACKER_SETTLED);
	assert_int_equal(gen, 2);
	assert_int_equal(tracker_ack(w.t, vm, one, T0, &gen), TRACKER_SETTLED);
	assert_int_equal(gen, 1);
	/* An empty one on either side differs from nothing. */
	send_as(&w, vm, "", T0);
	assert_int_equal(tracker_ack(w.t, vm, two, T0, &gen), TRACKER_SETTLED);
	send_as(&w, vm, "vm-1", T0);
	assert_int_equal(tracker_ack(w.t, vm, 0, T0, &gen), TRACKER_SETTLED);
	world_close(&w);
}

static void test_vm_id_names_a_vm_only_if_exactly_one_claims_it(void **state)
{
	struct world w;
	struct vm *a, *b;
	uint64_t one = tracker_vm_id_hash("vm-1", 4);

	(void)state;
	world_open(&w, base(SEC));
	a = vm_of(&w, 3);
	b = vm_of(&w, 4);
	assert_null(tracker_claimant(w.t, 0, one));
	assert_int_equal(tracker_want(w.t, a, 1, T0), 0);
	send_as(&w, a, "vm-1", T0);
	send_as(&w, a, "vm-1", T0); /* twice the same VM is one */
	assert_ptr_equal(tracker_claimant(w.t, 0, one), a);
	assert_null(tracker_claimant(w.t, 1, one));
	assert_null(tracker_claimant(w.t, 0, 0));
	assert_null(tracker_claimant(w.t, 0, tracker_vm_id_hash("vm-2", 4)));
	assert_ptr_equal(tracker_claimant_anywhere(w.t, one), a);
	assert_int_equal(tracker_want(w.t, b, 1, T0), 0);
	send_as(&w, b, "vm-1", T0);
	assert_null(tracker_claimant(w.t, 0, one));
	world_close(&w);
}

/* ---- NACKs ------------------------------------------------------------------------------------ */

static void test_a_cid_is_shared_only_with_who_was_sent(void **state)
{
	struct vm *a, *same = NULL, *other;
	struct world w;

	(void)state;
	world_open(&w, base(SEC));
	a = vm_of(&w, 3);
	other = vm_of(&w, 4);
	assert_int_equal(vm_table_obtain(w.vms, (struct vsr_vm_id){ .ns = 1, .cid = 3 }, T0, &same),
			 0);
	deliver(&w, a, 1, T0);
	deliver(&w, other, 1, T0);
	assert_false(tracker_shares_cid(w.t, a));
	assert_int_equal(tracker_want(w.t, same, 1, T0), 0);
	assert_false(tracker_shares_cid(w.t, a));
	assert_ptr_equal(tracker_next(w.t, T0), same);
	send_now(&w, same, T0);
	assert_true(tracker_shares_cid(w.t, a));
	assert_true(tracker_shares_cid(w.t, same));
	assert_false(tracker_shares_cid(w.t, other));
	world_close(&w);
}

static void test_permanent_nack_says_so_for_its_own_generation(void **state)
{
	struct world w;
	struct vm *vm;
	uint64_t gen = 0;

	(void)state;
	world_open(&w, base(SEC));
	vm = vm_of(&w, 100);
	deliver(&w, vm, 1, T0);
	deliver(&w, vm, 2, T0);
	assert_int_equal(tracker_nack(w.t, vm, 0, "missing scanner index data", T0, &gen),
			 TRACKER_PERMANENT);
	assert_int_equal(gen, 1); /* not the one in custody: nothing ends */
	assert_int_equal(tracker_nack(w.t, vm, 0, "unsupported action", T0, &gen),
			 TRACKER_PERMANENT);
	assert_int_equal(gen, 2);
	tracker_end(w.t, vm);
	assert_nothing_left(&w);
	world_close(&w);
}

static void test_permanent_reasons_are_settable_and_compared_whole(void **state)
{
	const char *const mine[] = { "go away" };
	struct tracker_settings s = base(SEC);
	struct world w;

	(void)state;
	s.permanent = mine;
	s.n_permanent = 1;
	world_open(&w, s);
	assert_true(tracker_reason_permanent(w.t, "go away"));
	assert_false(tracker_reason_permanent(w.t, "go away!"));
	assert_false(tracker_reason_permanent(w.t, "unsupported action"));
	assert_false(tracker_reason_permanent(w.t, ""));
	world_close(&w);
}

static void test_central_rate_limit_doubles_the_running_step_to_the_cap(void **state)
{
	struct tracker_settings s = base(10 * SEC);
	struct world w;
	struct vm *vm;

	(void)state;
	s.cap = 50 * SEC;
	world_open(&w, s);
	vm = vm_of(&w, 100);
	deliver(&w, vm, 1, T0);
	for (int i = 0; i < 3; i++)
		send_now(&w, vm, T0);
	assert_int_equal(nack(&w, vm, TRACKER_REASON_RATE, T0), TRACKER_SETTLED);
	assert_int_equal(tracker_due(w.t, vm), T0 + 20 * SEC);
	assert_int_equal(nack(&w, vm, TRACKER_REASON_RATE, T0), TRACKER_SETTLED);
	assert_int_equal(tracker_due(w.t, vm), T0 + 40 * SEC);
	assert_int_equal(nack(&w, vm, TRACKER_REASON_RATE, T0), TRACKER_SETTLED);
	assert_int_equal(tracker_due(w.t, vm), T0 + 50 * SEC);
	/* Only that step: the next one is the second of the schedule. */
	assert_retries(&w, 75 * SEC, 50 * SEC, 70 * SEC);
	world_close(&w);
}

static void test_central_rate_limit_for_older_content_moves_nothing(void **state)
{
	struct world w;
	struct vm *vm;

	(void)state;
	world_open(&w, base(10 * SEC));
	vm = vm_of(&w, 100);
	deliver(&w, vm, 1, T0);
	deliver(&w, vm, 2, T0);
	assert_int_equal(nack(&w, vm, TRACKER_REASON_RATE, T0), TRACKER_SETTLED);
	assert_int_equal(tracker_due(w.t, vm), T0 + 10 * SEC);
	world_close(&w);
}

/* ---- paused upstream -------------------------------------------------------------------------- */

static void test_due_times_stand_still_while_the_upstream_is_paused(void **state)
{
	struct world w;
	struct vm *a, *b;

	(void)state;
	world_open(&w, base(10 * SEC));
	a = vm_of(&w, 100);
	b = vm_of(&w, 101);
	deliver(&w, a, 1, T0);
	tracker_pause(w.t, T0 + 4 * SEC);
	tracker_pause(w.t, T0 + 5 * SEC);
	assert_int_equal(tracker_want(w.t, b, 1, T0 + 6 * SEC), 0);
	assert_null(tracker_next(w.t, T0 + 100 * SEC));
	assert_ptr_equal(tracker_probe(w.t), b); /* it has not been sent at all */
	/* Its content ends meanwhile, and what it was sent is remembered: that needs no probe. */
	send_now(&w, b, T0 + 7 * SEC);
	tracker_end(w.t, b);
	assert_ptr_equal(tracker_probe(w.t), a);
	assert_int_equal(tracker_want(w.t, b, 2, T0 + 8 * SEC), 0);
	assert_ptr_equal(tracker_probe(w.t), b);
	tracker_resume(w.t, T0 + 104 * SEC);
	tracker_resume(w.t, T0 + 105 * SEC);
	assert_ptr_equal(tracker_next(w.t, T0 + 104 * SEC), b);
	assert_null(tracker_next(w.t, T0 + 110 * SEC - 1));
	assert_ptr_equal(tracker_next(w.t, T0 + 110 * SEC), a);
	world_close(&w);
}

static void test_probe_sent_during_a_pause_has_its_full_step_afterwards(void **state)
{
	struct world w;
	struct vm *vm;

	(void)state;
	world_open(&w, base(10 * SEC));
	vm = vm_of(&w, 100);
	assert_null(tracker_probe(w.t));
	assert_int_equal(tracker_want(w.t, vm, 1, T0), 0);
	tracker_pause(w.t, T0);
	assert_ptr_equal(tracker_probe(w.t), vm);
	send_now(&w, vm, T0 + 30 * SEC);
	tracker_resume(w.t, T0 + 31 * SEC);
	assert_retries(&w, 50 * SEC, 41 * SEC);
	world_close(&w);
}

/* ---- resource ids ----------------------------------------------------------------------------- */

static void test_resource_id_is_split_at_exactly_one_separator_between_non_empty_sides(void **state)
{
	const struct {
		const char *text, *vm_id;
		bool has_cid;
		uint32_t cid;
	} cases[] = {
		{ "100", "", true, 100 },
		{ "vm-1:100", "vm-1", true, 100 },
		{ "a:4294967295", "a", true, 4294967295U },
		{ "0", "", true, 0 },
		{ "4294967296", "", false, 0 },
		{ "99999999999999999999", "", false, 0 },
		{ "", "", false, 0 },
		{ ":", "", false, 0 },
		{ ":123", "", false, 0 },
		{ "vm-1:", "", false, 0 },
		{ "vm-1:123:extra", "", false, 0 },
		{ "vm-1::123", "", false, 0 },
		{ "::123", "", false, 0 },
		{ "vm-1:123:", "", false, 0 },
		{ "vm-1:0123", "vm-1", false, 0 },
		{ "vm-1:+123", "vm-1", false, 0 },
		{ "vm-1: 123", "vm-1", false, 0 },
		{ "vm-1:abc", "vm-1", false, 0 },
		{ "00", "", false, 0 },
		{ "-1", "", false, 0 },
		{ "100 ", "", false, 0 },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		size_t len = strlen(cases[i].text);
		_cleanup_free_ char *exact = malloc(len ? len : 1); /* no byte behind it */
		struct tracker_resource r;

		memcpy(exact, cases[i].text, len);
		tracker_resource_parse(exact, len, &r);
		assert_int_equal(r.vm_id_len, strlen(cases[i].vm_id));
		if (r.vm_id_len > 0)
			assert_memory_equal(r.vm_id, cases[i].vm_id, r.vm_id_len);
		assert_int_equal(r.has_cid, cases[i].has_cid);
		assert_int_equal(r.cid, cases[i].cid);
	}
}

static void test_only_the_empty_vm_id_hashes_to_0(void **state)
{
	(void)state;
	assert_int_equal(tracker_vm_id_hash("", 0), 0);
	assert_int_not_equal(tracker_vm_id_hash("\0", 1), 0);
	assert_int_equal(tracker_vm_id_hash("vm-1x", 4), tracker_vm_id_hash("vm-1", 4));
	assert_int_not_equal(tracker_vm_id_hash("vm-1", 4), tracker_vm_id_hash("vm-2", 4));
}

/* ---- random, against a model ------------------------------------------------------------------ */

#define VMS   500
#define STEPS 1200 /* of 3 s on average: an hour */

static uint64_t rng;

static uint64_t random_below(uint64_t n)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return rng % n;
}

/* The rules in the plainest form: no heap, no order, everything is looked at each time. */
struct model {
	bool held, wanted, handed, full;
	uint64_t generation, first_sent, tries, due, step, try_at;
	struct {
		uint64_t generation, at, id;
	} sends[TRACKER_SENDS];
	size_t n_sends;
};

static void model_remove(struct model *m, size_t i)
{
	for (m->n_sends--; i < m->n_sends; i++)
		m->sends[i] = m->sends[i + 1];
	if (m->full) {
		m->full = m->handed = false;
		m->try_at = 0;
	}
}

static void model_forget(struct model *m, uint64_t now)
{
	while (m->n_sends > 0 && m->sends[0].at + 10 * MIN1 <= now)
		model_remove(m, 0);
}

/* Whether the VM is to be sent now. */
static bool model_next(struct model *m, uint64_t now)
{
	model_forget(m, now);
	if (!m->held)
		return false;
	if (m->first_sent && m->due <= now) {
		while (m->due <= now) {
			m->tries++;
			m->step = m->tries * 30 * SEC;
			m->due += m->step;
		}
		if (!m->wanted) {
			m->wanted = true;
			m->handed = false;
			m->try_at = now;
		}
	}
	if (!m->wanted || m->handed || m->try_at > now)
		return false;
	m->handed = true;
	return true;
}

struct hour {
	struct world w;
	struct vm *vms[VMS];
	struct model models[VMS];
	uint64_t now, generation;
	unsigned sent, acked, stale, unmatched, waited;
};

static void hour_send(struct hour *h, uint32_t i)
{
	struct model *m = &h->models[i];
	uint64_t id = 0, until = 0;
	int r = tracker_send(h->w.t, h->vms[i], 0, h->now, &id, &until);

	model_forget(m, h->now);
	if (!m->held) {
		assert_int_equal(r, -ENOENT);
		return;
	}
	if (m->n_sends == TRACKER_SENDS) {
		assert_int_equal(r, -EAGAIN);
		assert_int_equal(until, m->sends[0].at + 10 * MIN1);
		tracker_defer(h->w.t, h->vms[i], until);
		m->full = m->wanted = true;
		m->handed = false;
		m->try_at = until;
		h->waited++;
		return;
	}
	assert_int_equal(r, 0);
	m->sends[m->n_sends].generation = m->generation;
	m->sends[m->n_sends].at = h->now;
	m->sends[m->n_sends++].id = id;
	m->wanted = m->handed = m->full = false;
	if (!m->first_sent) {
		m->first_sent = h->now;
		m->tries = 1;
		m->step = 30 * SEC;
		m->due = h->now + m->step;
	}
	h->sent++;
}

static void hour_end(struct hour *h, uint32_t i)
{
	tracker_end(h->w.t, h->vms[i]);
	h->models[i].held = h->models[i].wanted = h->models[i].handed = h->models[i].full = false;
	h->models[i].first_sent = 0;
}

static void hour_ack(struct hour *h, uint32_t i)
{
	static const char *const reasons[] = { NULL, NULL, "odd", "unsupported action",
					       TRACKER_REASON_RATE };
	const char *reason = reasons[random_below(ARRAY_SIZE(reasons))];
	struct model *m = &h->models[i];
	uint64_t generation = 0, expected;
	enum tracker_match match;

	match = reason ? tracker_nack(h->w.t, h->vms[i], 0, reason, h->now, &generation)
		       : tracker_ack(h->w.t, h->vms[i], 0, h->now, &generation);
	model_forget(m, h->now);
	if (m->n_sends == 0) {
		assert_int_equal(match, TRACKER_UNMATCHED);
		h->unmatched++;
		return;
	}
	expected = m->sends[0].generation;
	assert_int_equal(generation, expected);
	model_remove(m, 0);
	h->acked++;
	h->stale += !m->held || generation != m->generation;
	if (!m->held || generation != m->generation)
		return;
	if (!reason || match == TRACKER_PERMANENT) {
		hour_end(h, i);
	} else if (streq(reason, TRACKER_REASON_RATE)) {
		uint64_t doubled = MAX(m->step, MIN(2 * m->step, 30 * MIN1));

		m->due += doubled - m->step;
		m->step = doubled;
	}
}

static void hour_act(struct hour *h)
{
	uint32_t i = (uint32_t)random_below(VMS);
	struct model *m = &h->models[i];

	switch (random_below(8)) {
	case 0:
	case 1: /* new content, or an operator's retry */
		if (!m->held || random_below(4)) {
			m->generation = ++h->generation;
			m->first_sent = 0;
		}
		assert_int_equal(tracker_want(h->w.t, h->vms[i], m->generation, h->now), 0);
		m->held = m->wanted = true;
		m->handed = m->full = false;
		m->try_at = h->now;
		break;
	case 2: /* evicted */
		hour_end(h, i);
		break;
	case 3: /* a call's result */
		if (m->n_sends > 0) {
			size_t s = random_below(m->n_sends);

			tracker_settle(h->w.t, h->vms[i], m->sends[s].id);
			model_remove(m, s);
		}
		tracker_settle(h->w.t, h->vms[i], UINT64_MAX); /* one that is settled already */
		break;
	default:
		hour_ack(h, i);
		break;
	}
}

/* Both must name the same VMs, each once. */
static void hour_next(struct hour *h)
{
	bool due[VMS];
	struct vm *vm;

	for (uint32_t i = 0; i < VMS; i++)
		due[i] = model_next(&h->models[i], h->now);
	while ((vm = tracker_next(h->w.t, h->now))) {
		uint32_t i = vm->node.id.cid;

		assert_true(due[i]);
		due[i] = false;
		if (random_below(4) == 0) { /* no token */
			h->models[i].handed = false;
			h->models[i].try_at = h->now + 1 + random_below(60 * SEC);
			tracker_defer(h->w.t, vm, h->models[i].try_at);
		} else {
			hour_send(h, i);
		}
	}
	for (uint32_t i = 0; i < VMS; i++)
		assert_false(due[i]);
}

static void hour_check(const struct hour *h)
{
	struct tracker_figures f;
	size_t contents = 0, awaiting = 0, sends = 0;
	uint64_t next = USEC_INFINITY;

	for (uint32_t i = 0; i < VMS; i++) {
		const struct model *m = &h->models[i];

		contents += m->held;
		awaiting += m->held && m->first_sent;
		sends += m->n_sends;
		assert_int_equal(h->vms[i]->acks != NULL, m->held || m->n_sends > 0);
		assert_int_equal(tracker_due(h->w.t, h->vms[i]),
				 m->held && m->first_sent ? m->due : USEC_INFINITY);
		if (m->n_sends > 0)
			next = MIN(next, m->sends[0].at + 10 * MIN1);
		if (m->held && m->first_sent)
			next = MIN(next, m->due);
		if (m->wanted && !m->handed)
			next = MIN(next, m->try_at);
	}
	tracker_figures(h->w.t, &f);
	assert_int_equal(f.contents, contents);
	assert_int_equal(f.awaiting, awaiting);
	assert_int_equal(f.sends, sends);
	assert_int_equal(tracker_next_event(h->w.t), next);
}

static void hour_run(struct hour *h)
{
	memset(h, 0, sizeof(*h));
	world_open(&h->w, tracker_defaults);
	h->now = T0;
	for (uint32_t i = 0; i < VMS; i++)
		h->vms[i] = vm_of(&h->w, i);
	for (int step = 0; step < STEPS; step++) {
		h->now += 1 + random_below(6 * SEC);
		hour_next(h);
		for (uint64_t n = random_below(20); n > 0; n--)
			hour_act(h);
		hour_check(h);
	}
	for (uint32_t i = 0; i < VMS; i++)
		hour_end(h, i);
	h->now += 10 * MIN1;
	assert_null(tracker_next(h->w.t, h->now));
	assert_nothing_left(&h->w);
	world_close(&h->w);
}

static void test_random_hour_of_500_vms_equals_a_naive_model(void **state)
{
	const char *given = getenv("VSR_SEED");
	uint64_t seed = given ? strtoull(given, NULL, 10) : (uint64_t)time(NULL);
	const char *many = getenv("VSR_SEEDS");
	uint64_t n = many ? strtoull(many, NULL, 10) : given ? 1 : 50;
	static struct hour h;

	(void)state;
	print_message("VSR_SEED=%llu and the %llu after it\n", (unsigned long long)seed,
		      (unsigned long long)n - 1);
	for (uint64_t i = 0; i < n; i++, seed++) {
		rng = seed * 0x9E3779B97F4A7C15ULL + 1;
		hour_run(&h);
		assert_true(h.sent > 1000 && h.acked > 100 && h.stale > 10 && h.unmatched > 10);
	}
	print_message("last: sent %u, waited for room %u, ACKs %u (of older content %u), "
		      "unmatched %u\n",
		      h.sent, h.waited, h.acked, h.stale, h.unmatched);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_unacked_is_retried_at_1_3_and_6_s_and_only_3_times_by_6_1_s),
		cmocka_unit_test(test_second_send_moves_no_due_time),
		cmocka_unit_test(test_ack_after_10_ms_ends_the_retries_and_leaves_nothing),
		cmocka_unit_test(test_nack_after_3_ms_keeps_the_due_times),
		cmocka_unit_test(test_of_two_vms_only_the_unacked_one_is_retried),
		cmocka_unit_test(
			test_ack_that_overtakes_the_sends_completion_leaves_nothing_behind),
		cmocka_unit_test(test_default_is_linear_30_90_180_300_s_after_the_first_send),
		cmocka_unit_test(test_non_positive_base_means_1_min),
		cmocka_unit_test(test_several_missed_due_times_are_one_send),
		cmocka_unit_test(test_due_retry_without_a_token_waits_and_is_one_send),
		cmocka_unit_test(test_newer_content_ends_the_older_retry_and_has_its_own_times),
		cmocka_unit_test(test_exponential_grows_by_the_factor_to_the_cap),
		cmocka_unit_test(test_exponential_jitter_is_at_most_10_percent_either_way),
		cmocka_unit_test(test_long_gap_is_skipped_at_once),
		cmocka_unit_test(test_bad_settings_are_refused),
		cmocka_unit_test(test_steps_beyond_all_time_are_never_due),
		cmocka_unit_test(test_exponential_without_jitter_is_exact),
		cmocka_unit_test(test_vm_without_content_is_neither_deferred_nor_sent),
		cmocka_unit_test(test_retries_end_with_the_content),
		cmocka_unit_test(test_failed_first_send_is_retried),
		cmocka_unit_test(
			test_send_that_the_upstream_did_not_take_is_deferred_and_moves_no_due_time),
#ifndef __SANITIZE_ADDRESS__
		cmocka_unit_test(test_want_without_memory_changes_nothing),
#endif
		cmocka_unit_test(
			test_late_ack_of_older_content_does_not_end_newer_content_already_sent),
		cmocka_unit_test(test_content_that_was_never_sent_is_not_ended_by_an_ack),
		cmocka_unit_test(test_sends_are_remembered_beyond_the_end_of_their_content),
		cmocka_unit_test(test_sends_are_remembered_for_10_min),
		cmocka_unit_test(test_with_8_unsettled_the_next_send_waits),
		cmocka_unit_test(test_ack_that_settles_nothing_is_unmatched),
		cmocka_unit_test(test_ack_with_another_vm_id_is_stale),
		cmocka_unit_test(test_vm_id_names_a_vm_only_if_exactly_one_claims_it),
		cmocka_unit_test(test_a_cid_is_shared_only_with_who_was_sent),
		cmocka_unit_test(test_permanent_nack_says_so_for_its_own_generation),
		cmocka_unit_test(test_permanent_reasons_are_settable_and_compared_whole),
		cmocka_unit_test(test_central_rate_limit_doubles_the_running_step_to_the_cap),
		cmocka_unit_test(test_central_rate_limit_for_older_content_moves_nothing),
		cmocka_unit_test(test_due_times_stand_still_while_the_upstream_is_paused),
		cmocka_unit_test(test_probe_sent_during_a_pause_has_its_full_step_afterwards),
		cmocka_unit_test(
			test_resource_id_is_split_at_exactly_one_separator_between_non_empty_sides),
		cmocka_unit_test(test_only_the_empty_vm_id_hashes_to_0),
		cmocka_unit_test(test_random_hour_of_500_vms_equals_a_naive_model),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
