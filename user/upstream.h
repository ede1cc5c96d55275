/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What forwards contents: the interface between the relay (core) and an upstream (edge). The
 * relay asks for one send and is told later how it ended; it keeps at most `in_flight` sends
 * under way, and at most one per VM (SPEC section 6).
 */
#ifndef VSR_UPSTREAM_H
#define VSR_UPSTREAM_H

#include "buf.h"
#include "vsr_abi.h"

enum send_result {
	SEND_ACKED,	    /* delivered, and that is the ACK (file; grpc with `response`) */
	SEND_DELIVERED,	    /* delivered; the ACK comes on another path (grpc, `communicate`) */
	SEND_FAILED,	    /* may have been delivered: retried, the token is spent */
	SEND_NOT_DELIVERED, /* certainly not delivered: retried, the token is given back */
	SEND_AGAIN,	    /* the same, and for no fault of the content's: goes again at once */
	SEND_REFUSED,	    /* the upstream takes nothing now: pause, and probe */
	SEND_REJECTED,	    /* the upstream will not have this content: dropped after three times */
	SEND_DAMAGED, /* the packed payload cannot be read any more: nothing whole was delivered */
};

/* One send under way; embedded in the relay's object, valid until done() was called. */
struct upstream_send {
	struct vsr_vm_id vm;
	uint64_t generation;
	struct buf *payload; /* a reference of the send's own; may be packed (user/pack.h) */
	/* How it ended, and when (usec of CLOCK_BOOTTIME). Called from the event loop, never from
	 * within upstream_ops.send. The upstream logs why sends fail; the relay does no I/O. */
	void (*done)(struct upstream_send *s, enum send_result result, uint64_t now);
};

/* An ACK or NACK that belongs to no call. */
struct upstream_ack {
	bool nack;
	const char *resource; /* whom it names (SPEC 7) */
	size_t resource_len;
	const char *reason; /* of a NACK; may be "" */
};

struct upstream;

struct upstream_ops {
	const char *name;
	/* Starts a send. Returns 0 (done() will be called once), or -EBUSY: cannot take one now,
	 * done() is not called. Only called while ready. */
	int (*send)(struct upstream *u, struct upstream_send *s);
	/* Frees; sends under way are finished or failed first, within grace usec. Returns NULL. */
	struct upstream *(*free)(struct upstream *u);
};

/* First member of every upstream. */
struct upstream {
	const struct upstream_ops *ops;
	bool acks_apart; /* ACKs come on a path of their own, not with the call's result */
	bool ready;	 /* takes sends now; without it contents wait, and no send fails. It changes
			  * only in the event loop, which then lets the relay run */
	/* Set by the relay: an ACK has come. */
	void (*on_ack)(const struct upstream_ack *ack, void *userdata, uint64_t now);
	void *userdata;
};

/* Logs that the send's payload turned out to be damaged (SEND_DAMAGED). */
void upstream_log_damaged(const struct upstream_send *s);

#endif
