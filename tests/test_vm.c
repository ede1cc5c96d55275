/* SPDX-License-Identifier: Apache-2.0 */
#include <malloc.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "vm.h"
#include "vm_json.h"

#define NOW (1000 * USEC_PER_SEC)

static const struct bucket_rate unlimited = { 0 };

static struct vsr_vm_id id(uint32_t cid)
{
	return (struct vsr_vm_id){ .ns = 0, .cid = cid };
}

static struct vm_table *table(size_t max)
{
	struct vm_table *t = NULL;

	assert_int_equal(vm_table_new(max, unlimited, unlimited, &t), 0);
	return t;
}

static struct vm *obtain(struct vm_table *t, uint32_t cid, uint64_t now)
{
	struct vm *vm = NULL;

	assert_int_equal(vm_table_obtain(t, id(cid), now, &vm), 0);
	return vm;
}

static void test_record_is_found_again_and_namespaces_are_apart(void **state)
{
	_cleanup_(vm_table_freep)
	struct vm_table *t = table(10);
	struct vm *a = obtain(t, 3, NOW), *b = NULL;

	(void)state;
	assert_int_equal(vm_table_obtain(t, (struct vsr_vm_id){ .ns = 1, .cid = 3 }, NOW, &b), 0);
	assert_ptr_not_equal(a, b);
	assert_ptr_equal(obtain(t, 3, NOW), a);
	assert_ptr_equal(vm_table_find(t, id(3)), a);
	assert_null(vm_table_find(t, id(4)));
	assert_int_equal(vm_table_count(t), 2);
}

static void test_full_table_drops_the_least_recently_used(void **state)
{
	_cleanup_(vm_table_freep)
	struct vm_table *t = table(3);

	(void)state;
	obtain(t, 10, NOW);
	obtain(t, 11, NOW + 1);
	obtain(t, 12, NOW + 2);
	obtain(t, 10, NOW + 3); /* used again: 11 is the oldest now */
	obtain(t, 13, NOW + 4);
	assert_null(vm_table_find(t, id(11)));
	assert_non_null(vm_table_find(t, id(10)));
	assert_int_equal(vm_table_count(t), 3);
	assert_int_equal(vm_table_evicted(t), 1);
}

static void test_pinned_record_is_never_dropped(void **state)
{
	const struct bucket_rate slow = bucket_rate_per(1, USEC_PER_MIN, 1);
	int anything;

	(void)state;
	for (int why = 0; why < 6; why++) {
		_cleanup_(vm_table_freep)
		struct vm_table *t = NULL;
		struct vm *vm;

		assert_int_equal(vm_table_new(2, slow, slow, &t), 0);
		vm = obtain(t, 10, NOW);
		obtain(t, 11, NOW);
		switch (why) {
		case 0:
			vm->custody = &anything;
			break;
		case 1:
			vm->debt = 1;
			break;
		case 2:
			vm->open = 1;
			break;
		case 3:
			assert_true(vm_take_grant(t, vm, NOW));
			break;
		case 4:
			assert_true(vm_take_report(t, vm, NOW));
			break;
		case 5:
			vm->acks = (struct tracker_vm *)&anything;
			break;
		}
		assert_true(vm_pinned(t, vm, NOW));
		obtain(t, 12, NOW);
		assert_ptr_equal(vm_table_find(t, id(10)), vm);
		assert_null(vm_table_find(t, id(11)));
		/* A bucket is a pin only while it is empty; the others stay. */
		assert_int_equal(vm_pinned(t, vm, NOW + USEC_PER_MIN), why < 3 || why == 5);
		assert_int_equal(vm_table_sweep(t, NOW + VM_IDLE_USEC),
				 why < 3 || why == 5 ? 1 : 2);
	}
}

static void test_new_vm_is_refused_when_all_records_are_pinned(void **state)
{
	_cleanup_(vm_table_freep)
	struct vm_table *t = table(2);
	struct vm *vm = NULL;

	(void)state;
	obtain(t, 10, NOW)->debt = 1;
	obtain(t, 11, NOW)->debt = 1;
	assert_int_equal(vm_table_obtain(t, id(12), NOW, &vm), -ENOBUFS);
	assert_null(vm);
	assert_int_equal(vm_table_refused(t), 1);
	assert_int_equal(vm_table_count(t), 2);
	obtain(t, 11, NOW)->debt = 0; /* a known VM is not refused */
	obtain(t, 12, NOW);
	assert_null(vm_table_find(t, id(11)));
}

static void test_record_is_kept_until_idle_for_24_hours(void **state)
{
	_cleanup_(vm_table_freep)
	struct vm_table *t = table(10);

	(void)state;
	obtain(t, 10, NOW);
	obtain(t, 11, NOW + 1);
	assert_int_equal(vm_table_sweep(t, NOW + 24 * USEC_PER_HOUR - 1), 0);
	assert_int_equal(vm_table_sweep(t, NOW + 24 * USEC_PER_HOUR), 1);
	assert_null(vm_table_find(t, id(10)));
	assert_int_equal(vm_table_sweep(t, NOW + 24 * USEC_PER_HOUR + 1), 1);
	assert_int_equal(vm_table_count(t), 0);
}

static void test_table_holds_16384_records_of_less_than_512_bytes(void **state)
{
	_cleanup_(vm_table_freep)
	struct vm_table *t = NULL;
	struct mallinfo2 before = mallinfo2(), after;
	size_t each;

	(void)state;
	t = table(VM_TABLE_MAX);
	for (uint32_t cid = 3; cid < 3 + 20000; cid++)
		obtain(t, cid, NOW + cid);
	after = mallinfo2();
	assert_int_equal(vm_table_count(t), 16384);
	assert_int_equal(vm_table_evicted(t), 20000 - 16384);
	assert_null(vm_table_find(t, id(3 + 20000 - 16384 - 1)));
	assert_non_null(vm_table_find(t, id(3 + 20000 - 16384)));
#ifndef __SANITIZE_ADDRESS__ /* whose allocator mallinfo2() does not know */
	each = (after.uordblks + after.hblkhd - before.uordblks - before.hblkhd) / VM_TABLE_MAX;
	print_message("%zu bytes a record\n", each);
	/* Nor does it know valgrind's. */
	if (after.uordblks > 0) {
		assert_true(each >= sizeof(struct vm));
		assert_true(each < 512);
	}
#else
	(void)before;
	(void)after;
	(void)each;
#endif
}

static void test_all_records_are_seen_once(void **state)
{
	_cleanup_(vm_table_freep)
	struct vm_table *t = table(100);
	bool seen[100] = { 0 };
	size_t n = 0;

	(void)state;
	for (uint32_t cid = 0; cid < 100; cid++)
		obtain(t, cid, NOW);
	for (struct vm *vm = vm_table_next(t, NULL); vm; vm = vm_table_next(t, vm)) {
		assert_false(seen[vm->node.id.cid]);
		seen[vm->node.id.cid] = true;
		n++;
	}
	assert_int_equal(n, 100);
}

static void test_exported_state_shows_a_digest_only_of_a_valid_record(void **state)
{
	_cleanup_(vm_table_freep)
	struct vm_table *t = table(1);
	struct vm *vm = obtain(t, 10, NOW);
	struct vsr_vm_state s;

	(void)state;
	vm->record_digest = 7;
	vm->record_length = 8;
	vm->generation = 3;
	vm->debt = 5;
	vm->last_ack = 2 * USEC_PER_SEC;
	vm_export(vm, &s);
	assert_int_equal(s.record_digest, 0);
	assert_int_equal(s.record_length, 0);
	assert_int_equal(s.generation, 3);
	assert_int_equal(s.custody, 0);
	assert_int_equal(s.debt, 5);
	assert_int_equal(s.last_ack_ns, 2000000000);
	vm->has_record = true;
	vm->custody = vm;
	vm_export(vm, &s);
	assert_int_equal(s.record_digest, 7);
	assert_int_equal(s.record_length, 8);
	assert_int_equal(s.custody, 1);
}

static bool shown_before(struct vsr_vm_id id, struct vsr_vm_state *ret, void *userdata)
{
	unsigned int *asked = userdata;

	(*asked)++;
	ret->received = 100; /* also where nothing is returned: it must not count */
	if (id.cid != 10)
		return false;
	*ret = (struct vsr_vm_state){
		.received = 5,
		.accepted = 4,
		.duplicates = 1,
		.refused = 2,
		.generation = 9,
		.custody = 1,
		.record_digest = 7,
		.last_accepted_ns = 11000,
		.last_ack_ns = 12,
	};
	return true;
}

static void test_counters_go_on_from_what_was_shown_before_and_decide_nothing(void **state)
{
	_cleanup_(vm_table_freep)
	struct vm_table *t = table(2);
	unsigned int asked = 0;
	struct vsr_vm_state s;
	struct vm *vm;

	(void)state;
	vm_table_remember(t, shown_before, &asked);
	vm = obtain(t, 10, NOW);
	assert_ptr_equal(obtain(t, 10, NOW), vm);
	assert_int_equal(asked, 1);
	assert_int_equal(vm->last_ack, 0);
	assert_int_equal(vm->generation, 0);
	assert_false(vm->has_record);
	vm->received++;
	vm->accepts++;
	vm_export(vm, &s);
	assert_int_equal(s.received, 6);
	assert_int_equal(s.accepted, 5);
	assert_int_equal(s.duplicates, 1);
	assert_int_equal(s.refused, 2);
	assert_int_equal(s.last_accepted_ns, 11000); /* whole microseconds */
	assert_int_equal(s.last_ack_ns, 12);
	assert_int_equal(s.generation, 0);
	assert_int_equal(s.custody, 0);
	assert_int_equal(s.record_digest, 0);
	vm->last_ack = 2;
	vm_export(vm, &s);
	assert_int_equal(s.last_ack_ns, 2000);
	vm_export(obtain(t, 11, NOW), &s);
	assert_int_equal(s.received, 0);
}

/* Whatever is not known of it is null, and keys are there always. */
static void test_a_vm_is_told_with_what_each_of_the_three_knows(void **state)
{
	const struct vsr_vm_seen seen = {
		.first_seen_ns = 1 * USEC_PER_SEC * NSEC_PER_USEC,
		.last_seen_ns = 3 * USEC_PER_SEC * NSEC_PER_USEC,
		.connections = 4,
		.unread_updates = 5,
	};
	const struct vsr_vm_state shown = { .received = 7, .record_digest = 1, .debt = 9 };
	const struct vsr_vm_id vm = { 6, 42 };
	json_t *o, *part;

	(void)state;
	o = vm_json(&vm, NULL, NULL, NULL, NOW);
	assert_int_equal(json_object_size(o), 5);
	assert_int_equal(json_integer_value(json_object_get(o, "ns")), 6);
	assert_int_equal(json_integer_value(json_object_get(o, "cid")), 42);
	assert_true(json_is_null(json_object_get(o, "daemon")));
	assert_true(json_is_null(json_object_get(o, "kernel")));
	assert_true(json_is_null(json_object_get(o, "now")));
	json_decref(o);
	o = vm_json(&vm, &shown, &seen, json_true(), 10 * USEC_PER_SEC);
	part = json_object_get(o, "kernel");
	assert_float_equal(json_real_value(json_object_get(part, "first_seen_age")), 9, 0.001);
	assert_float_equal(json_real_value(json_object_get(part, "last_seen_age")), 7, 0.001);
	assert_int_equal(json_integer_value(json_object_get(part, "connections")), 4);
	assert_int_equal(json_integer_value(json_object_get(part, "unread_updates")), 5);
	part = json_object_get(o, "daemon");
	assert_int_equal(json_integer_value(json_object_get(part, "received")), 7);
	assert_int_equal(json_integer_value(json_object_get(part, "debt")), 9);
	assert_true(json_is_null(json_object_get(part, "record_digest")));
	assert_true(json_is_null(json_object_get(part, "last_ack_age")));
	assert_true(json_is_true(json_object_get(o, "now")));
	json_decref(o);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_record_is_found_again_and_namespaces_are_apart),
		cmocka_unit_test(test_full_table_drops_the_least_recently_used),
		cmocka_unit_test(test_pinned_record_is_never_dropped),
		cmocka_unit_test(test_new_vm_is_refused_when_all_records_are_pinned),
		cmocka_unit_test(test_record_is_kept_until_idle_for_24_hours),
		cmocka_unit_test(test_table_holds_16384_records_of_less_than_512_bytes),
		cmocka_unit_test(test_all_records_are_seen_once),
		cmocka_unit_test(test_exported_state_shows_a_digest_only_of_a_valid_record),
		cmocka_unit_test(test_a_vm_is_told_with_what_each_of_the_three_knows),
		cmocka_unit_test(test_counters_go_on_from_what_was_shown_before_and_decide_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
