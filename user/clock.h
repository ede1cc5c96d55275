/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The clock of the edges. CLOCK_BOOTTIME goes on while the machine sleeps and is not moved by
 * anyone, so a deadline means what it says. The core never calls this: it is given the time.
 */
#ifndef VSR_CLOCK_H
#define VSR_CLOCK_H

#include <time.h>

#include "util.h"

/* Microseconds of CLOCK_BOOTTIME. */
static inline uint64_t clock_usec(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_BOOTTIME, &ts);
	return (uint64_t)ts.tv_sec * USEC_PER_SEC + (uint64_t)ts.tv_nsec / NSEC_PER_USEC;
}

/* Microseconds of CPU time that this thread has taken. */
static inline uint64_t clock_cpu_usec(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * USEC_PER_SEC + (uint64_t)ts.tv_nsec / NSEC_PER_USEC;
}

#endif
