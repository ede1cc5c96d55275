/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tracing: attaches bpf/trace.bpf.c, on demand, and hides libbpf and the generated skeleton. Needs
 * root (or CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE), no daemon, and pins nothing: with the last
 * descriptor the programs are gone. Logs nothing; bpf_why() says more about an error.
 */
#ifndef VSR_TRACE_USER_H
#define VSR_TRACE_USER_H

#include <linux/types.h>

#include "util.h"
#include "vsr_trace.h"

struct trace;

/* What to look at; each is an event kind of include/vsr_trace.h. */
enum trace_part {
	TRACE_PACKETS = 1 << 0,	  /* always needed: all others come with it */
	TRACE_ACCEPTS = 1 << 1,	  /* accept() */
	TRACE_RAW_READS = 1 << 2, /* reads that bypass the verdict of an attached socket */
	TRACE_VANISHED = 1 << 3,  /* VMs that end while they have connections */
	TRACE_CUSTODY = 1 << 4,	  /* the daemon's probe `accepted`, in every daemon that runs */
};

struct trace_settings {
	unsigned parts;	     /* enum trace_part */
	bool by_cid;	     /* only what is from or to this CID */
	bool by_port;	     /* ... this port */
	uint32_t cid, port;  /* with these */
	uint32_t ops;	     /* packets: bits 1 << enum vsr_op; 0: all, unknown ones too */
	uint32_t ring_bytes; /* of the ring buffer; made a power of two, at least a page */
};

#define TRACE_RING_BYTES (8 * 1024 * 1024) /* 80000 packets */

/*
 * Loads and attaches. What can be left out (another transport's packets, a part that this kernel
 * has not) is left out, and said by trace_note(); incoming packets cannot.
 * Returns 0; -ENOENT: this kernel has no vsock loaded, bpf_why() says which module to load;
 * -EPERM: not allowed; -EOPNOTSUPP: the kernel cannot do it; -EINVAL: ring_bytes is above 1 GiB;
 * -ENOMEM and what else bpf() and perf_event_open() return.
 */
int trace_new(const struct trace_settings *s, struct trace **ret);
struct trace *trace_free(struct trace *t);
DEFINE_CLEANUP(struct trace, trace_free);

/* The ith thing that is left out, and what to do about it, one line; NULL behind the last. */
const char *trace_note(const struct trace *t, size_t i);

/* The parts that are attached. */
unsigned trace_parts(const struct trace *t);

/* Returns 0, or a negative number to end trace_poll() with it; guests may send faster than anybody
 * prints. */
typedef int (*trace_event_cb)(const struct vsr_trace_event *e, void *userdata);
/* Waits up to timeout_ms for events and hands them to cb, in the order of the ring buffer. Returns
 * their number, what cb has returned, -EINTR, or another negative errno. */
int trace_poll(struct trace *t, int timeout_ms, trace_event_cb cb, void *userdata);

/* Events that passed the filters, and how many of these found no room in the ring buffer. */
uint64_t trace_seen(const struct trace *t);
uint64_t trace_lost(const struct trace *t);

#endif
