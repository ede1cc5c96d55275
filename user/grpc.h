/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gRPC over HTTP/2, the client's side of one connection, without I/O: bytes in, bytes out, the
 * clock is an argument. Framing and flow control are nghttp2's; here is what gRPC makes of it
 * (PROTOCOL-HTTP2 in gRPC's documentation; status codes in its http-grpc-status-mapping).
 *
 * Who drives it (user/grpc_conn.c, tests, the fuzzer) feeds what the server sent to grpc_input(),
 * writes what grpc_output() offers and reports it with grpc_sent(), and calls grpc_run() at
 * grpc_next_event(). Output refers to payloads where they lie: they are never copied here.
 *
 * Callbacks come from within grpc_input(), grpc_run() and grpc_close(), never from within the other
 * functions. They may start and cancel calls, nothing else.
 */
#ifndef VSR_GRPC_H
#define VSR_GRPC_H

#include <sys/uio.h>

#include "buf.h"

/* Longest message in either direction (SPEC 8). */
#define GRPC_MESSAGE_MAX (24 * MIB)
/* A ping that nothing answered in this time ends the connection; the pause between pings. */
#define GRPC_PING_INTERVAL (10 * USEC_PER_SEC)
#define GRPC_PING_TIMEOUT  (40 * USEC_PER_SEC)
#define GRPC_PING_LEAST	   (5 * USEC_PER_SEC)

/* gRPC's status codes; the numbers are on the wire. */
#define GRPC_STATUSES(X)       \
	X(OK)                  \
	X(CANCELLED)           \
	X(UNKNOWN)             \
	X(INVALID_ARGUMENT)    \
	X(DEADLINE_EXCEEDED)   \
	X(NOT_FOUND)           \
	X(ALREADY_EXISTS)      \
	X(PERMISSION_DENIED)   \
	X(RESOURCE_EXHAUSTED)  \
	X(FAILED_PRECONDITION) \
	X(ABORTED)             \
	X(OUT_OF_RANGE)        \
	X(UNIMPLEMENTED)       \
	X(INTERNAL)            \
	X(UNAVAILABLE)         \
	X(DATA_LOSS)           \
	X(UNAUTHENTICATED)

enum grpc_status {
#define X(id) GRPC_##id,
	GRPC_STATUSES(X)
#undef X
		GRPC_STATUS_MAX,
};

/* "UNAVAILABLE"; "?" for a number that is none. */
const char *grpc_status_name(enum grpc_status status);

/* What a call came to. */
struct grpc_result {
	enum grpc_status status;
	const char *message; /* for people: one line, printable ASCII, may be "" */
	/* Nothing of the request can have reached the service: the stream was refused, lay above
	 * GOAWAY's last id, or ended before its first DATA was written. */
	bool undelivered;
	/* The payload was packed and could not be unpacked to its end: the status is DATA_LOSS, but
	 * it is ours. The request was reset before its last byte. */
	bool damaged;
	/* The only message of a unary call that ended with OK; valid during done(). */
	const uint8_t *response;
	size_t response_len;
};

struct grpc_call;

struct grpc_request {
	const char *path; /* "/package.Service/Method"; must live until the call is done */
	struct buf
		*payload; /* the message of a unary call, packed or not; NULL: a stream on which we
			   * say nothing */
	uint64_t timeout; /* usec from now to DEADLINE_EXCEEDED, also sent; USEC_INFINITY: none */
	/* A message of a stream; it is the callee's for this moment only. NULL for a unary call. */
	void (*message)(struct grpc_call *call, const uint8_t *data, size_t len, void *userdata,
			uint64_t now);
	/* The end of the call, exactly once; the call is freed afterwards. */
	void (*done)(struct grpc_call *call, const struct grpc_result *result, void *userdata,
		     uint64_t now);
	void *userdata;
};

struct grpc_metadata {
	const char *name; /* lower case */
	const char *value;
};

/* Texts must live as long as the connection. */
struct grpc_settings {
	const char *scheme;    /* "http", "https" */
	const char *authority; /* "host:port" */
	const char *user_agent;
	const struct grpc_metadata *metadata; /* sent with every call */
	size_t n_metadata;
	uint64_t ping_interval; /* usec without anything read until a ping goes out while calls are
				 * open; at least GRPC_PING_LEAST is kept; USEC_INFINITY: none */
	uint64_t ping_timeout;	/* usec for the answer */
};

struct grpc;

/* A connection whose transport is there: its preface is the first output. Returns 0, -ENOMEM. */
int grpc_new(const struct grpc_settings *s, uint64_t now, struct grpc **ret);
/* Calls must be done (grpc_close()), else their done() is never called. */
struct grpc *grpc_free(struct grpc *g);
DEFINE_CLEANUP(struct grpc, grpc_free);

/* Ends every call with UNAVAILABLE: the transport is gone, or is given up. why: for people. */
void grpc_close(struct grpc *g, const char *why, uint64_t now);

/* ---- calls ---- */

/* Starts a call; the payload is referenced until it is sent. Calls beyond what the server allows at
 * a time wait for their turn (and for their deadline). Returns 0; -EMSGSIZE: over
 * GRPC_MESSAGE_MAX; -EPIPE: the connection takes no calls (any more); -ENOMEM. */
int grpc_call_start(struct grpc *g, const struct grpc_request *request, uint64_t now,
		    struct grpc_call **ret);
/* Ends a call from our side: the server is told, done() is not called, the call is freed. */
void grpc_call_cancel(struct grpc_call *call);

/* ---- bytes ---- */

/* What the server sent. Returns 0, or a negative errno when the connection is over and the
 * transport is to be closed, after the rest of the output if possible: -EPROTO (the server broke
 * HTTP/2, or is no gRPC server), -ENOMEM. */
int grpc_input(struct grpc *g, const void *data, size_t len, uint64_t now);

/* Fills iov with up to n pieces of what is to be sent next and returns how many; 0: nothing now.
 * They are valid until the next call of any function of this connection, and start with what was
 * not reported to grpc_sent(). */
size_t grpc_output(struct grpc *g, struct iovec *iov, size_t n);
/* So many bytes of it are in the transport. */
void grpc_sent(struct grpc *g, size_t n, uint64_t now);

/* Deadlines and pings. Returns 0, or when the connection is over: -ETIMEDOUT (no answer to a ping),
 * -EPROTO (as grpc_input()). */
int grpc_run(struct grpc *g, uint64_t now);
/* When to call grpc_run() next; USEC_INFINITY: never. */
uint64_t grpc_next_event(const struct grpc *g);

/* ---- state ---- */

/* The server's SETTINGS have come: it speaks HTTP/2. */
bool grpc_ready(const struct grpc *g);
/* It takes no new calls: GOAWAY. Calls below its last id may still end well. */
bool grpc_draining(const struct grpc *g);
/* Calls under way. */
size_t grpc_calls(const struct grpc *g);
/* The server said that we ping too often (GOAWAY with ENHANCE_YOUR_CALM, too_many_pings): the next
 * connection should do so half as often. */
bool grpc_too_many_pings(const struct grpc *g);
/* Why the connection ended or drains, for people: one line, "" if unknown. */
const char *grpc_why(const struct grpc *g);

#endif
