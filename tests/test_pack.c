/* SPDX-License-Identifier: Apache-2.0 */
/* Packed contents: what is read is what was packed, or damage is found. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <pthread.h>
#include <xxhash.h>

#include "packed.h"
#include "synthetic.h"

#define PAGE 4096

static struct buf *report_of(unsigned packages, unsigned repositories)
{
	_cleanup_wire_ struct wire w = {};
	struct buf *b = NULL;

	synthetic_report(&w, "1000", packages, repositories);
	assert_int_equal(buf_new(w.len, &b), 0);
	memcpy(buf_tail(b), w.data, w.len);
	buf_advance(b, w.len);
	buf_seal(b);
	return b;
}

static int read_in_steps(const struct buf *content, uint8_t *to, size_t step)
{
	_cleanup_(reader_freep)
	struct reader *r = NULL;
	int result;

	assert_int_equal(reader_new(content, &r), 0);
	for (size_t at = 0, n; at < buf_len(content); at += n) {
		n = MIN(step, buf_len(content) - at);
		result = reader_read(r, to + at, n);
		if (result < 0)
			return result;
	}
	return 0;
}

static void what_is_read_is_what_was_packed(void **state _unused_)
{
	static const size_t lengths[] = { PAGE + 1,  3 * PAGE,	  64 * KIB - 1,
					  200 * KIB, MIB + 12345, 5 * MIB };
	static const size_t steps[] = { 100, PAGE, 16 * KIB, 256 * KIB, 16 * MIB };

	for (size_t i = 0; i < ARRAY_SIZE(lengths); i++) {
		struct buf *content = packable(lengths[i]);
		uint8_t *got = malloc(lengths[i]);

		for (size_t s = 0; s < ARRAY_SIZE(steps); s++) {
			struct buf *packed = pack_in_steps(content, steps[s]);

			assert_non_null(packed);
			assert_true(buf_packed(packed));
			assert_int_equal(buf_len(packed), lengths[i]);
			assert_true(buf_cost(packed) + PAGE <= buf_cost(content));
			memset(got, 0, lengths[i]);
			assert_int_equal(
				read_in_steps(packed, got, steps[ARRAY_SIZE(steps) - 1 - s]), 0);
			assert_memory_equal(got, buf_data(content), lengths[i]);
			assert_true(content_equal(packed, content));
			assert_true(content_equal(content, packed));
			assert_int_equal(content_xxh64(packed),
					 XXH64(buf_data(content), lengths[i], 0));
			assert_int_equal(content_xxh64(content),
					 XXH64(buf_data(content), lengths[i], 0));
			buf_unref(packed);
		}
		free(got);
		buf_unref(content);
	}
}

static void reports_get_twelve_times_smaller_at_least(void **state _unused_)
{
	static const struct {
		unsigned packages, repositories;
	} kinds[] = { { 524, 12 }, { 1100, 49 } }; /* a usual VM, a large one */

	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		struct buf *content = report_of(kinds[i].packages, kinds[i].repositories);
		struct buf *packed = pack_in_steps(content, 256 * KIB);

		assert_non_null(packed);
		print_message("%zu bytes cost %zu\n", buf_len(content), buf_cost(packed));
		assert_true(12 * buf_cost(packed) <= buf_cost(content));
		buf_unref(packed);
		buf_unref(content);
	}
}

static void what_does_not_get_smaller_stays(void **state _unused_)
{
	struct buf *noise = NULL, *page = packable(PAGE), *empty = packable(0);
	uint64_t x = 42;

	assert_int_equal(buf_new(MIB, &noise), 0);
	for (size_t i = 0; i < MIB; i++) {
		x = x * 6364136223846793005ULL + 1442695040888963407ULL;
		buf_tail(noise)[i] = (uint8_t)(x >> 56);
	}
	buf_advance(noise, MIB);
	buf_seal(noise);
	assert_null(pack_in_steps(noise, 64 * KIB));
	assert_null(pack_in_steps(page, 64 * KIB));
	assert_null(pack_in_steps(empty, 64 * KIB));
	buf_unref(noise);
	buf_unref(page);
	buf_unref(empty);
}

/* On the last bytes of its room: either all of it fits, with its XXH64, or it stays as it is. */
static void a_packed_content_without_room_for_its_xxh64_stays(void **state _unused_)
{
	static uint8_t got[16 * PAGE];
	bool fitted = true;

	for (size_t noise = 15 * PAGE - 150; noise <= 15 * PAGE; noise++) {
		struct buf *content = NULL, *packed;
		uint64_t x = 42;

		assert_int_equal(buf_new(sizeof(got), &content), 0);
		memset(buf_tail(content), 0, sizeof(got));
		for (size_t i = 0; i < noise; i++) {
			x = x * 6364136223846793005ULL + 1442695040888963407ULL;
			buf_tail(content)[i] = (uint8_t)(x >> 56);
		}
		buf_advance(content, sizeof(got));
		buf_seal(content);
		packed = pack_in_steps(content, sizeof(got));
		assert_true(fitted || !packed);
		fitted = packed;
		if (packed) {
			assert_true(buf_cost(packed) + PAGE <= buf_cost(content));
			assert_int_equal(reader_copy(packed, got, sizeof(got)), 0);
			assert_memory_equal(got, buf_data(content), sizeof(got));
			assert_int_equal(content_xxh64(packed), XXH64(got, sizeof(got), 0));
		}
		buf_unref(packed);
		buf_unref(content);
	}
	assert_false(fitted);
}

static void raw_contents_are_compared_to_the_last_byte(void **state _unused_)
{
	struct buf *a = packable(PAGE), *same = packable(PAGE), *longer = packable(PAGE + 1);
	struct buf *other = NULL;

	assert_int_equal(buf_new(PAGE, &other), 0);
	memcpy(buf_tail(other), buf_data(a), PAGE);
	buf_tail(other)[PAGE - 1] ^= 1;
	buf_advance(other, PAGE);
	buf_seal(other);
	assert_true(content_equal(a, a));
	assert_true(content_equal(a, same));
	assert_false(content_equal(a, other));
	assert_false(content_equal(a, longer));
	buf_unref(a);
	buf_unref(same);
	buf_unref(longer);
	buf_unref(other);
}

static void the_beginning_alone_can_be_read(void **state _unused_)
{
	struct buf *content = packable(MIB), *packed = pack_in_steps(content, MIB);
	static const size_t lengths[] = { 0, 1, PAGE, 500000, MIB };
	uint8_t *got = malloc(MIB);

	for (size_t i = 0; i < ARRAY_SIZE(lengths); i++) {
		memset(got, 0, MIB);
		assert_int_equal(reader_copy(packed, got, lengths[i]), 0);
		assert_memory_equal(got, buf_data(content), lengths[i]);
		assert_int_equal(reader_copy(content, got, lengths[i]), 0);
	}
	free(got);
	buf_unref(packed);
	buf_unref(content);
}

/* Whichever byte is damaged: nobody gets other bytes than were packed, to the end, without a word. */
static void damage_is_found_wherever_it_is(void **state _unused_)
{
	struct buf *content = packable(100000), *packed = pack_in_steps(content, MIB);
	uint8_t *got = malloc(100000);
	size_t len, found = 0;

	buf_stored(packed, &len);
	for (size_t at = 0; at < len; at++) {
		struct buf *bad = with_damage(packed, at);
		int r = read_in_steps(bad, got, 16 * KIB);

		assert_true(r == 0 || r == -EBADMSG);
		if (r == 0)
			assert_memory_equal(got, buf_data(content), 100000);
		found += r < 0;
		assert_int_equal(content_equal(bad, content), r == 0);
		buf_unref(bad);
	}
	/* One bit of a frame's header means nothing, and XXH64 behind it is no part of the content. */
	assert_true(found >= len - 1 - sizeof(uint64_t));
	free(got);
	buf_unref(packed);
	buf_unref(content);
}

static void a_frame_that_is_cut_or_says_another_length_is_damage(void **state _unused_)
{
	struct buf *content = packable(100000), *packed = pack_in_steps(content, MIB);
	uint8_t *got = malloc(100010);
	const uint8_t *stored;
	size_t len;

	stored = buf_stored(packed, &len);
	len -= sizeof(uint64_t); /* XXH64, behind the frame */
	for (size_t n = 0; n <= len; n++)
		for (int more = -1; more <= 1; more++) {
			struct buf *bad = NULL;

			if (n == len && more == 0)
				continue;
			assert_int_equal(buf_new(len, &bad), 0);
			memcpy(buf_tail(bad), stored, n);
			buf_advance(bad, n);
			buf_seal_packed(bad, (size_t)(100000 + more));
			assert_int_equal(read_in_steps(bad, got, 30000), -EBADMSG);
			buf_unref(bad);
		}
	free(got);
	buf_unref(packed);
	buf_unref(content);
}

static void contents_differ_where_one_byte_does(void **state _unused_)
{
	struct buf *content = packable(100000), *packed = pack_in_steps(content, MIB);
	static const size_t places[] = { 0, 16383, 16384, 99999 };

	for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
		struct buf *other = NULL;

		assert_int_equal(buf_new(100000, &other), 0);
		memcpy(buf_tail(other), buf_data(content), 100000);
		buf_tail(other)[places[i]] ^= 1;
		buf_advance(other, 100000);
		buf_seal(other);
		assert_false(content_equal(packed, other));
		assert_false(content_equal(content, other));
		buf_unref(other);
	}
	buf_unref(packed);
	buf_unref(content);
}

static void packing_may_be_given_up_and_begun_anew(void **state _unused_)
{
	struct buf *a = packable(MIB), *b = packable(300000), *packed = NULL;
	struct packer *p = NULL;

	assert_int_equal(packer_new(&p), 0);
	assert_int_equal(packer_begin(p, a), 0);
	assert_int_equal(packer_step(p, PAGE, &packed), 0);
	packer_cancel(p);
	assert_int_equal(packer_begin(p, a), 0);
	assert_int_equal(packer_step(p, PAGE, &packed), 0);
	assert_int_equal(packer_begin(p, b), 0);
	assert_int_equal(packer_step(p, MIB, &packed), 1);
	assert_true(content_equal(packed, b));
	buf_unref(packed);
	assert_int_equal(packer_begin(p, a), 0);
	packer_free(p); /* in the middle: the content is let go */
	buf_unref(a);
	buf_unref(b);
}

static void *compare(void *arg)
{
	struct buf **both = arg;

	for (int i = 0; i < 20; i++)
		assert_true(content_equal(both[0], both[1]));
	return NULL;
}

static void another_thread_may_read_meanwhile(void **state _unused_)
{
	struct buf *both[2] = { packable(MIB) };
	pthread_t thread;

	both[1] = pack_in_steps(both[0], MIB);
	assert_int_equal(pthread_create(&thread, NULL, compare, both), 0);
	compare(both);
	assert_int_equal(pthread_join(thread, NULL), 0);
	buf_unref(both[0]);
	buf_unref(both[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_read_is_what_was_packed),
		cmocka_unit_test(reports_get_twelve_times_smaller_at_least),
		cmocka_unit_test(what_does_not_get_smaller_stays),
		cmocka_unit_test(a_packed_content_without_room_for_its_xxh64_stays),
		cmocka_unit_test(raw_contents_are_compared_to_the_last_byte),
		cmocka_unit_test(the_beginning_alone_can_be_read),
		cmocka_unit_test(damage_is_found_wherever_it_is),
		cmocka_unit_test(a_frame_that_is_cut_or_says_another_length_is_damage),
		cmocka_unit_test(contents_differ_where_one_byte_does),
		cmocka_unit_test(packing_may_be_given_up_and_begun_anew),
		cmocka_unit_test(another_thread_may_read_meanwhile),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
