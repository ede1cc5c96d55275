/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The form of a spool file (SPEC 7, restart): a header of fixed size, then the payload, and nothing
 * behind it. Numbers are little-endian. Pure: bytes in, figures out; user/spool.c does the I/O.
 *
 * A file is named after what it holds, `<namespace>-<cid>-<generation>.vsr`, and says the same in
 * its header, so that one that was renamed or copied is not taken for another VM's.
 */
#ifndef VSR_SPOOL_FILE_H
#define VSR_SPOOL_FILE_H

#include <linux/types.h>

#include "util.h"
#include "vsr_abi.h"

/* A page, so that the payload behind it can go past the page cache (user/disk.c). */
#define SPOOL_HEADER_SIZE 4096
#define SPOOL_VERSION	  1
/* "4294967295-4294967295-18446744073709551615.vsr" */
#define SPOOL_NAME_MAX 47
/* Longer payloads than the settings ever allow are no file of ours. */
#define SPOOL_PAYLOAD_MAX (64 * MIB)

struct spool_header {
	struct vsr_vm_id vm;
	uint64_t generation; /* never 0 */
	uint64_t length;     /* of the payload */
	uint64_t xxh64;	     /* of the payload, seed 0: its checksum, and what offers name */
	uint64_t digest;     /* of the payload (SPEC 5) ... */
	uint64_t seed_check; /* ... with the seed of which this is spool_seed_check() */
	uint64_t vm_id_hash; /* tracker_vm_id_hash() of the report's claim */
	uint64_t accepted;   /* when custody began; usec of CLOCK_REALTIME */
};

void spool_header_write(uint8_t out[SPOOL_HEADER_SIZE], const struct spool_header *h);

/* Reads the header at the start of a file of `size` bytes, of which the first n are at p. Returns
 * NULL and *ret, or what is wrong with it, in words. */
const char *spool_header_read(const uint8_t *p, size_t n, uint64_t size, struct spool_header *ret);

/* The file's name. */
void spool_name_write(char out[SPOOL_NAME_MAX], const struct spool_header *h);
/* Whether name is one, exactly as spool_name_write() writes it; *ret_vm and *ret_generation then. */
bool spool_name_read(const char *name, struct vsr_vm_id *ret_vm, uint64_t *ret_generation);

/* Names the node's digest seed without telling it. */
uint64_t spool_seed_check(uint64_t seed);

/* The file of the seed: SPOOL_SEED_SIZE bytes. Reading returns false for anything else. */
#define SPOOL_SEED_SIZE 24
void spool_seed_write(uint8_t out[SPOOL_SEED_SIZE], uint64_t seed);
bool spool_seed_read(const uint8_t *p, size_t n, uint64_t *ret_seed);

#endif
