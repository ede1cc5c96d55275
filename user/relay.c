/* SPDX-License-Identifier: Apache-2.0 */
#include "relay_internal.h"

#include "metrics.h"
#include "pack.h"

/* Expired entries that one call of relay_run() removes: no report waits for a long sweep. */
#define SWEEP_BATCH 64
/* Bytes of content packed in one turn of the loop, at some 1 GB/s. */
#define PACK_SLICE (256 * KIB)

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

/* ---- what comes in --------------------------------------------------------------------------- */

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

static void count_repeat(struct relay *r, struct vm *vm, enum relay_verdict verdict,
			 enum metric_place place, bool framed, uint64_t now)
{
	if (framed)
		custody_promise(r, vm);
	cache_used(r->cache, vm->node.id, now);
	vm->duplicates++;
	if (verdict == RELAY_DUPLICATE)
		metric_inc_label(METRIC_DUPLICATES, place);
	else
		metric_inc(METRIC_SUPPRESSED);
	custody_changed(r, vm);
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
	if (storing_join(r, report))
		return -EINPROGRESS;
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
	if (is_unspooled_repeat(r, report)) {
		metric_inc_label(METRIC_DROPPED, METRIC_DROPPED_NO_SPOOL);
		return -EAGAIN;
	}
	result = storing_submit(r, report, &content, now);
	if (result == 0)
		*ret_verdict = RELAY_ACCEPTED;
	return result;
}

void relay_forget(struct relay *r _unused_, struct relay_report *report)
{
	sends_forget_report(report);
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

/* ---- time ------------------------------------------------------------------------------------ */

static uint64_t age_of(const struct held *h, uint64_t now)
{
	int64_t age = (int64_t)now - h->accepted;

	return age > 0 ? (uint64_t)age : 0;
}

static void expire(struct relay *r, uint64_t now)
{
	struct held *h;

	while ((h = list_first_entry(&r->held, struct held, by_age)) &&
	       age_of(h, now) >= r->settings.custody_max_age) {
		cache_remove(r->cache, h->vm->node.id, h->generation, CACHE_END_DROPPED, now);
		custody_end(r, h->vm, METRIC_ENDED_MAX_AGE);
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
	follow_vms(r, now);
	expire(r, now);
	storing_run(r, now);
	sends_run(r, now);
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
	uint64_t next = MIN(sends_next_event(r), storing_next_event(r));

	if (oldest)
		next = MIN(next, custody_ends(r, oldest));
	return MIN(next, r->next_sweep);
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

/* ---- what operators ask for ------------------------------------------------------------------ */

void relay_resume(struct relay *r, uint64_t now)
{
	sends_resume(r, now);
	relay_run(r, now);
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
		custody_end(r, vm, METRIC_ENDED_OPERATOR);
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

/* ---- life ------------------------------------------------------------------------------------ */

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
	sends_resume(r, now);
	return 0;
}

void relay_set_matches(struct relay *r, struct match_table *matches)
{
	r->matches = matches;
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
	upstream->on_ack = sends_on_ack;
	upstream->userdata = r;
	result = tracker_new(&s->retry, random, userdata, &r->tracker);
	if (result < 0)
		return result;
	result = cache_new(&s->cache, custody_on_removal, r, &r->cache);
	if (result < 0)
		return result;
	*ret = TAKE_PTR(r);
	return 0;
}

struct relay *relay_free(struct relay *r)
{
	if (!r)
		return NULL;
	sends_forget(r);
	storing_forget(r);
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
