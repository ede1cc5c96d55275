/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The relay: generations and custody (SPEC 2), dedup (5), rate limit and forwarding (6). Pure
 * core: it is given the time, the cache, the tracker of ACKs and an upstream to call, and decides
 * what is new, what is kept, and what is sent when. Reports come in valid (user/report.h).
 */
#ifndef VSR_RELAY_H
#define VSR_RELAY_H

#include "cache.h"
#include "metrics.h"
#include "reason.h"
#include "store.h"
#include "tracker.h"
#include "upstream.h"
#include "vm.h"

#define RELAY_IN_FLIGHT_MAX 8
/* A content that is not durable after this long counts as if the disk had failed (SPEC 7). */
#define RELAY_STORE_DEADLINE (10 * USEC_PER_SEC)

struct relay;

struct relay_settings {
	bool dedup_bytes;	   /* a digest alone decides nothing */
	bool suppress_unchanged;   /* ACKed content that comes again is dropped ... */
	uint64_t refresh_interval; /* ... until this long after the last ACK, usec; 0: always */
	uint64_t stale_ack;	   /* last ACK older than this: rate limit reason stale_ack, usec */
	uint64_t custody_max_age;  /* usec */
	uint32_t ns;		   /* of the VMs; another than 0: ACKs name VMs by vm_id */
	bool several_ns;	   /* there are VMs of other namespaces besides, named by vm_id */
	bool acks_by_cid;	  /* what else ACKs say of the VM is not compared; only with ns 0 */
	bool accept_without_disk; /* framed reports too are taken while the store takes nothing */
	bool slots_auto;	  /* as many cache slots as VMs seen, at least cache.slots */
	struct cache_limits cache;
	struct tracker_settings retry;
};

/* What became of a report, or would become of an offer. */
enum relay_verdict {
	RELAY_ACCEPTED,	  /* custody has begun */
	RELAY_DUPLICATE,  /* is in custody already: nothing to do */
	RELAY_SUPPRESSED, /* ACKed, unchanged: nothing to do */
	RELAY_NEW,	  /* relay_known() only: the content is needed */
};

/* A valid report; embedded by its connection. */
struct relay_report {
	struct vm *vm;
	struct buf *content; /* the caller's reference; the relay takes its own */
	uint64_t digest;     /* SPEC section 5 */
	uint64_t xxh64;	     /* of the content, seed 0: what offers name ... */
	bool xxh64_unknown;  /* ... which is computed when somebody asks for it */
	/* XXH64 of its whole blocks (match_new()), the caller's; NULL: not known. */
	const uint64_t *blocks;
	bool framed;	   /* the agent gets an answer */
	const char *vm_id; /* the report's claim, not NUL-terminated */
	size_t vm_id_len;
	/* Only after -EINPROGRESS: what relay_submit() could not say at once. With REASON_NONE the
	 * verdict is set. */
	void (*decided)(struct relay_report *report, enum reason reason, uint64_t now);
	enum relay_verdict verdict;
	/* the relay's */
	struct relay_send *waits_for;
	struct list waiting;
};

/* Table and upstream are not owned: both must outlive the relay. random is the tracker's.
 * Returns 0; -EINVAL: retry settings (tracker_new()); -ENOMEM. */
int relay_new(const struct relay_settings *s, struct vm_table *vms, struct upstream *upstream,
	      tracker_random_t random, void *userdata, struct relay **ret);
/* Sends under way are forgotten; nothing is called any more. */
struct relay *relay_free(struct relay *r);
DEFINE_CLEANUP(struct relay, relay_free);

/* Other settings from now on (reload); a pause ends. Returns 0; -EINVAL as above, and the old ones stay. */
int relay_set(struct relay *r, const struct relay_settings *s, uint64_t now);

/* Where contents are made durable: custody begins when they are. To be called before the first
 * report; the store must outlive the relay, but for writes and reads under way when that is freed.
 * Without a store custody is memory. */
void relay_set_store(struct relay *r, struct store *store);

/* Takes back into custody what an earlier process made durable (it is in the store). Returns 0;
 * -ENOBUFS: no room for the VM's record; -EEXIST: there is something as new; -ENOMEM. */
int relay_restore(struct relay *r, const struct store_content *content, uint64_t now);

/* Contents in the cache become comparable through this table, which must outlive the relay. */
void relay_set_matches(struct relay *r, struct match_table *matches);

/* What a stream of the VM can be compared with now, a reference that the caller drops with
 * match_unref(); NULL: nothing (there is no content, or a digest decides nothing here). */
struct match *relay_match(struct relay *r, const struct vm *vm);

/* observe is called whenever custody, generation, record or last ACK of a VM have changed. */
void relay_observe(struct relay *r, void (*observe)(const struct vm *vm, void *userdata),
		   void *userdata);

/*
 * Takes a report into custody, or says why not.
 * Returns 0 with *ret_verdict (never RELAY_NEW); -EINPROGRESS: report->decided() will be called
 * (with a store the answer waits until the content is durable, also if it equals one that is just
 * being stored; without store and cache for the send); -EAGAIN: refused, REASON_NO_SPOOL;
 * -ENOSPC: refused, REASON_NO_CACHE; -ENOMEM: refused, REASON_INTERNAL.
 */
int relay_submit(struct relay *r, struct relay_report *report, uint64_t now,
		 enum relay_verdict *ret_verdict);

/* The connection of a report in progress is gone: decided() is not called. */
void relay_forget(struct relay *r, struct relay_report *report);

/* Whether content of this length and digest, which was seen but not read, needs to be read:
 * RELAY_NEW, or what it was counted as (then this was its end).
 * `place` is where it was recognised. xxh64 is NULL in raw mode; one that differs from the content's makes it -EBADMSG (digest
 * mismatch). */
int relay_known(struct relay *r, struct vm *vm, uint64_t length, uint64_t digest,
		const uint64_t *xxh64, enum metric_place place, uint64_t now,
		enum relay_verdict *ret_verdict);

/* The same for an offer, which names only length and XXH64. */
enum relay_verdict relay_offer(struct relay *r, struct vm *vm, uint64_t length, uint64_t xxh64,
			       uint64_t now);

/* An operator wants no more pause of an upstream that refused all: everything that waits goes. */
void relay_resume(struct relay *r, uint64_t now);

/* An operator wants the VM's content sent now, beside its due times; its rate still holds. Ends a
 * pause, too. Returns 0; -ENOENT: nothing of it is in custody; -ENOMEM. */
int relay_retry(struct relay *r, struct vm *vm, uint64_t now);
/* The same for every content. Returns how many. */
size_t relay_flush(struct relay *r, uint64_t now);

/* An operator wants the VM's cache entry gone, or what is kept of it after its ACK. Returns 0;
 * -ENOENT: there is none; -EBUSY: it is all that there is of a content in custody, and `lose` is not
 * set. With `lose` custody ends, also of what is in the store. */
int relay_drop(struct relay *r, struct vm *vm, bool lose, uint64_t now);

/* For people: the payload cache, and when the VM's content is due again (USEC_INFINITY: never). */
const struct cache *relay_cache(const struct relay *r);
uint64_t relay_due(const struct relay *r, const struct vm *vm);

/* Does all that is due: sends, retries, expiry, sweeps. Also to be called when the upstream has
 * become ready. */
void relay_run(struct relay *r, uint64_t now);

/* Packs contents that nobody has used for cache.pack: a step of a quarter of a millisecond,
 * to be called when there is nothing else to do. Returns whether there is more to do now. */
bool relay_pack(struct relay *r, uint64_t now);
/* When it is time for that; USEC_INFINITY: never. */
uint64_t relay_pack_due(const struct relay *r);

/* When to call relay_run() next; USEC_INFINITY: never. */
uint64_t relay_next_event(const struct relay *r);

struct relay_figures {
	size_t held;	  /* contents in custody, and reports that are being stored */
	size_t storing;	  /* contents being made durable, for custody or for the restart */
	size_t unspooled; /* contents in custody in memory alone, though there is a store */
	size_t in_flight; /* sends under way */
	size_t awaiting;  /* contents sent at least once and not ACKed */
	bool paused;	  /* the upstream refuses all: only probes go out */
	uint64_t oldest;  /* usec since the oldest content in custody was accepted; 0: none */
	struct cache_stats cache;
};
void relay_figures(const struct relay *r, uint64_t now, struct relay_figures *ret);

#endif
