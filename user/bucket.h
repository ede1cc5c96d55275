/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Token bucket, pure: it holds at most `burst` tokens and gains one every `interval`.
 *
 * The whole state is the time at which the bucket will be full again (the virtual scheduling
 * form of the generic cell rate algorithm, ITU-T I.371 annex A): nothing ticks, nothing is
 * rounded, a bucket that is all zero is full, and a clock that stands still does no harm. The
 * rate is kept apart, since thousands of buckets share one.
 */
#ifndef VSR_BUCKET_H
#define VSR_BUCKET_H

#include "util.h"

struct bucket_rate {
	uint64_t interval; /* microseconds for one token; 0: unlimited */
	uint32_t burst;	   /* tokens of a full bucket; 0 counts as 1 */
};

struct bucket {
	uint64_t full_at; /* when all tokens are back; in the past: it is full */
};

/* The rate of `tokens` per `per` microseconds. tokens <= 0 (also NaN) or per 0: unlimited. A rate
 * of more than one token a microsecond counts as one a microsecond. */
struct bucket_rate bucket_rate_per(double tokens, uint64_t per, uint32_t burst);

/* Tokens to be had now; UINT32_MAX with an unlimited rate. */
uint32_t bucket_peek(const struct bucket *b, const struct bucket_rate *r, uint64_t now);

/* Takes a token. Returns false, and changes nothing, if there is none. */
bool bucket_take(struct bucket *b, const struct bucket_rate *r, uint64_t now);

/* Gives a token back that was taken and turned out to be unused; never above the burst. */
void bucket_give_back(struct bucket *b, const struct bucket_rate *r);

/* When bucket_take() will succeed: now or later. */
uint64_t bucket_next(const struct bucket *b, const struct bucket_rate *r, uint64_t now);

#endif
