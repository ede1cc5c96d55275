/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The digest of a payload (SPEC section 5; the definition is in include/vsr_digest.h), with block
 * hashes from libxxhash. User-space mode and spooled files are hashed here from their first byte;
 * in BPF mode the kernel has folded the full blocks already and only the last one is left.
 */
#ifndef VSR_USER_DIGEST_H
#define VSR_USER_DIGEST_H

#include "util.h"
#include "vsr_digest.h"

/* A digest in progress. Plain data: may be copied, needs no destructor. */
struct digest {
	uint64_t seed;
	uint64_t fold;		       /* of all full blocks */
	uint64_t length;	       /* payload bytes so far */
	uint64_t *blocks;	       /* where the hashes of whole blocks are kept, or NULL */
	uint8_t block[VSR_BLOCK_SIZE]; /* its first length % VSR_BLOCK_SIZE bytes are pending */
};

/* Starts a digest; seed is the node's (kept beside the spool). */
void digest_init(struct digest *d, uint64_t seed);
/* Keeps the hash of every whole block from the beginning on, for match_new(): `blocks` is the
 * caller's, and has room for as many as the payload will have. To be called before any byte. */
void digest_keep_blocks(struct digest *d, uint64_t *blocks);
/* Adds n bytes; any split of the same bytes gives the same digest. */
void digest_update(struct digest *d, const void *p, size_t n);
/* The digest of the bytes so far; d is not changed and can take more. */
uint64_t digest_final(const struct digest *d);

/* The digest of n bytes at once. */
uint64_t digest_bytes(uint64_t seed, const void *p, size_t n);
/* The same, and the hashes of its n / VSR_BLOCK_SIZE whole blocks. */
uint64_t digest_blocks(uint64_t seed, const void *p, size_t n, uint64_t *ret_blocks);

/*
 * Finishes what BPF began: fold and length are vsr_conn.fold and vsr_conn.payload, block is the
 * connection's vsr_buf.block (ingest_bpf_partial()). Only its first length % VSR_BLOCK_SIZE bytes
 * count: what is behind them is left from earlier blocks.
 */
uint64_t digest_finish_partial(uint64_t seed, uint64_t fold, uint64_t length,
			       const uint8_t block[VSR_BLOCK_SIZE]);

#endif
