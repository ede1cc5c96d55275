/* SPDX-License-Identifier: Apache-2.0 */
#include "heap.h"

#define CHILDREN 4 /* 64 bytes: see heap.h */

void heap_done(struct heap *h)
{
	for (size_t i = 0; i < h->n; i++)
		h->places[i].node->place = 0;
	free(h->places);
	*h = (struct heap){ 0 };
}

int heap_reserve(struct heap *h, size_t n)
{
	size_t want = MAX(h->allocated, (size_t)16);
	struct heap_place *places;

	if (n <= h->allocated)
		return 0;
	while (want < n)
		want *= 2;
	places = reallocarray(h->places, want, sizeof(*places));
	if (!places)
		return -ENOMEM;
	h->places = places;
	h->allocated = want;
	return 0;
}

static void put(struct heap *h, size_t i, struct heap_place p)
{
	h->places[i] = p;
	p.node->place = i + 1;
}

static void sift_up(struct heap *h, size_t i, struct heap_place p)
{
	while (i > 0) {
		size_t parent = (i - 1) / CHILDREN;

		if (h->places[parent].key <= p.key)
			break;
		put(h, i, h->places[parent]);
		i = parent;
	}
	put(h, i, p);
}

static void sift_down(struct heap *h, size_t i, struct heap_place p)
{
	for (;;) {
		size_t first = CHILDREN * i + 1, least = first;

		if (first >= h->n)
			break;
		for (size_t c = first + 1; c < MIN(first + CHILDREN, h->n); c++)
			if (h->places[c].key < h->places[least].key)
				least = c;
		if (p.key <= h->places[least].key)
			break;
		put(h, i, h->places[least]);
		i = least;
	}
	put(h, i, p);
}

/* Finds the right place for what may stand in position i. */
static void settle(struct heap *h, size_t i, struct heap_place p)
{
	if (i > 0 && p.key < h->places[(i - 1) / CHILDREN].key)
		sift_up(h, i, p);
	else
		sift_down(h, i, p);
}

int heap_set(struct heap *h, struct heap_node *node, uint64_t key)
{
	struct heap_place p = { .key = key, .node = node };

	if (!heap_linked(node)) {
		int r = heap_reserve(h, h->n + 1);

		if (r < 0)
			return r;
		node->key = key;
		h->n++;
		sift_up(h, h->n - 1, p);
		return 0;
	}
	node->key = key;
	settle(h, node->place - 1, p);
	return 0;
}

void heap_remove(struct heap *h, struct heap_node *node)
{
	struct heap_place last;
	size_t i;

	if (!heap_linked(node))
		return;
	i = node->place - 1;
	node->place = 0;
	last = h->places[--h->n];
	if (last.node != node)
		settle(h, i, last);
}
