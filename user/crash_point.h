/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the crash matrix (tests/host/crash.py) kills the daemon: labelled points of a report's way.
 * They exist only in builds with -DVSR_CRASH_POINTS (`make crash-build`, in build/crash); in every
 * other build a point is nothing at all. There VSR_CRASH_POINT=NAME:N is the environment's word for
 * "SIGKILL at the Nth time that NAME is passed".
 *
 *   received    the report is here in whole, unjudged
 *   validated   it is good; the relay is about to get it
 *   spooled     it is durable; custody is about to begin, nobody was told
 *   answered    the agent's answer 0 is with the kernel
 *   sending     handed to the upstream
 *   sent        the upstream has it; custody goes on
 *   acked       custody has ended; its file is not removed yet
 */
#ifndef VSR_CRASH_POINT_H
#define VSR_CRASH_POINT_H

#ifdef VSR_CRASH_POINTS
#include <signal.h>

#include "util.h"

/* Each name stands in one file only, so its count is this file's. */
static inline void crash_point(const char *name)
{
	static unsigned long left;
	const char *want = getenv("VSR_CRASH_POINT");
	size_t n = strlen(name);

	if (!want || strncmp(want, name, n) != 0 || want[n] != ':')
		return;
	if (left == 0)
		left = strtoul(want + n + 1, NULL, 10);
	/* To this thread: the sandbox allows no other way, and it ends all of them. */
	if (--left == 0)
		raise(SIGKILL);
}
#define CRASH_POINT(name) crash_point(name)
#else
#define CRASH_POINT(name) ((void)0)
#endif

#endif
