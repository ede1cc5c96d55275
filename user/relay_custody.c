/* SPDX-License-Identifier: Apache-2.0 */
#include "relay_internal.h"

#include "metrics.h"
#include "pack.h"

void custody_changed(struct relay *r, const struct vm *vm)
{
	if (r->observe)
		r->observe(vm, r->observe_data);
}

void custody_drop_stored(struct relay *r, struct vsr_vm_id id, uint64_t first, uint64_t last)
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

void custody_end(struct relay *r, struct vm *vm, enum metric_ended how)
{
	const struct held *h = vm->custody;

	custody_drop_stored(r, vm->node.id, 0, h->generation);
	drop_held(r, vm, how);
	tracker_end(r->tracker, vm);
	if (how != METRIC_ENDED_ACKED)
		vm->has_record = false;
	custody_changed(r, vm);
}

void custody_promise(struct relay *r, const struct vm *vm)
{
	struct held *h = vm->custody;

	if (!h)
		return;
	h->promised = true;
	if (!h->spooled)
		cache_set_hold(r->cache, vm->node.id, h->generation, CACHE_HOLD_ANSWERED);
}

/* ---- the record ------------------------------------------------------------------------------ */

void record_set(struct vm *vm, const struct store_content *c)
{
	vm->has_record = true;
	vm->record_digest = c->digest;
	vm->record_length = c->length;
	vm->record_xxh64 = c->xxh64;
	vm->record_xxh64_unknown = c->xxh64_unknown;
}

const uint64_t *record_xxh64(struct relay *r, struct vm *vm)
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

/* ---- the cache ------------------------------------------------------------------------------- */

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

void custody_on_removal(const struct cache_removal *removal, void *userdata)
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
		custody_end(r, vm, how[removal->why]);
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

/* ---- how custody begins ---------------------------------------------------------------------- */

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
	record_set(vm, c);
}

int custody_begin(struct relay *r, const struct taking *t, uint64_t now)
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
			custody_end(r, vm, METRIC_ENDED_SUPERSEDED);
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
		custody_drop_stored(r, vm->node.id, 0, generation - 1);
	custody_changed(r, vm);
	return 0;
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
	custody_changed(r, vm);
	return 0;
}
