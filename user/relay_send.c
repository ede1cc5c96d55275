/* SPDX-License-Identifier: Apache-2.0 */
#include "relay_internal.h"

#include "crash_point.h"
#include "metrics.h"
#include "usdt.h"

/* The upstream said that it takes no more just now. */
#define BUSY_DEFER (100 * USEC_PER_MSEC)
/* An upstream that refuses all is probed (SPEC 8). */
#define PROBE_FIRST (30 * USEC_PER_SEC)
#define PROBE_MAX   (10 * USEC_PER_MIN)
/* A content that the upstream will not have is dropped after so many tries (SPEC 8). */
#define REJECTIONS_MAX 3
/* A content that could not be read from the store. */
#define READ_DEFER (5 * USEC_PER_SEC)

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

static void on_sent(struct upstream_send *up, enum send_result result, uint64_t now);
static void on_read(struct store_read *rd, int result, struct buf *payload, uint64_t now);

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
		custody_end(r, vm, METRIC_ENDED_LOST);
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
		custody_end(r, vm, METRIC_ENDED_LOST);
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
		custody_end(r, vm, METRIC_ENDED_ACKED);
		CRASH_POINT("acked");
	} else {
		/* Older than this need not come back after a restart, either. */
		if (!h || h->generation > generation)
			custody_drop_stored(r, vm->node.id, 0, generation);
		custody_changed(r, vm);
	}
}

/* ---- an upstream that refuses all ------------------------------------------------------------ */

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

void sends_resume(struct relay *r, uint64_t now)
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
		sends_resume(r, now);
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

/* ---- how sends end --------------------------------------------------------------------------- */

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
		custody_end(r, vm, METRIC_ENDED_SUPERSEDED);
	}
	vm->last_ack = now;
	USDT_ACKED(vm->node.id, s->up.generation);
	if (vm->generation == s->up.generation)
		record_set(vm, &s->content);
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
	custody_changed(r, vm);
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
		custody_end(r, vm, METRIC_ENDED_REJECTED);
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

/* ---- ACKs that belong to no call ------------------------------------------------------------- */

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
	custody_end(r, vm, METRIC_ENDED_NACKED);
}

void sends_on_ack(const struct upstream_ack *ack, void *userdata, uint64_t now)
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

/* ---- what the relay asks for ----------------------------------------------------------------- */

int sends_submit(struct relay *r, struct relay_report *report, const struct store_content *content,
		 uint64_t now)
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

void sends_forget_report(struct relay_report *report)
{
	if (report->waits_for)
		report->waits_for->waiter = NULL;
	report->waits_for = NULL;
}

void sends_run(struct relay *r, uint64_t now)
{
	struct vm *vm;

	while ((vm = tracker_next(r->tracker, now)))
		try_send(r, vm, now);
	send_next_ready(r, now);
	probe(r, now);
}

uint64_t sends_next_event(const struct relay *r)
{
	uint64_t next = tracker_next_event(r->tracker);

	if (r->paused && !r->probing && !list_empty(&r->held) && r->upstream->ready)
		next = MIN(next, r->probe_at);
	return next;
}

void sends_forget(struct relay *r)
{
	list_for_each_safe(n, &r->sends) {
		struct relay_send *s = container_of(n, struct relay_send, list);

		/* The upstream still has it, and calls done(). */
		s->relay = NULL;
		s->vm->in_flight = NULL;
		list_del(&s->list);
	}
}
