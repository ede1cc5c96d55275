/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the verdict may cost: whoever makes it do more raises a figure here, and says why in the commit.
 * Held to it by tests/vm/bpf_load.c (suite bpf-load) and tests/bench/verdict.c (suite verdict, make bench).
 */
#ifndef VSR_VERDICT_BUDGET_H
#define VSR_VERDICT_BUDGET_H

/* Instructions that the verifier walks through. It gives up at a million, and newer ones count more than
 * older ones. */
#define VERDICT_INSTRUCTIONS_MAX 100000

/* Time for a packet of 64 KiB, in times of what libxxhash takes for its blocks on the same processor. A
 * figure in nanoseconds would be one machine's. */
#define VERDICT_TIME_MAX 3.0

#endif
