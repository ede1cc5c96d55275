/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs a program and takes what it writes, without a shell, within bounds of time and size.
 */
#ifndef VSR_AGENT_COMMAND_H
#define VSR_AGENT_COMMAND_H

#include "util.h"

/*
 * Runs argv[0], looked up in PATH, with LC_ALL=C and an empty standard input; its standard error
 * goes nowhere unless the log is verbose. The caller frees *ret, behind whose last byte follows a
 * NUL. The program and what it started are dead when this returns, whatever it returns:
 * 0, -EIO (it ended with another code than 0, or by a signal), -EFBIG (it wrote more than max
 * bytes), -ETIMEDOUT (it took longer than timeout, in microseconds), -ECANCELED (stop_fd became
 * readable; -1: none), -ENOENT (no such program), -ENOMEM, or another negative errno of
 * posix_spawn(3).
 */
int command_run(char *const argv[], size_t max, uint64_t timeout, int stop_fd, char **ret,
		size_t *ret_len);

#endif
