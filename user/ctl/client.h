/* SPDX-License-Identifier: Apache-2.0 */
/*
 * HTTP to the daemon's unix socket: one request a connection, HTTP/1.0, so that the answer ends
 * where the connection does. The peer is our own daemon, over a socket that root owns: that is why
 * a few lines of our own do, and no library.
 */
#ifndef VSR_CTL_CLIENT_H
#define VSR_CTL_CLIENT_H

#include "util.h"

#define CLIENT_TIMEOUT_S  5
#define CLIENT_ANSWER_MAX (256 * MIB)

/* Sends "METHOD page". Returns the HTTP status with the body in *ret, NUL-terminated, the
 * caller's; or
 *   -ENOENT        there is no socket: no daemon runs (or another socket is meant)
 *   -ECONNREFUSED  nobody listens on it: the daemon is dead
 *   -EACCES        not ours to connect
 *   -ETIMEDOUT     no answer within CLIENT_TIMEOUT_S: its event loop does not turn
 *   -EPROTO        what answers is no daemon of ours
 *   -ENAMETOOLONG, -EFBIG, -ENOMEM, and what connect() and recv() return. */
int client_request(const char *socket, const char *method, const char *page, char **ret);

#endif
