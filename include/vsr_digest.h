/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * The digest of a payload (SPEC section 5). XXH64 of each 4096-byte block, the last one padded
 * with zeros, each seeded with the node's seed; block hashes folded in order with XXH64's own
 * 8-byte step, starting from the seed; the length XORed in; XXH64's avalanche. Only fixed-length
 * code, so that the BPF verifier accepts it.
 *
 * The fold lives here and nowhere else. BPF hashes blocks with vsr_xxh64_block(); user space
 * with libxxhash (user/digest.c), and a test holds the two against each other.
 * XXH64: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md
 */
#ifndef VSR_DIGEST_H
#define VSR_DIGEST_H

#include "vsr_abi.h"

#define VSR_XXH_P1 0x9E3779B185EBCA87ULL
#define VSR_XXH_P2 0xC2B2AE3D27D4EB4FULL
#define VSR_XXH_P3 0x165667B19E3779F9ULL
#define VSR_XXH_P4 0x85EBCA77C2B2AE63ULL
#define VSR_XXH_P5 0x27D4EB2F165667C5ULL

static inline __attribute__((always_inline)) __u64 vsr_rotl64(__u64 x, int r)
{
	return (x << r) | (x >> (64 - r));
}

static inline __attribute__((always_inline)) __u64 vsr_xxh_round(__u64 acc, __u64 lane)
{
	return vsr_rotl64(acc + lane * VSR_XXH_P2, 31) * VSR_XXH_P1;
}

static inline __attribute__((always_inline)) __u64 vsr_xxh_avalanche(__u64 h)
{
	h ^= h >> 33;
	h *= VSR_XXH_P2;
	h ^= h >> 29;
	h *= VSR_XXH_P3;
	return h ^ (h >> 32);
}

/* One more block hash: XXH64's step for 8 bytes of input. */
static inline __attribute__((always_inline)) __u64 vsr_digest_fold(__u64 fold, __u64 block_hash)
{
	fold ^= vsr_xxh_round(0, block_hash);
	return vsr_rotl64(fold, 27) * VSR_XXH_P1 + VSR_XXH_P4;
}

/* The digest, from the fold of all block hashes and the payload's length in bytes. */
static inline __attribute__((always_inline)) __u64 vsr_digest_finish(__u64 fold, __u64 length)
{
	return vsr_xxh_avalanche(fold ^ length);
}

#endif
