/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VSR_CTL_DOCTOR_H
#define VSR_CTL_DOCTOR_H

#include "ctl.h"

/* Looks at everything that the relay needs on this node: an array of {"name", "result", "says",
 * "advice"}; result is "ok", "note", "problem" or "skipped", advice null where there is none.
 * *ret_problems counts the problems. */
json_t *doctor_examine(struct ctl *ctl, unsigned int *ret_problems);

/* What is known about sockmap on AF_VSOCK in a kernel of this release ("6.12.117+deb12-amd64").
 * Returns true if it works; *ret_says is in words. Of unknown releases: true. */
bool doctor_kernel_release(const char *release, const char **ret_says);

#endif
