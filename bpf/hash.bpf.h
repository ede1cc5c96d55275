/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * XXH64 of one block, as a loop that the verifier accepts. Compiles natively too
 * (tests/test_verdict.c holds it against libxxhash).
 */
#ifndef VSR_HASH_BPF_H
#define VSR_HASH_BPF_H

#include "vsr_digest.h"

static inline __attribute__((always_inline)) __u64 vsr_xxh_merge(__u64 h, __u64 acc)
{
	h ^= vsr_xxh_round(0, acc);
	return h * VSR_XXH_P1 + VSR_XXH_P4;
}

/*
 * XXH64 of the VSR_BLOCK_SIZE bytes at block, which is aligned to 8. Little-endian lanes, as on
 * every machine that has vhost-vsock. The length is a whole number of 32-byte stripes, so XXH64's
 * steps for a remainder never apply.
 */
static inline __attribute__((always_inline)) __u64 vsr_xxh64_block(const __u64 *block, __u64 seed)
{
	__u64 a = seed + VSR_XXH_P1 + VSR_XXH_P2;
	__u64 b = seed + VSR_XXH_P2;
	__u64 c = seed;
	__u64 d = seed - VSR_XXH_P1;
	__u64 h;
	__u32 i;

#ifdef __bpf__
#pragma clang loop unroll(disable)
#endif
	for (i = 0; i < VSR_BLOCK_SIZE / 8; i += 4) {
		a = vsr_xxh_round(a, block[i]);
		b = vsr_xxh_round(b, block[i + 1]);
		c = vsr_xxh_round(c, block[i + 2]);
		d = vsr_xxh_round(d, block[i + 3]);
	}

	h = vsr_rotl64(a, 1) + vsr_rotl64(b, 7) + vsr_rotl64(c, 12) + vsr_rotl64(d, 18);
	h = vsr_xxh_merge(h, a);
	h = vsr_xxh_merge(h, b);
	h = vsr_xxh_merge(h, c);
	h = vsr_xxh_merge(h, d);
	return vsr_xxh_avalanche(h + VSR_BLOCK_SIZE);
}

#endif
