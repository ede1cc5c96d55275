/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ingest: the life of a connection from accept to close, on the event loop. Joins admission (who
 * may send), stream (the bytes), report (are they valid) and relay (what becomes of them), and
 * answers the agent.
 *
 *   WAITING -> RECEIVING -> (OFFERED -> RECEIVING) -> (SUBMITTED) -> ANSWERING -> closed
 */
#ifndef VSR_INGEST_H
#define VSR_INGEST_H

#include <systemd/sd-event.h>

#include "admission.h"
#include "ingest_bpf.h"
#include "relay.h"

struct ingest;

struct ingest_settings {
	uint32_t max_report; /* bytes of payload */
	uint64_t deadline;   /* usec from the grant to the last byte */
	uint64_t idle;	     /* usec without a byte */
	bool allow_reserved_cids;
	bool bpf_required; /* without a verdict nothing is received over vsock */
};

/* What ingest works with; all of it must outlive it. */
struct ingest_parts {
	sd_event *event;
	struct vm_table *vms;
	struct admission *admission;
	struct relay *relay;
	/* NULL: nothing of BPF is to be had; ingest_bpf_maps_only(): maps for people, but
	 * user-space mode. */
	struct ingest_bpf *bpf;
	uint64_t seed;	 /* of the digest */
	bool durable;	 /* contents are made durable: stream_config.xxh64_of_raw */
	uint32_t places; /* slots */
};

/* Returns 0, -ENOMEM, or what sd-event says. */
int ingest_new(const struct ingest_settings *s, const struct ingest_parts *parts,
	       struct ingest **ret);
/* Closes every connection without an answer. Returns NULL. */
struct ingest *ingest_free(struct ingest *i);
DEFINE_CLEANUP(struct ingest, ingest_free);

void ingest_set(struct ingest *i, const struct ingest_settings *s);

/* A connection was accepted (vsock: at zero credit). Takes the fd over, whatever happens. port: the
 * peer's, for traces; 0 on a hybrid socket. */
void ingest_accepted(struct ingest *i, int fd, bool vsock, struct vsr_vm_id id, uint32_t port);

/* A connection was accepted and is refused at once, for a reason that the listener found. */
void ingest_rejected(struct ingest *i, int fd, struct vsr_vm_id id, enum reason reason);

/* accept() said EAGAIN (admission_backlog_empty()). */
void ingest_backlog_empty(struct ingest *i);

/* Gives places to waiters and ends what is due; to be called after each turn of the loop. */
void ingest_run(struct ingest *i, uint64_t now);

/* Refuses whoever waits; connections with a place go on. */
void ingest_stop(struct ingest *i);
/* Connections that have a place or an answer to get. */
unsigned ingest_busy(const struct ingest *i);
/* Connections in any state. */
unsigned ingest_connections(const struct ingest *i);

/* Bytes of the shared reserve that connections have drawn. */
uint64_t ingest_pool_drawn(const struct ingest *i);

/* Whether BPF looks at vsock connections now. */
bool ingest_bpf_active(const struct ingest *i);

#endif
