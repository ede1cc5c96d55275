/* SPDX-License-Identifier: Apache-2.0 */
#include "retry.h"

#include <sys/random.h>

#include "clock.h"

uint64_t retry_share(uint64_t max, uint64_t random)
{
	return (uint64_t)(((unsigned __int128)max * random) >> 64);
}

uint64_t retry_delay(unsigned int n, uint64_t random)
{
	uint64_t whole = RETRY_LONGEST;

	if (n < 20 && RETRY_FIRST << n < RETRY_LONGEST)
		whole = RETRY_FIRST << n;
	return whole - retry_share(whole / 2, random);
}

uint64_t retry_jitter(uint64_t interval, uint64_t random)
{
	uint64_t twentieth = interval / 20;

	return usec_add(interval - twentieth, retry_share(2 * twentieth, random));
}

uint64_t retry_random(void)
{
	uint64_t random;

	/* Spreading needs no secrecy: before the pool is ready the clock does as well. */
	if (getrandom(&random, sizeof(random), GRND_NONBLOCK) != sizeof(random))
		random = clock_now() * 0x9e3779b97f4a7c15ULL;
	return random;
}
