/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A gRPC server that we stay connected to: the sockets, TLS and time of user/grpc.h, on the event
 * loop. Connects to an address after the other, and again after a failure (exponential backoff to
 * 30 s with jitter); replaces a connection that drains (GOAWAY) or whose certificate files have
 * changed, while its calls end. What happens to the connection is logged here.
 */
#ifndef VSR_GRPC_CONN_H
#define VSR_GRPC_CONN_H

#include <systemd/sd-event.h>

#include "grpc.h"
#include "tls.h"

#define GRPC_BACKOFF_MAX (30 * USEC_PER_SEC)

/* Texts must live as long as the grpc_conn. */
struct grpc_conn_settings {
	const char *address; /* "host:port", "[v6]:port" or "unix:/path" */
	bool plaintext;	     /* no TLS; else: */
	struct tls_files tls;
	const char *server_name; /* in the certificate and :authority; "" is the address's host */
	const char *user_agent;
	const struct grpc_metadata *metadata;
	size_t n_metadata;
	uint64_t ping_interval, ping_timeout; /* usec, as in struct grpc_settings */
};

struct grpc_conn;

/* Called when calls can be started (again), and when they no longer can; not from within the
 * functions below but grpc_conn_free(). */
typedef void (*grpc_conn_changed_t)(bool ready, void *userdata);

/* Whether address is of a form that can be connected to. */
bool grpc_conn_valid_address(const char *address);
/* Its TCP port; 0: none (unix:/path), or not of such a form. */
uint16_t grpc_conn_port(const char *address);

/* Reads the TLS files and begins to connect. Returns 0; -EINVAL: the address; what
 * tls_context_new() and sd-event return. The latter two's reasons are logged. */
int grpc_conn_new(sd_event *event, const struct grpc_conn_settings *s, grpc_conn_changed_t changed,
		  void *userdata, struct grpc_conn **ret);

/* Ends all calls: their done() is called with UNAVAILABLE. */
struct grpc_conn *grpc_conn_free(struct grpc_conn *c);
DEFINE_CLEANUP(struct grpc_conn, grpc_conn_free);

bool grpc_conn_ready(const struct grpc_conn *c);

/* Starts a call. Returns 0; -ENOTCONN: not ready; what grpc_call_start() returns. */
int grpc_conn_call(struct grpc_conn *c, const struct grpc_request *request, uint64_t now,
		   struct grpc_call **ret);
/* Something is to be sent that no call above caused: after grpc_call_cancel(). */
void grpc_conn_kick(struct grpc_conn *c);

#endif
