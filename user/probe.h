/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether a VM with debt is still there, and still reads (SPEC 3, debt): a connect() to its CID
 * says so without any help from the VM's own connections (docs/kernel-facts.md).
 */
#ifndef VSR_PROBE_H
#define VSR_PROBE_H

#include <systemd/sd-event.h>

#include "util.h"
#include "vsr_abi.h"

/* Probes under way at a time: each costs a descriptor for at most 2 s. */
#define PROBES_MAX 16

enum probe_result {
	PROBE_GONE,  /* ENODEV: no VM has this CID, and what was queued for it is freed */
	PROBE_READ,  /* answered: the queue is in order, so all that was queued before is read */
	PROBE_SILENT /* neither: there is a VM that does not read */
};

/* debt is what probe_start() was given. */
typedef void (*probe_cb)(struct vsr_vm_id vm, uint64_t debt, enum probe_result result,
			 void *userdata);

struct probes;

/* Returns 0, -ENOMEM. */
int probes_new(sd_event *event, probe_cb cb, void *userdata, struct probes **ret);
/* Probes under way are given up; cb is not called. */
struct probes *probes_free(struct probes *p);

/* Asks; cb is called from here or later from the event loop, exactly once. Returns 0; -EBUSY: too
 * many are under way; or what socket(), sd-event say: nothing will be called then. */
int probe_start(struct probes *p, struct vsr_vm_id vm, uint64_t debt);

#endif
