/* SPDX-License-Identifier: Apache-2.0 */
/* What the tests of the relay share: with a store (test_custody.c) and without (test_relay.c). */
#ifndef TESTS_RELAY_TEST_H
#define TESTS_RELAY_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <time.h>

#include <cmocka.h>

#include "digest.h"
#include "failing_malloc.h"
#include "metrics.h"
#include "relay.h"

#define SEC  USEC_PER_SEC
#define HOUR USEC_PER_HOUR
#define T0   (1000 * HOUR)
#define SEED 0x5eed

static const struct bucket_rate unlimited;

/* In the place of a random number. */
static inline double half(void *userdata)
{
	assert_null(userdata);
	return 0.5;
}

/* ttl: how long a content stays in memory. */
static inline struct relay_settings settings_with(uint64_t ttl)
{
	return (struct relay_settings){
		.suppress_unchanged = true,
		.refresh_interval = 24 * HOUR,
		.stale_ack = 4 * HOUR,
		.custody_max_age = 24 * HOUR,
		.cache = { .slots = 100, .bytes = 512 * MIB, .ttl = ttl },
		.retry = tracker_defaults,
	};
}

/* A content of `size` bytes; what it holds is `what`. None of its allocations is one that fails. */
static inline struct buf *content_sized(char what, size_t size)
{
	unsigned int n = fail_at;
	struct buf *b;

	fail_at = 0;
	assert_int_equal(buf_new(size, &b), 0);
	memset(buf_tail(b), what, size);
	buf_advance(b, size);
	buf_seal(b);
	fail_at = n;
	return b;
}

static inline uint64_t digest_of(const struct buf *b)
{
	return digest_bytes(SEED, buf_data(b), buf_len(b));
}

/* How many contents have left custody in this way. */
static inline double ended(enum metric_ended how)
{
	return metric_get(METRIC_CONTENTS_ENDED, how);
}

#endif
