/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a start makes of files in the state directory, from any bytes: a spool file, its name, the
 * seed. What must hold: nothing is read beyond the bytes; what is taken for valid is written again
 * as the same bytes, so no two files mean the same, and none means what it does not say. Since no
 * fuzzer finds a checksum, each input is tried once more with the right one in its place.
 */
#include <xxhash.h>

#include "check.h"
#include "spool_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECKSUM_AT (SPOOL_HEADER_SIZE - 8)

static void try_file(const uint8_t *data, size_t size)
{
	const struct spool_header untouched = { .generation = 12345 };
	struct spool_header h = untouched;
	uint8_t again[SPOOL_HEADER_SIZE];

	if (spool_header_read(data, size, size, &h)) {
		CHECK(memcmp(&h, &untouched, sizeof(h)) == 0);
		return;
	}
	CHECK(h.length == size - SPOOL_HEADER_SIZE);
	CHECK(h.length <= SPOOL_PAYLOAD_MAX && h.generation > 0);
	spool_header_write(again, &h);
	CHECK(memcmp(again, data, sizeof(again)) == 0);
	/* A file of another size is not it. */
	CHECK(spool_header_read(data, size, size + 1, &h));
	CHECK(spool_header_read(data, size, size - 1, &h));
}

static void try_with_checksum(const uint8_t *data, size_t size)
{
	uint8_t *fixed;
	uint64_t sum;

	if (size < SPOOL_HEADER_SIZE)
		return;
	fixed = malloc(size);
	CHECK(fixed);
	memcpy(fixed, data, size);
	sum = XXH64(fixed, CHECKSUM_AT, 0);
	for (size_t i = 0; i < 8; i++)
		fixed[CHECKSUM_AT + i] = (uint8_t)(sum >> 8 * i);
	try_file(fixed, size);
	free(fixed);
}

static void try_name(const uint8_t *data, size_t size)
{
	struct spool_header h = { 0 };
	char again[SPOOL_NAME_MAX];
	char *name = malloc(size + 1);

	CHECK(name);
	memcpy(name, data, size);
	name[size] = 0;
	if (spool_name_read(name, &h.vm, &h.generation)) {
		spool_name_write(again, &h);
		CHECK(strcmp(again, name) == 0);
	}
	free(name);
}

static void try_seed(const uint8_t *data, size_t size)
{
	uint8_t again[SPOOL_SEED_SIZE];
	uint64_t seed = 12345;

	if (!spool_seed_read(data, size, &seed)) {
		CHECK(seed == 12345);
		return;
	}
	spool_seed_write(again, seed);
	CHECK(size == sizeof(again) && memcmp(again, data, size) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	try_file(data, size);
	try_with_checksum(data, size);
	try_name(data, size);
	try_seed(data, size);
	return 0;
}
