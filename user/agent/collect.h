/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bytes to send: of this machine, invented, or from a file.
 */
#ifndef VSR_AGENT_COLLECT_H
#define VSR_AGENT_COLLECT_H

#include "options.h"

/* The longest file that --file takes: more than any relay does. */
#define COLLECT_FILE_MAX (64 * MIB)

/*
 * Builds the report that the options ask for and says on the log what it is. The caller frees
 * *ret. Logs every error; returns 0, -ENOENT (no package database, no CID, no such file), -ENOMEM,
 * or another negative errno of what could not be read.
 */
int collect_report(const struct options *o, int stop_fd, uint8_t **ret, size_t *ret_len);

#endif
