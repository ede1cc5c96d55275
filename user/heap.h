/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An intrusive heap, smallest uint64_t key on top: what is due next. An element holds a heap_node, which
 * knows its place, so that any element can be moved or removed in O(log n). Elements with equal keys come
 * out in no particular order.
 *
 * Each place has four below it, whose keys lie side by side in the array: with 10000 elements a removal
 * looks at seven lines of the CPU's cache, where a binary heap of pointers looks into 26 elements.
 */
#ifndef VSR_HEAP_H
#define VSR_HEAP_H

#include "util.h"

struct heap_node {
	uint64_t key;
	size_t place; /* 1 + index into the heap's array; 0: in no heap */
};

struct heap_place {
	uint64_t key; /* that of the node */
	struct heap_node *node;
};

struct heap {
	struct heap_place *places;
	size_t n, allocated;
};

static inline void heap_node_init(struct heap_node *node)
{
	*node = (struct heap_node){ 0 };
}

static inline bool heap_linked(const struct heap_node *node)
{
	return node->place != 0;
}

/* A heap that is all zero is empty and ready. Frees the array, not the elements, which are then
 * in no heap. */
void heap_done(struct heap *h);

/* Makes room for n elements in all, so that heap_set() up to there cannot fail.
 * Returns 0, -ENOMEM. */
int heap_reserve(struct heap *h, size_t n);

/* Puts the node in with this key; if it is in already, only changes its key (that never fails).
 * Returns 0, -ENOMEM (nothing changed). */
int heap_set(struct heap *h, struct heap_node *node, uint64_t key);

/* Takes the node out, if it is in. */
void heap_remove(struct heap *h, struct heap_node *node);

/* The node with the smallest key, still in the heap; NULL if there is none. */
static inline struct heap_node *heap_top(const struct heap *h)
{
	return h->n ? h->places[0].node : NULL;
}

/* The element that holds the node, or NULL for NULL. */
#define heap_entry(node, type, member)                               \
	({                                                           \
		struct heap_node *_heap_n = (node);                  \
		(type *)element_of(_heap_n, offsetof(type, member)); \
	})

#endif
