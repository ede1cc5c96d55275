/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What `vsock-relayctl trace` prints: each thing as one line of text, and as one JSON object whose
 * keys are an interface (docs/tracing.md). Pure but for the FILE.
 */
#ifndef VSR_TRACE_SHOW_H
#define VSR_TRACE_SHOW_H

#include <jansson.h>
#include <linux/types.h>

#include "flow.h"
#include "log2hist.h"
#include "util.h"
#include "vsr_abi.h"
#include "vsr_trace.h"

struct show {
	int64_t clock; /* what makes wall time of CLOCK_BOOTTIME, nsec. Text is in local time */
	/* The name of the VM with that CID, NULL: it has none; name may be NULL too. */
	const char *(*name)(uint32_t cid, void *userdata);
	void *userdata;
};

/* ---- packets --------------------------------------------------------------------------------- */

/* "RW", NULL for one that is not known. */
const char *show_op_name(unsigned op);
/* "rw,rst" as bits 1 << op, in any case. Returns 0; -EINVAL with *ret_bad at the name that is none. */
int show_ops_parse(const char *text, uint32_t *ret, const char **ret_bad);

void show_packet(FILE *f, const struct vsr_trace_event *e, const struct show *how);
json_t *show_packet_json(const struct vsr_trace_event *e, const struct show *how);

/* ---- flows ----------------------------------------------------------------------------------- */

void show_flow(FILE *f, const struct flow *flow, const struct show *how);
json_t *show_flow_json(const struct flow *flow, const struct show *how);

/* ---- alarms ---------------------------------------------------------------------------------- */

enum alarm_kind {
	ALARM_ZERO_LENGTH, /* an RW without payload */
	ALARM_CREDIT,	   /* more bytes than the other side has room for; once a connection */
	ALARM_RESET,	   /* an RST that is no usual end; cause says why */
	ALARM_RAW_READ,	   /* bytes that bypassed the verdict were read */
	ALARM_VERDICT,	   /* a counter of vsr_stats that should stand still has grown */
};

struct alarm {
	enum alarm_kind kind;
	uint64_t ns;		    /* CLOCK_BOOTTIME */
	uint32_t src_cid, src_port; /* who did it; of RAW_READ: whose bytes they are ... */
	uint32_t dst_cid, dst_port; /* ... and to whom; none of VERDICT */
	enum flow_reset cause;	    /* RESET */
	uint64_t bytes;		    /* CREDIT: sent; RAW_READ: read */
	uint64_t allowed;	    /* CREDIT */
	bool peek;		    /* RAW_READ: looked at, not taken */
	uint32_t pid;		    /* RAW_READ */
	char comm[VSR_TRACE_COMM];  /* RAW_READ */
	const char *counter;	    /* VERDICT: the field of struct vsr_stats, */
	uint64_t grown, total;	    /* by how much it has grown, and to what */
};

#define ALARMS_OF_EVENT 3
/* The alarms that an event and its news mean; returns their number. */
size_t alarms_of_event(const struct vsr_trace_event *e, const struct flow_news *news,
		       struct alarm ret[static ALARMS_OF_EVENT]);

#define ALARMS_OF_STATS 16
/* The alarms that lie between two states of vsr_stats; returns their number. */
size_t alarms_of_stats(const struct vsr_stats *before, const struct vsr_stats *after, uint64_t ns,
		       struct alarm ret[static ALARMS_OF_STATS]);

void show_alarm(FILE *f, const struct alarm *a, const struct show *how);
json_t *show_alarm_json(const struct alarm *a, const struct show *how);

/* ---- latency --------------------------------------------------------------------------------- */

/* Values are usec. unseen: why there can be none, NULL otherwise. */
void show_histogram(FILE *f, const char *what, const struct log2hist *h, const char *unseen);
json_t *show_histogram_json(const char *name, const struct log2hist *h, const char *unseen);

#endif
