/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The `grpc` upstream (SPEC section 8): a unary call a report, whose bytes are the request; ACKs
 * on a stream of their own (`communicate`), or the call's success is the ACK (`response`).
 */
#ifndef VSR_UPSTREAM_GRPC_H
#define VSR_UPSTREAM_GRPC_H

#include "grpc_conn.h"
#include "upstream.h"

/* Deadline of a call. */
#define UPSTREAM_GRPC_DEADLINE (5 * USEC_PER_SEC)

struct upstream_grpc_settings {
	struct grpc_conn_settings conn; /* without user agent and metadata */
	bool communicate;		/* else `response` */
	const char *node_name;		/* "" is the host's name */
};

/* Begins to connect; it is ready when it is. Texts must live as long as the upstream. What fails is
 * logged, but for -EINVAL (the address). Returns 0, what grpc_conn_new() returns. */
int upstream_grpc_new(sd_event *event, const struct upstream_grpc_settings *s,
		      struct upstream **ret);

/* What a status means for the content (SPEC 8); not for OK. */
enum send_result upstream_grpc_outcome(enum grpc_status status, bool undelivered);

#endif
