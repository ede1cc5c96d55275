/* SPDX-License-Identifier: Apache-2.0 */
#include "cache.h"

#include "pack.h"

/* Expired entries that one insert removes at most: bounds what a report has to wait for, and
 * still drains faster than inserts can fill (the reference's number). */
#define EXPIRED_PER_INSERT 16

struct cache {
	struct cache_limits limits;
	cache_observer_t observer;
	void *userdata;

	struct vmmap by_id;
	struct list order; /* entries */
	/* By what they hold, so that the oldest that may go is found without walking past entries that may
	 * not. Lists, since all but cache_set_hold() adds the newest: a heap of 10000 took several misses of
	 * the CPU's caches for each change. */
	struct list alike[CACHE_HOLD_MAX];
	size_t count[CACHE_HOLD_MAX];
	uint64_t bytes[CACHE_HOLD_MAX];
	struct list loose; /* contents that may be packed, idle for longest first */
	struct packer *packer;
	struct cache_entry *packing; /* out of loose */
	size_t packed;
	uint64_t packed_bytes, packed_length;
	uint64_t changes;
	uint64_t hits, misses;
};

const char *cache_end_name(enum cache_end why)
{
	static const char *const names[CACHE_END_MAX] = {
		[CACHE_END_ACKED] = "acked", [CACHE_END_DROPPED] = "dropped",
		[CACHE_END_SLOTS] = "slots", [CACHE_END_BYTES] = "bytes",
		[CACHE_END_TTL] = "ttl",     [CACHE_END_DAMAGED] = "damaged",
	};

	return names[why];
}

int cache_new(const struct cache_limits *limits, cache_observer_t observer, void *userdata,
	      struct cache **ret)
{
	struct cache *c = calloc(1, sizeof(*c));
	int r;

	if (!c)
		return -ENOMEM;
	r = vmmap_init(&c->by_id);
	if (r < 0) {
		free(c);
		return r;
	}
	c->limits = *limits;
	c->observer = observer;
	c->userdata = userdata;
	list_init(&c->order);
	for (size_t i = 0; i < CACHE_HOLD_MAX; i++)
		list_init(&c->alike[i]);
	list_init(&c->loose);
	*ret = c;
	return 0;
}

/* The entry lets go of its content. */
static void empty(struct cache *c, struct cache_entry *e)
{
	if (c->packing == e) {
		packer_cancel(c->packer);
		c->packing = NULL;
	}
	list_del(&e->loose);
	if (e->content && buf_packed(e->content)) {
		c->packed--;
		c->packed_bytes -= buf_cost(e->content);
		c->packed_length -= buf_len(e->content);
	}
	e->match = match_uncache(e->match);
	e->content = buf_unref(e->content);
}

static struct cache_entry *entry_free(struct cache *c, struct cache_entry *e)
{
	empty(c, e);
	free(e);
	return NULL;
}

struct cache *cache_free(struct cache *c)
{
	if (!c)
		return NULL;
	for (size_t i = 0; i < CACHE_HOLD_MAX; i++)
		list_for_each_safe(node, &c->alike[i])
			entry_free(c, container_of(node, struct cache_entry, alike));
	packer_free(c->packer);
	vmmap_done(&c->by_id);
	free(c);
	return NULL;
}

static struct cache_entry *find(const struct cache *c, struct vsr_vm_id id)
{
	return vmmap_entry(vmmap_find(&c->by_id, id), struct cache_entry, by_id);
}

/* The VM's entry: what is kept is none. */
static struct cache_entry *find_entry(const struct cache *c, struct vsr_vm_id id)
{
	struct cache_entry *e = find(c, id);

	return e && e->hold != CACHE_HOLD_KEPT ? e : NULL;
}

static uint64_t total_bytes(const struct cache *c)
{
	uint64_t bytes = 0;

	for (size_t i = 0; i < CACHE_HOLD_MAX; i++)
		bytes += c->bytes[i];
	return bytes;
}

static size_t slots_used(const struct cache *c)
{
	return c->count[CACHE_HOLD_NONE] + c->count[CACHE_HOLD_RAW] + c->count[CACHE_HOLD_ANSWERED];
}

static bool expired(const struct cache *c, const struct cache_entry *e, uint64_t now)
{
	return now >= usec_add(e->updated, c->limits.ttl);
}

/* The last of those with this hold whose content changed before that of e, or the head. Nothing pushes
 * out answered content, and kept content is ordered by use: these go last. */
static struct list *place_of(struct cache *c, const struct cache_entry *e, enum cache_hold hold)
{
	struct list *head = &c->alike[hold], *after = head->prev;

	if (hold != CACHE_HOLD_NONE && hold != CACHE_HOLD_RAW)
		return after;
	while (after != head && container_of(after, struct cache_entry, alike)->change > e->change)
		after = after->prev;
	return after;
}

/* Contents with the same hold count together. */
static void join_class(struct cache *c, struct cache_entry *e, enum cache_hold hold)
{
	e->hold = hold;
	c->count[hold]++;
	c->bytes[hold] += buf_cost(e->content);
	list_add_after(place_of(c, e, hold), &e->alike);
}

static void leave_class(struct cache *c, struct cache_entry *e)
{
	c->count[e->hold]--;
	c->bytes[e->hold] -= buf_cost(e->content);
	list_del(&e->alike);
}

/* The entry's content has not changed. */
static void set_hold(struct cache *c, struct cache_entry *e, enum cache_hold hold)
{
	if (e->hold == hold)
		return;
	leave_class(c, e);
	join_class(c, e, hold);
}

static void keep(struct cache *c, struct cache_entry *e, uint64_t now)
{
	e->updated = now;
	join_class(c, e, CACHE_HOLD_KEPT);
}

static void discard(struct cache *c, struct cache_entry *e, enum cache_end why, uint64_t now)
{
	bool keeps = why == CACHE_END_ACKED && c->limits.keep > 0 && c->limits.slots > 0;
	struct cache_removal removal = {
		.id = e->by_id.id,
		.why = why,
		.hold = e->hold,
		.generation = e->generation,
		.content = e->content,
		.residency = usec_sub(now, e->updated),
		.lifetime = usec_sub(now, e->first_seen),
	};

	leave_class(c, e);
	list_del(&e->order);
	if (keeps)
		keep(c, e, now);
	else
		vmmap_remove(&c->by_id, &e->by_id);
	if (c->observer)
		c->observer(&removal, c->userdata);
	if (!keeps)
		entry_free(c, e);
}

static struct cache_entry *oldest_of(const struct cache *c, enum cache_hold hold)
{
	return list_first_entry(&c->alike[hold], struct cache_entry, alike);
}

/* Kept contents, least recently used first, that were not used for `age`. */
static size_t discard_kept(struct cache *c, uint64_t age, enum cache_end why, size_t max,
			   uint64_t now)
{
	size_t n = 0;

	while (n < max) {
		struct cache_entry *e = oldest_of(c, CACHE_HOLD_KEPT);

		if (!e || now < usec_add(e->updated, age))
			break;
		discard(c, e, why, now);
		n++;
	}
	return n;
}

static size_t discard_expired(struct cache *c, size_t max, uint64_t now)
{
	size_t n = 0;

	while (n < max) {
		struct cache_entry *e = list_first_entry(&c->order, struct cache_entry, order);

		if (!e || !expired(c, e, now))
			break;
		discard(c, e, CACHE_END_TTL, now);
		n++;
	}
	return n;
}

/* Whether content with `hold` may push out another VM's entry with `other`. */
static bool may_push_out(enum cache_hold hold, enum cache_hold other)
{
	return other == CACHE_HOLD_NONE || other == CACHE_HOLD_KEPT ||
	       (other == CACHE_HOLD_RAW && hold == CACHE_HOLD_RAW);
}

/* The oldest entry that content with `hold` may push out, or NULL. */
static struct cache_entry *oldest_for(const struct cache *c, enum cache_hold hold)
{
	struct cache_entry *none = oldest_of(c, CACHE_HOLD_NONE);
	struct cache_entry *raw =
		may_push_out(hold, CACHE_HOLD_RAW) ? oldest_of(c, CACHE_HOLD_RAW) : NULL;

	return !raw || (none && none->change < raw->change) ? none : raw;
}

/* Pushes out what is kept, and then the oldest entry that may go, until `slots` more entries and
 * `bytes` more bytes fit, or nothing more may go, or `max` went. Returns how many went. */
static size_t push_out(struct cache *c, enum cache_hold hold, size_t slots, uint64_t bytes,
		       size_t max, uint64_t now)
{
	size_t n = 0;

	while (n < max) {
		bool too_many = slots_used(c) + slots > c->limits.slots;
		bool too_large = total_bytes(c) + bytes > c->limits.bytes;
		struct cache_entry *e = NULL;

		if (!too_many && !too_large)
			break;
		if (!too_many)
			e = oldest_of(c, CACHE_HOLD_KEPT);
		if (!e)
			e = oldest_for(c, hold);
		if (!e)
			break;
		discard(c, e, too_many ? CACHE_END_SLOTS : CACHE_END_BYTES, now);
		n++;
	}
	return n;
}

void cache_set_limits(struct cache *c, const struct cache_limits *limits, uint64_t now)
{
	c->limits = *limits;
	if (limits->keep == 0 || limits->slots == 0)
		discard_kept(c, 0, CACHE_END_DROPPED, SIZE_MAX, now);
	push_out(c, CACHE_HOLD_NONE, 0, 0, SIZE_MAX, now);
}

/* What no new content can push out of the cache, and so has to live beside it. */
struct fixed {
	size_t count;
	uint64_t bytes;
};

static struct fixed fixed_for(const struct cache *c, enum cache_hold hold)
{
	struct fixed f = { 0 };

	for (enum cache_hold other = 0; other < CACHE_HOLD_MAX; other++)
		if (!may_push_out(hold, other)) {
			f.count += c->count[other];
			f.bytes += c->bytes[other];
		}
	return f;
}

/* The entry leaves anyway: expired, or the VM's own that is replaced. */
static void fixed_without(struct fixed *f, enum cache_hold hold, const struct cache_entry *e)
{
	if (may_push_out(hold, e->hold))
		return;
	f->count--;
	f->bytes -= buf_cost(e->content);
}

/* Replacing takes no slot: it works even where more entries are held than slots are left. */
static bool fits_beside(const struct cache *c, const struct fixed *f, bool replaces, uint64_t cost)
{
	return (replaces || f->count < c->limits.slots) && cost <= c->limits.bytes &&
	       f->bytes <= c->limits.bytes - cost;
}

int cache_admits(const struct cache *c, struct vsr_vm_id id, size_t length, enum cache_hold hold,
		 uint64_t now)
{
	struct fixed f = fixed_for(c, hold);
	const struct cache_entry *own = find_entry(c, id);
	size_t n = 0;

	if (c->limits.slots == 0)
		return -EOPNOTSUPP;
	list_for_each(node, &c->order) {
		const struct cache_entry *e = container_of(node, struct cache_entry, order);

		if (n++ == EXPIRED_PER_INSERT || !expired(c, e, now))
			break;
		fixed_without(&f, hold, e);
		if (e == own)
			own = NULL;
	}
	if (own)
		fixed_without(&f, hold, own);
	return fits_beside(c, &f, own, buf_cost_of(length)) ? 0 : -ENOSPC;
}

static bool same_content(const struct cache_entry *e, const struct buf *content, uint64_t digest)
{
	if (e->content == content)
		return true;
	if (e->digest != digest)
		return false;
	/* What is kept and packed is replaced: unpacking it to find that it is the same would make
	 * the report wait. */
	return !(e->hold == CACHE_HOLD_KEPT && buf_packed(e->content)) &&
	       content_equal(e->content, content);
}

/* The entry holds this content now, and is the newest. */
static void fill(struct cache *c, struct cache_entry *e, struct buf *content, uint64_t digest,
		 uint64_t generation, enum cache_hold hold, uint64_t now)
{
	if (e->content != content) {
		empty(c, e);
		e->content = buf_ref(content);
		e->idle_since = now;
		list_add_last(&c->loose, &e->loose);
	}
	e->digest = digest;
	e->generation = generation;
	e->updated = now;
	e->change = ++c->changes;
	list_add_last(&c->order, &e->order);
	join_class(c, e, hold);
}

static int replace(struct cache *c, struct cache_entry *own, struct buf *content, uint64_t digest,
		   uint64_t generation, enum cache_hold hold, uint64_t now)
{
	struct fixed f = fixed_for(c, hold);

	fixed_without(&f, hold, own);
	if (!fits_beside(c, &f, true, buf_cost(content)))
		return -ENOSPC;
	/* Out of its class and the order first, so that it is not pushed out itself. */
	leave_class(c, own);
	list_del(&own->order);
	push_out(c, hold, 0, buf_cost(content), SIZE_MAX, now);
	fill(c, own, content, digest, generation, hold, now);
	return CACHE_CHANGED;
}

/* An entry for a VM that has none: in the place of what is kept of it, or a new one. */
static int add(struct cache *c, struct vsr_vm_id id, struct cache_entry *kept, struct buf *content,
	       uint64_t digest, uint64_t generation, enum cache_hold hold, uint64_t now)
{
	struct fixed f = fixed_for(c, hold);
	struct cache_entry *e = kept;

	if (!fits_beside(c, &f, false, buf_cost(content)))
		return -ENOSPC;
	if (!kept) {
		e = calloc(1, sizeof(*e));
		if (!e)
			return -ENOMEM;
		list_init(&e->loose);
		vmmap_add(&c->by_id, &e->by_id, id);
	} else {
		/* The same bytes stay where they are. */
		if (same_content(kept, content, digest))
			content = kept->content;
		leave_class(c, kept);
	}
	push_out(c, hold, 1, buf_cost(content), SIZE_MAX, now);
	e->first_seen = now;
	fill(c, e, content, digest, generation, hold, now);
	return CACHE_ADDED;
}

int cache_insert(struct cache *c, struct vsr_vm_id id, struct buf *content, uint64_t digest,
		 uint64_t generation, enum cache_hold hold, uint64_t now)
{
	struct cache_entry *own;

	if (c->limits.slots == 0)
		return -EOPNOTSUPP;
	discard_expired(c, EXPIRED_PER_INSERT, now);
	own = find(c, id);
	if (!own || own->hold == CACHE_HOLD_KEPT)
		return add(c, id, own, content, digest, generation, hold, now);
	if (!same_content(own, content, digest))
		return replace(c, own, content, digest, generation, hold, now);
	set_hold(c, own, hold);
	own->generation = generation;
	return CACHE_SAME;
}

const struct cache_entry *cache_peek(const struct cache *c, struct vsr_vm_id id)
{
	return find_entry(c, id);
}

const struct cache_entry *cache_known(const struct cache *c, struct vsr_vm_id id)
{
	return find(c, id);
}

void cache_used(struct cache *c, struct vsr_vm_id id, uint64_t now)
{
	struct cache_entry *e = find(c, id);

	if (!e)
		return;
	if (list_linked(&e->loose)) {
		e->idle_since = now;
		list_move_last(&c->loose, &e->loose);
	}
	if (e->hold == CACHE_HOLD_KEPT) {
		leave_class(c, e);
		keep(c, e, now);
	}
}

const struct cache_entry *cache_lookup(struct cache *c, struct vsr_vm_id id)
{
	const struct cache_entry *e = find_entry(c, id);

	if (e)
		c->hits++;
	else
		c->misses++;
	return e;
}

int cache_remove(struct cache *c, struct vsr_vm_id id, uint64_t generation, enum cache_end why,
		 uint64_t now)
{
	struct cache_entry *e = find_entry(c, id);

	if (!e || e->generation != generation)
		return -ENOENT;
	discard(c, e, why, now);
	return 0;
}

int cache_forget(struct cache *c, struct vsr_vm_id id, uint64_t now)
{
	struct cache_entry *e = find(c, id);

	if (!e || e->hold != CACHE_HOLD_KEPT)
		return -ENOENT;
	discard(c, e, CACHE_END_DROPPED, now);
	return 0;
}

int cache_set_hold(struct cache *c, struct vsr_vm_id id, uint64_t generation, enum cache_hold hold)
{
	struct cache_entry *e = find_entry(c, id);

	if (!e || e->generation != generation)
		return -ENOENT;
	set_hold(c, e, hold);
	return 0;
}

void cache_set_match(struct cache *c, struct vsr_vm_id id, struct match *match)
{
	struct cache_entry *e = find(c, id);

	match_uncache(e->match);
	e->match = match;
}

size_t cache_sweep(struct cache *c, size_t max, uint64_t now)
{
	size_t n = discard_expired(c, max, now);

	n += push_out(c, CACHE_HOLD_NONE, 0, 0, max - n, now);
	return n + discard_kept(c, c->limits.keep, CACHE_END_TTL, max - n, now);
}

/* ---- packing ------------------------------------------------------------------------------------ */

static struct cache_entry *next_loose(const struct cache *c)
{
	return list_first_entry(&c->loose, struct cache_entry, loose);
}

uint64_t cache_pack_due(const struct cache *c)
{
	const struct cache_entry *e = next_loose(c);

	if (c->packing)
		return 0;
	return e && c->limits.pack > 0 ? usec_add(e->idle_since, c->limits.pack) : USEC_INFINITY;
}

static void begin_packing(struct cache *c)
{
	struct cache_entry *e = next_loose(c);

	list_del(&e->loose);
	if (!c->packer && packer_new(&c->packer) < 0)
		return;
	if (packer_begin(c->packer, e->content) == 0)
		c->packing = e;
}

/* The entry's content is the packed one now. Sends and connections that have the other keep it. */
static void replace_by_packed(struct cache *c, struct cache_entry *e, struct buf *packed)
{
	size_t before = buf_cost(e->content), cost = buf_cost(packed);

	if (e->match)
		match_pack(e->match, packed, reader_copy);
	buf_unref(e->content);
	e->content = packed;
	c->bytes[e->hold] -= before - cost;
	c->packed++;
	c->packed_bytes += cost;
	c->packed_length += buf_len(packed);
}

bool cache_pack(struct cache *c, size_t slice, uint64_t now)
{
	struct buf *packed;
	int r;

	if (cache_pack_due(c) > now)
		return false;
	if (!c->packing)
		begin_packing(c);
	if (c->packing) {
		r = packer_step(c->packer, slice, &packed);
		if (r > 0)
			replace_by_packed(c, c->packing, packed);
		if (r != 0)
			c->packing = NULL;
	}
	if (cache_pack_due(c) <= now)
		return true;
	/* Its memory is not needed while there is nothing to do. */
	c->packer = packer_free(c->packer);
	return false;
}

const struct cache_entry *cache_next(const struct cache *c, const struct cache_entry *e)
{
	const struct list *next = e ? e->order.next : c->order.next;

	return next == &c->order ? NULL : container_of(next, struct cache_entry, order);
}

void cache_get_stats(const struct cache *c, struct cache_stats *ret)
{
	*ret = (struct cache_stats){
		.slots_used = slots_used(c),
		.slots = c->limits.slots,
		.bytes = total_bytes(c),
		.hits = c->hits,
		.misses = c->misses,
		.kept = c->count[CACHE_HOLD_KEPT],
		.kept_bytes = c->bytes[CACHE_HOLD_KEPT],
		.packed = c->packed,
		.packed_bytes = c->packed_bytes,
		.packed_length = c->packed_length,
	};
}
