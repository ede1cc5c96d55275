/* SPDX-License-Identifier: Apache-2.0 */
#include "relay_internal.h"

#include "crash_point.h"
#include "metrics.h"
#include "pack.h"

static void on_stored(struct store_write *w, int result, uint64_t now);

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
	return reason_of(custody_begin(r, &t, now));
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
		custody_drop_stored(r, id, generation, generation);
	/* What an agent is told to be safe must not be lost with the newer one. */
	if (superseded && s->framed)
		custody_promise(r, s->vm);
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
		custody_drop_stored(r, s->write.content.vm, s->write.content.generation,
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
	custody_drop_stored(r, h->vm->node.id, 0, h->generation - 1);
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

/* ---- what is in memory alone ----------------------------------------------------------------- */

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
			custody_end(r, h->vm, METRIC_ENDED_LOST);
			continue;
		}
		h->spooled = false;
		r->n_unspooled++;
		wait_for_store(r, h);
	}
}

void relay_set_store(struct relay *r, struct store *store)
{
	r->store = store;
	store->on_lost = on_lost;
	store->userdata = r;
}

/* ---- what comes in --------------------------------------------------------------------------- */

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
	result = custody_begin(r, &t, now);
	if (result == -EOPNOTSUPP)
		return sends_submit(r, report, content, now);
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

int storing_submit(struct relay *r, struct relay_report *report, struct store_content *content,
		   uint64_t now)
{
	int result;

	content->generation = next_generation(r, report->vm);
	result = r->store ? submit_to_store(r, report, content, now)
			  : submit_to_memory(r, report, content, now);
	if (result < 0 && result != -EINPROGRESS)
		count_dropped(result == -EAGAIN ? REASON_NO_SPOOL : reason_of(result), 1);
	return result;
}

bool storing_join(struct relay *r, struct relay_report *report)
{
	struct storing *newest = newest_storing(report->vm);

	if (!newest || is_superseded(newest) || !equals_storing(newest, report))
		return false;
	add_waiter(r, newest, report);
	return true;
}

void storing_run(struct relay *r, uint64_t now)
{
	give_up_waiting(r, now);
	store_unspooled(r, now);
}

uint64_t storing_next_event(const struct relay *r)
{
	const struct storing *oldest = list_first_entry(&r->undecided, struct storing, list);

	return oldest ? usec_add(oldest->started, RELAY_STORE_DEADLINE) : USEC_INFINITY;
}

/* The store still writes them, and calls done(). */
static void forget_list(struct list *list)
{
	list_for_each_safe(n, list) {
		struct storing *s = container_of(n, struct storing, list);

		s->relay = NULL;
		if (!s->decided)
			s->vm->storing = NULL;
		list_del(&s->list);
	}
}

void storing_forget(struct relay *r)
{
	forget_list(&r->undecided);
	forget_list(&r->decided);
}
