/* SPDX-License-Identifier: Apache-2.0 */
#include "arena.h"

#include <stdarg.h>
#include <stdio.h>

#include "utf8.h"

#define CHUNK_SIZE  (64 * KIB)
#define REPLACEMENT "\xef\xbf\xbd" /* U+FFFD */

struct chunk {
	struct chunk *next;
	size_t used, size;
	max_align_t data[];
};

struct arena {
	struct chunk *chunks; /* the first one is being filled */
};

int arena_new(struct arena **ret)
{
	struct arena *a = calloc(1, sizeof(*a));

	if (!a)
		return -ENOMEM;
	*ret = a;
	return 0;
}

struct arena *arena_free(struct arena *a)
{
	if (!a)
		return NULL;
	for (struct chunk *c = a->chunks, *next; c; c = next) {
		next = c->next;
		free(c);
	}
	free(a);
	return NULL;
}

void *arena_alloc(struct arena *a, size_t n)
{
	struct chunk *c = a->chunks;
	uint8_t *p;

	if (n > SIZE_MAX / 2)
		return NULL;
	n = (n + sizeof(max_align_t) - 1) / sizeof(max_align_t) * sizeof(max_align_t);
	if (!c || c->size - c->used < n) {
		size_t size = MAX(n, (size_t)CHUNK_SIZE);

		c = calloc(1, sizeof(*c) + size);
		if (!c)
			return NULL;
		c->size = size;
		c->next = a->chunks;
		a->chunks = c;
	}
	p = (uint8_t *)c->data + c->used;
	c->used += n;
	return p;
}

char *arena_text(struct arena *a, const char *s, size_t n)
{
	const uint8_t *in = (const uint8_t *)s;
	size_t bad = 0, len;
	char *text, *out;

	for (size_t i = 0; i < n; i += len) {
		len = in[i] ? utf8_sequence(in + i, n - i) : 0;
		if (len == 0) {
			bad++;
			len = 1;
		}
	}
	text = out = arena_alloc(a, n + bad * (strlen(REPLACEMENT) - 1) + 1);
	if (!text)
		return NULL;
	for (size_t i = 0; i < n; i += len) {
		len = in[i] ? utf8_sequence(in + i, n - i) : 0;
		if (len > 0) {
			out = mempcpy(out, in + i, len);
		} else {
			out = mempcpy(out, REPLACEMENT, strlen(REPLACEMENT));
			len = 1;
		}
	}
	*out = '\0';
	return text;
}

char *arena_printf(struct arena *a, const char *fmt, ...)
{
	_cleanup_free_ char *s = NULL;
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vasprintf(&s, fmt, ap);
	va_end(ap);
	if (n < 0) {
		s = NULL;
		return NULL;
	}
	return arena_text(a, s, n);
}
