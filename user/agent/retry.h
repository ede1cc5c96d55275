/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When to try again. Many VMs start together after their host did, so every wait is spread.
 */
#ifndef VSR_AGENT_RETRY_H
#define VSR_AGENT_RETRY_H

#include "util.h"

#define RETRY_FIRST   (1 * USEC_PER_SEC)
#define RETRY_LONGEST (5 * USEC_PER_MIN)

/* The wait before retry number n (0 is the first): RETRY_FIRST doubled n times, at most
 * RETRY_LONGEST, and of that a random share between a half and the whole. */
uint64_t retry_delay(unsigned int n, uint64_t random);

/* The wait before the next report: the interval, 5 % more or less. */
uint64_t retry_jitter(uint64_t interval, uint64_t random);

/* A share of max, 0 to max. */
uint64_t retry_share(uint64_t max, uint64_t random);

/* 64 random bits. */
uint64_t retry_random(void);

#endif
