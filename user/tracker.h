/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ACK and retry tracker (SPEC 7): which sends are unsettled, when a content in custody is to be
 * sent again, and what an ACK or NACK means. Pure core: no I/O, the clock is an argument.
 *
 * Per VM it holds at most one content that is to be delivered, named by its generation, and the
 * sends of this and earlier generations that nothing has settled yet. All deadlines of all VMs
 * lie in one heap.
 *
 *   tracker_want()     a generation is in custody: deliver it; supersedes the one before
 *   tracker_next()     the VM is to be sent now, for the first time or again. The relay then
 *                      either calls tracker_send() and sends, or tracker_defer()s (no token), or
 *                      keeps it in a queue of its own (upstream busy) and does so later
 *   tracker_settle()   the result of a call decides about that send
 *   tracker_ack(), tracker_nack()   an ACK or NACK on another path settles the oldest send
 *   tracker_end()      custody ended, for whatever reason: no more retries
 *
 * Retry times count from the first send of a generation: linear (ref) 1, 3, 6, 10... times the
 * base. A second send moves none of them; several that were missed are one send.
 *
 * Sends are remembered for 10 min even if their content has ended: the ACK of a superseded or
 * already ACKed content may still come, and must not be taken for that of newer content.
 */
#ifndef VSR_TRACKER_H
#define VSR_TRACKER_H

#include "util.h"
#include "vm.h"

#define TRACKER_SENDS	  8 /* unsettled ones a VM; the next send waits */
#define TRACKER_REMEMBER  (10 * USEC_PER_MIN)
#define TRACKER_BASE_USEC (30 * USEC_PER_SEC)
#define TRACKER_CAP_USEC  (30 * USEC_PER_MIN)
/* The NACK reason that doubles the running step. */
#define TRACKER_REASON_RATE "central rate limit exceeded"

struct tracker_settings {
	int64_t base;	  /* microseconds; <= 0 means 1 min (ref) */
	bool exponential; /* step n is base * factor^(n-1) up to cap, instead of n * base */
	double factor;	  /* at least 1 */
	uint64_t cap;	  /* longest exponential step, and longest doubled one; microseconds */
	double jitter;	  /* of an exponential step, 0 to 1: 0.1 is 10 % either way */
	/* NACK reasons that end custody; compared whole. Must live as long as the settings. */
	const char *const *permanent;
	size_t n_permanent;
};

/* 30 s, linear; exponential would be: factor 2, cap 30 min, jitter 10 %. Permanent: "missing
 * scanner index data", "unsupported action". */
extern const struct tracker_settings tracker_defaults;

/* A random number in [0, 1). */
typedef double (*tracker_random_t)(void *userdata);

struct tracker;

/* Returns 0; -EINVAL: factor below 1 or jitter outside 0 to 1; -ENOMEM. */
int tracker_new(const struct tracker_settings *s, tracker_random_t random, void *userdata,
		struct tracker **ret);
/* Before vm_table_free(): it forgets all sends, and vm->acks of every VM becomes NULL. */
struct tracker *tracker_free(struct tracker *t);
DEFINE_CLEANUP(struct tracker, tracker_free);

/* Other settings (reload); steps that run are not changed. Returns 0, -EINVAL as above. */
int tracker_set(struct tracker *t, const struct tracker_settings *s);

/* The generation is in custody and is to be sent now. The VM's earlier generation, if another, is
 * superseded: its retries end. The same generation once more: a send beside the due times, which
 * stay as they are (an operator's retry). Returns 0; -ENOMEM: nothing changed. */
int tracker_want(struct tracker *t, struct vm *vm, uint64_t generation, uint64_t now);

/* A VM whose content is to be sent now; not said again before tracker_send(), tracker_defer() or
 * tracker_want(). NULL: none. */
struct vm *tracker_next(struct tracker *t, uint64_t now);

/* When to call tracker_next() again; USEC_INFINITY: never. */
uint64_t tracker_next_event(const struct tracker *t);

/* The send of this VM cannot be made before `until` (no token; 8 unsettled; the upstream did not
 * take it after all, and the send was tracker_settle()d): tracker_next() says the VM again then.
 * Nothing happens if the VM has no content to be delivered. */
void tracker_defer(struct tracker *t, struct vm *vm, uint64_t until);

/* The VM's content is sent now; to be called before the send, as its ACK may overtake its
 * completion. The first send of a generation starts its retry times. vm_id_hash: of the `vm_id`
 * in the report (tracker_vm_id_hash()). *ret_send names the send. Returns 0; -EAGAIN: 8 are
 * unsettled, the VM should be deferred until *ret_until; -ENOENT: the VM has no content to be
 * delivered. */
int tracker_send(struct tracker *t, struct vm *vm, uint64_t vm_id_hash, uint64_t now,
		 uint64_t *ret_send, uint64_t *ret_until);

/* This send will get no ACK (its result was its ACK or failure, or nothing was delivered): it is
 * forgotten. Does not end custody. Harmless for one that is settled already. */
void tracker_settle(struct tracker *t, struct vm *vm, uint64_t send);

/* Custody of the VM's content ended: no retry any more. Harmless if there is none. */
void tracker_end(struct tracker *t, struct vm *vm);

enum tracker_match {
	TRACKER_UNMATCHED, /* settles nothing; harmless */
	TRACKER_STALE,	   /* names another VM than the reports that were sent; settles nothing */
	TRACKER_SETTLED,   /* settled the oldest send; it was of *ret_generation */
	TRACKER_PERMANENT, /* the same by a NACK that says: never again */
};

/* An ACK for this VM that belongs to no call. vm_id_hash: of the ACK's vmID, 0 if it has none: it
 * settles the oldest send whose report did not claim another vm_id. With TRACKER_SETTLED the
 * caller ends custody if *ret_generation is the one in custody. vm may be NULL: unmatched. */
enum tracker_match tracker_ack(struct tracker *t, struct vm *vm, uint64_t vm_id_hash, uint64_t now,
			       uint64_t *ret_generation);

/* A NACK, likewise. Its due times stay, but TRACKER_REASON_RATE doubles the step that runs, up to
 * the cap. With TRACKER_PERMANENT the caller ends custody if *ret_generation is in custody. */
enum tracker_match tracker_nack(struct tracker *t, struct vm *vm, uint64_t vm_id_hash,
				const char *reason, uint64_t now, uint64_t *ret_generation);

/* Whether a NACK with this reason is permanent. */
bool tracker_reason_permanent(const struct tracker *t, const char *reason);

/* Whom an ACK names that comes without a CID that counts (a namespace other than 0): the VM of this
 * namespace with an unsettled send whose report claimed this vm_id; NULL if there is none, or more
 * than one, or the hash is 0. */
struct vm *tracker_claimant(const struct tracker *t, uint32_t ns, uint64_t vm_id_hash);

/* The same among the VMs of all namespaces. */
struct vm *tracker_claimant_anywhere(const struct tracker *t, uint64_t vm_id_hash);

/* Whether another VM, in another namespace, has this one's CID and an unsettled send: an ACK by CID
 * could be either's. */
bool tracker_shares_cid(const struct tracker *t, const struct vm *vm);

/* While the upstream is paused (SPEC 8) nothing is due and due times stand still: tracker_next()
 * says no VM. Both may be called twice. */
void tracker_pause(struct tracker *t, uint64_t now);
void tracker_resume(struct tracker *t, uint64_t now);

/* The VM whose content should probe a paused upstream: the one that has waited longest, or would
 * be due first. NULL: no content. */
struct vm *tracker_probe(const struct tracker *t);

/* The VM's next retry time, USEC_INFINITY: none. For people. */
uint64_t tracker_due(const struct tracker *t, const struct vm *vm);

struct tracker_figures {
	size_t contents; /* VMs with a content to be delivered */
	size_t awaiting; /* of these, sent at least once */
	size_t sends;	 /* remembered, unsettled */
};
void tracker_figures(const struct tracker *t, struct tracker_figures *ret);

/* ---- what an ACK names (SPEC 7) --------------------------------------------------------------- */

/* A resource `vmID:vsockCID`, or a bare CID. Only exactly one ':' with two non-empty sides is
 * split; any other form is one CID as it stands, and matches nothing unless it is one. */
struct tracker_resource {
	const char *vm_id; /* within the parsed text; not terminated */
	size_t vm_id_len;  /* 0: none */
	bool has_cid;	   /* the CID part is canonical decimal (no sign, no leading zero) */
	uint32_t cid;
};
void tracker_resource_parse(const char *text, size_t len, struct tracker_resource *ret);

/* Names a vm_id in sends and ACKs; 0 for the empty one, and only for it. */
uint64_t tracker_vm_id_hash(const char *vm_id, size_t len);

#endif
