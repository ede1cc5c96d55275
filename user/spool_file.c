/* SPDX-License-Identifier: Apache-2.0 */
#include "spool_file.h"

#include <endian.h>
#include <inttypes.h>
#include <xxhash.h>

static const char magic[8] = "VSRSPOOL";
static const char seed_magic[8] = "VSRSEED1";

/* As it lies in the file; all but the first member little-endian. */
struct disk_header {
	char magic[8];
	uint32_t version;
	uint32_t size; /* of this header: the payload begins behind it */
	uint32_t ns, cid;
	uint64_t generation;
	uint64_t length;
	uint64_t xxh64;
	uint64_t digest;
	uint64_t seed_check;
	uint64_t vm_id_hash;
	uint64_t accepted;
	uint64_t reserved[501]; /* 0 */
	uint64_t checksum;	/* XXH64, seed 0, of all that is before it */
};
_Static_assert(sizeof(struct disk_header) == SPOOL_HEADER_SIZE, "no padding");

struct disk_seed {
	char magic[8];
	uint64_t seed;
	uint64_t checksum;
};
_Static_assert(sizeof(struct disk_seed) == SPOOL_SEED_SIZE, "no padding");

void spool_header_write(uint8_t out[SPOOL_HEADER_SIZE], const struct spool_header *h)
{
	struct disk_header d = {
		.version = htole32(SPOOL_VERSION),
		.size = htole32(SPOOL_HEADER_SIZE),
		.ns = htole32(h->vm.ns),
		.cid = htole32(h->vm.cid),
		.generation = htole64(h->generation),
		.length = htole64(h->length),
		.xxh64 = htole64(h->xxh64),
		.digest = htole64(h->digest),
		.seed_check = htole64(h->seed_check),
		.vm_id_hash = htole64(h->vm_id_hash),
		.accepted = htole64(h->accepted),
	};

	memcpy(d.magic, magic, sizeof(magic));
	d.checksum = htole64(XXH64(&d, offsetof(struct disk_header, checksum), 0));
	memcpy(out, &d, sizeof(d));
}

static const char *check_header(const struct disk_header *d)
{
	static const uint64_t none[ARRAY_SIZE(d->reserved)];

	if (memcmp(d->magic, magic, sizeof(magic)) != 0)
		return "it is no spool file";
	if (le64toh(d->checksum) != XXH64(d, offsetof(struct disk_header, checksum), 0))
		return "the checksum of its header is wrong";
	if (le32toh(d->version) != SPOOL_VERSION || le32toh(d->size) != SPOOL_HEADER_SIZE ||
	    memcmp(d->reserved, none, sizeof(none)) != 0)
		return "it was written by another version";
	return NULL;
}

const char *spool_header_read(const uint8_t *p, size_t n, uint64_t size, struct spool_header *ret)
{
	struct disk_header d;
	const char *wrong;

	if (n < sizeof(d))
		return "it is cut within its header";
	memcpy(&d, p, sizeof(d));
	wrong = check_header(&d);
	if (wrong)
		return wrong;
	if (le64toh(d.generation) == 0 || le64toh(d.length) > SPOOL_PAYLOAD_MAX)
		return "its header holds impossible figures";
	if (size != SPOOL_HEADER_SIZE + le64toh(d.length))
		return size < SPOOL_HEADER_SIZE + le64toh(d.length) ? "it is cut"
								    : "there is more behind it";
	*ret = (struct spool_header){
		.vm = { .ns = le32toh(d.ns), .cid = le32toh(d.cid) },
		.generation = le64toh(d.generation),
		.length = le64toh(d.length),
		.xxh64 = le64toh(d.xxh64),
		.digest = le64toh(d.digest),
		.seed_check = le64toh(d.seed_check),
		.vm_id_hash = le64toh(d.vm_id_hash),
		.accepted = le64toh(d.accepted),
	};
	return NULL;
}

void spool_name_write(char out[SPOOL_NAME_MAX], const struct spool_header *h)
{
	snprintf(out, SPOOL_NAME_MAX, "%u-%u-%" PRIu64 ".vsr", h->vm.ns, h->vm.cid, h->generation);
}

bool spool_name_read(const char *name, struct vsr_vm_id *ret_vm, uint64_t *ret_generation)
{
	struct spool_header h = { 0 };
	char again[SPOOL_NAME_MAX];

	/* What sscanf() is lax about (signs, zeros, overflow, a tail) comes out different again. */
	if (strlen(name) >= SPOOL_NAME_MAX ||
	    sscanf(name, "%u-%u-%" SCNu64, &h.vm.ns, &h.vm.cid, &h.generation) != 3 ||
	    h.generation == 0)
		return false;
	spool_name_write(again, &h);
	if (!streq(name, again))
		return false;
	*ret_vm = h.vm;
	*ret_generation = h.generation;
	return true;
}

uint64_t spool_seed_check(uint64_t seed)
{
	uint64_t le = htole64(seed);

	return XXH64(&le, sizeof(le), 0);
}

void spool_seed_write(uint8_t out[SPOOL_SEED_SIZE], uint64_t seed)
{
	struct disk_seed d = { .seed = htole64(seed), .checksum = htole64(spool_seed_check(seed)) };

	memcpy(d.magic, seed_magic, sizeof(seed_magic));
	memcpy(out, &d, sizeof(d));
}

bool spool_seed_read(const uint8_t *p, size_t n, uint64_t *ret_seed)
{
	struct disk_seed d;

	if (n != sizeof(d))
		return false;
	memcpy(&d, p, sizeof(d));
	if (memcmp(d.magic, seed_magic, sizeof(seed_magic)) != 0 ||
	    le64toh(d.checksum) != spool_seed_check(le64toh(d.seed)))
		return false;
	*ret_seed = le64toh(d.seed);
	return true;
}
