/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VSR_AGENT_CLOCK_H
#define VSR_AGENT_CLOCK_H

#include <time.h>

#include "util.h"

/* CLOCK_BOOTTIME in microseconds: it goes on while the VM sleeps. */
static inline uint64_t clock_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_BOOTTIME, &ts);
	return (uint64_t)ts.tv_sec * USEC_PER_SEC + ts.tv_nsec / NSEC_PER_USEC;
}

/* A timeout for poll(): milliseconds until deadline, rounded up, at most a minute, so that a wait
 * of hours notices that the VM slept (poll() counts CLOCK_MONOTONIC). */
static inline int clock_poll_timeout(uint64_t deadline)
{
	uint64_t left = usec_sub(deadline, clock_now());

	return (MIN(left, USEC_PER_MIN) + USEC_PER_MSEC - 1) / USEC_PER_MSEC;
}

#endif
