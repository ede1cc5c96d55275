/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Flows: what traced packets mean together. Follows every connection from its REQUEST to its end:
 * how much went each way, who had to wait for credit, who ended it and how, and whether somebody
 * broke the protocol's rules. Pure: events in, news out; no I/O, no clock of its own.
 *
 * Credit (virtio specification, 5.10.6.3): each packet says how large its sender's receive buffer
 * is (buf_alloc) and how many bytes the sender has consumed (fwd_cnt), both modulo 2^32. The other
 * side may send buf_alloc - (bytes it has sent - fwd_cnt) more.
 */
#ifndef VSR_FLOW_H
#define VSR_FLOW_H

#include <linux/types.h>

#include "list.h"
#include "util.h"
#include "vsr_trace.h"

enum flow_side {
	FLOW_CLIENT, /* has sent the REQUEST; of a connection that is older than the trace: the guest */
	FLOW_SERVER,
};

/* How a flow ended. */
enum flow_end {
	FLOW_OPEN,	/* it did not yet */
	FLOW_SHUTDOWN,	/* one side shut both directions down, as close() does */
	FLOW_RESET,	/* one side reset it, and neither had shut down */
	FLOW_REFUSED,	/* the REQUEST was answered by a reset */
	FLOW_CANCELLED, /* the client gave up before it was answered */
	FLOW_VANISHED,	/* one side's VM ended */
	FLOW_REPLACED,	/* another REQUEST came with the same CIDs and ports */
	FLOW_FORGOTTEN, /* silent for longest, and the table was full */
	FLOW_END_MAX,
};

/* Why a packet RST was sent. The last five are alarms. */
enum flow_reset {
	FLOW_RESET_NONE,    /* the event is no RST */
	FLOW_RESET_CLOSE,   /* the answer to the other side's SHUTDOWN */
	FLOW_RESET_AGAIN,   /* the flow has ended already */
	FLOW_RESET_REFUSED, /* the answer to a REQUEST: nobody listens, or the backlog is full */
	FLOW_RESET_ABORT,   /* in the middle of a connection */
	FLOW_RESET_OVERRUN, /* the same, after the other side sent more than its credit */
	FLOW_RESET_NO_CONNECTION, /* the answer to a packet that belongs to no connection */
	FLOW_RESET_UNANSWERED,	  /* its sender had shut down and got no answer (8 s in Linux) */
	FLOW_RESET_MAX,
};

struct flow_half {
	uint32_t cid, port;
	uint64_t bytes, packets; /* that this side has sent; packets of any kind */
	uint32_t shutdown;	 /* VSR_SHUTDOWN_... that it has said */
	uint32_t empty;		 /* packets RW without payload: Linux never sends one */
	uint32_t overruns;	 /* packets beyond its credit */
	uint32_t stalls;	 /* times that it had used up its credit */
	uint64_t stalled_ns;	 /* and for how long in all, until the credit grew again */

	/* what the other side lets it send; private */
	bool credit_known;
	uint32_t buf_alloc, fwd_cnt, tx_cnt;
	uint64_t stalled_since; /* 0: not stalled */
};

struct flow {
	bool begun; /* seen from its REQUEST on; false: it is older than the trace */
	struct flow_half half[2];
	enum flow_end end;
	enum flow_side ended_by; /* with FLOW_SHUTDOWN to FLOW_VANISHED */
	/* CLOCK_BOOTTIME; 0: not seen */
	uint64_t first_ns;
	uint64_t last_ns;	/* the packet that ended it, else the last one */
	uint64_t response_ns;	/* the server said yes */
	uint64_t accept_ns;	/* its accept() returned */
	uint64_t credit_ns;	/* it first gave credit */
	uint64_t last_byte_ns;	/* the client's last payload */
	uint64_t custody_ns;	/* the daemon took the report into custody */
	uint64_t custody_bytes; /* its payload */

	/* private */
	uint64_t key[2];
	struct flow *next;
	struct list by_age;
	uint32_t epoch;	  /* of the table when it began */
	bool stray[2];	  /* that side sent a packet after the end */
	bool vm_ended[2]; /* of that side */
};

/* What an event meant. */
struct flow_news {
	const struct flow *flow; /* whose event it was, NULL: of none. Until the next call */
	bool ended;		 /* the event ended it */
	/* Another flow that ended by it, FLOW_REPLACED or FLOW_FORGOTTEN. NULL: none. */
	const struct flow *displaced;
	enum flow_side side; /* who sent the packet */
	bool empty;	     /* an RW without payload */
	bool overrun;	     /* the first of the flow's packets beyond the credit ... */
	uint64_t allowed;    /* ... which let its side send so many bytes, since the beginning */
	enum flow_reset reset;
	/* The times that are new in flow. */
	bool responded, accepted, credited, custody;
};

struct flow_table;

#define FLOW_TABLE_MAX 16384

/* max: flows to remember, ended ones for a while too, so that what still comes of them is known.
 * seed: of the hash; guests choose their ports. Returns 0, -ENOMEM, -EINVAL (max 0). */
int flow_table_new(size_t max, uint64_t seed, struct flow_table **ret);
struct flow_table *flow_table_free(struct flow_table *t);
DEFINE_CLEANUP(struct flow_table, flow_table_free);

/*
 * Takes the next event. Events must come in the order of the ring buffer; where e->lost shows a
 * gap, nothing is said about the credit of the flows before it any more.
 * Returns 0; -ENOMEM: a new flow is not followed, and *ret says nothing.
 */
int flow_observe(struct flow_table *t, const struct vsr_trace_event *e, struct flow_news *ret);

/* Calls cb for each flow that is open, oldest activity first. */
void flow_foreach_open(const struct flow_table *t, void (*cb)(const struct flow *f, void *userdata),
		       void *userdata);

/* Names for people and JSON, such as "shutdown", "no_connection"; static. */
const char *flow_end_name(enum flow_end end);
const char *flow_reset_name(enum flow_reset reset);
/* Whether a reset for this reason is worth an alarm. */
bool flow_reset_alarms(enum flow_reset reset);

#endif
