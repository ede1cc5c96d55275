/* SPDX-License-Identifier: Apache-2.0 */
/* Takes secrets out of a text that leaves the node. */
#ifndef VSR_CTL_REDACT_H
#define VSR_CTL_REDACT_H

#include "util.h"

/*
 * Returns a copy in which each of these is "[removed]": PEM blocks; what stands behind password,
 * passwd, secret, token, api-key, authorization, bearer (with ':' or '=', or a blank behind the last
 * two); user and password of an URL. NULL: no memory.
 */
char *redact(const char *text);

#endif
