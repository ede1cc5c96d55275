/* SPDX-License-Identifier: Apache-2.0 */
#include "relay.h"

#include "crash_point.h"
#include "metrics.h"
#include "pack.h"
#include "usdt.h"

/* Expired entries that one call of relay_run() removes: no report waits for a long sweep. */
#define SWEEP_BATCH 64
/* Bytes of content packed in one turn of the loop, at some 1 GB/s. */
#define PACK_SLICE (256 * KIB)
/* The upstream said that it takes no more just now. */
#define BUSY_DEFER (100 * USEC_PER_MSEC)
/* An upstream that refuses all is probed (SPEC 8). */
#define PROBE_FIRST (30 * USEC_PER_SEC)
#define PROBE_MAX   (10 * USEC_PER_MIN)
/* A content that the upstream will not have is dropped after so many tries (SPEC 8). */
#define REJECTIONS_MAX 3
/* A content that could not be read from the store. */
#define READ_DEFER (5 * USEC_PER_SEC)

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

struct relay_send {
	struct upstream_send up;
	struct store_read read; /* of the payload, before it is sent */
	struct list list;	/* in relay.sends */
	struct relay *relay;	/* NULL: the relay is gone */
	struct vm *vm;
	uint64_t tracked; /* the tracker's name for it; 0: sent without a cache */
	uint64_t started;
	bool token;		      /* took one of the VM's bucket */
	bool probe;		      /* of a paused upstream */
	bool again;		      /* something newer, or a due retry, came meanwhile */
	struct relay_report *waiter;  /* without a cache: who waits for the result */
	struct store_content content; /* without a cache: becomes the record with the ACK */
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

static void try_send(struct relay *r, struct vm *vm, uint64_t now);
static void on_stored(struct store_write *w, int result, uint64_t now);

/* ---- custody ------------------------------------------------------------------------------------ */

static void changed(struct relay *r, const struct vm *vm)
{
	if (r->observe)
		r->observe(vm, r->observe_data);
}

static bool is_unspooled(const struct relay *r, const struct held *h)
{
	return r->store && !h->spooled;
}

/* The store need not keep these generations any longer, or those that are being written. */
static void drop_stored(struct relay *r, struct vsr_vm_id id, uint64_t first, uint64_t last)
{
	if (r->store)
		r->store->ops->drop(r->store, id, first, last);
}

/* Takes the content in custody off the books; how it ended is counted. */
static void drop_held(struct relay *r, struct vm *vm, enum metric_ended how)
{
	struct held *h = vm->custody;

	metric_inc_label(METRIC_CONTENTS_ENDED, how);
	r->n_unspooled -= is_unspooled(r, h);
	if (h->storing)
		h->storing->held = NULL;
	list_del(&h->unspooled);
	list_del(&h->by_age);
	list_del(&h->ready);
	r->n_held--;
	r->n_sent -= h->sent;
	vm->custody = NULL;
	free(h);
}

/* Custody of what the VM has ended, and nothing newer takes its place. Only an ACK leaves the
 * digest of record: after anything else the same report is new. */
static void end_custody(struct relay *r, struct vm *vm, enum metric_ended how)
{
	const struct held *h = vm->custody;

	drop_stored(r, vm->node.id, 0, h->generation);
	drop_held(r, vm, how);
	tracker_end(r->tracker, vm);
	if (how != METRIC_ENDED_ACKED)
		vm->has_record = false;
	changed(r, vm);
}

static void count_unkept(enum cache_end why)
{
	metric_inc_label(METRIC_CACHE_KEPT_REMOVALS, why == CACHE_END_BYTES ? METRIC_UNKEPT_BYTES
						     : why == CACHE_END_TTL ? METRIC_UNKEPT_SILENT
									    : METRIC_UNKEPT_OFF);
}

/* The bytes of a report that came raw go, and offers still name it: the last chance to hash it. */
static void name_record(struct relay *r, const struct cache_removal *removal)
{
	struct vm *vm = vm_table_find(r->vms, removal->id);

	if (!vm || !vm->record_xxh64_unknown || cache_known(r->cache, removal->id) ||
	    removal->generation != vm->generation || buf_len(removal->content) != vm->record_length)
		return;
	vm->record_xxh64 = content_xxh64(removal->content);
	vm->record_xxh64_unknown = false;
}

/* The cache let go of an entry. If something was lost with it, custody ends here. */
static void on_cache_removal(const struct cache_removal *removal, void *userdata)
{
	static const enum metric_ended how[CACHE_END_MAX] = {
		[CACHE_END_SLOTS] = METRIC_ENDED_SLOTS,
		[CACHE_END_BYTES] = METRIC_ENDED_BYTES,
		[CACHE_END_TTL] = METRIC_ENDED_TTL,
		[CACHE_END_DAMAGED] = METRIC_ENDED_DAMAGED,
	};
	struct relay *r = userdata;
	struct vm *vm;
	const struct held *h;

	name_record(r, removal);
	if (removal->hold == CACHE_HOLD_KEPT) {
		count_unkept(removal->why);
		return;
	}
	metric_inc_label(METRIC_CACHE_REMOVALS, removal->why);
	metric_observe(HISTOGRAM_CACHE_RESIDENCY, 0, removal->residency);
	metric_observe(HISTOGRAM_CACHE_LIFETIME, 0, removal->lifetime);
	if (removal->why == CACHE_END_ACKED || removal->why == CACHE_END_DROPPED ||
	    removal->hold == CACHE_HOLD_NONE)
		return;
	vm = vm_table_find(r->vms, removal->id);
	h = vm ? vm->custody : NULL;
	if (h && h->generation == removal->generation)
		end_custody(r, vm, how[removal->why]);
}

static void set_record(struct vm *vm, const struct store_content *c)
{
	vm->has_record = true;
	vm->record_digest = c->digest;
	vm->record_length = c->length;
	vm->record_xxh64 = c->xxh64;
	vm->record_xxh64_unknown = c->xxh64_unknown;
}

/* The XXH64 of the VM's record, if it is known, or its content is at hand. Of a report that came raw
 * nobody has asked for it before an offer, or a framed report of the same length, comes. */
static const uint64_t *record_xxh64(struct relay *r, struct vm *vm)
{
	const struct cache_entry *e;

	if (vm->record_xxh64_unknown) {
		e = cache_known(r->cache, vm->node.id);
		if (e && e->digest == vm->record_digest &&
		    buf_len(e->content) == vm->record_length) {
			vm->record_xxh64 = content_xxh64(e->content);
			vm->record_xxh64_unknown = false;
		}
	}
	return vm->record_xxh64_unknown ? NULL : &vm->record_xxh64;
}

/* As many slots as VMs seen, but never fewer than are configured. */
static struct cache_limits limits_now(const struct relay *r)
{
	struct cache_limits limits = r->settings.cache;

	if (r->settings.slots_auto)
		limits.slots = MAX(limits.slots, vm_table_count(r->vms));
	return limits;
}

/* `auto` slots follow the number of VMs. */
static void follow_vms(struct relay *r, uint64_t now)
{
	struct cache_limits limits = limits_now(r);
	struct cache_stats stats;

	cache_get_stats(r->cache, &stats);
	if (limits.slots != stats.slots)
		cache_set_limits(r->cache, &limits, now);
}

/* Later streams of the VM are compared with what its entry holds now. Without memory for that they
 * are read as before. */
static void make_comparable(struct relay *r, const struct store_content *c, const uint64_t *blocks)
{
	const struct cache_entry *e = cache_peek(r->cache, c->vm);
	uint64_t extent;

	if (r->matches && e && !buf_packed(e->content) &&
	    (!e->match || (blocks && !match_extent(e->match, &extent))))
		cache_set_match(r->cache, c->vm,
				match_new(r->matches, e->content, c->digest, blocks));
}

struct match *relay_match(struct relay *r, const struct vm *vm)
{
	const struct cache_entry *e = cache_known(r->cache, vm->node.id);

	return e && !r->settings.dedup_bytes ? match_ref(e->match) : NULL;
}

/* What is taken into custody. */
struct taking {
	struct vm *vm;
	const struct store_content *content;
	struct buf *payload;
	const uint64_t *blocks; /* relay_report.blocks */
	enum cache_hold hold;	/* NONE: it is durable */
	bool promised;		/* struct held */
};

/* Puts it into the cache. What is durable needs no place there, but then what the VM had there
 * must not be taken for it. */
static int keep_payload(struct relay *r, const struct taking *t, uint64_t now)
{
	struct vsr_vm_id id = t->content->vm;
	const struct cache_entry *e;
	int result;

	result = cache_insert(r->cache, id, t->payload, t->content->digest, t->content->generation,
			      t->hold, now);
	if (result >= 0) {
		make_comparable(r, t->content, t->blocks);
		return 0;
	}
	if (t->hold != CACHE_HOLD_NONE)
		return result;
	e = cache_peek(r->cache, id);
	if (e)
		cache_remove(r->cache, id, e->generation, CACHE_END_DROPPED, now);
	return 0;
}

static void add_held(struct relay *r, struct held *h, struct vm *vm, const struct store_content *c)
{
	h->vm = vm;
	h->generation = c->generation;
	h->vm_id_hash = c->vm_id_hash;
	list_init(&h->ready);
	list_init(&h->unspooled);
	list_add_last(&r->held, &h->by_age);
	r->n_held++;
	r->n_unspooled += is_unspooled(r, h);
	vm->custody = h;
	vm->generation = c->generation;
	set_record(vm, c);
}

/* Begins custody of a content as the VM's next generation. */
static int take_custody(struct relay *r, const struct taking *t, uint64_t now)
{
	struct vm *vm = t->vm;
	uint64_t generation = t->content->generation;
	struct held *h;
	int result;

	h = calloc(1, sizeof(*h));
	if (!h)
		return -ENOMEM;
	result = keep_payload(r, t, now);
	if (result >= 0 && tracker_want(r->tracker, vm, generation, now) < 0) {
		const struct held *old = vm->custody;

		/* The old content left with the insert: if that was all, nothing of this VM is
		 * held any more. */
		cache_remove(r->cache, vm->node.id, generation, CACHE_END_DROPPED, now);
		if (old && !old->spooled)
			end_custody(r, vm, METRIC_ENDED_SUPERSEDED);
		result = -ENOMEM;
	}
	if (result < 0) {
		free(h);
		return result;
	}
	h->promised = t->promised;
	if (vm->custody) {
		h->promised |= ((const struct held *)vm->custody)->promised;
		drop_held(r, vm, METRIC_ENDED_SUPERSEDED);
	}
	vm->accepts++;
	vm->last_accepted = now;
	h->accepted = (int64_t)now;
	h->spooled = t->hold == CACHE_HOLD_NONE;
	add_held(r, h, vm, t->content);
	/* Only now: what is not durable must not cost what is. */
	if (h->spooled)
		drop_stored(r, vm->node.id, 0, generation - 1);
	changed(r, vm);
	return 0;
}

/* ---- sends -------------------------------------------------------------------------------------- */

static void on_sent(struct upstream_send *up, enum send_result result, uint64_t now);

static struct relay_send *send_new(struct relay *r, struct vm *vm, uint64_t generation,
				   uint64_t now)
{
	struct relay_send *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->relay = r;
	s->vm = vm;
	s->started = now;
	s->up.vm = vm->node.id;
	s->up.generation = generation;
	s->up.done = on_sent;
	list_init(&s->list);
	return s;
}

static struct relay_send *send_free(struct relay_send *s)
{
	if (!s)
		return NULL;
	list_del(&s->list);
	buf_unref(s->up.payload);
	free(s);
	return NULL;
}

/* The send takes one of the places, and its VM's turn. */
static void send_begin(struct relay *r, struct relay_send *s)
{
	list_add_last(&r->sends, &s->list);
	r->n_sends++;
	s->vm->in_flight = s;
}

static void send_end(struct relay *r, struct relay_send *s)
{
	list_del(&s->list);
	r->n_sends--;
	s->vm->in_flight = NULL;
}

/* Hands the send to the upstream. Returns 0 or -EBUSY. */
static int send_start(struct relay *r, struct relay_send *s)
{
	send_begin(r, s);
	if (r->upstream->ops->send(r->upstream, &s->up) == 0) {
		USDT_SENT(s->vm->node.id, s->up.generation, buf_len(s->up.payload));
		CRASH_POINT("sending");
		return 0;
	}
	send_end(r, s);
	return -EBUSY;
}

static void count_limited(struct relay *r, struct held *h, uint64_t now)
{
	const struct vm *vm = h->vm;

	if (h->limited)
		return;
	h->limited = true;
	metric_inc_label(METRIC_RATE_LIMITED,
			 vm->last_ack == 0 || usec_sub(now, vm->last_ack) > r->settings.stale_ack
				 ? METRIC_RATE_STALE_ACK
				 : METRIC_RATE_NORMAL);
}

/* The payload to send: a retry counts its look-up, as in the reference. */
static struct buf *payload_of(struct relay *r, const struct held *h)
{
	struct vsr_vm_id id = h->vm->node.id;
	const struct cache_entry *e =
		h->sent ? cache_lookup(r->cache, id) : cache_peek(r->cache, id);

	return e && e->generation == h->generation ? e->content : NULL;
}

/* Whether anything but a probe may be sent now. */
static bool open_for_sends(const struct relay *r)
{
	return r->upstream->ready && !r->paused && r->n_sends < RELAY_IN_FLIGHT_MAX;
}

/* The payload is at hand. Returns 0, or -EBUSY and *ret_until. */
static int send_payload(struct relay *r, struct held *h, struct relay_send *s, struct buf *payload,
			uint64_t now, uint64_t *ret_until)
{
	struct vm *vm = h->vm;
	uint64_t until = usec_add(now, BUSY_DEFER);

	*ret_until = until;
	if (tracker_send(r->tracker, vm, h->vm_id_hash, now, &s->tracked, &until) < 0) {
		*ret_until = until;
		return -EBUSY;
	}
	s->up.payload = buf_ref(payload);
	if (send_start(r, s) < 0) {
		tracker_settle(r->tracker, vm, s->tracked);
		return -EBUSY;
	}
	metric_add(METRIC_RESENDS, h->sent);
	if (h->sent)
		USDT_RETRIED(vm->node.id, h->generation, buf_len(payload));
	r->n_sent += !h->sent;
	h->sent = true;
	r->probing |= s->probe;
	return 0;
}

static void on_read(struct store_read *rd, int result, struct buf *payload, uint64_t now);

/* The payload has left memory: it is read from the store first. */
static int send_read(struct relay *r, const struct held *h, struct relay_send *s)
{
	int result;

	s->read.vm = h->vm->node.id;
	s->read.generation = h->generation;
	s->read.done = on_read;
	result = h->spooled ? r->store->ops->read(r->store, &s->read) : -EBUSY;
	if (result < 0)
		return result;
	send_begin(r, s);
	r->probing |= s->probe;
	return 0;
}

static bool is_lost(int result)
{
	return result == -ENOENT || result == -EBADMSG;
}

/* The send did not come about. */
static void put_off(struct relay *r, struct vm *vm, bool token, uint64_t until)
{
	if (token)
		vm_give_back_report(r->vms, vm);
	tracker_defer(r->tracker, vm, until);
}

/* Everything allows this send but, maybe, the rate limit, the tracker and the upstream itself. A
 * probe needs no token: it is one send for all VMs. */
static void send_held(struct relay *r, struct held *h, bool probe, uint64_t now)
{
	struct vm *vm = h->vm;
	bool token = vm_take_report(r->vms, vm, now);
	uint64_t until = usec_add(now, BUSY_DEFER);
	struct relay_send *s;
	struct buf *payload;
	int result = -ENOMEM;

	if (!token && !probe) {
		count_limited(r, h, now);
		tracker_defer(r->tracker, vm, vm_next_report(r->vms, vm, now));
		return;
	}
	s = send_new(r, vm, h->generation, now);
	if (s) {
		s->token = token;
		s->probe = probe;
		payload = payload_of(r, h);
		result = payload ? send_payload(r, h, s, payload, now, &until) : send_read(r, h, s);
	}
	if (result == 0)
		return;
	send_free(s);
	put_off(r, vm, token, until);
	if (is_lost(result))
		end_custody(r, vm, METRIC_ENDED_LOST);
}

/* The VM's content is to be sent: now, or as soon as a send of this VM or another one ends. */
static void try_send(struct relay *r, struct vm *vm, uint64_t now)
{
	struct held *h = vm->custody;
	struct relay_send *in_flight = vm->in_flight;

	if (!h)
		return;
	if (in_flight) {
		in_flight->again = true;
	} else if (!open_for_sends(r)) {
		if (!list_linked(&h->ready))
			list_add_last(&r->ready, &h->ready);
	} else {
		list_del(&h->ready);
		send_held(r, h, false, now);
	}
}

static void send_next_ready(struct relay *r, uint64_t now)
{
	struct held *h;

	while (open_for_sends(r) && (h = list_first_entry(&r->ready, struct held, ready))) {
		list_del(&h->ready);
		try_send(r, h->vm, now);
	}
}

/* What was read goes out, unless it is not the VM's content any more. Returns whether the send is
 * under way. */
static bool send_what_was_read(struct relay *r, struct relay_send *s, int result,
			       struct buf *payload, uint64_t now)
{
	struct vm *vm = s->vm;
	struct held *h = vm->custody;
	uint64_t until = usec_add(now, result < 0 ? READ_DEFER : BUSY_DEFER);
	bool current = h && h->generation == s->up.generation;

	if (current && result == 0 && r->upstream->ready &&
	    send_payload(r, h, s, payload, now, &until) == 0)
		return true;
	if (current)
		put_off(r, vm, s->token, until);
	else if (s->token)
		vm_give_back_report(r->vms, vm);
	if (current && is_lost(result))
		end_custody(r, vm, METRIC_ENDED_LOST);
	return false;
}

static void on_read(struct store_read *rd, int result, struct buf *payload, uint64_t now)
{
	struct relay_send *s = container_of(rd, struct relay_send, read);
	struct relay *r = s->relay;
	struct vm *vm = s->vm;
	bool again = s->again;

	if (!r) {
		send_free(s);
		return;
	}
	send_end(r, s);
	s->again = false;
	s->started = now;
	if (s->probe) {
		r->probing = false;
		r->probe_at = usec_add(now, BUSY_DEFER);
	}
	if (!send_what_was_read(r, s, result, payload, now))
		send_free(s);
	if (again)
		try_send(r, vm, now);
	send_next_ready(r, now);
}

/* An ACK for a send of this generation. It says nothing about newer content. */
static void acked(struct relay *r, struct vm *vm, uint64_t generation, uint64_t now)
{
	const struct held *h = vm->custody;

	vm->last_ack = now;
	USDT_ACKED(vm->node.id, generation);
	if (h && h->generation == generation) {
		cache_remove(r->cache, vm->node.id, generation, CACHE_END_ACKED, now);
		end_custody(r, vm, METRIC_ENDED_ACKED);
		CRASH_POINT("acked");
	} else {
		/* Older than this need not come back after a restart, either. */
		if (!h || h->generation > generation)
			drop_stored(r, vm->node.id, 0, generation);
		changed(r, vm);
	}
}

/* ---- an upstream that refuses all ---------------------------------------------------------------- */

/* Nothing more goes out, and due times stand still, until a probe gets through. */
static void refused(struct relay *r, const struct relay_send *s, uint64_t now)
{
	if (!r->paused) {
		r->paused = true;
		r->probe_step = PROBE_FIRST;
		r->probe_at = usec_add(now, r->probe_step);
		tracker_pause(r->tracker, now);
	} else if (s->probe) {
		r->probe_step = MIN(2 * r->probe_step, PROBE_MAX);
		r->probe_at = usec_add(now, r->probe_step);
	}
}

static void resume(struct relay *r, uint64_t now)
{
	if (!r->paused)
		return;
	r->paused = false;
	tracker_resume(r->tracker, now);
}

static void after_pause(struct relay *r, const struct relay_send *s, enum send_result result,
			uint64_t now)
{
	if (s->probe)
		r->probing = false;
	if (result == SEND_ACKED || result == SEND_DELIVERED)
		resume(r, now);
	else if (result == SEND_REFUSED || s->probe)
		refused(r, s, now);
}

static bool probe_is_due(const struct relay *r, uint64_t now)
{
	return r->paused && !r->probing && now >= r->probe_at && r->upstream->ready &&
	       r->n_sends < RELAY_IN_FLIGHT_MAX;
}

/* The content that has waited longest goes out to see whether the upstream takes any again. */
static void probe(struct relay *r, uint64_t now)
{
	struct vm *vm;
	struct held *h;

	vm = probe_is_due(r, now) ? tracker_probe(r->tracker) : NULL;
	if (!vm)
		return;
	h = vm->in_flight ? NULL : vm->custody;
	if (h) {
		list_del(&h->ready);
		send_held(r, h, true, now);
	}
	if (!r->probing)
		r->probe_at = usec_add(now, BUSY_DEFER);
}

/* ---- how sends end -------------------------------------------------------------------------------- */

static void count_send(const struct relay_send *s, enum send_result result, uint64_t now)
{
	bool ok = result == SEND_ACKED || result == SEND_DELIVERED;

	metric_inc_label(METRIC_SEND_ATTEMPTS, ok ? METRIC_SUCCESS : METRIC_FAILURE);
	metric_inc_label(METRIC_REPORTS_SENT, ok ? METRIC_SENT_OK : METRIC_SENT_FAILED);
	metric_observe(HISTOGRAM_SEND_DURATION, ok ? METRIC_SUCCESS : METRIC_FAILURE,
		       usec_sub(now, s->started));
}

/* The ACK of content that was sent without a cache. The settings may have changed meanwhile, so
 * that there is content in custody too: older, from before (it must not overwrite this one
 * upstream), or newer, which is then the record. */
static void uncached_acked(struct relay *r, const struct relay_send *s, uint64_t now)
{
	struct vm *vm = s->vm;
	const struct held *h = vm->custody;

	if (h && h->generation < s->up.generation) {
		cache_remove(r->cache, vm->node.id, h->generation, CACHE_END_DROPPED, now);
		end_custody(r, vm, METRIC_ENDED_SUPERSEDED);
	}
	vm->last_ack = now;
	USDT_ACKED(vm->node.id, s->up.generation);
	if (vm->generation == s->up.generation)
		set_record(vm, &s->content);
}

/* A send without a cache: nothing is kept, so its result is the report's end. */
static void uncached_sent(struct relay *r, struct relay_send *s, enum send_result result,
			  uint64_t now)
{
	struct vm *vm = s->vm;
	struct relay_report *waiter = s->waiter;
	bool took = result == SEND_ACKED || result == SEND_DELIVERED;

	if (result == SEND_ACKED)
		metric_inc_label(METRIC_CONTENTS_ENDED, METRIC_ENDED_ACKED);
	else
		metric_inc_label(METRIC_DROPPED, METRIC_DROPPED_NO_CACHE);
	r->n_held--;
	if (took) {
		vm->accepts++;
		vm->last_accepted = now;
	}
	if (result == SEND_ACKED)
		uncached_acked(r, s, now);
	changed(r, vm);
	if (waiter) {
		waiter->waits_for = NULL;
		waiter->verdict = RELAY_ACCEPTED;
		waiter->decided(waiter, took ? REASON_NONE : REASON_NO_CACHE, now);
	}
}

/* Whether an ACK for this send may still come: it stays remembered then. Where the call's result
 * is the ACK, it settles the send whatever it says (SPEC 7). */
static bool may_be_acked(const struct relay *r, enum send_result result)
{
	return r->upstream->acks_apart && (result == SEND_DELIVERED || result == SEND_FAILED);
}

/* What the result means for the content, if it is still the one in custody. */
static void judge(struct relay *r, const struct relay_send *s, enum send_result result,
		  uint64_t now)
{
	struct vm *vm = s->vm;
	struct held *h = vm->custody;

	if (!h || h->generation != s->up.generation)
		return;
	if (result == SEND_AGAIN && !h->resent) {
		h->resent = true;
		tracker_defer(r->tracker, vm, now);
	} else if (result != SEND_AGAIN) {
		h->resent = false;
	}
	if (result == SEND_DAMAGED)
		cache_remove(r->cache, vm->node.id, h->generation, CACHE_END_DAMAGED, now);
	else if (result == SEND_REJECTED && ++h->rejections >= REJECTIONS_MAX) {
		cache_remove(r->cache, vm->node.id, h->generation, CACHE_END_DROPPED, now);
		end_custody(r, vm, METRIC_ENDED_REJECTED);
	}
}

static void on_sent(struct upstream_send *up, enum send_result result, uint64_t now)
{
	struct relay_send *s = container_of(up, struct relay_send, up);
	struct relay *r = s->relay;
	struct vm *vm = s->vm;
	bool again = s->again;

	if (!r) {
		send_free(s);
		return;
	}
	if (result == SEND_ACKED || result == SEND_DELIVERED)
		CRASH_POINT("sent");
	send_end(r, s);
	count_send(s, result, now);
	if (s->token && (result == SEND_NOT_DELIVERED || result == SEND_AGAIN))
		vm_give_back_report(r->vms, vm);
	after_pause(r, s, result, now);
	if (s->tracked) {
		if (!may_be_acked(r, result))
			tracker_settle(r->tracker, vm, s->tracked);
		if (result == SEND_ACKED)
			acked(r, vm, s->up.generation, now);
		judge(r, s, result, now);
	} else {
		uncached_sent(r, s, result, now);
	}
	send_free(s);
	if (again)
		try_send(r, vm, now);
	send_next_ready(r, now);
}

/* ---- ACKs that belong to no call ------------------------------------------------------------------ */

/* Whom the ACK names. By CID alone only in the initial namespace: in another one several VMs may
 * have the same CID, as the upstream sees it (SPEC 7). */
static struct vm *vm_of_ack(const struct relay *r, const struct tracker_resource *resource,
			    uint64_t vm_id_hash)
{
	struct vm *vm;

	if (r->settings.ns != 0 && !r->settings.several_ns)
		return tracker_claimant(r->tracker, r->settings.ns, vm_id_hash);
	if (r->settings.several_ns) {
		vm = tracker_claimant_anywhere(r->tracker, vm_id_hash);
		if (vm && vm->node.id.ns != 0)
			return vm;
	}
	if (!resource->has_cid)
		return NULL;
	vm = vm_table_find(r->vms, (struct vsr_vm_id){ .ns = 0, .cid = resource->cid });
	return vm && r->settings.several_ns && tracker_shares_cid(r->tracker, vm) ? NULL : vm;
}

static void nacked(struct relay *r, struct vm *vm, uint64_t generation, uint64_t now)
{
	const struct held *h = vm->custody;

	if (!h || h->generation != generation)
		return;
	cache_remove(r->cache, vm->node.id, generation, CACHE_END_DROPPED, now);
	end_custody(r, vm, METRIC_ENDED_NACKED);
}

static void on_ack(const struct upstream_ack *ack, void *userdata, uint64_t now)
{
	struct relay *r = userdata;
	struct tracker_resource resource;
	enum tracker_match match;
	uint64_t hash = 0, generation;
	struct vm *vm;

	metric_inc(METRIC_ACKS_RECEIVED);
	metric_inc_label(METRIC_UPSTREAM_ACKS, ack->nack ? METRIC_NACK : METRIC_ACK);
	tracker_resource_parse(ack->resource, ack->resource_len, &resource);
	if (!r->settings.acks_by_cid)
		hash = tracker_vm_id_hash(resource.vm_id, resource.vm_id_len);
	vm = vm_of_ack(r, &resource, hash);
	if (ack->nack)
		match = tracker_nack(r->tracker, vm, hash, ack->reason, now, &generation);
	else
		match = tracker_ack(r->tracker, vm, hash, now, &generation);
	metric_inc_label(METRIC_ACK_OUTCOMES, match == TRACKER_UNMATCHED ? METRIC_ACK_UNMATCHED
					      : match == TRACKER_STALE	 ? METRIC_ACK_STALE
									 : METRIC_ACK_SETTLED);
	if (match == TRACKER_PERMANENT)
		nacked(r, vm, generation, now);
	else if (match == TRACKER_SETTLED && !ack->nack)
		acked(r, vm, generation, now);
}

/* ---- reports ------------------------------------------------------------------------------------ */

static void count_received(struct vm *vm)
{
	metric_inc(METRIC_VALID);
	vm->received++;
}

/* Whether "it is in custody" may be said to the agent: a framed one takes it for durable. */
static bool may_promise(const struct relay *r, const struct held *h, bool framed)
{
	return !framed || !is_unspooled(r, h) || r->settings.accept_without_disk;
}

/* What a report is that equals the digest of record. While something newer is being stored it is
 * no repeat: the newer one will be the VM's last content. */
static enum relay_verdict repeat_verdict(const struct relay *r, const struct vm *vm, bool framed,
					 uint64_t now)
{
	const struct held *h = vm->custody;

	if (vm->storing)
		return RELAY_NEW;
	if (h)
		return may_promise(r, h, framed) ? RELAY_DUPLICATE : RELAY_NEW;
	if (r->settings.suppress_unchanged && vm->last_ack != 0 &&
	    (r->settings.refresh_interval == 0 ||
	     usec_sub(now, vm->last_ack) < r->settings.refresh_interval))
		return RELAY_SUPPRESSED;
	return RELAY_NEW;
}

/* A framed agent was told that its content is in custody: nothing may push it out any more, also
 * if it came raw at first. */
static void promise(struct relay *r, const struct vm *vm)
{
	struct held *h = vm->custody;

	if (!h)
		return;
	h->promised = true;
	if (!h->spooled)
		cache_set_hold(r->cache, vm->node.id, h->generation, CACHE_HOLD_ANSWERED);
}

static void count_repeat(struct relay *r, struct vm *vm, enum relay_verdict verdict,
			 enum metric_place place, bool framed, uint64_t now)
{
	if (framed)
		promise(r, vm);
	cache_used(r->cache, vm->node.id, now);
	vm->duplicates++;
	if (verdict == RELAY_DUPLICATE)
		metric_inc_label(METRIC_DUPLICATES, place);
	else
		metric_inc(METRIC_SUPPRESSED);
	changed(r, vm);
}

static bool equals_record(const struct vm *vm, uint64_t length, uint64_t digest)
{
	return vm->has_record && vm->record_length == length && vm->record_digest == digest;
}

/* Whether the bytes contradict the digest, or `dedup: bytes` wants them and they are gone. */
static bool contradicted(const struct relay *r, const struct relay_report *report)
{
	const struct cache_entry *e = cache_known(r->cache, report->vm->node.id);

	if (!e || e->digest != report->digest)
		return r->settings.dedup_bytes;
	/* Unpacking takes longer than the digest is worth, unless somebody insists. */
	if (buf_packed(e->content) && !r->settings.dedup_bytes)
		return false;
	return !content_equal(e->content, report->content);
}

/* Without cache and state directory nothing can be kept: sent at once or not at all. */
static int submit_uncached(struct relay *r, struct relay_report *report,
			   const struct store_content *content, uint64_t now)
{
	bool probes = probe_is_due(r, now);
	struct vm *vm = report->vm;
	struct relay_send *s;

	/* What is being stored may be accepted, and must not meet something newer that is not kept. */
	if (vm->in_flight || vm->storing || !(open_for_sends(r) || probes) ||
	    !vm_take_report(r->vms, vm, now))
		return -ENOSPC;
	s = send_new(r, vm, content->generation, now);
	if (s) {
		s->up.payload = buf_ref(report->content);
		s->content = *content;
		s->waiter = report;
		s->token = true;
		s->probe = probes;
		if (send_start(r, s) == 0) {
			vm->generation = content->generation;
			r->n_held++;
			r->probing |= probes;
			report->waits_for = s;
			return -EINPROGRESS;
		}
		send_free(s);
	}
	vm_give_back_report(r->vms, vm);
	return -ENOSPC;
}

/* ---- contents that are made durable --------------------------------------------------------------- */

static struct storing *newest_storing(const struct vm *vm)
{
	return vm->storing;
}

static uint64_t next_generation(const struct relay *r, const struct vm *vm)
{
	const struct storing *newest = newest_storing(vm);
	uint64_t generation = vm->generation;

	if (newest)
		generation = MAX(generation, newest->write.content.generation);
	if (r->store)
		generation = MAX(generation, r->store->ops->newest(r->store, vm->node.id));
	return generation + 1;
}

static struct storing *storing_new(struct relay *r, const struct store_content *content,
				   struct buf *payload, uint64_t now)
{
	struct storing *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->write.content = *content;
	s->write.payload = buf_ref(payload);
	s->write.done = on_stored;
	s->relay = r;
	s->started = now;
	list_init(&s->list);
	list_init(&s->waiters);
	r->n_storing++;
	return s;
}

static struct storing *storing_free(struct storing *s)
{
	if (!s)
		return NULL;
	if (s->relay)
		s->relay->n_storing--;
	list_del(&s->list);
	buf_unref(s->write.payload);
	free(s);
	return NULL;
}

static void add_waiter(struct relay *r, struct storing *s, struct relay_report *report)
{
	s->framed += report->framed;
	s->raw += !report->framed;
	r->n_undecided++;
	list_add_last(&s->waiters, &report->waiting);
}

/* Whether the report holds what is being stored already. */
static bool equals_storing(const struct storing *s, const struct relay_report *report)
{
	const struct buf *a = s->write.payload, *b = report->content;

	return s->write.content.digest == report->digest && content_equal(a, b);
}

/* Its fate is known: it is no longer what new reports are compared with. */
static void leave_undecided(struct relay *r, struct storing *s)
{
	struct storing *newer = newest_storing(s->vm);

	if (newer == s) {
		s->vm->storing = s->older;
	} else {
		while (newer->older != s)
			newer = newer->older;
		newer->older = s->older;
	}
	s->decided = true;
	list_move_last(&r->decided, &s->list);
	r->n_undecided -= s->framed + s->raw;
}

/* Tells those who wait, framed or raw. The first of them is the one that was accepted, if any was. */
static void tell(struct storing *s, bool framed, enum reason reason, bool *accepted, uint64_t now)
{
	list_for_each_safe(l, &s->waiters) {
		struct relay_report *report = container_of(l, struct relay_report, waiting);

		if (report->framed != framed)
			continue;
		list_del(&report->waiting);
		report->verdict = *accepted ? RELAY_DUPLICATE : RELAY_ACCEPTED;
		*accepted |= reason == REASON_NONE;
		report->decided(report, reason, now);
	}
}

static void count_dropped(enum reason reason, unsigned n)
{
	metric_add_label(METRIC_DROPPED,
			 reason == REASON_NO_SPOOL   ? METRIC_DROPPED_NO_SPOOL
			 : reason == REASON_NO_CACHE ? METRIC_DROPPED_NO_CACHE
						     : METRIC_DROPPED_INTERNAL,
			 n);
}

/* n reports became one content. */
static void count_merged(struct vm *vm, unsigned n)
{
	metric_add_label(METRIC_DUPLICATES, METRIC_DAEMON, n - 1);
	vm->duplicates += n - 1;
}

/* Something newer was taken into custody meanwhile. */
static bool is_superseded(const struct storing *s)
{
	return s->write.content.generation <= s->vm->generation;
}

static enum reason reason_of(int result)
{
	return result == 0 ? REASON_NONE : result == -ENOMEM ? REASON_INTERNAL : REASON_NO_CACHE;
}

/* How the cache holds a content that is in memory alone. Where it takes the place of content that an
 * agent relies on, or is about to, it must be as safe as that. */
static enum cache_hold memory_hold(const struct vm *vm, bool framed)
{
	const struct held *old = vm->custody;

	for (const struct storing *s = newest_storing(vm); s; s = s->older)
		framed |= s->framed > 0;
	return framed || (old && old->promised) ? CACHE_HOLD_ANSWERED : CACHE_HOLD_RAW;
}

/* Custody of what was being stored begins, durable or in memory; or it is over already. */
static enum reason settle(struct relay *r, struct storing *s, enum cache_hold hold, uint64_t now)
{
	const struct relay_report *first =
		list_first_entry(&s->waiters, struct relay_report, waiting);
	const struct taking t = {
		.vm = s->vm,
		.content = &s->write.content,
		.payload = s->write.payload,
		.blocks = first ? first->blocks : NULL,
		.hold = hold,
		.promised = hold == CACHE_HOLD_ANSWERED || (hold == CACHE_HOLD_NONE && s->framed),
	};

	if (is_superseded(s)) {
		metric_inc_label(METRIC_CONTENTS_ENDED, METRIC_ENDED_SUPERSEDED);
		return REASON_NONE;
	}
	return reason_of(take_custody(r, &t, now));
}

/* The content is on the disk. */
static void stored(struct relay *r, struct storing *s, uint64_t now)
{
	struct vsr_vm_id id = s->write.content.vm;
	uint64_t generation = s->write.content.generation;
	const struct held *newer = s->vm->custody;
	bool superseded = is_superseded(s), accepted = false;
	enum reason reason;

	reason = settle(r, s, CACHE_HOLD_NONE, now);
	/* It stays until the newer one is durable too. */
	if (reason != REASON_NONE || (superseded && !(newer && is_unspooled(r, newer))))
		drop_stored(r, id, generation, generation);
	/* What an agent is told to be safe must not be lost with the newer one. */
	if (superseded && s->framed)
		promise(r, s->vm);
	if (reason == REASON_NONE)
		count_merged(s->vm, s->framed + s->raw);
	else
		count_dropped(reason, s->framed + s->raw);
	tell(s, true, reason, &accepted, now);
	tell(s, false, reason, &accepted, now);
}

/* In custody in memory alone: it is tried again when the store takes writes. */
static void wait_for_store(struct relay *r, struct held *h)
{
	list_move_last(&r->unspooled, &h->unspooled);
}

/* Custody in memory has begun though there is a store. */
static void begin_unspooled(struct relay *r, struct held *h, struct storing *s)
{
	metric_inc(METRIC_UNSPOOLED);
	h->storing = s;
	if (s)
		s->held = h;
	else
		wait_for_store(r, h);
}

/* It is not on the disk, or not in time (`writing`: it may still get there). Raw reports, and with
 * accept_without_disk all, are held in memory; nobody is told that they are durable. */
static void not_stored(struct relay *r, struct storing *s, bool writing, uint64_t now)
{
	bool all = r->settings.accept_without_disk, accepted = false, superseded = is_superseded(s);
	unsigned keep = s->raw + (all ? s->framed : 0), refuse = all ? 0 : s->framed;
	enum reason reason = REASON_NO_SPOOL;

	if (keep > 0) {
		reason = settle(r, s, memory_hold(s->vm, all && s->framed), now);
		if (reason == REASON_NONE)
			count_merged(s->vm, keep);
		else
			count_dropped(reason, keep);
	}
	if (reason == REASON_NONE && !superseded)
		begin_unspooled(r, s->vm->custody, writing ? s : NULL);
	else if (writing)
		drop_stored(r, s->write.content.vm, s->write.content.generation,
			    s->write.content.generation);
	count_dropped(REASON_NO_SPOOL, refuse);
	tell(s, true, all ? reason : REASON_NO_SPOOL, &accepted, now);
	tell(s, false, reason, &accepted, now);
}

/* What is in custody in memory was written after all, or not. */
static void stored_late(struct relay *r, struct held *h, int result, uint64_t now)
{
	h->storing = NULL;
	if (result == -EBADMSG) {
		cache_remove(r->cache, h->vm->node.id, h->generation, CACHE_END_DAMAGED, now);
		return; /* custody has ended with it */
	}
	if (result < 0) {
		wait_for_store(r, h);
		return;
	}
	r->n_unspooled--;
	h->spooled = true;
	cache_set_hold(r->cache, h->vm->node.id, h->generation, CACHE_HOLD_NONE);
	drop_stored(r, h->vm->node.id, 0, h->generation - 1);
}

static void on_stored(struct store_write *w, int result, uint64_t now)
{
	struct storing *s = container_of(w, struct storing, write);
	struct relay *r = s->relay;

	if (result == 0)
		CRASH_POINT("spooled");
	if (r && !s->decided) {
		leave_undecided(r, s);
		if (result == 0)
			stored(r, s, now);
		else
			not_stored(r, s, false, now);
	} else if (r && s->held) {
		stored_late(r, s->held, result, now);
	}
	storing_free(s);
}

/* Writes what is in custody in memory. */
static int store_held(struct relay *r, struct held *h, uint64_t now)
{
	struct vsr_vm_id id = h->vm->node.id;
	const struct cache_entry *e = cache_peek(r->cache, id);
	struct store_content content = {
		.vm = id,
		.generation = h->generation,
		.digest = h->vm->record_digest,
		.xxh64 = h->vm->record_xxh64,
		.vm_id_hash = h->vm_id_hash,
		.age = (uint64_t)((int64_t)now - h->accepted),
	};
	struct storing *s;
	int result;

	/* Its entry pins it: custody would have ended with the entry. */
	content.length = buf_len(e->content);
	s = storing_new(r, &content, e->content, now);
	if (!s)
		return -ENOMEM;
	s->decided = true;
	result = r->store->ops->write(r->store, &s->write);
	if (result < 0) {
		storing_free(s);
		return result;
	}
	list_add_last(&r->decided, &s->list);
	list_del(&h->unspooled);
	s->held = h;
	h->storing = s;
	return 0;
}

static void store_unspooled(struct relay *r, uint64_t now)
{
	struct held *h;

	while (r->store && r->store->ready &&
	       (h = list_first_entry(&r->unspooled, struct held, unspooled)))
		if (store_held(r, h, now) < 0)
			break;
}

/* Who has waited for the disk too long is told so. */
static void give_up_waiting(struct relay *r, uint64_t now)
{
	struct storing *s;

	while ((s = list_first_entry(&r->undecided, struct storing, list)) &&
	       usec_sub(now, s->started) >= RELAY_STORE_DEADLINE) {
		leave_undecided(r, s);
		not_stored(r, s, true, now);
	}
}

/* All that was durable is gone. What memory has is written again. */
static void on_lost(void *userdata, uint64_t now _unused_)
{
	struct relay *r = userdata;

	list_for_each_safe(l, &r->held) {
		struct held *h = container_of(l, struct held, by_age);
		enum cache_hold hold = h->promised ? CACHE_HOLD_ANSWERED : CACHE_HOLD_RAW;

		if (!h->spooled)
			continue;
		if (cache_set_hold(r->cache, h->vm->node.id, h->generation, hold) < 0) {
			end_custody(r, h->vm, METRIC_ENDED_LOST);
			continue;
		}
		h->spooled = false;
		r->n_unspooled++;
		wait_for_store(r, h);
	}
}

/* ---- what comes in --------------------------------------------------------------------------------- */

/* The store takes nothing just now. */
static int submit_to_memory(struct relay *r, struct relay_report *report,
			    const struct store_content *content, uint64_t now)
{
	struct taking t = {
		.vm = report->vm,
		.content = content,
		.payload = report->content,
		.blocks = report->blocks,
		.hold = r->store	 ? memory_hold(report->vm, report->framed)
			: report->framed ? CACHE_HOLD_ANSWERED
					 : CACHE_HOLD_RAW,
	};
	int result;

	t.promised = t.hold == CACHE_HOLD_ANSWERED;
	result = take_custody(r, &t, now);
	if (result == -EOPNOTSUPP)
		return submit_uncached(r, report, content, now);
	if (result == 0 && r->store)
		begin_unspooled(r, report->vm->custody, NULL);
	return result;
}

static int submit_to_store(struct relay *r, struct relay_report *report,
			   const struct store_content *content, uint64_t now)
{
	struct vm *vm = report->vm;
	struct storing *s;

	s = storing_new(r, content, report->content, now);
	if (!s)
		return -ENOMEM;
	if (r->store->ops->write(r->store, &s->write) < 0) {
		storing_free(s);
		if (report->framed && !r->settings.accept_without_disk)
			return -EAGAIN;
		return submit_to_memory(r, report, content, now);
	}
	s->vm = vm;
	s->older = vm->storing;
	vm->storing = s;
	list_add_last(&r->undecided, &s->list);
	add_waiter(r, s, report);
	return -EINPROGRESS;
}

static bool is_repeat(const struct relay *r, const struct relay_report *report, uint64_t now,
		      enum relay_verdict *ret_verdict)
{
	if (!equals_record(report->vm, buf_len(report->content), report->digest) ||
	    contradicted(r, report))
		return false;
	*ret_verdict = repeat_verdict(r, report->vm, report->framed, now);
	return *ret_verdict != RELAY_NEW;
}

/* It is in custody, but in memory alone, and this agent must not be told that it is safe. */
static bool is_unspooled_repeat(const struct relay *r, const struct relay_report *report)
{
	const struct held *h = report->vm->custody;

	return h && !report->vm->storing && !may_promise(r, h, report->framed) &&
	       equals_record(report->vm, buf_len(report->content), report->digest) &&
	       !contradicted(r, report);
}

/* The report holds the content of record. */
static void learn_xxh64(struct vm *vm, const struct relay_report *report)
{
	if (report->xxh64_unknown || !vm->record_xxh64_unknown)
		return;
	vm->record_xxh64 = report->xxh64;
	vm->record_xxh64_unknown = false;
}

int relay_submit(struct relay *r, struct relay_report *report, uint64_t now,
		 enum relay_verdict *ret_verdict)
{
	struct vm *vm = report->vm;
	struct storing *newest = newest_storing(vm);
	enum relay_verdict verdict = RELAY_ACCEPTED;
	struct store_content content = {
		.vm = vm->node.id,
		.length = buf_len(report->content),
		.digest = report->digest,
		.xxh64 = report->xxh64,
		.xxh64_unknown = report->xxh64_unknown,
		.vm_id_hash = tracker_vm_id_hash(report->vm_id, report->vm_id_len),
	};
	int result;

	report->waits_for = NULL;
	list_init(&report->waiting);
	count_received(vm);
	if (newest && !is_superseded(newest) && equals_storing(newest, report)) {
		add_waiter(r, newest, report);
		return -EINPROGRESS;
	}
	if (is_repeat(r, report, now, &verdict)) {
		learn_xxh64(vm, report);
		count_repeat(r, vm, verdict, METRIC_DAEMON, report->framed, now);
		*ret_verdict = verdict;
		return 0;
	}
	/* A file has it as its checksum; and without slots the bytes are gone before anybody asks. */
	if (content.xxh64_unknown && (r->store || r->settings.cache.slots == 0)) {
		content.xxh64 = content_xxh64(report->content);
		content.xxh64_unknown = false;
	}
	/* This report's VM may be the one that needs another slot. */
	follow_vms(r, now);
	content.generation = next_generation(r, vm);
	if (is_unspooled_repeat(r, report))
		result = -EAGAIN;
	else if (r->store)
		result = submit_to_store(r, report, &content, now);
	else
		result = submit_to_memory(r, report, &content, now);
	if (result == 0)
		*ret_verdict = RELAY_ACCEPTED;
	else if (result != -EINPROGRESS)
		count_dropped(result == -EAGAIN ? REASON_NO_SPOOL : reason_of(result), 1);
	return result;
}

void relay_forget(struct relay *r _unused_, struct relay_report *report)
{
	if (report->waits_for)
		report->waits_for->waiter = NULL;
	report->waits_for = NULL;
	if (report->waiting.next) /* was submitted */
		list_del(&report->waiting);
}

int relay_known(struct relay *r, struct vm *vm, uint64_t length, uint64_t digest,
		const uint64_t *xxh64, enum metric_place place, uint64_t now,
		enum relay_verdict *ret_verdict)
{
	enum relay_verdict verdict = RELAY_NEW;

	if (!r->settings.dedup_bytes && equals_record(vm, length, digest)) {
		const uint64_t *known = xxh64 ? record_xxh64(r, vm) : NULL;

		if (known && *xxh64 != *known)
			return -EBADMSG;
		/* Else only the bytes can tell. */
		if (!xxh64 || known)
			verdict = repeat_verdict(r, vm, xxh64 != NULL, now);
	}
	if (verdict != RELAY_NEW) {
		count_received(vm);
		count_repeat(r, vm, verdict, place, xxh64 != NULL, now);
	}
	*ret_verdict = verdict;
	return 0;
}

enum relay_verdict relay_offer(struct relay *r, struct vm *vm, uint64_t length, uint64_t xxh64,
			       uint64_t now)
{
	enum relay_verdict verdict;
	const uint64_t *known;

	if (r->settings.dedup_bytes || !vm->has_record || vm->record_length != length)
		return RELAY_NEW;
	known = record_xxh64(r, vm);
	if (!known || *known != xxh64)
		return RELAY_NEW;
	verdict = repeat_verdict(r, vm, true, now);
	if (verdict != RELAY_NEW) {
		count_received(vm);
		count_repeat(r, vm, verdict, METRIC_DAEMON, true, now);
	}
	return verdict;
}

static uint64_t age_of(const struct held *h, uint64_t now)
{
	int64_t age = (int64_t)now - h->accepted;

	return age > 0 ? (uint64_t)age : 0;
}

int relay_restore(struct relay *r, const struct store_content *content, uint64_t now)
{
	struct held *h;
	struct vm *vm;
	int result;

	result = vm_table_obtain(r->vms, content->vm, now, &vm);
	if (result < 0)
		return result;
	if (vm->generation >= content->generation)
		return -EEXIST;
	h = calloc(1, sizeof(*h));
	if (!h)
		return -ENOMEM;
	result = tracker_want(r->tracker, vm, content->generation, now);
	if (result < 0) {
		free(h);
		return result;
	}
	h->accepted = (int64_t)now - (int64_t)MIN(content->age, (uint64_t)INT64_MAX);
	h->spooled = true;
	h->promised = true; /* maybe; nobody knows any more */
	add_held(r, h, vm, content);
	metric_inc(METRIC_RESTORED);
	changed(r, vm);
	return 0;
}

/* ---- time --------------------------------------------------------------------------------------- */

static void expire(struct relay *r, uint64_t now)
{
	struct held *h;

	while ((h = list_first_entry(&r->held, struct held, by_age)) &&
	       age_of(h, now) >= r->settings.custody_max_age) {
		cache_remove(r->cache, h->vm->node.id, h->generation, CACHE_END_DROPPED, now);
		end_custody(r, h->vm, METRIC_ENDED_MAX_AGE);
	}
	if (now >= r->next_sweep) {
		bool more = cache_sweep(r->cache, SWEEP_BATCH, now) == SWEEP_BATCH;

		vm_table_sweep(r->vms, now);
		r->next_sweep = more ? now : usec_add(now, r->settings.cache.ttl / 2);
	}
}

bool relay_pack(struct relay *r, uint64_t now)
{
	return cache_pack(r->cache, PACK_SLICE, now);
}

uint64_t relay_pack_due(const struct relay *r)
{
	return cache_pack_due(r->cache);
}

void relay_run(struct relay *r, uint64_t now)
{
	struct vm *vm;

	follow_vms(r, now);
	expire(r, now);
	give_up_waiting(r, now);
	store_unspooled(r, now);
	while ((vm = tracker_next(r->tracker, now)))
		try_send(r, vm, now);
	send_next_ready(r, now);
	probe(r, now);
}

/* When it is custody_max_age old: maybe before the clock began. */
static uint64_t custody_ends(const struct relay *r, const struct held *h)
{
	uint64_t max = MIN(r->settings.custody_max_age, (uint64_t)INT64_MAX / 2);
	int64_t end = h->accepted + (int64_t)max;

	return end > 0 ? (uint64_t)end : 0;
}

uint64_t relay_next_event(const struct relay *r)
{
	const struct held *oldest = list_first_entry(&r->held, struct held, by_age);
	const struct storing *undecided = list_first_entry(&r->undecided, struct storing, list);
	uint64_t next = MIN(r->next_sweep, tracker_next_event(r->tracker));

	if (oldest)
		next = MIN(next, custody_ends(r, oldest));
	if (undecided)
		next = MIN(next, usec_add(undecided->started, RELAY_STORE_DEADLINE));
	if (r->paused && !r->probing && oldest && r->upstream->ready)
		next = MIN(next, r->probe_at);
	return next;
}

void relay_figures(const struct relay *r, uint64_t now, struct relay_figures *ret)
{
	const struct held *oldest = list_first_entry(&r->held, struct held, by_age);

	*ret = (struct relay_figures){
		.held = r->n_held + r->n_undecided,
		.storing = r->n_storing,
		.unspooled = r->n_unspooled,
		.in_flight = r->n_sends,
		.awaiting = r->n_sent,
		.paused = r->paused,
		.oldest = oldest ? age_of(oldest, now) : 0,
	};
	cache_get_stats(r->cache, &ret->cache);
}

/* ---- life --------------------------------------------------------------------------------------- */

int relay_set(struct relay *r, const struct relay_settings *s, uint64_t now)
{
	struct cache_limits limits;
	int result;

	result = tracker_set(r->tracker, &s->retry);
	if (result < 0)
		return result;
	r->settings = *s;
	limits = limits_now(r);
	cache_set_limits(r->cache, &limits, now);
	r->next_sweep = MIN(r->next_sweep, usec_add(now, s->cache.ttl / 2));
	resume(r, now);
	return 0;
}

void relay_resume(struct relay *r, uint64_t now)
{
	resume(r, now);
	relay_run(r, now);
}

void relay_set_store(struct relay *r, struct store *store)
{
	r->store = store;
	store->on_lost = on_lost;
	store->userdata = r;
}

void relay_set_matches(struct relay *r, struct match_table *matches)
{
	r->matches = matches;
}

int relay_retry(struct relay *r, struct vm *vm, uint64_t now)
{
	const struct held *h = vm->custody;
	int result;

	if (!h)
		return -ENOENT;
	result = tracker_want(r->tracker, vm, h->generation, now);
	if (result == 0)
		relay_resume(r, now);
	return result;
}

size_t relay_flush(struct relay *r, uint64_t now)
{
	size_t n = 0;

	list_for_each_safe(node, &r->held) {
		const struct held *h = list_entry(node, struct held, by_age);

		n += tracker_want(r->tracker, h->vm, h->generation, now) == 0;
	}
	relay_resume(r, now);
	return n;
}

int relay_drop(struct relay *r, struct vm *vm, bool lose, uint64_t now)
{
	const struct cache_entry *e = cache_peek(r->cache, vm->node.id);
	const struct held *h = vm->custody;
	bool all = e && h && e->hold != CACHE_HOLD_NONE && e->generation == h->generation;
	bool ends = h && lose;

	if (!e && !ends)
		return cache_forget(r->cache, vm->node.id, now);
	if (all && !lose)
		return -EBUSY;
	if (e)
		cache_remove(r->cache, vm->node.id, e->generation, CACHE_END_DROPPED, now);
	if (ends)
		end_custody(r, vm, METRIC_ENDED_OPERATOR);
	return 0;
}

const struct cache *relay_cache(const struct relay *r)
{
	return r->cache;
}

uint64_t relay_due(const struct relay *r, const struct vm *vm)
{
	return tracker_due(r->tracker, vm);
}

void relay_observe(struct relay *r, void (*observe)(const struct vm *vm, void *userdata),
		   void *userdata)
{
	r->observe = observe;
	r->observe_data = userdata;
}

int relay_new(const struct relay_settings *s, struct vm_table *vms, struct upstream *upstream,
	      tracker_random_t random, void *userdata, struct relay **ret)
{
	_cleanup_(relay_freep)
	struct relay *r = NULL;
	int result;

	r = calloc(1, sizeof(*r));
	if (!r)
		return -ENOMEM;
	list_init(&r->held);
	list_init(&r->ready);
	list_init(&r->sends);
	list_init(&r->undecided);
	list_init(&r->decided);
	list_init(&r->unspooled);
	r->settings = *s;
	r->vms = vms;
	r->upstream = upstream;
	upstream->on_ack = on_ack;
	upstream->userdata = r;
	result = tracker_new(&s->retry, random, userdata, &r->tracker);
	if (result < 0)
		return result;
	result = cache_new(&s->cache, on_cache_removal, r, &r->cache);
	if (result < 0)
		return result;
	*ret = TAKE_PTR(r);
	return 0;
}

/* The store still writes them, and calls done(). */
static void forget_storing(struct list *list)
{
	list_for_each_safe(n, list) {
		struct storing *s = container_of(n, struct storing, list);

		s->relay = NULL;
		if (!s->decided)
			s->vm->storing = NULL;
		list_del(&s->list);
	}
}

struct relay *relay_free(struct relay *r)
{
	if (!r)
		return NULL;
	list_for_each_safe(n, &r->sends) {
		struct relay_send *s = container_of(n, struct relay_send, list);

		/* The upstream still has it, and calls done(). */
		s->relay = NULL;
		s->vm->in_flight = NULL;
		list_del(&s->list);
	}
	forget_storing(&r->undecided);
	forget_storing(&r->decided);
	list_for_each_safe(n, &r->held) {
		struct held *h = list_entry(n, struct held, by_age);

		h->vm->custody = NULL;
		list_del(&h->by_age);
		free(h);
	}
	r->upstream->on_ack = NULL;
	if (r->store)
		r->store->on_lost = NULL;
	cache_free(r->cache);
	tracker_free(r->tracker);
	free(r);
	return NULL;
}
