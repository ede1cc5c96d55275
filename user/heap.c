/* SPDX-License-Identifier: Apache-2.0 */
#include "heap.h"

void heap_done(struct heap *h)
{
	for (size_t i = 0; i < h->n; i++)
		h->nodes[i]->place = 0;
	free(h->nodes);
	*h = (struct heap){ 0 };
}

int heap_reserve(struct heap *h, size_t n)
{
	struct heap_node **nodes;
	size_t want = MAX(h->allocated, (size_t)16);

	if (n <= h->allocated)
		return 0;
	while (want < n)
		want *= 2;
	nodes = reallocarray(h->nodes, want, sizeof(*nodes));
	if (!nodes)
		return -ENOMEM;
	h->nodes = nodes;
	h->allocated = want;
	return 0;
}

static void put(struct heap *h, size_t i, struct heap_node *node)
{
	h->nodes[i] = node;
	node->place = i + 1;
}

static void sift_up(struct heap *h, size_t i, struct heap_node *node)
{
	while (i > 0) {
		size_t parent = (i - 1) / 2;

		if (h->nodes[parent]->key <= node->key)
			break;
		put(h, i, h->nodes[parent]);
		i = parent;
	}
	put(h, i, node);
}

static void sift_down(struct heap *h, size_t i, struct heap_node *node)
{
	for (;;) {
		size_t child = 2 * i + 1;

		if (child >= h->n)
			break;
		if (child + 1 < h->n && h->nodes[child + 1]->key < h->nodes[child]->key)
			child++;
		if (node->key <= h->nodes[child]->key)
			break;
		put(h, i, h->nodes[child]);
		i = child;
	}
	put(h, i, node);
}

/* Finds the right place for a node that may stand in position i. */
static void settle(struct heap *h, size_t i, struct heap_node *node)
{
	if (i > 0 && node->key < h->nodes[(i - 1) / 2]->key)
		sift_up(h, i, node);
	else
		sift_down(h, i, node);
}

int heap_set(struct heap *h, struct heap_node *node, uint64_t key)
{
	if (!heap_linked(node)) {
		int r = heap_reserve(h, h->n + 1);

		if (r < 0)
			return r;
		node->key = key;
		h->n++;
		sift_up(h, h->n - 1, node);
		return 0;
	}
	node->key = key;
	settle(h, node->place - 1, node);
	return 0;
}

void heap_remove(struct heap *h, struct heap_node *node)
{
	struct heap_node *last;
	size_t i;

	if (!heap_linked(node))
		return;
	i = node->place - 1;
	node->place = 0;
	last = h->nodes[--h->n];
	if (last != node)
		settle(h, i, last);
}
