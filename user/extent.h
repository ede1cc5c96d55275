/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hands out ranges of the numbers 0 to n - 1 and takes them back: the indices of vsr_blocks, which
 * is one preallocated array, since the daemon may not create maps when it needs them. Knows nothing
 * of what lies there.
 *
 * Free ranges are kept by the power of two of their length, and neighbours are joined at once, so
 * taking and giving back cost the same however many ranges there are. A range that fits may be
 * missed among many of its own power of two: then there is none, as on a full array.
 */
#ifndef VSR_EXTENT_H
#define VSR_EXTENT_H

#include "util.h"

struct extent_space;

/* One range; the space owns it. */
struct extent;

/* A space of n numbers, all free. Returns 0, -ENOMEM. */
int extent_space_new(uint32_t n, struct extent_space **ret);
/* Frees the space and its ranges. Returns NULL. */
struct extent_space *extent_space_free(struct extent_space *s);
DEFINE_CLEANUP(struct extent_space, extent_space_free);

/* Takes a range of `length` numbers, at least 1. Returns 0, -ENOSPC, -ENOMEM. */
int extent_take(struct extent_space *s, uint32_t length, struct extent **ret);
/* Gives it back. NULL is accepted; returns NULL. */
struct extent *extent_give_back(struct extent_space *s, struct extent *e);

uint32_t extent_first(const struct extent *e);

/* Numbers that are taken. */
uint32_t extent_taken(const struct extent_space *s);

#endif
