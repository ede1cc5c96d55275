/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "buf.h"

#define PAGE	4096
#define MAX_LEN (16 * MIB)

static int without_pool(void **state)
{
	(void)state;
	buf_pool_set_limit(0);
	buf_pool_set_limit(BUF_POOL_DEFAULT);
	return 0;
}

static struct buf *make(size_t max)
{
	struct buf *b;

	assert_int_equal(buf_new(max, &b), 0);
	return b;
}

static void fill(struct buf *b, size_t n, uint8_t byte)
{
	assert_true(n <= buf_room(b));
	memset(buf_tail(b), byte, n);
	buf_advance(b, n);
}

static struct buf *filled(size_t n, uint8_t byte)
{
	struct buf *b = make(MAX_LEN);

	fill(b, n, byte);
	buf_seal(b);
	return b;
}

static void assert_all(const struct buf *b, size_t n, uint8_t byte)
{
	assert_int_equal(buf_len(b), n);
	for (size_t i = 0; i < n; i++)
		if (buf_data(b)[i] != byte)
			fail_msg("byte %zu is %u, not %u", i, buf_data(b)[i], byte);
}

static bool mapped(const uint8_t *p)
{
	unsigned char vec;

	return mincore((void *)((uintptr_t)p / PAGE * PAGE), 1, &vec) == 0;
}

static long faults(void)
{
	struct rusage u;

	getrusage(RUSAGE_SELF, &u);
	return u.ru_minflt;
}

static size_t resident_bytes(void)
{
	_cleanup_fclose_ FILE *f = fopen("/proc/self/statm", "re");
	unsigned long size, resident;

	assert_non_null(f);
	assert_int_equal(fscanf(f, "%lu %lu", &size, &resident), 2);
	return resident * PAGE;
}

static void holds_exactly_max_bytes(void **state)
{
	_cleanup_(buf_unrefp)
	struct buf *b = make(10000);

	(void)state;
	assert_int_equal(buf_room(b), 10000);
	fill(b, 9999, 1);
	assert_int_equal(buf_room(b), 1);
	fill(b, 1, 1);
	assert_int_equal(buf_room(b), 0);
	assert_all(b, 10000, 1);
}

static void content_stays_in_place_while_it_grows(void **state)
{
	_cleanup_(buf_unrefp)
	struct buf *b = make(MAX_LEN);
	const uint8_t *first = buf_data(b);

	(void)state;
	while (buf_room(b) > 0)
		fill(b, MIN(buf_room(b), (size_t)300001), 3);
	assert_ptr_equal(buf_data(b), first);
	buf_seal(b);
	assert_ptr_equal(buf_data(b), first);
	assert_all(b, MAX_LEN, 3);
}

static void content_after_a_header_begins_at_a_page_too(void **state)
{
	_cleanup_(buf_unrefp)
	struct buf *b = make(100);

	(void)state;
	fill(b, 16, 'V');
	buf_restart(b);
	assert_int_equal(buf_room(b), 100);
	fill(b, 20, 5);
	buf_seal(b);
	assert_all(b, 20, 5);
	assert_int_equal(buf_room(b), 0);
	assert_int_equal((uintptr_t)buf_data(b) % PAGE, 0);
}

/* Or two that fill the same memory would count it twice. */
static void restart_does_not_make_memory_idle_again(void **state)
{
	_cleanup_(buf_unrefp)
	struct buf *b = NULL;
	size_t idle;

	(void)state;
	buf_pool_set_limit(BUF_POOL_DEFAULT);
	buf_unref(filled(100 * PAGE, 1));
	idle = buf_pool_bytes();
	assert_int_equal(idle, 100 * PAGE);
	b = make(100 * PAGE);
	fill(b, PAGE + 1, 'V');
	buf_restart(b);
	assert_int_equal(buf_pool_bytes(), idle - 2 * PAGE);
	fill(b, 3 * PAGE, 1);
	assert_int_equal(buf_pool_bytes(), idle - 3 * PAGE);
	buf_restart(b);
	buf_seal(b);
	assert_int_equal(buf_pool_bytes(), idle - PAGE);
}

static void cost_is_whole_pages_and_at_least_one(void **state)
{
	_cleanup_(buf_unrefp)
	struct buf *empty = make(0), *b = make(MAX_LEN);

	(void)state;
	buf_seal(empty);
	assert_int_equal(buf_cost(empty), PAGE);
	assert_int_equal(buf_len(empty), 0);

	fill(b, PAGE, 1);
	assert_int_equal(buf_cost(b), PAGE);
	fill(b, 1, 1);
	assert_int_equal(buf_cost(b), 2 * PAGE);
	buf_seal(b);
	assert_int_equal(buf_cost(b), 2 * PAGE);
	assert_true(buf_cost_of(buf_len(b)) >= buf_cost(b));
	assert_int_equal(buf_cost_of(0), PAGE);
}

static void seal_gives_back_what_is_beyond(void **state)
{
	_cleanup_(buf_unrefp)
	struct buf *b = make(MAX_LEN);

	(void)state;
	fill(b, 2 * PAGE, 1);
	assert_true(mapped(buf_data(b) + 100 * PAGE));
	buf_seal(b);
	assert_true(mapped(buf_data(b) + PAGE));
	assert_false(mapped(buf_data(b) + 2 * PAGE));
	assert_false(mapped(buf_data(b) + 100 * PAGE));
}

static void last_reference_frees(void **state)
{
	struct buf *b = filled(PAGE, 1), *second = buf_ref(b);
	const uint8_t *p = buf_data(b);

	(void)state;
	assert_null(buf_unref(b));
	assert_all(second, PAGE, 1);
	assert_null(buf_unref(second));
	assert_false(mapped(p)); /* smaller than what is recycled */
	assert_null(buf_unref(NULL));
}

static void freed_memory_serves_the_next_report(void **state)
{
	long before, fresh, recycled;

	(void)state;
	before = faults();
	buf_unref(filled(2500000, 1));
	fresh = faults() - before;
	before = faults();
	buf_unref(filled(2500000, 2));
	recycled = faults() - before;
	/* 611 pages the first time, none the second; the C library may add some of its own. */
	assert_true(fresh > 10 * MAX(recycled, 1L));
}

static void recycled_memory_beyond_the_content_goes_back_to_the_pool(void **state)
{
	_cleanup_(buf_unrefp)
	struct buf *small = NULL;
	size_t all;

	(void)state;
	buf_unref(filled(MIB, 1));
	all = buf_pool_bytes();
	assert_int_equal(all, MIB);
	small = filled(10, 2);
	assert_int_equal(buf_pool_bytes(), all - PAGE);
	assert_all(small, 10, 2);
}

static void a_bounded_buffer_takes_only_what_it_may_fill(void **state)
{
	_cleanup_(buf_unrefp)
	struct buf *b = NULL;

	(void)state;
	buf_unref(filled(4 * MIB, 1));
	b = make(MIB);
	fill(b, MIB, 2);
	assert_int_equal(buf_pool_bytes(), 3 * MIB);
}

static void idle_memory_counts_until_it_is_filled(void **state)
{
	_cleanup_(buf_unrefp)
	struct buf *b = NULL;

	(void)state;
	buf_unref(filled(MIB, 1));
	b = make(MAX_LEN);
	assert_int_equal(buf_pool_bytes(), MIB);
	fill(b, 1, 2);
	assert_int_equal(buf_pool_bytes(), MIB - PAGE);
	fill(b, MIB, 2);
	assert_int_equal(buf_pool_bytes(), 0);
}

static void pool_never_exceeds_its_limit(void **state)
{
	struct buf *b[20];

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(b); i++)
		b[i] = filled(2500000, (uint8_t)i);
	for (size_t i = 0; i < ARRAY_SIZE(b); i++) {
		assert_all(b[i], 2500000, (uint8_t)i);
		buf_unref(b[i]);
		assert_true(buf_pool_bytes() <= BUF_POOL_DEFAULT);
	}
	assert_true(buf_pool_bytes() > BUF_POOL_DEFAULT / 2);
	buf_pool_set_limit(3 * MIB);
	assert_true(buf_pool_bytes() <= 3 * MIB);
	buf_pool_set_limit(0);
	assert_int_equal(buf_pool_bytes(), 0);
}

static void many_small_pieces_do_not_keep_a_large_one_out(void **state)
{
	struct buf *b[80];

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(b); i++)
		b[i] = filled(64 * KIB, 1);
	for (size_t i = 0; i < ARRAY_SIZE(b); i++)
		buf_unref(b[i]);
	assert_int_equal(buf_pool_bytes(), 64 * 64 * KIB);
	b[0] = make(4 * MIB);
	b[1] = filled(4 * MIB, 1);
	buf_unref(b[0]);
	buf_unref(b[1]);
	assert_true(buf_pool_bytes() > 6 * MIB);
}

static void a_hundred_large_contents_cost_their_bytes(void **state)
{
	struct buf *b[100];
	size_t before = resident_bytes();

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(b); i++)
		b[i] = filled(2500000, (uint8_t)i);
	assert_true(resident_bytes() - before <
		    ARRAY_SIZE(b) * buf_cost_of(2500000) + BUF_POOL_DEFAULT);
	for (size_t i = 0; i < ARRAY_SIZE(b); i++)
		buf_unref(b[i]);
}

static void *drop_all(void *arg)
{
	struct buf **b = arg;

	for (size_t i = 0; i < 500; i++)
		buf_unref(b[i]);
	return NULL;
}

static void references_may_be_dropped_by_another_thread(void **state)
{
	static struct buf *b[500];
	pthread_t thread;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(b); i++)
		b[i] = filled(100000, (uint8_t)i);
	for (size_t i = 0; i < ARRAY_SIZE(b); i += 2)
		buf_ref(b[i]);
	assert_int_equal(pthread_create(&thread, NULL, drop_all, b), 0);
	for (size_t i = 0; i < 500; i++)
		buf_unref(filled(70000 + i * 100, 9));
	assert_int_equal(pthread_join(thread, NULL), 0);
	for (size_t i = 0; i < ARRAY_SIZE(b); i += 2) {
		assert_all(b[i], 100000, (uint8_t)i);
		buf_unref(b[i]);
	}
	assert_true(buf_pool_bytes() <= BUF_POOL_DEFAULT);
}

static void memory_that_nobody_used_since_the_last_trim_goes_back(void **state)
{
	const uint8_t *where[3];

	(void)state;
	for (int i = 0; i < 3; i++) {
		struct buf *b[3] = { filled(MIB, 1), filled(MIB, 2), filled(MIB, 3) };

		for (int k = 0; k < 3; k++) {
			where[k] = buf_data(b[k]);
			buf_unref(b[k]);
		}
		assert_int_equal(buf_pool_bytes(), 3 * MIB);
		/* All of it was used a moment ago. */
		buf_pool_trim();
		assert_int_equal(buf_pool_bytes(), 3 * MIB);
		/* One piece was used since, the others were not. */
		buf_unref(filled(MIB, 4));
		buf_pool_trim();
		assert_int_equal(buf_pool_bytes(), MIB);
		buf_pool_trim();
		assert_int_equal(buf_pool_bytes(), 0);
		for (int k = 0; k < 3; k++)
			assert_false(mapped(where[k]));
	}
	buf_pool_trim();
	assert_int_equal(buf_pool_bytes(), 0);
}

/* Random lives of 32 buffers: none ever shows another's bytes, and the pool's count is exact. */
static void random_lives_keep_contents_and_counts(void **state)
{
	struct buf *b[32] = { 0 };
	size_t len[32];
	unsigned int seed = (unsigned int)getpid();

	(void)state;
	print_message("seed %u\n", seed);
	for (int n = 0; n < 3000; n++) {
		size_t i = (size_t)rand_r(&seed) % ARRAY_SIZE(b), max;

		if (b[i]) {
			if (len[i] > 0) {
				assert_int_equal(buf_data(b[i])[0], i);
				assert_int_equal(buf_data(b[i])[len[i] / 2], i);
				assert_int_equal(buf_data(b[i])[len[i] - 1], i);
			}
			b[i] = buf_unref(b[i]);
			continue;
		}
		max = rand_r(&seed) % 2 ? MAX_LEN : (size_t)rand_r(&seed) % (3 * MIB);
		len[i] = (size_t)rand_r(&seed) % (MIN(max, 3 * MIB) + 1);
		b[i] = make(max);
		for (size_t left = len[i]; left > 0;) {
			size_t step = MIN(left, (size_t)rand_r(&seed) % MIB + 1);

			fill(b[i], step, (uint8_t)i);
			left -= step;
		}
		assert_int_equal(buf_len(b[i]), len[i]);
		if (rand_r(&seed) % 4)
			buf_seal(b[i]);
		if (rand_r(&seed) % 50 == 0)
			buf_pool_trim();
		assert_true(buf_pool_bytes() <= BUF_POOL_DEFAULT);
	}
	for (size_t i = 0; i < ARRAY_SIZE(b); i++)
		buf_unref(b[i]);
	buf_pool_set_limit(0);
	assert_int_equal(buf_pool_bytes(), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(holds_exactly_max_bytes, without_pool),
		cmocka_unit_test_setup(content_stays_in_place_while_it_grows, without_pool),
		cmocka_unit_test_setup(content_after_a_header_begins_at_a_page_too, without_pool),
		cmocka_unit_test_setup(restart_does_not_make_memory_idle_again, without_pool),
		cmocka_unit_test_setup(cost_is_whole_pages_and_at_least_one, without_pool),
		cmocka_unit_test_setup(seal_gives_back_what_is_beyond, without_pool),
		cmocka_unit_test_setup(last_reference_frees, without_pool),
		cmocka_unit_test_setup(freed_memory_serves_the_next_report, without_pool),
		cmocka_unit_test_setup(recycled_memory_beyond_the_content_goes_back_to_the_pool,
				       without_pool),
		cmocka_unit_test_setup(a_bounded_buffer_takes_only_what_it_may_fill, without_pool),
		cmocka_unit_test_setup(idle_memory_counts_until_it_is_filled, without_pool),
		cmocka_unit_test_setup(pool_never_exceeds_its_limit, without_pool),
		cmocka_unit_test_setup(many_small_pieces_do_not_keep_a_large_one_out, without_pool),
		cmocka_unit_test_setup(a_hundred_large_contents_cost_their_bytes, without_pool),
		cmocka_unit_test_setup(references_may_be_dropped_by_another_thread, without_pool),
		cmocka_unit_test_setup(memory_that_nobody_used_since_the_last_trim_goes_back,
				       without_pool),
		cmocka_unit_test_setup(random_lives_keep_contents_and_counts, without_pool),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
