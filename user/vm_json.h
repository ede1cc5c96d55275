/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A VM as JSON: the same keys whether the daemon says it or vsock-relayctl reads the pinned maps.
 *
 *   {"ns", "cid", "daemon": {...} or null, "kernel": {...} or null, "now": {...} or null}
 *
 * "daemon" is vsr_vm_state, "kernel" vsr_vms, with the names of include/vsr_abi.h but for times,
 * which are ages in seconds; "now" is what only a running daemon knows.
 */
#ifndef VSR_VM_JSON_H
#define VSR_VM_JSON_H

#include <jansson.h>

#include "util.h"
#include "vsr_abi.h"

/* now: usec of CLOCK_BOOTTIME. state and seen may be NULL; takes over `live`, which may be NULL.
 * Returns a new reference; NULL: no memory. */
json_t *vm_json(const struct vsr_vm_id *id, const struct vsr_vm_state *state,
		const struct vsr_vm_seen *seen, json_t *live, uint64_t now);

/* Seconds since `then` (usec); null if that is 0. */
json_t *json_age(uint64_t then, uint64_t now);

#endif
