/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether a VM is still there, as far as the kernel knows (SPEC 3, debt).
 */
#ifndef VSR_PROBE_H
#define VSR_PROBE_H

#include "util.h"

/* True if no VM has this CID any more: a connect() to it says ENODEV. Does not block; costs a VM
 * that is there one REQUEST to a port that nobody has. False also if nothing can be said. */
bool probe_cid_gone(uint32_t cid);

#endif
