/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that lives as long as one inventory: thousands of small strings and message nodes that
 * are never freed one by one.
 */
#ifndef VSR_AGENT_ARENA_H
#define VSR_AGENT_ARENA_H

#include "util.h"

struct arena;

/* Returns 0, -ENOMEM. */
int arena_new(struct arena **ret);
struct arena *arena_free(struct arena *a);
DEFINE_CLEANUP(struct arena, arena_free);

/* Zeroed memory of n bytes, aligned for any type; NULL: out of memory. */
void *arena_alloc(struct arena *a, size_t n);

/*
 * A C string of the n bytes at s that is always valid UTF-8, as protobuf strings must be: each
 * byte that is no part of a well-formed sequence, and each NUL, becomes U+FFFD. NULL: out of
 * memory.
 */
char *arena_text(struct arena *a, const char *s, size_t n);

/* The formatted text, passed through arena_text(). NULL: out of memory. */
char *arena_printf(struct arena *a, const char *fmt, ...) _printf_(2, 3);

#endif
