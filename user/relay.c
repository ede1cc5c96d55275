/* SPDX-License-Identifier: Apache-2.0 */
#include "relay.h"

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

/* One generation in custody: vm->custody points here. Its payload is the VM's cache entry. */
struct held {
	struct list by_age; /* in relay.held, oldest first */
	struct list ready;  /* in relay.ready, while it waits for one of the sends */
	struct vm *vm;
	uint64_t generation;
	uint64_t accepted; /* when custody began */
	uint64_t vm_id_hash;
	bool sent;    /* at least once */
	bool limited; /* counted as rate limited already */
	bool resent; /* went again at once, since its last send did not leave: only once in a row */
	uint8_t rejections;
};

struct relay_send {
	struct upstream_send up;
	struct list list;    /* in relay.sends */
	struct relay *relay; /* NULL: the relay is gone */
	struct vm *vm;
	uint64_t tracked; /* the tracker's name for it; 0: sent without a cache */
	uint64_t started;
	bool token;			/* took one of the VM's bucket */
	bool probe;			/* of a paused upstream */
	bool again;			/* something newer, or a due retry, came meanwhile */
	struct relay_report *waiter;	/* without a cache: who waits for the result */
	uint64_t digest, length, xxh64; /* without a cache: becomes the record with the ACK */
};

struct relay {
	struct relay_settings settings;
	struct vm_table *vms;
	struct cache *cache;
	struct tracker *tracker;
	struct upstream *upstream;
	struct match_table *matches; /* NULL: nothing is compared */
	struct list held, ready, sends;
	size_t n_held, n_sends, n_sent;
	uint64_t next_sweep;
	/* the upstream refuses all: nothing is sent but a probe at probe_at */
	bool paused, probing;
	uint64_t probe_at, probe_step;
	void (*observe)(const struct vm *vm, void *userdata);
	void *observe_data;
};

static void try_send(struct relay *r, struct vm *vm, uint64_t now);

/* ---- custody ------------------------------------------------------------------------------------ */

static void changed(struct relay *r, const struct vm *vm)
{
	if (r->observe)
		r->observe(vm, r->observe_data);
}

/* Takes the content in custody off the books; how it ended is counted. */
static void drop_held(struct relay *r, struct vm *vm, enum metric_ended how)
{
	struct held *h = vm->custody;

	metric_inc_label(METRIC_CONTENTS_ENDED, how);
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

	if (removal->hold == CACHE_HOLD_KEPT) {
		count_unkept(removal->why);
		return;
	}
	metric_inc_label(METRIC_CACHE_REMOVALS, removal->why);
	metric_observe(HISTOGRAM_CACHE_RESIDENCY, 0, removal->residency);
	metric_observe(HISTOGRAM_CACHE_LIFETIME, 0, removal->lifetime);
	if (removal->why == CACHE_END_ACKED || removal->why == CACHE_END_DROPPED)
		return;
	vm = vm_table_find(r->vms, removal->id);
	h = vm ? vm->custody : NULL;
	if (h && h->generation == removal->generation)
		end_custody(r, vm, how[removal->why]);
}

static void set_record(struct vm *vm, uint64_t digest, uint64_t length, uint64_t xxh64)
{
	vm->has_record = true;
	vm->record_digest = digest;
	vm->record_length = length;
	vm->record_xxh64 = xxh64;
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
static void make_comparable(struct relay *r, const struct relay_report *report)
{
	struct vsr_vm_id id = report->vm->node.id;
	const struct cache_entry *e = cache_peek(r->cache, id);

	if (r->matches && !e->match)
		cache_set_match(r->cache, id,
				match_new(r->matches, e->content, report->digest, report->xxh64,
					  report->blocks));
}

struct match *relay_match(struct relay *r, const struct vm *vm)
{
	const struct cache_entry *e = cache_known(r->cache, vm->node.id);

	return e && !r->settings.dedup_bytes ? match_ref(e->match) : NULL;
}

/* Puts the content into the cache and begins its custody as the VM's next generation. */
static int take_custody(struct relay *r, const struct relay_report *report, uint64_t now)
{
	struct vm *vm = report->vm;
	struct held *h;
	int result;

	h = calloc(1, sizeof(*h));
	if (!h)
		return -ENOMEM;
	result = cache_insert(r->cache, vm->node.id, report->content, report->digest,
			      vm->generation + 1,
			      report->framed ? CACHE_HOLD_ANSWERED : CACHE_HOLD_RAW, now);
	if (result >= 0 && tracker_want(r->tracker, vm, vm->generation + 1, now) < 0) {
		/* The old content left with the insert: nothing of this VM is held any more. */
		cache_remove(r->cache, vm->node.id, vm->generation + 1, CACHE_END_DROPPED, now);
		if (vm->custody)
			end_custody(r, vm, METRIC_ENDED_SUPERSEDED);
		result = -ENOMEM;
	}
	if (result < 0) {
		free(h);
		return result;
	}
	make_comparable(r, report);
	if (vm->custody)
		drop_held(r, vm, METRIC_ENDED_SUPERSEDED);
	vm->generation++;
	vm->accepts++;
	vm->last_accepted = now;
	set_record(vm, report->digest, buf_len(report->content), report->xxh64);

	h->vm = vm;
	h->generation = vm->generation;
	h->accepted = now;
	h->vm_id_hash = tracker_vm_id_hash(report->vm_id, report->vm_id_len);
	list_init(&h->ready);
	list_add_last(&r->held, &h->by_age);
	r->n_held++;
	vm->custody = h;
	changed(r, vm);
	return 0;
}

/* ---- sends -------------------------------------------------------------------------------------- */

static void on_sent(struct upstream_send *up, enum send_result result, uint64_t now);

static struct relay_send *send_new(struct relay *r, struct vm *vm, uint64_t generation,
				   struct buf *payload, uint64_t now)
{
	struct relay_send *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->relay = r;
	s->vm = vm;
	s->started = now;
	s->up.vm = vm->node.id;
	s->up.generation = generation;
	s->up.payload = buf_ref(payload);
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

/* Hands the send to the upstream. Returns 0, or -EBUSY and the send is freed. */
static int send_start(struct relay *r, struct relay_send *s)
{
	struct vm *vm = s->vm;

	list_add_last(&r->sends, &s->list);
	r->n_sends++;
	vm->in_flight = s;
	if (r->upstream->ops->send(r->upstream, &s->up) == 0) {
		USDT_SENT(vm->node.id, s->up.generation, buf_len(s->up.payload));
		return 0;
	}
	r->n_sends--;
	vm->in_flight = NULL;
	send_free(s);
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

/* Everything allows this send but, maybe, the rate limit, the tracker and the upstream itself. A
 * probe needs no token: it is one send for all VMs. */
static void send_held(struct relay *r, struct held *h, bool probe, uint64_t now)
{
	struct vm *vm = h->vm;
	bool token = vm_take_report(r->vms, vm, now);
	struct relay_send *s;
	struct buf *payload;
	uint64_t until;

	if (!token && !probe) {
		count_limited(r, h, now);
		tracker_defer(r->tracker, vm, vm_next_report(r->vms, vm, now));
		return;
	}
	until = usec_add(now, BUSY_DEFER);
	payload = payload_of(r, h);
	s = payload ? send_new(r, vm, h->generation, payload, now) : NULL;
	if (s && tracker_send(r->tracker, vm, h->vm_id_hash, now, &s->tracked, &until) == 0) {
		uint64_t tracked = s->tracked;

		s->token = token;
		s->probe = probe;
		if (send_start(r, s) == 0) {
			metric_add(METRIC_RESENDS, h->sent);
			if (h->sent)
				USDT_RETRIED(vm->node.id, h->generation, buf_len(payload));
			r->n_sent += !h->sent;
			h->sent = true;
			r->probing |= probe;
			return;
		}
		tracker_settle(r->tracker, vm, tracked);
	} else {
		send_free(s);
	}
	if (token)
		vm_give_back_report(r->vms, vm);
	tracker_defer(r->tracker, vm, until);
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

/* An ACK for a send of this generation. It says nothing about newer content. */
static void acked(struct relay *r, struct vm *vm, uint64_t generation, uint64_t now)
{
	const struct held *h = vm->custody;

	vm->last_ack = now;
	USDT_ACKED(vm->node.id, generation);
	if (h && h->generation == generation) {
		cache_remove(r->cache, vm->node.id, generation, CACHE_END_ACKED, now);
		end_custody(r, vm, METRIC_ENDED_ACKED);
	} else {
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
		set_record(vm, s->digest, s->length, s->xxh64);
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
	r->n_sends--;
	vm->in_flight = NULL;
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
	if (r->settings.ns != 0)
		return tracker_claimant(r->tracker, r->settings.ns, vm_id_hash);
	if (!resource->has_cid)
		return NULL;
	return vm_table_find(r->vms, (struct vsr_vm_id){ .ns = 0, .cid = resource->cid });
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

/* What a report is that equals the digest of record. */
static enum relay_verdict repeat_verdict(const struct relay *r, const struct vm *vm, uint64_t now)
{
	if (vm->custody)
		return RELAY_DUPLICATE;
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
	const struct held *h = vm->custody;

	if (h)
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
static int submit_uncached(struct relay *r, struct relay_report *report, uint64_t now)
{
	bool probes = probe_is_due(r, now);
	struct vm *vm = report->vm;
	struct relay_send *s;

	if (vm->in_flight || !(open_for_sends(r) || probes) || !vm_take_report(r->vms, vm, now))
		return -ENOSPC;
	s = send_new(r, vm, vm->generation + 1, report->content, now);
	if (s) {
		s->digest = report->digest;
		s->length = buf_len(report->content);
		s->xxh64 = report->xxh64;
		s->waiter = report;
		s->token = true;
		s->probe = probes;
		if (send_start(r, s) == 0) {
			vm->generation++;
			r->n_held++;
			r->probing |= probes;
			report->waits_for = s;
			return -EINPROGRESS;
		}
	}
	vm_give_back_report(r->vms, vm);
	return -ENOSPC;
}

int relay_submit(struct relay *r, struct relay_report *report, uint64_t now,
		 enum relay_verdict *ret_verdict)
{
	struct vm *vm = report->vm;
	int result;

	report->waits_for = NULL;
	count_received(vm);
	if (equals_record(vm, buf_len(report->content), report->digest) &&
	    !contradicted(r, report)) {
		enum relay_verdict verdict = repeat_verdict(r, vm, now);

		if (verdict != RELAY_NEW) {
			count_repeat(r, vm, verdict, METRIC_DAEMON, report->framed, now);
			*ret_verdict = verdict;
			return 0;
		}
	}
	/* This report's VM may be the one that needs another slot. */
	follow_vms(r, now);
	result = take_custody(r, report, now);
	if (result == -EOPNOTSUPP)
		result = submit_uncached(r, report, now);
	if (result == 0)
		*ret_verdict = RELAY_ACCEPTED;
	else if (result != -EINPROGRESS)
		metric_inc_label(METRIC_DROPPED, result == -ENOSPC ? METRIC_DROPPED_NO_CACHE
								   : METRIC_DROPPED_INTERNAL);
	return result;
}

void relay_forget(struct relay *r _unused_, struct relay_report *report)
{
	if (report->waits_for)
		report->waits_for->waiter = NULL;
	report->waits_for = NULL;
}

int relay_known(struct relay *r, struct vm *vm, uint64_t length, uint64_t digest,
		const uint64_t *xxh64, uint64_t now, enum relay_verdict *ret_verdict)
{
	enum relay_verdict verdict = RELAY_NEW;

	if (!r->settings.dedup_bytes && equals_record(vm, length, digest)) {
		if (xxh64 && *xxh64 != vm->record_xxh64)
			return -EBADMSG;
		verdict = repeat_verdict(r, vm, now);
	}
	if (verdict != RELAY_NEW) {
		count_received(vm);
		count_repeat(r, vm, verdict, METRIC_KERNEL, xxh64 != NULL, now);
	}
	*ret_verdict = verdict;
	return 0;
}

enum relay_verdict relay_offer(struct relay *r, struct vm *vm, uint64_t length, uint64_t xxh64,
			       uint64_t now)
{
	enum relay_verdict verdict;

	if (r->settings.dedup_bytes || !vm->has_record || vm->record_length != length ||
	    vm->record_xxh64 != xxh64)
		return RELAY_NEW;
	verdict = repeat_verdict(r, vm, now);
	if (verdict != RELAY_NEW) {
		count_received(vm);
		count_repeat(r, vm, verdict, METRIC_DAEMON, true, now);
	}
	return verdict;
}

/* ---- time --------------------------------------------------------------------------------------- */

static void expire(struct relay *r, uint64_t now)
{
	struct held *h;

	while ((h = list_first_entry(&r->held, struct held, by_age)) &&
	       usec_sub(now, h->accepted) >= r->settings.custody_max_age) {
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
	while ((vm = tracker_next(r->tracker, now)))
		try_send(r, vm, now);
	send_next_ready(r, now);
	probe(r, now);
}

uint64_t relay_next_event(const struct relay *r)
{
	const struct held *oldest = list_first_entry(&r->held, struct held, by_age);
	uint64_t next = MIN(r->next_sweep, tracker_next_event(r->tracker));

	if (oldest)
		next = MIN(next, usec_add(oldest->accepted, r->settings.custody_max_age));
	if (r->paused && !r->probing && oldest && r->upstream->ready)
		next = MIN(next, r->probe_at);
	return next;
}

void relay_figures(const struct relay *r, uint64_t now, struct relay_figures *ret)
{
	const struct held *oldest = list_first_entry(&r->held, struct held, by_age);

	*ret = (struct relay_figures){
		.held = r->n_held,
		.in_flight = r->n_sends,
		.awaiting = r->n_sent,
		.paused = r->paused,
		.oldest = oldest ? usec_sub(now, oldest->accepted) : 0,
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
	bool ends = e && h && e->hold != CACHE_HOLD_NONE && e->generation == h->generation;

	if (!e)
		return cache_forget(r->cache, vm->node.id, now);
	if (ends && !lose)
		return -EBUSY;
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

struct relay *relay_free(struct relay *r)
{
	if (!r)
		return NULL;
	list_for_each_safe(n, &r->sends) {
		struct relay_send *s = list_entry(n, struct relay_send, list);

		/* The upstream still has it, and calls done(). */
		s->relay = NULL;
		s->vm->in_flight = NULL;
		list_del(&s->list);
	}
	list_for_each_safe(n, &r->held) {
		struct held *h = list_entry(n, struct held, by_age);

		h->vm->custody = NULL;
		list_del(&h->by_age);
		free(h);
	}
	r->upstream->on_ack = NULL;
	cache_free(r->cache);
	tracker_free(r->tracker);
	free(r);
	return NULL;
}
