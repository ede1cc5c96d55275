/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A histogram by powers of two: bucket 0 counts the values 0 and 1, bucket n those from 2^n to
 * 2^(n+1) - 1. All zero is an empty one.
 */
#ifndef VSR_LOG2HIST_H
#define VSR_LOG2HIST_H

#include "util.h"

#define LOG2HIST_BUCKETS 64

struct log2hist {
	uint64_t count, sum, max;
	uint64_t bucket[LOG2HIST_BUCKETS];
};

static inline void log2hist_add(struct log2hist *h, uint64_t value)
{
	h->count++;
	h->sum += value;
	h->max = MAX(h->max, value);
	h->bucket[value < 2 ? 0 : 63 - __builtin_clzll(value)]++;
}

/* The first and last value that bucket i counts. */
static inline uint64_t log2hist_from(unsigned i)
{
	return i == 0 ? 0 : 1ULL << i;
}
static inline uint64_t log2hist_to(unsigned i)
{
	return i == LOG2HIST_BUCKETS - 1 ? UINT64_MAX : (2ULL << i) - 1;
}

/* The buckets from the first to the last one that count anything; false: none does. */
static inline bool log2hist_range(const struct log2hist *h, unsigned *ret_first, unsigned *ret_last)
{
	unsigned first = 0, last = LOG2HIST_BUCKETS - 1;

	if (h->count == 0)
		return false;
	while (h->bucket[first] == 0)
		first++;
	while (h->bucket[last] == 0)
		last--;
	*ret_first = first;
	*ret_last = last;
	return true;
}

#endif
