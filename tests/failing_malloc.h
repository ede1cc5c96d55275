/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that runs out: in the test program that includes this, the nth allocation of ours from now
 * fails, where n is fail_at; 0: none. (Libraries that are linked dynamically call these too.)
 */
#ifndef TESTS_FAILING_MALLOC_H
#define TESTS_FAILING_MALLOC_H

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static volatile unsigned int fail_at;

static bool fails(void)
{
	return fail_at > 0 && --fail_at == 0;
}

/* The compiler must not see that this is calloc, or it makes it call itself. */
static void *(*volatile allocate)(size_t size) = malloc;

void *calloc(size_t n, size_t size)
{
	void *p = fails() ? NULL : allocate(n * size);

	return p ? memset(p, 0, n * size) : NULL;
}

void *reallocarray(void *p, size_t n, size_t size)
{
	return fails() ? NULL : realloc(p, n * size);
}

/* valgrind puts its own calloc in the place of ours. */
static inline bool failures_reach_us(void)
{
	void *volatile p;

	fail_at = 1;
	p = calloc(1, 1);
	fail_at = 0;
	free(p);
	return !p;
}

#endif
