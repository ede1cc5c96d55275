/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From an inventory to the bytes of a VMReport, and from such bytes to text for a person.
 */
#ifndef VSR_AGENT_VMREPORT_H
#define VSR_AGENT_VMREPORT_H

#include "inventory.h"

/* The relay's default limit of a report's payload, in bytes (SPEC 3). */
#define VMREPORT_LIMIT (16384 * KIB)

/*
 * A complete report: maps of packages, distributions, repositories and environments keyed by id,
 * and the same in the lists that older receivers read, as the reference's agent sends both.
 * cid is the canonical decimal of the own CID, vm_id may be "". The caller frees *ret.
 * Returns 0, -ENOMEM.
 */
int vmreport_pack(const struct inventory *inv, const char *cid, const char *vm_id, uint8_t **ret,
		  size_t *ret_len);

/* Writes what a report says: identity, system, then one line a package. Returns 0, -EBADMSG (no
 * VMReport), -EIO (f has an error). */
int vmreport_print(const uint8_t *data, size_t len, FILE *f);

#endif
