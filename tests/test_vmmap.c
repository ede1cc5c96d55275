/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "vmmap.h"

#define N 20000

static struct vsr_vm_id id(uint32_t ns, uint32_t cid)
{
	return (struct vsr_vm_id){ .ns = ns, .cid = cid };
}

static void namespace_and_cid_are_the_key(void **state)
{
	struct vmmap m;
	struct vmmap_node a, b;

	(void)state;
	assert_int_equal(vmmap_init(&m), 0);
	vmmap_add(&m, &a, id(0, 3));
	vmmap_add(&m, &b, id(3, 0));
	assert_ptr_equal(vmmap_find(&m, id(0, 3)), &a);
	assert_ptr_equal(vmmap_find(&m, id(3, 0)), &b);
	assert_null(vmmap_find(&m, id(3, 3)));
	vmmap_remove(&m, &a);
	assert_null(vmmap_find(&m, id(0, 3)));
	assert_int_equal(m.n, 1);
	vmmap_done(&m);
}

/* Consecutive CIDs, the usual case, and the two extremes of both numbers. */
static void all_are_found_and_visited_once_while_it_grows(void **state)
{
	static struct vmmap_node nodes[N];
	static bool visited[N];
	struct vmmap m;
	size_t n = 0;

	(void)state;
	assert_int_equal(vmmap_init(&m), 0);
	for (uint32_t i = 0; i < N; i++)
		vmmap_add(&m, &nodes[i], i % 2 ? id(i, UINT32_MAX) : id(UINT32_MAX, i));
	for (uint32_t i = 0; i < N; i++)
		assert_ptr_equal(vmmap_find(&m, nodes[i].id), &nodes[i]);
	for (struct vmmap_node *node = NULL; (node = vmmap_next(&m, node));) {
		assert_false(visited[node - nodes]);
		visited[node - nodes] = true;
		n++;
	}
	assert_int_equal(n, N);
	vmmap_done(&m);
}

static void visited_node_may_be_removed(void **state)
{
	static struct vmmap_node nodes[100];
	struct vmmap m;

	(void)state;
	assert_int_equal(vmmap_init(&m), 0);
	for (uint32_t i = 0; i < 100; i++)
		vmmap_add(&m, &nodes[i], id(0, i));
	for (struct vmmap_node *node = vmmap_next(&m, NULL), *next; node; node = next) {
		next = vmmap_next(&m, node);
		vmmap_remove(&m, node);
	}
	assert_int_equal(m.n, 0);
	assert_null(vmmap_next(&m, NULL));
	vmmap_done(&m);
}

/* Chains stay short: the longest among 10000 consecutive CIDs. */
static void consecutive_cids_spread_over_the_buckets(void **state)
{
	static struct vmmap_node nodes[10000];
	struct vmmap m;
	size_t longest = 0;

	(void)state;
	assert_int_equal(vmmap_init(&m), 0);
	for (uint32_t i = 0; i < ARRAY_SIZE(nodes); i++)
		vmmap_add(&m, &nodes[i], id(0, 3 + i));
	for (size_t i = 0; i <= m.mask; i++) {
		size_t len = 0;

		for (struct vmmap_node *node = m.buckets[i]; node; node = node->next)
			len++;
		longest = MAX(longest, len);
	}
	assert_in_range(longest, 1, 10);
	vmmap_done(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(namespace_and_cid_are_the_key),
		cmocka_unit_test(all_are_found_and_visited_once_while_it_grows),
		cmocka_unit_test(visited_node_may_be_removed),
		cmocka_unit_test(consecutive_cids_spread_over_the_buckets),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
