/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the relay share (its interface is relay.h): relay.c decides what a report is, and
 * calls the others. relay_custody.c begins and ends custody, relay_send.c sends what is in custody,
 * relay_store.c makes it durable, or holds it in memory alone, or has it sent if there is no place for it
 * at all (sends_submit()).
 */
#ifndef VSR_RELAY_INTERNAL_H
#define VSR_RELAY_INTERNAL_H

#include "relay.h"

/* One generation in custody: vm->custody points here. Its payload is the VM's cache entry, or in
 * the store, or both. */
struct held {
	struct list by_age; /* in relay.held, oldest first */
	struct list ready;  /* in relay.ready, while it waits for one of the sends */
	struct vm *vm;
	uint64_t generation;
	int64_t accepted; /* when custody began; before the clock did, if it was restored */
	uint64_t vm_id_hash;
	struct list unspooled;	 /* in relay.unspooled, while a write of it is to be tried */
	struct storing *storing; /* the write under way of what is in custody already, or NULL */
	bool spooled;		 /* durable */
	bool promised;		 /* an agent was told that this, or what it superseded, is safe */
	bool sent;		 /* at least once */
	bool limited;		 /* counted as rate limited already */
	bool resent; /* went again at once, since its last send did not leave: only once in a row */
	uint8_t rejections;
};

/*
 * A write under way. It stands for reports that wait for its result ("undecided"); or nobody waits:
 * what it writes is in custody in memory already (`held`), or is not wanted any more.
 */
struct storing {
	struct store_write write;
	struct list list;      /* in relay.undecided, oldest first, or in relay.decided */
	struct relay *relay;   /* NULL: the relay is gone */
	struct vm *vm;	       /* while undecided */
	struct storing *older; /* the VM's, undecided */
	struct held *held;
	uint64_t started;
	struct list waiters;  /* struct relay_report, whose connections are there */
	unsigned framed, raw; /* reports, also those whose connection is gone */
	bool decided;
};

/* What is taken into custody. */
struct taking {
	struct vm *vm;
	const struct store_content *content;
	struct buf *payload;
	const uint64_t *blocks; /* relay_report.blocks */
	enum cache_hold hold;	/* NONE: it is durable */
	bool promised;		/* struct held */
};

struct relay {
	struct relay_settings settings;
	struct vm_table *vms;
	struct cache *cache;
	struct tracker *tracker;
	struct upstream *upstream;
	struct match_table *matches; /* NULL: nothing is compared */
	struct store *store;	     /* NULL: custody is memory */
	struct list held, ready, sends;
	size_t n_held, n_sends, n_sent;
	struct list undecided, decided; /* struct storing */
	size_t n_storing;
	size_t n_undecided; /* reports */
	struct list unspooled;
	size_t n_unspooled;
	uint64_t next_sweep;
	/* the upstream refuses all: nothing is sent but a probe at probe_at */
	bool paused, probing;
	uint64_t probe_at, probe_step;
	void (*observe)(const struct vm *vm, void *userdata);
	void *observe_data;
};

/* In custody in memory alone, though there is a store. */
static inline bool is_unspooled(const struct relay *r, const struct held *h)
{
	return r->store && !h->spooled;
}

/* ---- relay_custody.c ------------------------------------------------------------------------- */

/* Tells the observer (relay_observe()). */
void custody_changed(struct relay *r, const struct vm *vm);

/* Begins custody of a content as the VM's next generation: of what is older custody ends. Returns 0;
 * -ENOMEM; or why the cache does not hold it: -EOPNOTSUPP (there is none), -ENOSPC. */
int custody_begin(struct relay *r, const struct taking *t, uint64_t now);

/* Custody of what the VM has, which must be something, ends, and nothing newer takes its place. Only
 * an ACK leaves the digest of record: after anything else the same report is new. The cache's entry is
 * the caller's to remove. */
void custody_end(struct relay *r, struct vm *vm, enum metric_ended how);

/* A framed agent was told that its content is in custody: nothing may push it out any more, also
 * if it came raw at first. Without anything in custody: nothing to do. */
void custody_promise(struct relay *r, const struct vm *vm);

/* The store need not keep these generations any longer, or those that are being written. */
void custody_drop_stored(struct relay *r, struct vsr_vm_id id, uint64_t first, uint64_t last);

/* The cache let go of an entry (cache_new()). If something was lost with it, custody ends here. */
void custody_on_removal(const struct cache_removal *removal, void *userdata);

/* The content becomes what the VM's next reports are compared with. */
void record_set(struct vm *vm, const struct store_content *c);

/* The XXH64 of the VM's record, valid until that changes; NULL: it is not known, and the content is
 * not at hand. Of a report that came raw nobody has asked for it before an offer, or a framed report
 * of the same length, comes. */
const uint64_t *record_xxh64(struct relay *r, struct vm *vm);

/* ---- relay_send.c ---------------------------------------------------------------------------- */

/* Sends what is due, or waits for its turn, and the probe of a paused upstream. */
void sends_run(struct relay *r, uint64_t now);

/* When to call sends_run() next; USEC_INFINITY: never. */
uint64_t sends_next_event(const struct relay *r);

/* A pause ends, if there is one; what is due goes with the next sends_run(). */
void sends_resume(struct relay *r, uint64_t now);

/* Without cache and state directory nothing can be kept: sent at once or not at all. Returns
 * -EINPROGRESS: the report waits for the result; -ENOSPC. */
int sends_submit(struct relay *r, struct relay_report *report, const struct store_content *content,
		 uint64_t now);

/* The report does not wait for a send any more. */
void sends_forget_report(struct relay_report *report);

/* An ACK or NACK that belongs to no call (upstream->on_ack). */
void sends_on_ack(const struct upstream_ack *ack, void *userdata, uint64_t now);

/* The relay goes: the sends under way belong to the upstream alone. */
void sends_forget(struct relay *r);

/* ---- relay_store.c --------------------------------------------------------------------------- */

/* A report that equals the VM's newest content being stored waits for its result. Returns whether it
 * is such a one. */
bool storing_join(struct relay *r, struct relay_report *report);

/* Makes the content, whose generation is set here, durable or takes it into memory; a refusal is
 * counted. Returns as relay_submit(). */
int storing_submit(struct relay *r, struct relay_report *report, struct store_content *content,
		   uint64_t now);

/* Tells those who have waited for the disk too long, and writes what is in memory alone. */
void storing_run(struct relay *r, uint64_t now);

/* When to call storing_run() next; USEC_INFINITY: never. */
uint64_t storing_next_event(const struct relay *r);

/* The relay goes: the writes under way belong to the store alone. */
void storing_forget(struct relay *r);

#endif
