/* SPDX-License-Identifier: Apache-2.0 */
#include "tracker.h"

#include <xxhash.h>

#include "heap.h"
#include "list.h"

static const char *const default_permanent[] = {
	"missing scanner index data",
	"unsupported action",
};

const struct tracker_settings tracker_defaults = {
	.base = TRACKER_BASE_USEC,
	.factor = 2,
	.cap = TRACKER_CAP_USEC,
	.jitter = 0.1,
	.permanent = default_permanent,
	.n_permanent = ARRAY_SIZE(default_permanent),
};

/* A send that nothing has settled yet. */
struct send {
	uint64_t id;
	uint64_t generation;
	uint64_t at;
	uint64_t vm_id; /* hash of what the report claimed */
};

/* What the tracker knows of a VM; lives while there is a content to be delivered, or a send. */
struct tracker_vm {
	struct vm *vm;
	struct list all;
	struct heap_node event; /* when to look at it again */

	/* the content to be delivered */
	bool held;
	bool wanted; /* a send of it is wanted, from try_at on */
	bool handed; /* and tracker_next() has said so */
	bool full;   /* and it waits because TRACKER_SENDS are unsettled */
	uint64_t generation;
	uint64_t try_at;
	uint64_t due;	/* next retry; USEC_INFINITY before the first send */
	uint64_t step;	/* that leads to it, with jitter, and doubled if so */
	uint64_t plain; /* the same by the schedule alone */
	uint64_t n;	/* of the step, from 1 */

	struct send sends[TRACKER_SENDS]; /* oldest first */
	size_t n_sends;
};

struct tracker {
	struct tracker_settings s;
	tracker_random_t random;
	void *userdata;
	struct list all; /* struct tracker_vm */
	size_t n;
	struct heap events;
	uint64_t last_id;
	bool paused;
	uint64_t paused_at;
};

/* ---- the records ------------------------------------------------------------------------------ */

static struct tracker_vm *tracker_vm_free(struct tracker *t, struct tracker_vm *tv)
{
	heap_remove(&t->events, &tv->event);
	list_del(&tv->all);
	t->n--;
	tv->vm->acks = NULL;
	free(tv);
	return NULL;
}

/* The VM's record, a new one if needed. The heap gets its room here, so that no later call can
 * fail for want of memory. */
static int obtain(struct tracker *t, struct vm *vm, struct tracker_vm **ret)
{
	struct tracker_vm *tv = vm->acks;
	int r;

	if (!tv) {
		r = heap_reserve(&t->events, t->n + 1);
		if (r < 0)
			return r;
		tv = calloc(1, sizeof(*tv));
		if (!tv)
			return -ENOMEM;
		tv->vm = vm;
		tv->due = USEC_INFINITY;
		heap_node_init(&tv->event);
		list_add_last(&t->all, &tv->all);
		t->n++;
		vm->acks = tv;
	}
	*ret = tv;
	return 0;
}

/* When something happens to the VM by itself. */
static uint64_t next_event(const struct tracker *t, const struct tracker_vm *tv)
{
	uint64_t next = USEC_INFINITY;

	if (tv->n_sends > 0)
		next = usec_add(tv->sends[0].at, TRACKER_REMEMBER);
	if (t->paused || !tv->held)
		return next;
	if (tv->wanted && !tv->handed)
		next = MIN(next, tv->try_at);
	return MIN(next, tv->due);
}

/* To be called last whenever a record was changed: it may be gone afterwards. */
static void changed(struct tracker *t, struct tracker_vm *tv)
{
	uint64_t next = next_event(t, tv);

	if (!tv->held && tv->n_sends == 0)
		tracker_vm_free(t, tv);
	else if (next == USEC_INFINITY)
		heap_remove(&t->events, &tv->event);
	else
		(void)heap_set(&t->events, &tv->event, next); /* has room: see obtain() */
}

static void remove_send(struct tracker_vm *tv, size_t i)
{
	tv->n_sends--;
	memmove(&tv->sends[i], &tv->sends[i + 1], (tv->n_sends - i) * sizeof(tv->sends[0]));
	if (tv->full) {
		tv->full = false;
		tv->handed = false;
		tv->try_at = 0;
	}
}

static void forget_old_sends(struct tracker_vm *tv, uint64_t now)
{
	while (tv->n_sends > 0 && now >= usec_add(tv->sends[0].at, TRACKER_REMEMBER))
		remove_send(tv, 0);
}

/* ---- retry times ------------------------------------------------------------------------------ */

/* The clock of due times: stands still while the upstream is paused. */
static uint64_t due_clock(const struct tracker *t, uint64_t now)
{
	return t->paused ? t->paused_at : now;
}

static uint64_t base_of(const struct tracker *t)
{
	return t->s.base > 0 ? (uint64_t)t->s.base : USEC_PER_MIN;
}

static uint64_t plain_step(const struct tracker *t, const struct tracker_vm *tv)
{
	uint64_t step;
	double grown;

	if (!t->s.exponential) {
		if (__builtin_mul_overflow(base_of(t), tv->n, &step))
			return USEC_INFINITY;
		return step;
	}
	if (tv->n == 1)
		return MIN(base_of(t), t->s.cap);
	grown = (double)tv->plain * t->s.factor;
	return grown >= (double)t->s.cap ? t->s.cap : (uint64_t)grown;
}

static uint64_t with_jitter(const struct tracker *t, uint64_t step)
{
	if (!t->s.exponential || t->s.jitter == 0)
		return step;
	return (uint64_t)((double)step * (1 + t->s.jitter * (2 * t->random(t->userdata) - 1)));
}

/* On to the next due time. */
static void take_step(struct tracker *t, struct tracker_vm *tv, uint64_t from)
{
	tv->n++;
	tv->plain = MAX(plain_step(t, tv), 1U);
	tv->step = MAX(with_jitter(t, tv->plain), 1U);
	tv->due = usec_add(from, tv->step);
}

/* Steps to the first due time that is not yet over: those that were missed are one send. */
static void step_past(struct tracker *t, struct tracker_vm *tv, uint64_t now)
{
	while (tv->due <= now) {
		uint64_t before = tv->plain, from = tv->due;

		take_step(t, tv, from);
		/* Steps that no longer grow are skipped at once. */
		if (tv->plain == before && tv->due <= now)
			tv->due += (now - tv->due) / tv->plain * tv->plain;
	}
}

/* ---- life ------------------------------------------------------------------------------------- */

static bool settings_valid(const struct tracker_settings *s)
{
	return s->factor >= 1 && s->jitter >= 0 && s->jitter <= 1 && s->cap > 0;
}

int tracker_new(const struct tracker_settings *s, tracker_random_t random, void *userdata,
		struct tracker **ret)
{
	struct tracker *t;

	if (!settings_valid(s))
		return -EINVAL;
	t = calloc(1, sizeof(*t));
	if (!t)
		return -ENOMEM;
	t->s = *s;
	t->random = random;
	t->userdata = userdata;
	list_init(&t->all);
	*ret = t;
	return 0;
}

struct tracker *tracker_free(struct tracker *t)
{
	if (!t)
		return NULL;
	list_for_each_safe(l, &t->all)
		tracker_vm_free(t, container_of(l, struct tracker_vm, all));
	heap_done(&t->events);
	free(t);
	return NULL;
}

int tracker_set(struct tracker *t, const struct tracker_settings *s)
{
	if (!settings_valid(s))
		return -EINVAL;
	t->s = *s;
	return 0;
}

/* ---- what is to be sent ----------------------------------------------------------------------- */

int tracker_want(struct tracker *t, struct vm *vm, uint64_t generation, uint64_t now)
{
	struct tracker_vm *tv;
	int r;

	r = obtain(t, vm, &tv);
	if (r < 0)
		return r;
	if (!tv->held || tv->generation != generation) {
		tv->held = true;
		tv->generation = generation;
		tv->due = USEC_INFINITY;
		tv->n = 0;
	}
	tv->wanted = true;
	tv->handed = tv->full = false;
	tv->try_at = now;
	changed(t, tv);
	return 0;
}

/* Looks at a VM whose event has come. Returns whether it is to be sent. */
static bool look(struct tracker *t, struct tracker_vm *tv, uint64_t now)
{
	forget_old_sends(tv, now);
	if (t->paused || !tv->held)
		return false;
	if (tv->due <= now) {
		step_past(t, tv, now);
		if (!tv->wanted) {
			tv->wanted = true;
			tv->handed = tv->full = false;
			tv->try_at = now;
		}
	}
	if (!tv->wanted || tv->handed || tv->try_at > now)
		return false;
	tv->handed = true;
	return true;
}

struct vm *tracker_next(struct tracker *t, uint64_t now)
{
	struct heap_node *top;

	while ((top = heap_top(&t->events)) && top->key <= now) {
		struct tracker_vm *tv = container_of(top, struct tracker_vm, event);
		struct vm *vm = tv->vm;
		bool send = look(t, tv, now);

		changed(t, tv);
		if (send)
			return vm;
	}
	return NULL;
}

uint64_t tracker_next_event(const struct tracker *t)
{
	const struct heap_node *top = heap_top(&t->events);

	return top ? top->key : USEC_INFINITY;
}

void tracker_defer(struct tracker *t, struct vm *vm, uint64_t until)
{
	struct tracker_vm *tv = vm->acks;

	if (!tv || !tv->held)
		return;
	tv->wanted = true; /* also when it was sent, and the upstream did not take it */
	tv->handed = false;
	tv->try_at = until;
	changed(t, tv);
}

int tracker_send(struct tracker *t, struct vm *vm, uint64_t vm_id_hash, uint64_t now,
		 uint64_t *ret_send, uint64_t *ret_until)
{
	struct tracker_vm *tv = vm->acks;

	if (!tv || !tv->held)
		return -ENOENT;
	forget_old_sends(tv, now);
	if (tv->n_sends >= TRACKER_SENDS) {
		tv->full = true;
		*ret_until = usec_add(tv->sends[0].at, TRACKER_REMEMBER);
		return -EAGAIN;
	}
	tv->sends[tv->n_sends++] = (struct send){
		.id = ++t->last_id,
		.generation = tv->generation,
		.at = now,
		.vm_id = vm_id_hash,
	};
	tv->wanted = tv->handed = tv->full = false;
	if (tv->due == USEC_INFINITY)
		take_step(t, tv, due_clock(t, now));
	changed(t, tv);
	*ret_send = t->last_id;
	return 0;
}

/* ---- what came of it -------------------------------------------------------------------------- */

void tracker_settle(struct tracker *t, struct vm *vm, uint64_t send)
{
	struct tracker_vm *tv = vm->acks;

	for (size_t i = 0; tv && i < tv->n_sends; i++)
		if (tv->sends[i].id == send) {
			remove_send(tv, i);
			changed(t, tv);
			return;
		}
}

void tracker_end(struct tracker *t, struct vm *vm)
{
	struct tracker_vm *tv = vm->acks;

	if (!tv)
		return;
	tv->held = tv->wanted = tv->handed = tv->full = false;
	tv->due = USEC_INFINITY;
	changed(t, tv);
}

enum tracker_match tracker_ack(struct tracker *t, struct vm *vm, uint64_t vm_id_hash, uint64_t now,
			       uint64_t *ret_generation)
{
	struct tracker_vm *tv = vm ? vm->acks : NULL;
	enum tracker_match match = TRACKER_UNMATCHED;

	if (!tv)
		return match;
	forget_old_sends(tv, now);
	for (size_t i = 0; i < tv->n_sends; i++) {
		uint64_t claimed = tv->sends[i].vm_id;

		match = TRACKER_STALE;
		if (vm_id_hash == 0 || claimed == 0 || claimed == vm_id_hash) {
			match = TRACKER_SETTLED;
			*ret_generation = tv->sends[i].generation;
			remove_send(tv, i);
			break;
		}
	}
	changed(t, tv);
	return match;
}

bool tracker_reason_permanent(const struct tracker *t, const char *reason)
{
	for (size_t i = 0; i < t->s.n_permanent; i++)
		if (streq(reason, t->s.permanent[i]))
			return true;
	return false;
}

static void double_step(struct tracker *t, struct tracker_vm *tv)
{
	uint64_t doubled = MAX(tv->step, MIN(usec_add(tv->step, tv->step), t->s.cap));

	tv->due = usec_add(tv->due, doubled - tv->step);
	tv->step = doubled;
}

enum tracker_match tracker_nack(struct tracker *t, struct vm *vm, uint64_t vm_id_hash,
				const char *reason, uint64_t now, uint64_t *ret_generation)
{
	enum tracker_match match;
	struct tracker_vm *tv;
	uint64_t generation;

	match = tracker_ack(t, vm, vm_id_hash, now, &generation);
	if (match != TRACKER_SETTLED)
		return match;
	*ret_generation = generation;
	if (tracker_reason_permanent(t, reason))
		return TRACKER_PERMANENT;
	tv = vm->acks;
	if (tv && tv->held && tv->generation == generation && tv->due != USEC_INFINITY &&
	    streq(reason, TRACKER_REASON_RATE)) {
		double_step(t, tv);
		changed(t, tv);
	}
	return TRACKER_SETTLED;
}

/* ns: NULL is any. */
static struct vm *claimant(const struct tracker *t, const uint32_t *ns, uint64_t vm_id_hash)
{
	struct vm *found = NULL;

	if (vm_id_hash == 0)
		return NULL;
	list_for_each(l, &t->all) {
		const struct tracker_vm *tv = container_of(l, struct tracker_vm, all);

		if (ns && tv->vm->node.id.ns != *ns)
			continue;
		for (size_t i = 0; i < tv->n_sends; i++) {
			if (tv->sends[i].vm_id != vm_id_hash)
				continue;
			if (found)
				return NULL;
			found = tv->vm;
			break;
		}
	}
	return found;
}

struct vm *tracker_claimant(const struct tracker *t, uint32_t ns, uint64_t vm_id_hash)
{
	return claimant(t, &ns, vm_id_hash);
}

struct vm *tracker_claimant_anywhere(const struct tracker *t, uint64_t vm_id_hash)
{
	return claimant(t, NULL, vm_id_hash);
}

bool tracker_shares_cid(const struct tracker *t, const struct vm *vm)
{
	list_for_each(l, &t->all) {
		const struct tracker_vm *tv = container_of(l, struct tracker_vm, all);

		if (tv->vm != vm && tv->n_sends > 0 && tv->vm->node.id.cid == vm->node.id.cid)
			return true;
	}
	return false;
}

/* ---- pause ------------------------------------------------------------------------------------ */

static void all_changed(struct tracker *t)
{
	list_for_each_safe(l, &t->all)
		changed(t, container_of(l, struct tracker_vm, all));
}

void tracker_pause(struct tracker *t, uint64_t now)
{
	if (t->paused)
		return;
	t->paused = true;
	t->paused_at = now;
	all_changed(t);
}

void tracker_resume(struct tracker *t, uint64_t now)
{
	if (!t->paused)
		return;
	t->paused = false;
	list_for_each(l, &t->all) {
		struct tracker_vm *tv = container_of(l, struct tracker_vm, all);

		tv->due = usec_add(tv->due, usec_sub(now, t->paused_at));
	}
	all_changed(t);
}

struct vm *tracker_probe(const struct tracker *t)
{
	struct vm *first = NULL;
	uint64_t first_at = USEC_INFINITY;

	list_for_each(l, &t->all) {
		const struct tracker_vm *tv = container_of(l, struct tracker_vm, all);
		uint64_t at = tv->wanted ? tv->try_at : tv->due;

		if (tv->held && (!first || at < first_at)) {
			first = tv->vm;
			first_at = at;
		}
	}
	return first;
}

/* ---- figures ---------------------------------------------------------------------------------- */

uint64_t tracker_due(const struct tracker *t, const struct vm *vm)
{
	(void)t;
	return vm->acks && vm->acks->held ? vm->acks->due : USEC_INFINITY;
}

void tracker_figures(const struct tracker *t, struct tracker_figures *ret)
{
	struct tracker_figures f = { 0 };

	list_for_each(l, &t->all) {
		const struct tracker_vm *tv = container_of(l, struct tracker_vm, all);

		f.contents += tv->held;
		f.awaiting += tv->held && tv->due != USEC_INFINITY;
		f.sends += tv->n_sends;
	}
	*ret = f;
}

/* ---- what an ACK names ------------------------------------------------------------------------ */

/* Canonical decimal, as the report's vsock_cid (SPEC 3). */
static bool parse_cid(const char *s, size_t len, uint32_t *ret)
{
	uint64_t v = 0;

	if (len == 0 || len > 10 || (s[0] == '0' && len > 1))
		return false;
	for (size_t i = 0; i < len; i++) {
		if (s[i] < '0' || s[i] > '9')
			return false;
		v = v * 10 + (uint64_t)(s[i] - '0');
	}
	if (v > UINT32_MAX)
		return false;
	*ret = (uint32_t)v;
	return true;
}

void tracker_resource_parse(const char *text, size_t len, struct tracker_resource *ret)
{
	const char *colon = len ? memchr(text, ':', len) : NULL;
	const char *cid = text;
	size_t left = colon ? (size_t)(colon - text) : 0;

	*ret = (struct tracker_resource){ 0 };
	if (left > 0 && left + 1 < len && !memchr(colon + 1, ':', len - left - 1)) {
		ret->vm_id = text;
		ret->vm_id_len = left;
		cid = colon + 1;
		len -= left + 1;
	}
	ret->has_cid = parse_cid(cid, len, &ret->cid);
}

uint64_t tracker_vm_id_hash(const char *vm_id, size_t len)
{
	uint64_t h;

	if (len == 0)
		return 0;
	h = XXH64(vm_id, len, 0);
	return h ? h : 1;
}
