/* SPDX-License-Identifier: Apache-2.0 */
#include <assert.h>

#include "admission.h"

const struct admission_settings admission_defaults = {
	.places = 50,
	.waiting = 256,
	.wait = 5 * USEC_PER_SEC,
	.budget = 256 * MIB,
	.report_limit = 16 * MIB,
};

/* What a class holds; `limit`ed classes may not hold more. */
struct usage {
	uint32_t places;
	uint64_t bytes;
};

struct admission {
	struct vm_table *vms;
	struct admission_settings s;

	struct list turns;   /* struct vm with waiters: the round robin, next turn first */
	struct list waiters; /* struct admission_ticket, first arrival first */
	uint32_t waiting;

	struct usage all, limited, offender;

	struct list debtors; /* struct vm with debt, next probe first */
	struct list keepers; /* struct vm for whose closed connections the kernel keeps something,
			      * first end first */
	uint64_t debt;	     /* of both */
	uint32_t n_debtors;
	uint64_t epoch; /* counts how often the backlog was seen empty */
};

/* What stands in a waiter's way, from the narrowest class to the widest. */
enum obstacle {
	OBSTACLE_NONE,
	OBSTACLE_OFFENDER, /* the share of offenders */
	OBSTACLE_LIMITED,  /* the share of all that are not known, or second */
	OBSTACLE_ALL,	   /* places or budget */
};

/* ---- arithmetic (see the header) -------------------------------------------------------------- */

uint64_t admission_maximum(const struct admission *a)
{
	return a->s.report_limit + ADMISSION_MARGIN;
}

uint64_t admission_reserve(const struct admission *a)
{
	return a->s.budget / 4;
}

static uint64_t debt_quarter(const struct admission *a)
{
	return a->s.budget / 4;
}

static uint64_t debt_charged(const struct admission *a)
{
	return MIN(a->debt, debt_quarter(a));
}

static uint64_t grantable(const struct admission *a)
{
	return a->s.budget - admission_reserve(a);
}

static struct usage limited_limit(const struct admission *a)
{
	return (struct usage){
		.places = MAX(a->s.places / 2, 1U),
		.bytes = MAX(grantable(a) / 2, admission_maximum(a)),
	};
}

static struct usage offender_limit(const struct admission *a)
{
	return (struct usage){
		.places = MAX(a->s.places / 4, 1U),
		.bytes = MAX(grantable(a) / 4, admission_maximum(a)),
	};
}

static bool fits(const struct usage *used, struct usage limit, uint32_t places, uint64_t bytes)
{
	return places <= usec_sub(limit.places, used->places) &&
	       bytes <= usec_sub(limit.bytes, used->bytes);
}

/* What stands in the way of that much more for a connection of these classes. */
static enum obstacle obstacle(const struct admission *a, bool limited, bool offender,
			      uint32_t places, uint64_t bytes)
{
	struct usage all = { .places = a->s.places, .bytes = grantable(a) - debt_charged(a) };

	if (limited && !fits(&a->limited, limited_limit(a), places, bytes))
		return OBSTACLE_LIMITED;
	if (offender && !fits(&a->offender, offender_limit(a), places, bytes))
		return OBSTACLE_OFFENDER;
	if (!fits(&a->all, all, places, bytes))
		return OBSTACLE_ALL;
	return OBSTACLE_NONE;
}

static void charge(struct admission *a, const struct admission_ticket *t, int places, int64_t bytes)
{
	struct usage *classes[] = {
		&a->all,
		t->limited ? &a->limited : NULL,
		t->offender ? &a->offender : NULL,
	};

	for (size_t i = 0; i < ARRAY_SIZE(classes); i++)
		if (classes[i]) {
			classes[i]->places += places;
			classes[i]->bytes += bytes;
		}
}

static void set_reservation(struct admission *a, struct admission_ticket *t, uint64_t bytes)
{
	charge(a, t, 0, (int64_t)(bytes - t->reservation));
	t->reservation = bytes;
}

static uint64_t first_reservation(const struct admission *a, const struct vm *vm)
{
	uint64_t max = admission_maximum(a);

	if (vm->outgrew)
		return max;
	if (!vm->accepted)
		return MIN(ADMISSION_UNKNOWN_RESERVATION, max);
	return MIN(MAX(vm->last_length + vm->last_length / 4, ADMISSION_MIN_RESERVATION), max);
}

/* ---- life ------------------------------------------------------------------------------------- */

static bool settings_valid(const struct admission_settings *s)
{
	return s->places > 0 && s->waiting > 0 && s->report_limit <= UINT32_MAX &&
	       s->budget <= INT64_MAX && s->budget / 2 >= s->report_limit + ADMISSION_MARGIN;
}

int admission_new(struct vm_table *vms, const struct admission_settings *s, struct admission **ret)
{
	struct admission *a;

	if (!settings_valid(s))
		return -EINVAL;
	a = calloc(1, sizeof(*a));
	if (!a)
		return -ENOMEM;
	a->vms = vms;
	a->s = *s;
	list_init(&a->turns);
	list_init(&a->waiters);
	list_init(&a->debtors);
	list_init(&a->keepers);
	a->epoch = 1;
	*ret = a;
	return 0;
}

struct admission *admission_free(struct admission *a)
{
	free(a);
	return NULL;
}

int admission_set(struct admission *a, const struct admission_settings *s)
{
	if (!settings_valid(s))
		return -EINVAL;
	a->s = *s;
	return 0;
}

/* ---- debt ------------------------------------------------------------------------------------- */

/* Whether its debt keeps the VM from being granted anything. */
static bool owes_too_much(const struct admission *a, const struct vm *vm)
{
	uint64_t debt = vm->debt + vm->kept;

	if (debt > ADMISSION_VM_DEBT)
		return true;
	return debt > 0 && a->debt >= debt_quarter(a);
}

void admission_debt_add(struct admission *a, struct vm *vm, uint64_t wmem, uint64_t now)
{
	if (wmem == 0)
		return;
	if (vm->debt == 0) {
		vm->debt_probe = usec_add(now, ADMISSION_PROBE_USEC);
		list_add_last(&a->debtors, &vm->debtor);
		a->n_debtors += vm->kept == 0;
	}
	vm->debt += wmem;
	vm->debt_epoch = a->epoch;
	a->debt += wmem;
}

void admission_vm_gone(struct admission *a, struct vm *vm)
{
	if (vm->debt == 0)
		return;
	a->debt -= vm->debt;
	vm->debt = 0;
	list_del(&vm->debtor);
	a->n_debtors -= vm->kept == 0;
}

void admission_kept(struct admission *a, struct vm *vm, uint64_t bytes, uint64_t now)
{
	if (bytes == 0)
		return;
	a->n_debtors += vm->kept == 0 && vm->debt == 0;
	/* One end for all of a VM: the latest. */
	list_move_last(&a->keepers, &vm->keeper);
	vm->kept += bytes;
	vm->kept_until = usec_add(now, ADMISSION_KEPT_USEC);
	a->debt += bytes;
}

static void end_kept(struct admission *a, uint64_t now)
{
	struct vm *vm;

	while ((vm = list_first_entry(&a->keepers, struct vm, keeper)) && now >= vm->kept_until) {
		list_del(&vm->keeper);
		a->debt -= vm->kept;
		vm->kept = 0;
		a->n_debtors -= vm->debt == 0;
	}
}

void admission_backlog_empty(struct admission *a)
{
	a->epoch++;
}

bool admission_wants_wmem(const struct admission_ticket *t)
{
	return t->vm && t->vm->debt > 0 && t->epoch > t->vm->debt_epoch;
}

bool admission_drained(struct admission *a, struct admission_ticket *t)
{
	if (!admission_wants_wmem(t))
		return false;
	admission_vm_gone(a, t->vm);
	return true;
}

struct vm *admission_debt_probe(struct admission *a, uint32_t ns, uint64_t now)
{
	struct vm *vm;

	while ((vm = list_first_entry(&a->debtors, struct vm, debtor)) && now >= vm->debt_probe) {
		vm->debt_probe = usec_add(now, ADMISSION_PROBE_USEC);
		list_move_last(&a->debtors, &vm->debtor);
		if (vm->node.id.ns == ns)
			return vm;
		if (now >= usec_add(vm->last_used, VM_IDLE_USEC))
			admission_vm_gone(a, vm);
	}
	return NULL;
}

/* ---- waiting ---------------------------------------------------------------------------------- */

int admission_arrive(struct admission *a, struct admission_ticket *t, struct vm *vm, uint64_t now,
		     enum reason *ret_reason)
{
	assert(t->state == ADMISSION_NONE);

	if (vm->waiting + vm->served >= ADMISSION_CONNECTIONS_PER_VM) {
		*ret_reason = REASON_VM_CONNECTIONS;
		return -EBUSY;
	}
	if (a->waiting >= a->s.waiting) {
		*ret_reason = REASON_WAITING_FULL;
		return -EBUSY;
	}
	*t = (struct admission_ticket){
		.vm = vm,
		.arrived = now,
		.epoch = a->epoch,
		.unfit_since = USEC_INFINITY,
		.state = ADMISSION_WAITING,
	};
	list_add_last(&vm->waiters, &t->by_vm);
	list_add_last(&a->waiters, &t->by_arrival);
	if (!list_linked(&vm->turn))
		list_add_last(&a->turns, &vm->turn);
	vm->waiting++;
	vm->open++;
	a->waiting++;
	return 0;
}

/* Takes a waiter out of its queues. */
static void stop_waiting(struct admission *a, struct admission_ticket *t)
{
	struct vm *vm = t->vm;

	list_del(&t->by_vm);
	list_del(&t->by_arrival);
	if (list_empty(&vm->waiters))
		list_del(&vm->turn);
	vm->waiting--;
	a->waiting--;
	t->state = ADMISSION_DONE;
}

struct admission_ticket *admission_first_waiter(const struct admission *a)
{
	return list_first_entry(&a->waiters, struct admission_ticket, by_arrival);
}

struct admission_ticket *admission_expired(struct admission *a, uint64_t now,
					   enum reason *ret_reason)
{
	struct admission_ticket *t = admission_first_waiter(a);

	if (!t || now < usec_add(t->arrived, a->s.wait))
		return NULL;
	stop_waiting(a, t);
	*ret_reason = owes_too_much(a, t->vm) ? REASON_DEBT : REASON_WAIT_TIMEOUT;
	return t;
}

/* ---- granting --------------------------------------------------------------------------------- */

static void grant(struct admission *a, struct admission_ticket *t, bool limited, uint64_t bytes)
{
	struct vm *vm = t->vm;

	stop_waiting(a, t);
	/* One waiter's turn each: the VM's other waiters queue up behind all other VMs. */
	if (list_linked(&vm->turn))
		list_move_last(&a->turns, &vm->turn);
	t->state = ADMISSION_SERVED;
	t->limited = limited;
	t->offender = vm->offence;
	t->reservation = bytes;
	charge(a, t, 1, (int64_t)bytes);
	vm->served++;
}

/* What its served connections may still leave counts for a VM that owes already: or two at once
 * would take one that is almost at the limit far beyond it. */
static bool may_owe_too_much(const struct vm *vm)
{
	return vm->debt > 0 &&
	       vm->debt + (uint64_t)vm->served * VSR_UNREAD_UPDATES > ADMISSION_VM_DEBT;
}

/* Whether it has to leave the event loop's time to others; alone it keeps nobody from anything. */
static bool busy(const struct admission *a, const struct vm *vm, uint64_t now)
{
	return now < vm->busy_until && (a->all.places > vm->served || a->waiting > vm->waiting) &&
	       vm_grants_limited(a->vms);
}

void admission_worked(struct vm *vm, uint64_t usec, uint64_t now)
{
	uint64_t until = MAX(vm->busy_until, now) + usec * ADMISSION_LOOP_SHARE;

	vm->busy_until = MIN(until, usec_add(now, ADMISSION_BUSY_USEC));
}

/* Whether the VM itself may have one more, whatever others hold. Who may not is no obstacle for
 * those behind it. */
static bool may_have_one(const struct admission *a, const struct vm *vm, uint64_t now)
{
	return vm->served < ADMISSION_SERVED_PER_VM && !owes_too_much(a, vm) &&
	       !may_owe_too_much(vm) && !busy(a, vm, now) && vm_next_grant(a->vms, vm, now) <= now;
}

/*
 * One walk over the VMs whose last connection was an offence, or over the others. A waiter that
 * was passed over for 1 s bars from then on everybody behind it who needs what it is short of:
 * one that only its class's share keeps waiting does not bar those outside the class, or a
 * handful of hostile VMs could hold up all others. Nor does one that waits for the maximum because it
 * has outgrown what it had: that is to hurt nobody else.
 */
static struct admission_ticket *walk(struct admission *a, bool offender, uint64_t now,
				     enum obstacle *barred)
{
	list_for_each(l, &a->turns) {
		struct vm *vm = container_of(l, struct vm, turn);
		struct admission_ticket *t;
		bool limited = !vm->accepted || vm->offence || vm->served > 0;
		uint64_t bytes = first_reservation(a, vm);
		enum obstacle o;

		if (vm->offence != offender || !may_have_one(a, vm, now))
			continue;
		if (*barred == OBSTACLE_ALL || (limited && *barred == OBSTACLE_LIMITED) ||
		    (offender && *barred == OBSTACLE_OFFENDER))
			continue;
		t = list_first_entry(&vm->waiters, struct admission_ticket, by_vm);
		o = obstacle(a, limited, offender, 1, bytes);
		if (o == OBSTACLE_NONE) {
			vm_take_grant(a->vms, vm, now);
			grant(a, t, limited, bytes);
			return t;
		}
		if (t->unfit_since == USEC_INFINITY)
			t->unfit_since = now;
		if (vm->outgrew && o == OBSTACLE_ALL)
			o = OBSTACLE_LIMITED;
		if (now >= usec_add(t->unfit_since, ADMISSION_PASS_OVER_USEC))
			*barred = MAX(*barred, o);
	}
	return NULL;
}

struct admission_ticket *admission_next(struct admission *a, uint64_t now)
{
	enum obstacle barred = OBSTACLE_NONE;
	struct admission_ticket *t;

	end_kept(a, now);
	if (a->waiting == 0 || a->all.places >= a->s.places)
		return NULL;
	t = walk(a, false, now, &barred);
	/* Offenders wait last: whatever bars one of the others bars all of them. */
	return t ?: walk(a, true, now, &barred);
}

uint64_t admission_next_event(const struct admission *a, uint64_t now)
{
	const struct admission_ticket *first = admission_first_waiter(a);
	const struct vm *debtor = list_first_entry(&a->debtors, struct vm, debtor);
	const struct vm *keeper = list_first_entry(&a->keepers, struct vm, keeper);
	uint64_t next = USEC_INFINITY;

	if (first)
		next = usec_add(first->arrived, a->s.wait);
	if (keeper)
		next = MIN(next, keeper->kept_until);
	if (debtor)
		next = MIN(next, debtor->debt_probe);
	list_for_each(l, &a->turns) {
		const struct vm *vm = container_of(l, struct vm, turn);
		uint64_t token = vm_next_grant(a->vms, vm, now);

		if (busy(a, vm, now))
			token = MAX(token, vm->busy_until);

		/* Whoever has a token and still waits needs something that others hold. */
		if (token > now && vm->served < ADMISSION_SERVED_PER_VM && !owes_too_much(a, vm))
			next = MIN(next, token);
	}
	return next;
}

/* ---- with a place ----------------------------------------------------------------------------- */

int admission_resize(struct admission *a, struct admission_ticket *t, uint64_t bytes)
{
	assert(t->state == ADMISSION_SERVED);

	if (bytes > t->reservation) {
		if (bytes > admission_maximum(a))
			return -EFBIG;
		if (obstacle(a, t->limited, t->offender, 0, bytes - t->reservation) !=
		    OBSTACLE_NONE)
			return -EAGAIN;
	}
	set_reservation(a, t, bytes);
	return 0;
}

static void give_back_place(struct admission *a, struct admission_ticket *t)
{
	charge(a, t, -1, 0);
	t->vm->served--;
	t->state = ADMISSION_DONE;
}

/* What the VM's next connection is judged by. */
static void learn(struct vm *vm, enum reason reason, uint64_t length)
{
	vm->offence = reason_is_offence(reason);
	if (reason == REASON_OVER_BUDGET)
		vm->outgrew = true;
	if (reason == REASON_NONE) {
		vm->accepted = true;
		vm->outgrew = false;
		vm->last_length = length;
	}
}

void admission_release(struct admission *a, struct admission_ticket *t, enum reason reason,
		       uint64_t length, uint64_t wmem)
{
	assert(t->state == ADMISSION_SERVED);

	give_back_place(a, t);
	set_reservation(a, t, wmem);
	learn(t->vm, reason, length);
}

void admission_close(struct admission *a, struct admission_ticket *t, uint64_t wmem, uint64_t now)
{
	if (t->state == ADMISSION_NONE)
		return;
	if (t->state == ADMISSION_WAITING)
		stop_waiting(a, t);
	if (t->state == ADMISSION_SERVED)
		give_back_place(a, t);
	set_reservation(a, t, 0);
	admission_debt_add(a, t->vm, wmem, now);
	t->vm->open--;
	*t = (struct admission_ticket){ .state = ADMISSION_NONE };
}

/* ---- figures ---------------------------------------------------------------------------------- */

void admission_figures(const struct admission *a, struct admission_figures *ret)
{
	*ret = (struct admission_figures){
		.places = a->s.places,
		.places_used = a->all.places,
		.waiting = a->waiting,
		.limited_places = a->limited.places,
		.offender_places = a->offender.places,
		.budget = a->s.budget,
		.reserve = admission_reserve(a),
		.reserved = a->all.bytes,
		.limited_reserved = a->limited.bytes,
		.offender_reserved = a->offender.bytes,
		.debt = a->debt,
		.debt_charged = debt_charged(a),
		.debtors = a->n_debtors,
	};
}

void admission_limits(const struct admission *a, uint32_t *ret_limited_places,
		      uint64_t *ret_limited_bytes, uint32_t *ret_offender_places,
		      uint64_t *ret_offender_bytes)
{
	struct usage limited = limited_limit(a), offender = offender_limit(a);

	*ret_limited_places = limited.places;
	*ret_limited_bytes = limited.bytes;
	*ret_offender_places = offender.places;
	*ret_offender_bytes = offender.bytes;
}
