/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "heap.h"
#include "list.h"

struct item {
	struct heap_node node;
	struct list list;
	uint64_t key;
};

static void smallest_key_is_on_top(void **state)
{
	struct heap h = { 0 };
	struct item items[5] = { 0 };
	const uint64_t keys[] = { 5, 1, 4, 1, 3 }, sorted[] = { 1, 1, 3, 4, 5 };

	(void)state;
	assert_null(heap_top(&h));
	for (size_t i = 0; i < ARRAY_SIZE(items); i++)
		assert_int_equal(heap_set(&h, &items[i].node, keys[i]), 0);
	for (size_t i = 0; i < ARRAY_SIZE(items); i++) {
		struct item *top = heap_entry(heap_top(&h), struct item, node);

		assert_int_equal(top->node.key, sorted[i]);
		heap_remove(&h, &top->node);
		assert_false(heap_linked(&top->node));
	}
	assert_null(heap_entry(heap_top(&h), struct item, node));
	heap_done(&h);
}

static void reserved_room_needs_no_memory(void **state)
{
	struct heap h = { 0 };
	struct item items[20] = { 0 };
	struct heap_place *places;

	(void)state;
	assert_int_equal(heap_reserve(&h, ARRAY_SIZE(items)), 0);
	places = h.places;
	for (size_t i = 0; i < ARRAY_SIZE(items); i++)
		assert_int_equal(heap_set(&h, &items[i].node, i), 0);
	assert_ptr_equal(h.places, places);
	heap_done(&h);
	assert_false(heap_linked(&items[0].node));
}

static void random_changes_keep_the_order(void **state)
{
	struct heap h = { 0 };
	struct item items[200] = { 0 };
	unsigned int seed = (unsigned int)getpid();

	(void)state;
	print_message("seed %u\n", seed);
	for (int n = 0; n < 20000; n++) {
		struct item *i = &items[(size_t)rand_r(&seed) % ARRAY_SIZE(items)];
		uint64_t least = UINT64_MAX;
		size_t in = 0;

		if (rand_r(&seed) % 3 == 0) {
			heap_remove(&h, &i->node);
		} else {
			i->key = (uint64_t)rand_r(&seed) % 1000;
			assert_int_equal(heap_set(&h, &i->node, i->key), 0);
		}
		for (size_t k = 0; k < ARRAY_SIZE(items); k++)
			if (heap_linked(&items[k].node)) {
				in++;
				least = MIN(least, items[k].key);
				assert_ptr_equal(h.places[items[k].node.place - 1].node,
						 &items[k].node);
			}
		assert_int_equal(h.n, in);
		if (in > 0)
			assert_int_equal(heap_top(&h)->key, least);
	}
	heap_done(&h);
}

static void list_keeps_the_order_of_adding(void **state)
{
	struct list head;
	struct item items[3];
	size_t n = 0;

	(void)state;
	list_init(&head);
	assert_null(list_first_entry(&head, struct item, list));
	for (size_t i = 0; i < ARRAY_SIZE(items); i++)
		list_add_last(&head, &items[i].list);
	list_for_each(node, &head)
		assert_ptr_equal(container_of(node, struct item, list), &items[n++]);
	list_move_last(&head, &items[0].list);
	assert_ptr_equal(list_first_entry(&head, struct item, list), &items[1]);
	assert_ptr_equal(list_last_entry(&head, struct item, list), &items[0]);
}

static void list_may_lose_the_node_that_is_visited(void **state)
{
	struct list head;
	struct item items[4];
	size_t n = 0;

	(void)state;
	list_init(&head);
	for (size_t i = 0; i < ARRAY_SIZE(items); i++)
		list_add_first(&head, &items[i].list);
	list_for_each_safe(node, &head) {
		list_del(node);
		assert_false(list_linked(node));
		list_del(node); /* once more does nothing */
		n++;
	}
	assert_int_equal(n, ARRAY_SIZE(items));
	assert_true(list_empty(&head));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(smallest_key_is_on_top),
		cmocka_unit_test(reserved_room_needs_no_memory),
		cmocka_unit_test(random_changes_keep_the_order),
		cmocka_unit_test(list_keeps_the_order_of_adding),
		cmocka_unit_test(list_may_lose_the_node_that_is_visited),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
