/* SPDX-License-Identifier: Apache-2.0 */
/* The payload cache: SPEC section 4, a test for every sentence. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <time.h>

#include "cache.h"
#include "failing_malloc.h"
#include "pack.h"

#define SEC  USEC_PER_SEC
#define MIN_ USEC_PER_MIN
#define HOUR USEC_PER_HOUR
#define PAGE 4096ULL

#define RAW	 CACHE_HOLD_RAW
#define ANSWERED CACHE_HOLD_ANSWERED
#define NONE	 CACHE_HOLD_NONE

/* ---- helpers ----------------------------------------------------------------------------------- */

/* What the observer saw, in order. */
static struct seen {
	uint32_t cid;
	enum cache_end why;
	enum cache_hold hold;
	uint64_t generation, residency, lifetime;
} seen[20000];
static size_t n_seen;
static size_t unkept[CACHE_END_MAX]; /* kept contents that went */

static void observe(const struct cache_removal *r, void *userdata)
{
	assert_ptr_equal(userdata, seen);
	assert_non_null(r->content);
	if (r->hold == CACHE_HOLD_KEPT) {
		unkept[r->why]++;
		return;
	}
	assert_true(n_seen < ARRAY_SIZE(seen));
	seen[n_seen++] = (struct seen){ .cid = r->id.cid,
					.why = r->why,
					.hold = r->hold,
					.generation = r->generation,
					.residency = r->residency,
					.lifetime = r->lifetime };
}

static struct cache *cache_with(size_t slots, uint64_t bytes, uint64_t ttl)
{
	struct cache *c;
	const struct cache_limits limits = { .slots = slots, .bytes = bytes, .ttl = ttl };

	n_seen = 0;
	memset(unkept, 0, sizeof(unkept));
	assert_int_equal(cache_new(&limits, observe, seen, &c), 0);
	return c;
}

static struct vsr_vm_id vm(uint32_t cid)
{
	return (struct vsr_vm_id){ .ns = 0, .cid = cid };
}

static struct buf *content_of(size_t len, uint8_t byte)
{
	struct buf *b;

	assert_int_equal(buf_new(len, &b), 0);
	memset(buf_tail(b), byte, len);
	buf_advance(b, len);
	buf_seal(b);
	return b;
}

/* Contents are told apart by byte and length; this stands in for the digest. */
static uint64_t digest_of(size_t len, uint8_t byte)
{
	return len << 8 | byte;
}

static int put(struct cache *c, struct vsr_vm_id id, size_t len, uint8_t byte, uint64_t generation,
	       enum cache_hold hold, uint64_t now)
{
	_cleanup_(buf_unrefp)
	struct buf *b = content_of(len, byte);

	return cache_insert(c, id, b, digest_of(len, byte), generation, hold, now);
}

/* The usual: content of 10 bytes, in custody of nobody's concern, generation 1. */
static int put_byte(struct cache *c, uint32_t cid, uint8_t byte, uint64_t now)
{
	return put(c, vm(cid), 10, byte, 1, NONE, now);
}

static size_t used(const struct cache *c)
{
	struct cache_stats s;

	cache_get_stats(c, &s);
	return s.slots_used;
}

static uint64_t bytes(const struct cache *c)
{
	struct cache_stats s;

	cache_get_stats(c, &s);
	return s.bytes;
}

static bool holds(const struct cache *c, uint32_t cid)
{
	return cache_peek(c, vm(cid)) != NULL;
}

/* ---- entries and order ------------------------------------------------------------------------ */

static void one_entry_per_vm_id(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(100, MIB, HOUR);
	const struct vsr_vm_id here = { 0, 42 }, there = { 7, 42 };

	(void)state;
	assert_int_equal(put(c, here, 10, 1, 1, NONE, 0), CACHE_ADDED);
	assert_int_equal(put(c, there, 10, 2, 1, NONE, 0), CACHE_ADDED);
	assert_int_equal(put(c, here, 10, 3, 2, NONE, 0), CACHE_CHANGED);
	assert_int_equal(used(c), 2);
	assert_int_equal(buf_data(cache_peek(c, here)->content)[0], 3);
	assert_int_equal(buf_data(cache_peek(c, there)->content)[0], 2);
}

static void entry_keeps_its_own_reference(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(100, MIB, HOUR);

	(void)state;
	put(c, vm(3), 5000, 9, 1, NONE, 0);
	assert_int_equal(buf_len(cache_peek(c, vm(3))->content), 5000);
	assert_int_equal(buf_data(cache_peek(c, vm(3))->content)[4999], 9);
}

static void two_slots_a_b_identical_a_changed_a_c_keeps_a_and_c(void **state)
{
	enum { A = 3, B = 4, C = 5 };
	_cleanup_(cache_freep)
	struct cache *c = cache_with(2, MIB, HOUR);

	(void)state;
	assert_int_equal(put_byte(c, A, 1, 100 * SEC), CACHE_ADDED);
	assert_int_equal(put_byte(c, B, 1, 200 * SEC), CACHE_ADDED);
	assert_int_equal(put_byte(c, A, 1, 300 * SEC), CACHE_SAME);
	assert_int_equal(put_byte(c, A, 2, 400 * SEC), CACHE_CHANGED);
	assert_int_equal(put_byte(c, C, 1, 500 * SEC), CACHE_ADDED);
	assert_true(holds(c, A));
	assert_false(holds(c, B));
	assert_true(holds(c, C));
	assert_int_equal(n_seen, 1);
	assert_int_equal(seen[0].why, CACHE_END_SLOTS);
	assert_int_equal(seen[0].residency, 300 * SEC);
}

static void identical_content_refreshes_neither_time_nor_order(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(2, MIB, HOUR);
	const struct buf *first;

	(void)state;
	put_byte(c, 3, 1, 100 * SEC);
	put_byte(c, 4, 1, 200 * SEC);
	first = cache_peek(c, vm(3))->content;
	assert_int_equal(put_byte(c, 3, 1, 300 * SEC), CACHE_SAME);
	assert_int_equal(cache_peek(c, vm(3))->updated, 100 * SEC);
	assert_ptr_equal(cache_peek(c, vm(3))->content, first);
	put_byte(c, 5, 1, 400 * SEC);
	assert_false(holds(c, 3));
	assert_true(holds(c, 4));
}

static void identical_content_takes_over_generation_and_hold(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(2, MIB, HOUR);

	(void)state;
	put(c, vm(3), 10, 1, 1, NONE, 0);
	assert_int_equal(put(c, vm(3), 10, 1, 2, ANSWERED, 1), CACHE_SAME);
	assert_int_equal(cache_peek(c, vm(3))->generation, 2);
	assert_int_equal(cache_peek(c, vm(3))->hold, ANSWERED);
}

/* A digest is no proof: content that is here anyway is compared. */
static void equal_digests_of_different_bytes_are_a_change(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(2, MIB, HOUR);
	_cleanup_(buf_unrefp)
	struct buf *a = content_of(100, 1), *b = content_of(100, 2);

	(void)state;
	assert_int_equal(cache_insert(c, vm(3), a, 77, 1, NONE, 0), CACHE_ADDED);
	assert_int_equal(cache_insert(c, vm(3), b, 77, 2, NONE, 0), CACHE_CHANGED);
}

static void one_byte_longer_or_shorter_is_a_change(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(2, MIB, HOUR);

	(void)state;
	put(c, vm(3), 4096, 1, 1, NONE, 0);
	assert_int_equal(put(c, vm(3), 4097, 1, 2, NONE, 0), CACHE_CHANGED);
	assert_int_equal(put(c, vm(3), 4096, 1, 3, NONE, 0), CACHE_CHANGED);
}

static void changed_content_keeps_first_seen_and_becomes_the_newest(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(3, MIB, HOUR);
	const struct cache_entry *e;

	(void)state;
	put_byte(c, 3, 1, 100 * SEC);
	put_byte(c, 4, 1, 200 * SEC);
	put_byte(c, 3, 2, 300 * SEC);
	e = cache_peek(c, vm(3));
	assert_int_equal(e->first_seen, 100 * SEC);
	assert_int_equal(e->updated, 300 * SEC);
	assert_null(cache_next(c, e));
	assert_int_equal(cache_next(c, NULL)->by_id.id.cid, 4);
	assert_int_equal(n_seen, 0);
}

/* ---- age --------------------------------------------------------------------------------------- */

static void expired_from_exactly_updated_plus_ttl(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(9, MIB, HOUR);

	(void)state;
	put_byte(c, 3, 1, 5 * SEC);
	assert_int_equal(cache_sweep(c, SIZE_MAX, 5 * SEC + HOUR - 1), 0);
	assert_int_equal(cache_sweep(c, SIZE_MAX, 5 * SEC + HOUR), 1);
	assert_int_equal(seen[0].why, CACHE_END_TTL);
	assert_int_equal(seen[0].residency, HOUR);
}

static void lookup_ignores_the_ttl(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(9, MIB, HOUR);

	(void)state;
	put_byte(c, 3, 1, 0);
	put_byte(c, 4, 1, HOUR - 1);
	assert_non_null(cache_lookup(c, vm(3)));
	assert_int_equal(used(c), 2);
}

static void lookup_does_not_reorder(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(2, MIB, HOUR);

	(void)state;
	put_byte(c, 3, 1, 1);
	put_byte(c, 4, 1, 2);
	assert_non_null(cache_lookup(c, vm(3)));
	put_byte(c, 5, 1, 3);
	assert_false(holds(c, 3));
	assert_true(holds(c, 4));
}

static void lookup_counts_hits_and_misses_and_peek_does_not(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(2, MIB, HOUR);
	struct cache_stats s;

	(void)state;
	put_byte(c, 3, 1, 1);
	assert_non_null(cache_lookup(c, vm(3)));
	assert_null(cache_lookup(c, vm(4)));
	assert_null(cache_lookup(c, vm(5)));
	assert_non_null(cache_peek(c, vm(3)));
	assert_null(cache_peek(c, vm(4)));
	cache_get_stats(c, &s);
	assert_int_equal(s.hits, 1);
	assert_int_equal(s.misses, 2);
}

/* Entries 1 s apart, all of them expired at the time of the insert. */
static void insert_evicts_16_of_48_expired_and_a_sweep_the_other_32(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(58, MIB, 10 * MIN_);

	(void)state;
	for (uint32_t i = 0; i < 48; i++)
		put_byte(c, 100 + i, 1, i * SEC);
	assert_int_equal(used(c), 48);
	put_byte(c, 1000, 1, 11 * MIN_);
	assert_int_equal(n_seen, 16);
	assert_int_equal(used(c), 33);
	for (uint32_t i = 0; i < 16; i++) {
		assert_int_equal(seen[i].cid, 100 + i);
		assert_int_equal(seen[i].why, CACHE_END_TTL);
	}
	assert_int_equal(cache_sweep(c, SIZE_MAX, 11 * MIN_), 32);
	assert_int_equal(used(c), 1);
	assert_true(holds(c, 1000));
}

static void insert_stops_at_the_first_fresh_entry(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(9, MIB, 10 * SEC);

	(void)state;
	put_byte(c, 3, 1, 1 * SEC);
	put_byte(c, 4, 1, 2 * SEC);
	put_byte(c, 5, 1, 3 * SEC);
	put_byte(c, 6, 1, 12 * SEC);
	assert_int_equal(n_seen, 2);
	assert_true(holds(c, 5));
}

static void insert_that_made_room_by_age_evicts_no_more(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(2, MIB, 10 * SEC);

	(void)state;
	put_byte(c, 3, 1, 1 * SEC);
	put_byte(c, 4, 1, 9 * SEC);
	put_byte(c, 5, 1, 11 * SEC);
	assert_int_equal(n_seen, 1);
	assert_true(holds(c, 4));
}

static void full_cache_of_fresh_entries_evicts_exactly_the_oldest(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(3, MIB, HOUR);

	(void)state;
	for (uint32_t i = 0; i < 3; i++)
		put_byte(c, 10 + i, 1, i * SEC);
	put_byte(c, 20, 1, 5 * SEC);
	assert_int_equal(n_seen, 1);
	assert_int_equal(seen[0].cid, 10);
	assert_int_equal(seen[0].why, CACHE_END_SLOTS);
	assert_int_equal(used(c), 3);
}

/* As in the reference: the VM's own expired entry leaves first, so first-seen starts anew. */
static void own_expired_entry_leaves_before_the_insert(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(3, MIB, HOUR);

	(void)state;
	put_byte(c, 3, 1, 0);
	assert_int_equal(put_byte(c, 3, 2, HOUR), CACHE_ADDED);
	assert_int_equal(n_seen, 1);
	assert_int_equal(cache_peek(c, vm(3))->first_seen, HOUR);
}

static void sweep_sees_residencies_of_90_and_70_minutes_in_order(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(9, MIB, HOUR);

	(void)state;
	put_byte(c, 3, 1, 0);
	put_byte(c, 4, 1, 20 * MIN_);
	assert_int_equal(cache_sweep(c, SIZE_MAX, 90 * MIN_), 2);
	assert_int_equal(seen[0].residency, 90 * MIN_);
	assert_int_equal(seen[1].residency, 70 * MIN_);
}

static void sweep_leaves_fresh_entries(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(9, MIB, HOUR);

	(void)state;
	put_byte(c, 3, 1, 0);
	put_byte(c, 4, 1, 1);
	assert_int_equal(cache_sweep(c, SIZE_MAX, HOUR), 1);
	assert_true(holds(c, 4));
}

static void sweep_does_no_more_than_it_may_at_once(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(50, MIB, HOUR);

	(void)state;
	for (uint32_t i = 0; i < 20; i++)
		put_byte(c, 100 + i, 1, i);
	assert_int_equal(cache_sweep(c, 8, 2 * HOUR), 8);
	assert_int_equal(cache_sweep(c, 8, 2 * HOUR), 8);
	assert_int_equal(cache_sweep(c, 8, 2 * HOUR), 4);
	assert_int_equal(used(c), 0);
}

/* ---- removal ----------------------------------------------------------------------------------- */

static void ack_of_the_held_generation_removes_the_entry(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(9, MIB, HOUR);

	(void)state;
	put(c, vm(3), 10, 1, 7, RAW, 0);
	assert_int_equal(cache_remove(c, vm(3), 7, CACHE_END_ACKED, 5 * SEC), 0);
	assert_int_equal(used(c), 0);
	assert_int_equal(bytes(c), 0);
	assert_int_equal(seen[0].why, CACHE_END_ACKED);
	assert_int_equal(seen[0].generation, 7);
}

static void ack_of_another_generation_removes_nothing(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(9, MIB, HOUR);

	(void)state;
	put(c, vm(3), 10, 1, 7, RAW, 0);
	put(c, vm(3), 10, 2, 8, RAW, 1);
	assert_int_equal(cache_remove(c, vm(3), 7, CACHE_END_ACKED, 2), -ENOENT);
	assert_int_equal(cache_remove(c, vm(3), 9, CACHE_END_ACKED, 2), -ENOENT);
	assert_int_equal(cache_remove(c, vm(4), 8, CACHE_END_ACKED, 2), -ENOENT);
	assert_true(holds(c, 3));
	assert_int_equal(n_seen, 0);
}

static void removal_observes_time_since_change_and_since_first_insert(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(9, MIB, HOUR);

	(void)state;
	put(c, vm(3), 10, 1, 1, NONE, 100 * SEC);
	put(c, vm(3), 10, 2, 2, NONE, 160 * SEC);
	put(c, vm(3), 10, 2, 3, NONE, 170 * SEC);
	cache_remove(c, vm(3), 3, CACHE_END_DROPPED, 200 * SEC);
	assert_int_equal(n_seen, 1);
	assert_int_equal(seen[0].residency, 40 * SEC);
	assert_int_equal(seen[0].lifetime, 100 * SEC);
	assert_int_equal(seen[0].why, CACHE_END_DROPPED);
}

static void every_reason_has_its_name(void **state)
{
	(void)state;
	assert_string_equal(cache_end_name(CACHE_END_ACKED), "acked");
	assert_string_equal(cache_end_name(CACHE_END_DROPPED), "dropped");
	assert_string_equal(cache_end_name(CACHE_END_SLOTS), "slots");
	assert_string_equal(cache_end_name(CACHE_END_BYTES), "bytes");
	assert_string_equal(cache_end_name(CACHE_END_TTL), "ttl");
}

/* ---- bounds ------------------------------------------------------------------------------------ */

static void zero_slots_store_nothing_and_lookups_miss(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(0, MIB, HOUR);
	struct cache_stats s;

	(void)state;
	assert_int_equal(put_byte(c, 3, 1, 0), -EOPNOTSUPP);
	assert_int_equal(cache_admits(c, vm(3), 10, NONE, 0), -EOPNOTSUPP);
	assert_null(cache_lookup(c, vm(3)));
	cache_get_stats(c, &s);
	assert_int_equal(s.misses, 1);
	assert_int_equal(s.slots_used, 0);
	assert_int_equal(n_seen, 0);
}

static void slots_hold_exactly_as_many_as_they_are(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(100, MIB, HOUR);

	(void)state;
	for (uint32_t i = 0; i < 100; i++)
		put_byte(c, 1000 + i, 1, i);
	assert_int_equal(used(c), 100);
	assert_int_equal(n_seen, 0);
	put_byte(c, 2000, 1, 200);
	assert_int_equal(used(c), 100);
	assert_int_equal(n_seen, 1);
}

static void bytes_are_bounded_oldest_first(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(100, 10 * PAGE, HOUR);

	(void)state;
	put(c, vm(3), 4 * PAGE, 1, 1, NONE, 1);
	put(c, vm(4), 3 * PAGE, 1, 1, NONE, 2);
	put(c, vm(5), 3 * PAGE, 1, 1, NONE, 3);
	assert_int_equal(bytes(c), 10 * PAGE);
	assert_int_equal(n_seen, 0);
	put(c, vm(6), 5 * PAGE, 1, 1, NONE, 4);
	assert_int_equal(n_seen, 2);
	assert_int_equal(seen[0].cid, 3);
	assert_int_equal(seen[1].cid, 4);
	assert_int_equal(seen[0].why, CACHE_END_BYTES);
	assert_int_equal(bytes(c), 8 * PAGE);
}

static void content_larger_than_the_cache_evicts_nobody(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(100, 10 * PAGE, HOUR);

	(void)state;
	put(c, vm(3), 4 * PAGE, 1, 1, NONE, 1);
	assert_int_equal(put(c, vm(4), 10 * PAGE + 1, 1, 1, RAW, 2), -ENOSPC);
	assert_int_equal(put(c, vm(3), 10 * PAGE + 1, 1, 2, RAW, 2), -ENOSPC);
	assert_true(holds(c, 3));
	assert_int_equal(put(c, vm(4), 10 * PAGE, 1, 1, RAW, 2), CACHE_ADDED);
	assert_false(holds(c, 3));
}

static void larger_content_of_a_vm_evicts_others_not_itself(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(100, 10 * PAGE, HOUR);

	(void)state;
	put(c, vm(3), 2 * PAGE, 1, 1, NONE, 1);
	put(c, vm(4), 4 * PAGE, 1, 1, NONE, 2);
	assert_int_equal(put(c, vm(3), 7 * PAGE, 1, 2, NONE, 3), CACHE_CHANGED);
	assert_int_equal(n_seen, 1);
	assert_int_equal(seen[0].cid, 4);
	assert_int_equal(cache_peek(c, vm(3))->first_seen, 1);
	assert_int_equal(bytes(c), 7 * PAGE);
}

static void new_content_frees_the_bytes_of_the_old(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(100, 10 * PAGE, HOUR);

	(void)state;
	put(c, vm(3), 6 * PAGE, 1, 1, NONE, 1);
	put(c, vm(4), 4 * PAGE, 1, 1, NONE, 2);
	assert_int_equal(put(c, vm(3), 6 * PAGE, 2, 2, NONE, 3), CACHE_CHANGED);
	assert_int_equal(n_seen, 0);
	assert_int_equal(bytes(c), 10 * PAGE);
}

static void auto_slots_grow_with_the_vms(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(1, MIB, HOUR);
	const struct cache_limits more = { .slots = 2, .bytes = MIB, .ttl = HOUR };

	(void)state;
	put_byte(c, 3, 1, 1);
	cache_set_limits(c, &more, 2);
	put_byte(c, 4, 1, 3);
	assert_int_equal(used(c), 2);
}

static void lowered_limits_evict_the_oldest_that_nobody_would_lose(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(9, MIB, HOUR);
	const struct cache_limits less = { .slots = 1, .bytes = MIB, .ttl = HOUR };

	(void)state;
	put(c, vm(3), 10, 1, 1, ANSWERED, 1);
	put(c, vm(4), 10, 1, 1, NONE, 2);
	put(c, vm(5), 10, 1, 1, RAW, 3);
	put(c, vm(6), 10, 1, 1, NONE, 4);
	cache_set_limits(c, &less, 5);
	assert_int_equal(n_seen, 2);
	assert_int_equal(seen[0].cid, 4);
	assert_int_equal(seen[1].cid, 6);
	assert_int_equal(used(c), 2);
	/* Newer content of a VM that has an entry takes no slot of anybody. */
	assert_int_equal(put(c, vm(3), 10, 2, 2, ANSWERED, 6), CACHE_CHANGED);
	/* The rest goes when its custody has ended, at the latest by the sweep. */
	assert_int_equal(cache_set_hold(c, vm(5), 1, NONE), 0);
	assert_int_equal(cache_sweep(c, SIZE_MAX, 7), 1);
	assert_int_equal(used(c), 1);
	assert_true(holds(c, 3));
}

/* ---- custody without a state directory --------------------------------------------------------- */

static void framed_report_never_evicts_custody_of_another_vm(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(2, MIB, HOUR);

	(void)state;
	put(c, vm(3), 10, 1, 1, RAW, 1);
	put(c, vm(4), 10, 1, 1, ANSWERED, 2);
	assert_int_equal(cache_admits(c, vm(5), 10, ANSWERED, 3), -ENOSPC);
	assert_int_equal(put(c, vm(5), 10, 1, 1, ANSWERED, 3), -ENOSPC);
	assert_int_equal(used(c), 2);
	assert_int_equal(n_seen, 0);
}

static void raw_report_evicts_the_oldest_that_came_raw(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(3, MIB, HOUR);

	(void)state;
	put(c, vm(3), 10, 1, 1, ANSWERED, 1);
	put(c, vm(4), 10, 1, 8, RAW, 2);
	put(c, vm(5), 10, 1, 1, RAW, 3);
	assert_int_equal(cache_admits(c, vm(6), 10, RAW, 4), 0);
	assert_int_equal(put(c, vm(6), 10, 1, 1, RAW, 4), CACHE_ADDED);
	assert_int_equal(n_seen, 1);
	assert_int_equal(seen[0].cid, 4);
	assert_int_equal(seen[0].generation, 8);
	assert_int_equal(seen[0].hold, RAW); /* so its custody ended, by slots */
	assert_int_equal(seen[0].why, CACHE_END_SLOTS);
}

static void content_answered_0_is_never_evicted_for_another_vm(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(2, MIB, HOUR);

	(void)state;
	put(c, vm(3), 10, 1, 1, ANSWERED, 1);
	put(c, vm(4), 10, 1, 1, ANSWERED, 2);
	assert_int_equal(put(c, vm(5), 10, 1, 1, RAW, 3), -ENOSPC);
	assert_int_equal(used(c), 2);
}

static void same_rules_for_bytes_as_for_slots(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(9, 10 * PAGE, HOUR);

	(void)state;
	put(c, vm(3), 4 * PAGE, 1, 1, ANSWERED, 1);
	put(c, vm(4), 4 * PAGE, 1, 1, RAW, 2);
	assert_int_equal(put(c, vm(5), 4 * PAGE, 1, 1, ANSWERED, 3), -ENOSPC);
	assert_int_equal(put(c, vm(5), 7 * PAGE, 1, 1, RAW, 3), -ENOSPC);
	assert_int_equal(n_seen, 0);
	assert_int_equal(put(c, vm(5), 6 * PAGE, 1, 1, RAW, 3), CACHE_ADDED);
	assert_int_equal(n_seen, 1);
	assert_int_equal(seen[0].cid, 4);
	assert_int_equal(seen[0].why, CACHE_END_BYTES);
}

static void newer_content_always_replaces_the_vms_own(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(2, 10 * PAGE, HOUR);

	(void)state;
	put(c, vm(3), 5 * PAGE, 1, 1, ANSWERED, 1);
	put(c, vm(4), 5 * PAGE, 1, 1, ANSWERED, 2);
	assert_int_equal(cache_admits(c, vm(3), 10, RAW, 3), 0);
	assert_int_equal(put(c, vm(3), 5 * PAGE, 2, 2, RAW, 3), CACHE_CHANGED);
	/* But not at another's cost, and then the old content stays. */
	assert_int_equal(put(c, vm(3), 6 * PAGE, 3, 3, RAW, 4), -ENOSPC);
	assert_int_equal(cache_peek(c, vm(3))->generation, 2);
	assert_int_equal(n_seen, 0);
}

static void what_nobody_would_lose_goes_first_for_a_framed_report(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(3, MIB, HOUR);

	(void)state;
	put(c, vm(3), 10, 1, 1, RAW, 1);
	put(c, vm(4), 10, 1, 1, ANSWERED, 2);
	put(c, vm(5), 10, 1, 1, ANSWERED, 3);
	assert_int_equal(cache_set_hold(c, vm(4), 1, NONE), 0);
	assert_int_equal(put(c, vm(6), 10, 1, 1, ANSWERED, 4), CACHE_ADDED);
	assert_int_equal(seen[0].cid, 4);
	assert_int_equal(seen[0].hold, NONE);
}

/* Custody of an old entry may end after that of a newer one: the order stays that of changes. */
static void ended_custody_keeps_its_place_in_the_order(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(3, MIB, HOUR);

	(void)state;
	put(c, vm(3), 10, 1, 1, RAW, 1);
	put(c, vm(4), 10, 1, 1, RAW, 2);
	put(c, vm(5), 10, 1, 1, RAW, 3);
	cache_set_hold(c, vm(5), 1, NONE);
	cache_set_hold(c, vm(3), 1, NONE);
	put(c, vm(6), 10, 1, 1, ANSWERED, 4);
	assert_int_equal(seen[0].cid, 3);
}

static void hold_of_another_generation_is_left_alone(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(3, MIB, HOUR);

	(void)state;
	put(c, vm(3), 10, 1, 5, RAW, 1);
	assert_int_equal(cache_set_hold(c, vm(3), 4, NONE), -ENOENT);
	assert_int_equal(cache_set_hold(c, vm(4), 5, NONE), -ENOENT);
	assert_int_equal(cache_peek(c, vm(3))->hold, RAW);
}

static void age_ends_custody_of_answered_content_too(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(1, MIB, HOUR);

	(void)state;
	put(c, vm(3), 10, 1, 1, ANSWERED, 0);
	assert_int_equal(cache_admits(c, vm(4), 10, ANSWERED, HOUR - 1), -ENOSPC);
	assert_int_equal(cache_admits(c, vm(4), 10, ANSWERED, HOUR), 0);
	assert_int_equal(put(c, vm(4), 10, 1, 1, ANSWERED, HOUR), CACHE_ADDED);
	assert_int_equal(seen[0].why, CACHE_END_TTL);
	assert_int_equal(seen[0].hold, ANSWERED);
}

static void asking_beforehand_changes_nothing(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(2, MIB, HOUR);

	(void)state;
	put(c, vm(3), 10, 1, 1, NONE, 0);
	put(c, vm(4), 10, 1, 1, NONE, 1);
	assert_int_equal(cache_admits(c, vm(5), 10, RAW, 2 * HOUR), 0);
	assert_int_equal(used(c), 2);
	assert_int_equal(n_seen, 0);
}

/* ---- content kept after its ACK ----------------------------------------------------------------- */

static struct cache *keeping(size_t slots, uint64_t bytes)
{
	const struct cache_limits limits = {
		.slots = slots, .bytes = bytes, .ttl = 4 * HOUR, .keep = 24 * HOUR
	};
	struct cache *c = cache_with(slots, bytes, limits.ttl);

	cache_set_limits(c, &limits, 0);
	return c;
}

static void ack(struct cache *c, uint32_t cid, uint64_t now)
{
	assert_int_equal(cache_remove(c, vm(cid), 1, CACHE_END_ACKED, now), 0);
}

static size_t kept(const struct cache *c)
{
	struct cache_stats s;

	cache_get_stats(c, &s);
	return s.kept;
}

static bool keeps(const struct cache *c, uint32_t cid)
{
	const struct cache_entry *e = cache_known(c, vm(cid));

	return e && e->hold == CACHE_HOLD_KEPT;
}

static void acked_content_is_kept_outside_the_slots_and_the_references_figures(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = keeping(1, MIB);
	struct cache_stats s;

	(void)state;
	put_byte(c, 3, 1, 10 * SEC);
	assert_false(keeps(c, 3));
	ack(c, 3, 15 * SEC);
	assert_int_equal(n_seen, 1); /* it has left, as in the reference */
	assert_int_equal(seen[0].why, CACHE_END_ACKED);
	assert_int_equal(seen[0].residency, 5 * SEC);
	assert_true(keeps(c, 3));
	assert_false(holds(c, 3));
	assert_null(cache_next(c, NULL));
	assert_null(cache_lookup(c, vm(3)));
	cache_get_stats(c, &s);
	assert_int_equal(s.slots_used, 0);
	assert_int_equal(s.misses, 1);
	assert_int_equal(s.kept, 1);
	assert_int_equal(s.kept_bytes, PAGE);
	assert_int_equal(s.bytes, PAGE);
	/* The only slot is free. */
	assert_int_equal(put_byte(c, 4, 1, 20 * SEC), CACHE_ADDED);
	assert_int_equal(n_seen, 1);
	assert_true(keeps(c, 3));
}

static void only_an_ack_keeps(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = keeping(1, MIB);

	(void)state;
	put_byte(c, 3, 1, 0);
	assert_int_equal(cache_remove(c, vm(3), 1, CACHE_END_DROPPED, 1), 0);
	put_byte(c, 4, 1, 2);
	put_byte(c, 5, 1, 3); /* pushes out 4 */
	cache_sweep(c, 10, 5 * HOUR);
	assert_int_equal(used(c), 0);
	assert_int_equal(kept(c), 0);
	assert_null(cache_known(c, vm(3)));
	assert_int_equal(bytes(c), 0);
}

static void kept_content_leaves_before_any_entry(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = keeping(10, 3 * PAGE);

	(void)state;
	put(c, vm(3), 10, 1, 1, NONE, 1); /* nobody would lose it, and it is the oldest */
	put_byte(c, 4, 1, 2);
	put_byte(c, 5, 1, 3);
	ack(c, 5, 4);
	ack(c, 4, 5);
	assert_int_equal(kept(c), 2);
	/* The one that was not used for longest goes first. */
	assert_int_equal(put(c, vm(6), 10, 1, 1, ANSWERED, 6), CACHE_ADDED);
	assert_true(keeps(c, 4));
	assert_null(cache_known(c, vm(5)));
	assert_int_equal(unkept[CACHE_END_BYTES], 1);
	assert_true(holds(c, 3));
	/* All of it for content that needs the room, and still no entry. */
	assert_int_equal(put(c, vm(7), 10, 1, 1, ANSWERED, 7), CACHE_ADDED);
	assert_int_equal(kept(c), 0);
	assert_int_equal(used(c), 3);
	assert_int_equal(n_seen, 2); /* the two ACKs */
}

static void kept_content_never_keeps_a_report_out(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = keeping(10, 4 * PAGE);

	(void)state;
	for (uint32_t cid = 3; cid < 7; cid++) {
		put_byte(c, cid, 1, cid);
		ack(c, cid, cid);
	}
	assert_int_equal(kept(c), 4);
	assert_int_equal(cache_admits(c, vm(9), 4 * PAGE - 16, ANSWERED, 10), 0);
	assert_int_equal(put(c, vm(9), 4 * PAGE - 16, 1, 1, ANSWERED, 10), CACHE_ADDED);
	assert_int_equal(kept(c), 0);
	assert_int_equal(cache_admits(c, vm(10), 10, ANSWERED, 10), -ENOSPC);
}

static void kept_content_becomes_an_entry_again_where_it_lies(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = keeping(1, MIB);
	const struct cache_entry *e;
	const struct buf *content;

	(void)state;
	put_byte(c, 3, 1, 10);
	content = cache_peek(c, vm(3))->content;
	ack(c, 3, 20);
	assert_int_equal(put(c, vm(3), 10, 1, 2, RAW, 30), CACHE_ADDED);
	e = cache_peek(c, vm(3));
	assert_ptr_equal(e->content, content); /* the same bytes, the same place */
	assert_int_equal(e->generation, 2);
	assert_int_equal(e->first_seen, 30); /* a new entry for the reference */
	assert_int_equal(e->updated, 30);
	assert_int_equal(kept(c), 0);
	assert_int_equal(used(c), 1);
	assert_int_equal(bytes(c), PAGE);
}

static void newer_content_replaces_what_is_kept(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = keeping(10, 2 * PAGE);

	(void)state;
	put_byte(c, 3, 1, 10);
	ack(c, 3, 20);
	put_byte(c, 4, 1, 21);
	ack(c, 4, 22);
	/* Its own goes, nobody else's. */
	assert_int_equal(put_byte(c, 3, 2, 30), CACHE_ADDED);
	assert_int_equal(buf_data(cache_peek(c, vm(3))->content)[0], 2);
	assert_true(keeps(c, 4));
	assert_int_equal(bytes(c), 2 * PAGE);
	/* Refused content leaves it in peace. */
	ack(c, 3, 31);
	assert_int_equal(put(c, vm(3), 3 * PAGE, 1, 3, RAW, 40), -ENOSPC);
	assert_true(keeps(c, 3));
}

static void kept_content_goes_when_its_vm_was_silent_for_24_h(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = keeping(10, MIB);

	(void)state;
	put_byte(c, 3, 1, 0);
	put_byte(c, 4, 1, 0);
	ack(c, 3, 1);
	ack(c, 4, 2);
	cache_used(c, vm(3), 10 * HOUR); /* it has reported the same */
	cache_used(c, vm(99), 10 * HOUR);
	assert_int_equal(cache_sweep(c, 10, 24 * HOUR + 1), 0);
	assert_int_equal(cache_sweep(c, 10, 24 * HOUR + 2), 1);
	assert_true(keeps(c, 3));
	assert_null(cache_known(c, vm(4)));
	assert_int_equal(cache_sweep(c, 10, 34 * HOUR - 1), 0);
	assert_int_equal(cache_sweep(c, 10, 34 * HOUR), 1);
	assert_int_equal(unkept[CACHE_END_TTL], 2);
	assert_int_equal(bytes(c), 0);
}

static void what_is_kept_goes_when_it_is_not_wanted_any_more(void **state)
{
	const struct cache_limits off = { .slots = 10, .bytes = MIB, .ttl = HOUR },
				  none = { .slots = 0, .bytes = MIB, .ttl = HOUR, .keep = HOUR };
	const struct cache_limits *const after[] = { &off, &none };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(after); i++) {
		_cleanup_(cache_freep)
		struct cache *c = keeping(10, MIB);

		put_byte(c, 3, 1, 1);
		put_byte(c, 4, 1, 1);
		ack(c, 3, 2);
		cache_set_limits(c, after[i], 3);
		assert_int_equal(kept(c), 0);
		assert_int_equal(unkept[CACHE_END_DROPPED], 1);
		assert_int_equal(cache_remove(c, vm(4), 1, CACHE_END_ACKED, 4),
				 i == 0 ? 0 : -ENOENT);
		assert_int_equal(bytes(c), 0);
	}
}

/* ---- packing ------------------------------------------------------------------------------------- */

/* Packs contents from the age of 5 s on, and keeps them after their ACK. */
static struct cache *packing(uint64_t bytes)
{
	const struct cache_limits limits = {
		.slots = 10, .bytes = bytes, .ttl = 4 * HOUR, .keep = 24 * HOUR, .pack = 5 * SEC
	};
	struct cache *c = cache_with(10, bytes, limits.ttl);

	cache_set_limits(c, &limits, 0);
	return c;
}

static struct cache_stats stats(const struct cache *c)
{
	struct cache_stats s;

	cache_get_stats(c, &s);
	return s;
}

static void pack_all(struct cache *c, uint64_t now)
{
	for (int i = 0; cache_pack(c, 64 * KIB, now); i++)
		assert_true(i < 1000);
	assert_true(cache_pack_due(c) > now);
}

static void content_is_packed_from_its_age_on_in_slices(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = packing(10 * MIB);
	_cleanup_(buf_unrefp)
	struct buf *b = content_of(MIB, 7);
	unsigned int steps = 1;

	(void)state;
	assert_int_equal(cache_pack_due(c), USEC_INFINITY);
	assert_int_equal(cache_insert(c, vm(3), b, 1, 1, ANSWERED, 10 * SEC), CACHE_ADDED);
	assert_int_equal(cache_pack_due(c), 15 * SEC);
	assert_false(cache_pack(c, MIB, 15 * SEC - 1));
	assert_int_equal(stats(c).packed, 0);
	while (cache_pack(c, 64 * KIB, 15 * SEC))
		steps++;
	assert_int_equal(steps, 16);
	assert_int_equal(stats(c).packed, 1);
	assert_int_equal(stats(c).packed_length, MIB);
	assert_int_equal(stats(c).packed_bytes, stats(c).bytes);
	assert_true(bytes(c) < MIB / 10);
	assert_int_equal(cache_pack_due(c), USEC_INFINITY);
	assert_true(content_equal(cache_lookup(c, vm(3))->content, b));
	/* Nothing else has changed. */
	assert_int_equal(cache_peek(c, vm(3))->updated, 10 * SEC);
	assert_int_equal(cache_peek(c, vm(3))->hold, ANSWERED);
	assert_int_equal(cache_remove(c, vm(3), 1, CACHE_END_DROPPED, 20 * SEC), 0);
	assert_int_equal(seen[0].residency, 10 * SEC);
	assert_int_equal(stats(c).packed, 0);
	assert_int_equal(stats(c).packed_length, 0);
	assert_int_equal(bytes(c), 0);
}

static void packed_content_is_the_same_as_before(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = packing(10 * MIB);

	(void)state;
	put(c, vm(3), MIB, 7, 1, RAW, 0);
	pack_all(c, 5 * SEC);
	assert_int_equal(put(c, vm(3), MIB, 7, 2, RAW, 6 * SEC), CACHE_SAME);
	assert_int_equal(stats(c).packed, 1);
	assert_int_equal(cache_peek(c, vm(3))->updated, 0);
	assert_int_equal(put(c, vm(3), MIB, 8, 3, RAW, 7 * SEC), CACHE_CHANGED);
	assert_int_equal(stats(c).packed, 0);
	assert_int_equal(cache_pack_due(c), 12 * SEC);
}

static void content_that_leaves_while_it_is_packed_is_let_go(void **state)
{
	static const struct {
		size_t len;
		uint8_t byte;
	} next[] = { { MIB, 8 }, { 0, 0 } };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(next); i++) {
		_cleanup_(cache_freep)
		struct cache *c = packing(10 * MIB);

		put(c, vm(3), MIB, 7, 1, RAW, 0);
		put(c, vm(4), MIB, 9, 1, RAW, 0);
		assert_true(cache_pack(c, PAGE, 5 * SEC));
		if (next[i].len)
			put(c, vm(3), next[i].len, next[i].byte, 2, RAW, 5 * SEC);
		else
			cache_remove(c, vm(3), 1, CACHE_END_DROPPED, 5 * SEC);
		pack_all(c, 5 * SEC);
		assert_int_equal(stats(c).packed, 1);
		assert_true(buf_packed(cache_peek(c, vm(4))->content));
		if (next[i].len)
			assert_int_equal(buf_data(cache_peek(c, vm(3))->content)[0], 8);
	}
}

static void what_is_kept_is_packed_too_and_replaced_when_it_comes_again(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = packing(10 * MIB);

	(void)state;
	put(c, vm(3), MIB, 7, 1, RAW, 0);
	ack(c, 3, 1);
	pack_all(c, 5 * SEC);
	assert_true(keeps(c, 3));
	assert_int_equal(stats(c).packed, 1);
	assert_int_equal(stats(c).kept_bytes, stats(c).packed_bytes);
	assert_true(stats(c).kept_bytes < MIB / 10);
	assert_int_equal(put(c, vm(3), MIB, 7, 2, RAW, 10 * SEC), CACHE_ADDED);
	assert_int_equal(stats(c).packed, 0);
	assert_int_equal(bytes(c), MIB);
	assert_int_equal(buf_data(cache_peek(c, vm(3))->content)[MIB - 1], 7);
}

static void content_that_is_reported_again_and_again_is_not_packed(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = packing(10 * MIB);

	(void)state;
	put(c, vm(3), MIB, 7, 1, RAW, 0);
	put(c, vm(4), MIB, 8, 1, RAW, 1);
	cache_used(c, vm(3), 4 * SEC);
	assert_int_equal(cache_pack_due(c), 5 * SEC + 1);
	pack_all(c, 6 * SEC);
	assert_false(buf_packed(cache_peek(c, vm(3))->content));
	assert_true(buf_packed(cache_peek(c, vm(4))->content));
	assert_int_equal(cache_peek(c, vm(3))->updated, 0);
	assert_int_equal(cache_pack_due(c), 9 * SEC);
	pack_all(c, 9 * SEC);
	assert_int_equal(stats(c).packed, 2);
	cache_used(c, vm(3), 10 * SEC); /* it stays packed */
	assert_int_equal(cache_pack_due(c), USEC_INFINITY);
}

static void packed_contents_leave_room_for_others(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = packing(2 * MIB);

	(void)state;
	put(c, vm(3), MIB, 7, 1, ANSWERED, 0);
	put(c, vm(4), MIB, 7, 1, ANSWERED, 0);
	assert_int_equal(put(c, vm(5), MIB, 7, 1, ANSWERED, 1), -ENOSPC);
	pack_all(c, 5 * SEC);
	assert_int_equal(put(c, vm(5), MIB, 7, 1, ANSWERED, 6 * SEC), CACHE_ADDED);
	assert_int_equal(n_seen, 0);
}

static void an_age_of_0_packs_nothing(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = cache_with(10, 10 * MIB, HOUR);

	(void)state;
	put(c, vm(3), MIB, 7, 1, RAW, 0);
	assert_int_equal(cache_pack_due(c), USEC_INFINITY);
	assert_false(cache_pack(c, MIB, HOUR));
	assert_int_equal(stats(c).packed, 0);
}

static void content_that_finds_no_memory_for_it_stays_as_it_is(void **state)
{
	(void)state;
	for (unsigned int n = 1;; n++) {
		_cleanup_(cache_freep)
		struct cache *c = packing(10 * MIB);
		bool failed;

		put(c, vm(3), MIB, 7, 1, RAW, 0);
		put(c, vm(4), MIB, 9, 1, RAW, 0);
		fail_at = n;
		pack_all(c, 5 * SEC);
		failed = fail_at == 0;
		fail_at = 0;
		assert_int_equal(stats(c).packed, failed ? 1 : 2);
		assert_int_equal(used(c), 2);
		if (!failed)
			break;
	}
}

/* ---- memory runs out ----------------------------------------------------------------------------- */

static void new_cache_survives_every_failing_allocation(void **state)
{
	const struct cache_limits limits = { .slots = 1, .bytes = MIB, .ttl = HOUR };
	struct cache *c = NULL;
	unsigned int n = 1;
	int r;

	(void)state;
	if (!failures_reach_us())
		skip();
	for (;; n++) {
		fail_at = n;
		r = cache_new(&limits, NULL, NULL, &c);
		if (r == 0)
			break;
		assert_int_equal(r, -ENOMEM);
		assert_null(c);
	}
	fail_at = 0;
	assert_true(n > 1);
	cache_free(c);
}

/* Each insert is tried with its 1st, 2nd... allocation failing until it works; what fails leaves
 * everything as it was. 200 entries, so that heaps and table grow. */
static void insert_survives_every_failing_allocation(void **state)
{
	_cleanup_(cache_freep)
	struct cache *c = NULL;
	_cleanup_(buf_unrefp)
	struct buf *b = NULL;
	unsigned int failed = 0;

	(void)state;
	if (!failures_reach_us())
		skip();
	c = cache_with(150, MIB, HOUR);
	b = content_of(10, 1);
	for (uint32_t i = 0; i < 200; i++) {
		size_t before = used(c), evicted = n_seen;
		unsigned int n = 1;
		int r;

		for (;; n++) {
			fail_at = n;
			r = cache_insert(c, vm(i), b, 1, 1, NONE, i);
			if (r == CACHE_ADDED)
				break;
			assert_int_equal(r, -ENOMEM);
			assert_int_equal(used(c), before);
			assert_int_equal(n_seen, evicted);
			assert_false(holds(c, i));
			failed++;
		}
		fail_at = 0;
	}
	assert_true(failed >= 200);
	assert_int_equal(used(c), 150);
}

/* ---- against a plain model ---------------------------------------------------------------------- */

/* The same rules over an array in order of change, by walking it. */
#define MODEL_MAX 64
struct model {
	struct model_entry {
		uint32_t cid;
		size_t len;
		uint8_t byte;
		uint64_t generation, updated, first_seen;
		enum cache_hold hold;
	} e[MODEL_MAX];
	size_t n;
	struct cache_limits limits;
	size_t removed;
};

static void model_drop(struct model *m, size_t i)
{
	m->n--;
	memmove(&m->e[i], &m->e[i + 1], (m->n - i) * sizeof(m->e[0]));
	m->removed++;
}

static uint64_t model_bytes(const struct model *m)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < m->n; i++)
		sum += (m->e[i].len + PAGE - 1) / PAGE * PAGE;
	return sum;
}

static bool model_may_go(const struct model_entry *e, enum cache_hold hold, uint32_t cid)
{
	return e->cid != cid && (e->hold == NONE || (e->hold == RAW && hold == RAW));
}

/* Evicts for one more entry (or for larger content of an own one); false if that fails. */
static bool model_make_room(struct model *m, uint32_t cid, size_t slots, uint64_t more,
			    enum cache_hold hold)
{
	while (m->n + slots > m->limits.slots || model_bytes(m) + more > m->limits.bytes) {
		size_t i = 0;

		while (i < m->n && !model_may_go(&m->e[i], hold, cid))
			i++;
		if (i == m->n)
			return false;
		model_drop(m, i);
	}
	return true;
}

static int model_put(struct model *m, uint32_t cid, size_t len, uint8_t byte, uint64_t generation,
		     enum cache_hold hold, uint64_t now)
{
	struct model_entry e = { cid, len, byte, generation, now, now, hold };
	struct model before;
	size_t own;
	bool replaces;

	for (int i = 0; i < 16 && m->n && now >= m->e[0].updated + m->limits.ttl; i++)
		model_drop(m, 0);
	for (own = 0; own < m->n && m->e[own].cid != cid;)
		own++;
	replaces = own < m->n;
	if (replaces && m->e[own].len == len && m->e[own].byte == byte) {
		m->e[own].generation = generation;
		m->e[own].hold = hold;
		return CACHE_SAME;
	}
	before = *m;
	if (replaces) {
		e.first_seen = m->e[own].first_seen;
		model_drop(m, own);
		m->removed--;
	}
	if (!model_make_room(m, cid, 1, (len + PAGE - 1) / PAGE * PAGE, hold)) {
		*m = before;
		return -ENOSPC;
	}
	m->e[m->n++] = e;
	return replaces ? CACHE_CHANGED : CACHE_ADDED;
}

static void compare(const struct cache *c, const struct model *m)
{
	const struct cache_entry *e = NULL;

	struct cache_stats stats;

	cache_get_stats(c, &stats);
	assert_int_equal(used(c), m->n);
	assert_int_equal(stats.bytes - stats.kept_bytes, model_bytes(m));
	assert_int_equal(stats.kept == 0, stats.kept_bytes == 0);
	if (stats.kept > 0)
		assert_true(stats.bytes <= m->limits.bytes);
	assert_int_equal(n_seen, m->removed);
	for (size_t i = 0; i < m->n; i++) {
		e = cache_next(c, e);
		assert_non_null(e);
		assert_int_equal(e->by_id.id.cid, m->e[i].cid);
		assert_int_equal(buf_len(e->content), m->e[i].len);
		assert_int_equal(buf_data(e->content)[0], m->e[i].byte);
		assert_int_equal(e->generation, m->e[i].generation);
		assert_int_equal(e->updated, m->e[i].updated);
		assert_int_equal(e->first_seen, m->e[i].first_seen);
		assert_int_equal(e->hold, m->e[i].hold);
	}
	assert_null(cache_next(c, e));
}

static void step(struct cache *c, struct model *m, unsigned int *seed, uint64_t now)
{
	uint32_t cid = 3 + (uint32_t)rand_r(seed) % 20;
	size_t len = (size_t)rand_r(seed) % (4 * PAGE) + 1;
	uint8_t byte = (uint8_t)(rand_r(seed) % 3);
	enum cache_hold hold = (enum cache_hold)(rand_r(seed) % CACHE_HOLD_KEPT);
	uint64_t generation = (uint64_t)rand_r(seed) % 3;
	int admitted, r;
	size_t i = 0;

	while (i < m->n && (m->e[i].cid != cid || m->e[i].generation != generation))
		i++;
	switch (rand_r(seed) % 8) {
	case 0:
		assert_int_equal(cache_remove(c, vm(cid), generation, CACHE_END_ACKED, now),
				 i < m->n ? 0 : -ENOENT);
		if (i < m->n)
			model_drop(m, i);
		break;
	case 1:
		assert_int_equal(cache_set_hold(c, vm(cid), generation, hold),
				 i < m->n ? 0 : -ENOENT);
		if (i < m->n)
			m->e[i].hold = hold;
		break;
	case 2:
		cache_sweep(c, 5, now);
		for (i = 0; i < 5 && m->n && now >= m->e[0].updated + m->limits.ttl; i++)
			model_drop(m, 0);
		break;
	default:
		if (rand_r(seed) % 2)
			len = PAGE; /* so that contents repeat */
		/* Asked just before, the answer must be the insert's. */
		admitted = cache_admits(c, vm(cid), len, hold, now);
		r = model_put(m, cid, len, byte, generation, hold, now);
		assert_int_equal(put(c, vm(cid), len, byte, generation, hold, now), r);
		if (r != CACHE_SAME)
			assert_int_equal(admitted, MIN(r, 0));
		break;
	}
}

/* Every other life keeps contents after their ACK: the entries must not notice. */
static void random_lives_equal_those_of_a_plain_model(void **state)
{
	unsigned int seed = (unsigned int)getpid();

	(void)state;
	print_message("seed %u\n", seed);
	for (int run = 0; run < 40; run++) {
		struct model m = { .limits = { .slots = 1 + (size_t)rand_r(&seed) % 20,
					       .bytes = (10 + (uint64_t)rand_r(&seed) % 30) * PAGE,
					       .ttl = 50,
					       .keep = run % 2 ? 100 : 0 } };
		_cleanup_(cache_freep)
		struct cache *c = cache_with(m.limits.slots, m.limits.bytes, m.limits.ttl);
		uint64_t now = 0;

		cache_set_limits(c, &m.limits, now);

		for (int i = 0; i < 300; i++) {
			now += (uint64_t)rand_r(&seed) % 4;
			step(c, &m, &seed, now);
			compare(c, &m);
		}
	}
}

/* ---- cost --------------------------------------------------------------------------------------- */

static uint64_t cpu_nsec(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * 1000000000ULL + (uint64_t)t.tv_nsec;
}

/* CPU time of a lookup, an insert into a full cache and a hold that ends, for n ids. */
static double cost_of_an_operation(uint32_t ids, struct buf *const contents[2])
{
	const struct cache_limits limits = { .slots = ids, .bytes = UINT64_MAX, .ttl = HOUR };
	_cleanup_(cache_freep)
	struct cache *c = NULL;
	const uint32_t rounds = 40000;
	uint64_t start;

	assert_int_equal(cache_new(&limits, NULL, NULL, &c), 0);
	for (uint32_t i = 0; i < ids; i++)
		cache_insert(c, vm(i), contents[0], 0, 1, RAW, i);
	start = cpu_nsec();
	for (uint32_t i = 0; i < rounds; i++) {
		cache_lookup(c, vm(i * 7919 % ids));
		cache_insert(c, vm(ids + i), contents[i % 2], i % 2, 1, RAW, ids + i);
		cache_set_hold(c, vm(ids + i), 1, i % 2 ? NONE : ANSWERED);
		cache_set_hold(c, vm(ids + i), 1, RAW);
	}
	return (double)(cpu_nsec() - start) / rounds;
}

static void ten_thousand_ids_cost_about_what_a_hundred_cost(void **state)
{
	struct buf *contents[2] = { content_of(10, 1), content_of(10, 2) };
	double few = 1e12, many = 1e12;

	(void)state;
	/* The least of several: others use this machine too. */
	for (int i = 0; i < 7; i++) {
		few = MIN(few, cost_of_an_operation(100, contents));
		many = MIN(many, cost_of_an_operation(10000, contents));
	}
	print_message("100 ids: %.0f ns, 10000 ids: %.0f ns\n", few, many);
	/* A walk over the entries would make it a hundred times; misses of the CPU's caches are
	 * what remains. */
	assert_true(many < 5 * few);
	buf_unref(contents[0]);
	buf_unref(contents[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(one_entry_per_vm_id),
		cmocka_unit_test(entry_keeps_its_own_reference),
		cmocka_unit_test(two_slots_a_b_identical_a_changed_a_c_keeps_a_and_c),
		cmocka_unit_test(identical_content_refreshes_neither_time_nor_order),
		cmocka_unit_test(identical_content_takes_over_generation_and_hold),
		cmocka_unit_test(equal_digests_of_different_bytes_are_a_change),
		cmocka_unit_test(one_byte_longer_or_shorter_is_a_change),
		cmocka_unit_test(changed_content_keeps_first_seen_and_becomes_the_newest),
		cmocka_unit_test(expired_from_exactly_updated_plus_ttl),
		cmocka_unit_test(lookup_ignores_the_ttl),
		cmocka_unit_test(lookup_does_not_reorder),
		cmocka_unit_test(lookup_counts_hits_and_misses_and_peek_does_not),
		cmocka_unit_test(insert_evicts_16_of_48_expired_and_a_sweep_the_other_32),
		cmocka_unit_test(insert_stops_at_the_first_fresh_entry),
		cmocka_unit_test(insert_that_made_room_by_age_evicts_no_more),
		cmocka_unit_test(full_cache_of_fresh_entries_evicts_exactly_the_oldest),
		cmocka_unit_test(own_expired_entry_leaves_before_the_insert),
		cmocka_unit_test(sweep_sees_residencies_of_90_and_70_minutes_in_order),
		cmocka_unit_test(sweep_leaves_fresh_entries),
		cmocka_unit_test(sweep_does_no_more_than_it_may_at_once),
		cmocka_unit_test(ack_of_the_held_generation_removes_the_entry),
		cmocka_unit_test(ack_of_another_generation_removes_nothing),
		cmocka_unit_test(removal_observes_time_since_change_and_since_first_insert),
		cmocka_unit_test(every_reason_has_its_name),
		cmocka_unit_test(zero_slots_store_nothing_and_lookups_miss),
		cmocka_unit_test(slots_hold_exactly_as_many_as_they_are),
		cmocka_unit_test(bytes_are_bounded_oldest_first),
		cmocka_unit_test(content_larger_than_the_cache_evicts_nobody),
		cmocka_unit_test(larger_content_of_a_vm_evicts_others_not_itself),
		cmocka_unit_test(new_content_frees_the_bytes_of_the_old),
		cmocka_unit_test(auto_slots_grow_with_the_vms),
		cmocka_unit_test(lowered_limits_evict_the_oldest_that_nobody_would_lose),
		cmocka_unit_test(framed_report_never_evicts_custody_of_another_vm),
		cmocka_unit_test(raw_report_evicts_the_oldest_that_came_raw),
		cmocka_unit_test(content_answered_0_is_never_evicted_for_another_vm),
		cmocka_unit_test(same_rules_for_bytes_as_for_slots),
		cmocka_unit_test(newer_content_always_replaces_the_vms_own),
		cmocka_unit_test(what_nobody_would_lose_goes_first_for_a_framed_report),
		cmocka_unit_test(ended_custody_keeps_its_place_in_the_order),
		cmocka_unit_test(hold_of_another_generation_is_left_alone),
		cmocka_unit_test(age_ends_custody_of_answered_content_too),
		cmocka_unit_test(asking_beforehand_changes_nothing),
		cmocka_unit_test(
			acked_content_is_kept_outside_the_slots_and_the_references_figures),
		cmocka_unit_test(only_an_ack_keeps),
		cmocka_unit_test(kept_content_leaves_before_any_entry),
		cmocka_unit_test(kept_content_never_keeps_a_report_out),
		cmocka_unit_test(kept_content_becomes_an_entry_again_where_it_lies),
		cmocka_unit_test(newer_content_replaces_what_is_kept),
		cmocka_unit_test(kept_content_goes_when_its_vm_was_silent_for_24_h),
		cmocka_unit_test(what_is_kept_goes_when_it_is_not_wanted_any_more),
		cmocka_unit_test(content_is_packed_from_its_age_on_in_slices),
		cmocka_unit_test(packed_content_is_the_same_as_before),
		cmocka_unit_test(content_that_leaves_while_it_is_packed_is_let_go),
		cmocka_unit_test(what_is_kept_is_packed_too_and_replaced_when_it_comes_again),
		cmocka_unit_test(content_that_is_reported_again_and_again_is_not_packed),
		cmocka_unit_test(packed_contents_leave_room_for_others),
		cmocka_unit_test(an_age_of_0_packs_nothing),
		cmocka_unit_test(content_that_finds_no_memory_for_it_stays_as_it_is),
		cmocka_unit_test(new_cache_survives_every_failing_allocation),
		cmocka_unit_test(insert_survives_every_failing_allocation),
		cmocka_unit_test(random_lives_equal_those_of_a_plain_model),
		cmocka_unit_test(ten_thousand_ids_cost_about_what_a_hundred_cost),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
