/* SPDX-License-Identifier: Apache-2.0 */
#include "bucket.h"

struct bucket_rate bucket_rate_per(double tokens, uint64_t per, uint32_t burst)
{
	struct bucket_rate r = { .interval = 0, .burst = burst };
	double interval;

	if (!(tokens > 0) || per == 0)
		return r;
	interval = (double)per / tokens;
	if (interval < 1)
		r.interval = 1;
	else if (interval >= (double)(USEC_INFINITY / 2))
		r.interval = USEC_INFINITY / 2;
	else
		r.interval = (uint64_t)(interval + 0.5);
	return r;
}

static uint32_t burst_of(const struct bucket_rate *r)
{
	return r->burst ? r->burst : 1;
}

/* How long until the bucket is full; never more than it takes to fill an empty one, so that a
 * bucket emptied at a slower rate is not held back after a reload. */
static uint64_t missing(const struct bucket *b, const struct bucket_rate *r, uint64_t now)
{
	uint64_t all;

	if (__builtin_mul_overflow(r->interval, (uint64_t)burst_of(r), &all))
		all = USEC_INFINITY;
	return MIN(usec_sub(b->full_at, now), all);
}

uint32_t bucket_peek(const struct bucket *b, const struct bucket_rate *r, uint64_t now)
{
	uint64_t left, taken;

	if (r->interval == 0)
		return UINT32_MAX;
	left = missing(b, r, now);
	taken = left / r->interval + (left % r->interval != 0);
	return taken >= burst_of(r) ? 0 : burst_of(r) - (uint32_t)taken;
}

bool bucket_take(struct bucket *b, const struct bucket_rate *r, uint64_t now)
{
	if (r->interval == 0)
		return true;
	if (bucket_peek(b, r, now) == 0)
		return false;
	b->full_at = usec_add(usec_add(now, missing(b, r, now)), r->interval);
	return true;
}

void bucket_give_back(struct bucket *b, const struct bucket_rate *r)
{
	b->full_at = usec_sub(b->full_at, r->interval);
}

uint64_t bucket_next(const struct bucket *b, const struct bucket_rate *r, uint64_t now)
{
	uint64_t left;

	if (bucket_peek(b, r, now) > 0)
		return now;
	/* One token is there as soon as no more than burst - 1 are missing. */
	left = missing(b, r, now);
	return usec_add(now, left - r->interval * (burst_of(r) - 1));
}
