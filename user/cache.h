/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The payload cache (SPEC section 4): the last content of each VM, bounded in slots, bytes and
 * age, and compressed when it stays. Pure: no I/O, and the clock is an argument (microseconds of CLOCK_BOOTTIME that never go
 * backwards). Every operation costs the same whatever the number of entries, but for those that it
 * removes, and for cache_set_hold() the newer ones that it passes.
 *
 * Entries are ordered by the last change of their content. Looking one up neither reorders nor
 * checks its age: an expired payload is still resent until a sweep or an insert removes it.
 *
 * What was ACKed may be kept after its entry is gone (limits.keep): to be compared with, and to be
 * forwarded again without being read. Kept contents are no entries: they take no slot, lookups do
 * not find them, the reference's figures do not count them, and they leave before any entry has
 * to. They share the bytes.
 *
 * The cache is memory; custody is the relay's. What the cache must know of custody is whether
 * somebody would lose it with the entry (enum cache_hold), because then another VM's content may
 * not push the entry out. With a state directory nothing durable hangs on an entry.
 */
#ifndef VSR_CACHE_H
#define VSR_CACHE_H

#include "buf.h"
#include "list.h"
#include "match.h"
#include "vmmap.h"

/* What is lost with an entry. New content may push out entries of other VMs that hold nothing;
 * content that came raw itself also those that came raw; nothing pushes out answered content. */
enum cache_hold {
	CACHE_HOLD_NONE,     /* nothing: not in custody, or durable elsewhere */
	CACHE_HOLD_RAW,	     /* custody; the content came raw, nobody was told */
	CACHE_HOLD_ANSWERED, /* custody; a framed agent was answered 0 */
	CACHE_HOLD_KEPT,     /* no entry: kept after its ACK */
	CACHE_HOLD_MAX,
};

/* Why an entry went. */
enum cache_end {
	CACHE_END_ACKED,   /* the ACK that ended custody of the held generation */
	CACHE_END_DROPPED, /* the relay gave the content up (a permanent NACK, say) */
	CACHE_END_SLOTS,   /* pushed out: too many entries */
	CACHE_END_BYTES,   /* pushed out: too many bytes */
	CACHE_END_TTL,
	CACHE_END_DAMAGED, /* it cannot be unpacked: memory went bad */
	CACHE_END_MAX,
};
/* "acked", "dropped", "slots", "bytes", "ttl", "damaged": the label of metrics and log. */
const char *cache_end_name(enum cache_end why);

struct cache_limits {
	size_t slots;	/* entries; 0 disables the cache */
	uint64_t bytes; /* sum of the entries' cost in memory (buf_cost()) */
	uint64_t ttl;	/* age of content, in usec, from which on it is expired */
	uint64_t keep;	/* how long ACKed content stays after its last use, usec; 0: not at all */
	uint64_t pack;	/* content not used for so long, in usec, is compressed; 0: never */
};

/* For reading; only the cache changes it. Valid until the next call that changes the cache. */
struct cache_entry {
	struct vmmap_node by_id; /* by_id.id: the VM */
	struct list order;	 /* entries only: oldest to newest change of content */
	struct list alike;	 /* with the same hold, oldest change first; kept: oldest use */
	struct list loose;	 /* contents that may be packed, idle for longest first */

	struct buf *content; /* packed, if buf_packed() says so */
	struct match *match; /* what streams compare with; NULL: nothing is compared */
	uint64_t digest;     /* of the content (SPEC section 5) */
	uint64_t generation; /* that the content stands for */
	enum cache_hold hold : 8;
	uint64_t change : 56; /* number of the last change of content, among all */
	uint64_t updated;     /* when it was; kept: last use */
	uint64_t first_seen;  /* first insert of this entry */
	uint64_t idle_since;  /* when this content came, or was used last, before it was packed */
};

/* One removal, as the observer sees it. `content` is the observer's for the call only. With hold
 * KEPT it is a kept content that goes, for DROPPED (they are not wanted any more), BYTES or TTL. */
struct cache_removal {
	struct vsr_vm_id id;
	enum cache_end why;
	enum cache_hold
		hold; /* RAW, ANSWERED: unless `why` is ACKED or DROPPED, custody ends here */
	uint64_t generation;
	struct buf *content;
	uint64_t residency; /* now - last change of content, usec */
	uint64_t lifetime;  /* now - first insert, usec */
};

/* Called once for every entry that leaves, after it has left, also if its content is kept; and
 * for every kept content that goes and is not replaced. It must not change the cache. */
typedef void (*cache_observer_t)(const struct cache_removal *removal, void *userdata);

struct cache;

/* An empty cache. observer may be NULL. Returns 0, -ENOMEM. */
int cache_new(const struct cache_limits *limits, cache_observer_t observer, void *userdata,
	      struct cache **ret);
/* Frees the cache and its references; nothing is observed. */
struct cache *cache_free(struct cache *c);
DEFINE_CLEANUP(struct cache, cache_free);

/* New limits. What is too much leaves, oldest first, except content in custody that would be
 * lost: that stays beyond the limits until its custody ends or it expires. */
void cache_set_limits(struct cache *c, const struct cache_limits *limits, uint64_t now);

enum cache_result {
	CACHE_ADDED,   /* the VM had no entry */
	CACHE_CHANGED, /* replaced other content of the VM, first_seen kept, newest now */
	CACHE_SAME,    /* same bytes as the entry's: time and order untouched */
};

/*
 * Stores content for a VM, and takes a reference of its own. First at most 16 expired entries
 * leave from the oldest end, up to the first fresh one; then, if there is still no room, the
 * oldest that may go for this content. With CACHE_SAME the entry keeps its own buffer and only
 * takes over generation and hold.
 *
 * Returns an enum cache_result, or
 *   -EOPNOTSUPP  the cache has no slots
 *   -ENOSPC      it would push out content in custody (see enum cache_hold), or is larger than
 *                the whole cache; expired entries may have left, the VM's own entry is as before
 *   -ENOMEM      likewise
 */
int cache_insert(struct cache *c, struct vsr_vm_id id, struct buf *content, uint64_t digest,
		 uint64_t generation, enum cache_hold hold, uint64_t now);

/* Asks beforehand: would content of `length` bytes of this VM find room? Changes nothing.
 * Returns 0, -EOPNOTSUPP, -ENOSPC as cache_insert() would. */
int cache_admits(const struct cache *c, struct vsr_vm_id id, size_t length, enum cache_hold hold,
		 uint64_t now);

/* The VM's entry, or NULL. cache_lookup() counts a hit or a miss, as the reference counts them
 * for resends; cache_peek() does not. Neither looks at the age. */
const struct cache_entry *cache_lookup(struct cache *c, struct vsr_vm_id id);
const struct cache_entry *cache_peek(const struct cache *c, struct vsr_vm_id id);

/* The content of the VM that is at hand, in an entry or kept; its hold tells which. NULL: none. */
const struct cache_entry *cache_known(const struct cache *c, struct vsr_vm_id id);

/* The VM has reported the content once more: a use, for how long it is kept and when it is packed.
 * It changes neither the order nor the age of an entry. */
void cache_used(struct cache *c, struct vsr_vm_id id, uint64_t now);

/* Removes the VM's entry if it stands for this generation; with CACHE_END_ACKED its content is kept
 * if limits.keep says so. Returns 0, -ENOENT. */
int cache_remove(struct cache *c, struct vsr_vm_id id, uint64_t generation, enum cache_end why,
		 uint64_t now);

/* Removes what is kept of the VM after its ACK. Returns 0, -ENOENT: nothing is. */
int cache_forget(struct cache *c, struct vsr_vm_id id, uint64_t now);

/* Custody of this generation ended but the content stays, or became durable. Returns 0, -ENOENT
 * (no entry of this generation). */
int cache_set_hold(struct cache *c, struct vsr_vm_id id, uint64_t generation, enum cache_hold hold);

/* Streams of the VM can be compared with what its entry holds: takes over the cache's reference of
 * `match` (match_new()), which goes with the content, however that leaves. The entry must be
 * there. */
void cache_set_match(struct cache *c, struct vsr_vm_id id, struct match *match);

/* Removes up to `max` expired entries, oldest first, then what is beyond lowered limits, then kept
 * contents that were not used for too long. Returns how many left; if that is max, there may be
 * more. */
size_t cache_sweep(struct cache *c, size_t max, uint64_t now);

/* Entries from oldest to newest change: NULL for the first; NULL behind the last. */
const struct cache_entry *cache_next(const struct cache *c, const struct cache_entry *e);

/* Packs contents that nobody has used for limits.pack: a step of at most `slice` bytes (about 1 ms
 * for a MiB), so that nobody waits for it. What does not get smaller, or finds no memory, stays as
 * it is. Returns whether there is more to do now. */
bool cache_pack(struct cache *c, size_t slice, uint64_t now);
/* When to call it next, USEC_INFINITY: never. */
uint64_t cache_pack_due(const struct cache *c);

struct cache_stats {
	size_t slots_used, slots; /* slots: the limit */
	uint64_t bytes;		  /* cost of all entries and all that is kept */
	uint64_t hits, misses;	  /* of cache_lookup() */
	size_t kept;		  /* contents kept after their ACK */
	uint64_t kept_bytes;	  /* their cost */
	size_t packed;		  /* contents that are packed now */
	uint64_t packed_bytes;	  /* their cost */
	uint64_t packed_length;	  /* bytes that they stand for */
};
void cache_get_stats(const struct cache *c, struct cache_stats *ret);

#endif
