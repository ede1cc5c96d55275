/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pinned maps, read without a daemon (SPEC 11): what stays when it is gone. Needs CAP_BPF and the
 * right to the pin directory.
 */
#ifndef VSR_CTL_MAPS_H
#define VSR_CTL_MAPS_H

#include "ctl.h"

/* The layout of what is pinned in dir: *ret is the version that vsr_abi says, or 0 if there is none
 * though vsr_vms is pinned. Returns 0; -ENOENT: nothing is pinned there; -EPERM, -EACCES: not ours
 * to read; another negative errno of bpf(). */
int maps_layout(const char *dir, uint32_t *ret);

/* Appends the VMs of vsr_vms and vsr_vm_state to the list, all or one, as vm_json() has them. Returns 0;
 * -EPROTO: another layout than ours; and as above. */
int maps_vms(const char *dir, const struct vsr_vm_id *only, json_t *list);

/* Each map that we know and that is pinned: name, type, id, sizes. Returns as maps_layout(). */
int maps_describe(const char *dir, json_t *list);

/* Why one of them failed, for people. Returns buf. */
const char *maps_why(const char *dir, int r, char *buf, size_t size);

#endif
