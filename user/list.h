/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An intrusive doubly linked list: a node lies in its element, so adding and removing never
 * allocate, never fail, and cost the same whatever the length. A head is a node too, linked to
 * itself when the list is empty. A node that is in no list is linked to itself as well (after
 * list_init() or list_del()), so list_linked() can tell, and list_del() of it does nothing.
 */
#ifndef VSR_LIST_H
#define VSR_LIST_H

#include "util.h"

struct list {
	struct list *prev, *next;
};

static inline void list_init(struct list *l)
{
	l->prev = l->next = l;
}

static inline bool list_empty(const struct list *head)
{
	return head->next == head;
}

/* Whether the node is in a list. It must have been initialised. */
static inline bool list_linked(const struct list *node)
{
	return node->next != node;
}

/* Puts the node, which must be in no list, behind `after` (a node or the head). */
static inline void list_add_after(struct list *after, struct list *node)
{
	node->prev = after;
	node->next = after->next;
	after->next->prev = node;
	after->next = node;
}

static inline void list_add_first(struct list *head, struct list *node)
{
	list_add_after(head, node);
}

static inline void list_add_last(struct list *head, struct list *node)
{
	list_add_after(head->prev, node);
}

static inline void list_del(struct list *node)
{
	node->prev->next = node->next;
	node->next->prev = node->prev;
	list_init(node);
}

/* Moves a node to the end of the list, whether it was in one or not. */
static inline void list_move_last(struct list *head, struct list *node)
{
	list_del(node);
	list_add_last(head, node);
}

/* The first or the last node, NULL if there is none. */
static inline struct list *list_first(const struct list *head)
{
	return list_empty(head) ? NULL : head->next;
}

static inline struct list *list_last(const struct list *head)
{
	return list_empty(head) ? NULL : head->prev;
}

/* The element that holds the node, or NULL for NULL. */
#define list_entry(node, type, member)                               \
	({                                                           \
		struct list *_list_n = (node);                       \
		(type *)element_of(_list_n, offsetof(type, member)); \
	})

#define list_first_entry(head, type, member) list_entry(list_first(head), type, member)
#define list_last_entry(head, type, member)  list_entry(list_last(head), type, member)

/* Every node from first to last; the body must not remove it. */
#define list_for_each(node, head) \
	for (struct list *node = (head)->next; node != (head); node = node->next)

/* The same, but the body may remove the node (and free its element), no other one. */
#define list_for_each_safe(node, head)                                                    \
	for (struct list *node = (head)->next, *node##_next = node->next; node != (head); \
	     node = node##_next, node##_next = node->next)

#endif
