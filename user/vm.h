/* SPDX-License-Identifier: Apache-2.0 */
/*
 * VM records (SPEC 2): what the relay remembers of a VM between its connections. Pure core; one
 * event loop owns the table.
 *
 * A record is kept until the VM was idle for 24 h; there are at most VM_TABLE_MAX; for a new VM
 * the least recently used one goes. Pinned records never go: those with custody, debt,
 * connections, remembered sends, or an empty bucket (or a VM could refill its buckets by being
 * forgotten). If all are pinned, the new VM is refused.
 */
#ifndef VSR_VM_H
#define VSR_VM_H

#include "bucket.h"
#include "list.h"
#include "vmmap.h"

#define VM_TABLE_MAX 16384
#define VM_IDLE_USEC (24 * USEC_PER_HOUR)

struct vm {
	struct vmmap_node node; /* the id: node.id */
	struct list by_use;
	uint64_t last_used;

	/* admission (user/admission.c), which alone writes these */
	struct bucket grants;
	uint64_t last_length; /* bytes of the last valid report: what to reserve */
	uint64_t debt;	      /* bytes that closed connections left queued for the guest */
	uint64_t debt_epoch;  /* backlog epoch of the latest debt (admission_backlog_empty()) */
	uint64_t debt_probe;  /* when to look whether the CID is gone */
	struct list debtor;
	uint64_t kept; /* bytes that the kernel keeps for closed connections of this guest... */
	uint64_t kept_until; /* ... until then at most */
	struct list keeper;
	uint64_t busy_until; /* until when it has had its share of the event loop's time */
	struct list waiters; /* struct admission_ticket, oldest first */
	struct list turn;    /* place in the round robin, while a ticket waits */
	uint16_t waiting;
	uint16_t served; /* connections with a place */
	uint16_t open;	 /* tickets in any state */
	bool accepted;	 /* had a report accepted, ever */
	bool offence;	 /* the last connection ended with an offence */
	bool outgrew;	 /* outgrew its reservation: the next is the maximum */

	/* relay, which alone writes these */
	bool has_record; /* record_digest and record_length are valid (SPEC 2, digest of record) */
	bool record_xxh64_unknown; /* record_xxh64 is not: nobody has asked for it yet */
	struct bucket reports;
	uint64_t record_digest;
	uint64_t record_length;
	uint64_t record_xxh64;	 /* XXH64, seed 0: what offers name */
	uint64_t generation;	 /* the newest */
	uint64_t last_accepted;	 /* for people; 0: never */
	uint64_t last_ack;	 /* 0: never */
	void *custody;		 /* the relay's content in custody, or NULL; pins the record */
	void *storing;		 /* the relay's newest being stored, or NULL; pins the record */
	void *in_flight;	 /* the relay's send under way, or NULL; pins the record */
	struct tracker_vm *acks; /* the tracker's sends and due time, or NULL; pins the record */

	/* of vsr_vm_state: counters, and the last ACK of an earlier record or process, ns, or 0 */
	uint64_t received, accepts, duplicates, refused;
	uint64_t acked_before;
};

struct vm_table;

/* An empty table for at most `max` records (VM_TABLE_MAX; tests take less), with these rates of
 * grants and of reports. Returns 0, -ENOMEM. */
int vm_table_new(size_t max, struct bucket_rate grants, struct bucket_rate reports,
		 struct vm_table **ret);
/* Frees the table and its records, pinned or not; what `custody` points to is the relay's. */
struct vm_table *vm_table_free(struct vm_table *t);
DEFINE_CLEANUP(struct vm_table, vm_table_free);

/* Asked for each new record: what vsr_vm_state says of the VM from an earlier process or record, false
 * if nothing. Counters and times go on from there, for people to read; no decision looks at them. */
void vm_table_remember(struct vm_table *t,
		       bool (*before)(struct vsr_vm_id id, struct vsr_vm_state *ret,
				      void *userdata),
		       void *userdata);

/* Other rates from now on (reload). */
void vm_table_set_rates(struct vm_table *t, struct bucket_rate grants, struct bucket_rate reports);

/* The VM's record, or NULL; not a use. */
struct vm *vm_table_find(const struct vm_table *t, struct vsr_vm_id id);

/* The VM's record, a new one if needed, and marks it as used now. It stays valid while pinned;
 * one that is not may go with the next vm_table_obtain() of another VM, or vm_table_sweep().
 * Returns 0; -ENOBUFS: all `max` records are pinned, refuse the VM; -ENOMEM. */
int vm_table_obtain(struct vm_table *t, struct vsr_vm_id id, uint64_t now, struct vm **ret);

/* Drops the records that were idle for 24 h. Returns how many. */
size_t vm_table_sweep(struct vm_table *t, uint64_t now);

size_t vm_table_count(const struct vm_table *t);
/* Records dropped to make room, and VMs refused with -ENOBUFS, so far. */
uint64_t vm_table_evicted(const struct vm_table *t);
uint64_t vm_table_refused(const struct vm_table *t);

/* All records, in no particular order: NULL for the first, NULL behind the last. */
struct vm *vm_table_next(const struct vm_table *t, const struct vm *vm);

/* The VM's buckets at the table's rates: see bucket.h. */
bool vm_grants_limited(const struct vm_table *t);
bool vm_take_grant(const struct vm_table *t, struct vm *vm, uint64_t now);
uint64_t vm_next_grant(const struct vm_table *t, const struct vm *vm, uint64_t now);
bool vm_take_report(const struct vm_table *t, struct vm *vm, uint64_t now);
void vm_give_back_report(const struct vm_table *t, struct vm *vm);
uint64_t vm_next_report(const struct vm_table *t, const struct vm *vm, uint64_t now);

/* Whether the record may not be dropped. */
bool vm_pinned(const struct vm_table *t, const struct vm *vm, uint64_t now);

/* What vsr_vm_state shows of the VM. */
void vm_export(const struct vm *vm, struct vsr_vm_state *ret);

#endif
