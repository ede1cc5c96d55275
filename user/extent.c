/* SPDX-License-Identifier: Apache-2.0 */
#include "extent.h"

#include "list.h"

#define CLASSES 32
/* Ranges of the wanted length's own power of two that are looked at: any larger one fits. */
#define LOOKS 16

struct extent {
	struct list by_place; /* all ranges of the space, free or not, without a gap */
	struct list by_size;  /* free: those of the same power of two */
	uint32_t first, length;
	bool taken;
};

struct extent_space {
	struct list by_place;
	struct list free[CLASSES]; /* 2^class <= length < 2^(class + 1) */
	uint32_t taken;
};

static unsigned class_of(uint32_t length)
{
	return 31 - (unsigned)__builtin_clz(length);
}

static void set_free(struct extent_space *s, struct extent *e)
{
	e->taken = false;
	list_add_first(&s->free[class_of(e->length)], &e->by_size);
}

static struct extent *extent_new(uint32_t first, uint32_t length)
{
	struct extent *e = calloc(1, sizeof(*e));

	if (!e)
		return NULL;
	e->first = first;
	e->length = length;
	list_init(&e->by_place);
	list_init(&e->by_size);
	return e;
}

int extent_space_new(uint32_t n, struct extent_space **ret)
{
	_cleanup_(extent_space_freep)
	struct extent_space *s = calloc(1, sizeof(*s));
	struct extent *e;

	if (!s)
		return -ENOMEM;
	list_init(&s->by_place);
	for (size_t i = 0; i < CLASSES; i++)
		list_init(&s->free[i]);
	if (n > 0) {
		e = extent_new(0, n);
		if (!e)
			return -ENOMEM;
		list_add_last(&s->by_place, &e->by_place);
		set_free(s, e);
	}
	*ret = TAKE_PTR(s);
	return 0;
}

struct extent_space *extent_space_free(struct extent_space *s)
{
	if (!s)
		return NULL;
	list_for_each_safe(node, &s->by_place)
		free(container_of(node, struct extent, by_place));
	free(s);
	return NULL;
}

static struct extent *find(const struct extent_space *s, uint32_t length)
{
	unsigned own = class_of(length), looks = 0;

	list_for_each(node, &s->free[own]) {
		struct extent *e = container_of(node, struct extent, by_size);

		if (e->length >= length)
			return e;
		if (++looks == LOOKS)
			break;
	}
	for (unsigned class = own + 1; class < CLASSES; class ++)
		if (!list_empty(&s->free[class]))
			return list_first_entry(&s->free[class], struct extent, by_size);
	return NULL;
}

int extent_take(struct extent_space *s, uint32_t length, struct extent **ret)
{
	struct extent *e = find(s, length), *rest;

	if (!e)
		return -ENOSPC;
	if (e->length > length) {
		rest = extent_new(e->first + length, e->length - length);
		if (!rest)
			return -ENOMEM;
		list_add_after(&e->by_place, &rest->by_place);
		set_free(s, rest);
		e->length = length;
	}
	list_del(&e->by_size);
	e->taken = true;
	s->taken += e->length;
	*ret = e;
	return 0;
}

/* Joins the range with the one behind it, both of them free. */
static void join(struct extent_space *s, struct extent *e, struct list *behind)
{
	struct extent *next;

	if (behind == &s->by_place)
		return;
	next = container_of(behind, struct extent, by_place);
	if (e->taken || next->taken)
		return;
	list_del(&e->by_size);
	list_del(&next->by_size);
	list_del(&next->by_place);
	e->length += next->length;
	free(next);
	set_free(s, e);
}

struct extent *extent_give_back(struct extent_space *s, struct extent *e)
{
	struct list *before;

	if (!e)
		return NULL;
	s->taken -= e->length;
	set_free(s, e);
	join(s, e, e->by_place.next);
	before = e->by_place.prev;
	if (before != &s->by_place)
		join(s, container_of(before, struct extent, by_place), &e->by_place);
	return NULL;
}

uint32_t extent_first(const struct extent *e)
{
	return e->first;
}

uint32_t extent_taken(const struct extent_space *s)
{
	return s->taken;
}
