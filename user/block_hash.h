/* SPDX-License-Identifier: Apache-2.0 */
/*
 * XXH64 of the whole blocks that a digest is made of (user/digest.h). libxxhash takes one block
 * after the other, at a multiplication of 64 bits a cycle; where the CPU has AVX2, four blocks are
 * hashed side by side here, which takes a little more than half the time. tests/test_digest.c holds
 * the two against each other.
 */
#ifndef VSR_BLOCK_HASH_H
#define VSR_BLOCK_HASH_H

#include "util.h"

/* Hashes the n blocks of VSR_BLOCK_SIZE bytes at p, one behind the other, with this seed. */
void block_hashes(const uint8_t *p, size_t n, uint64_t seed, uint64_t *ret);

#endif
