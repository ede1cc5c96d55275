/* SPDX-License-Identifier: Apache-2.0 */
#include "log_limit.h"

static size_t set_of(struct vsr_vm_id vm, uint32_t reason)
{
	uint64_t h = ((uint64_t)vm.ns << 32 | vm.cid) * 0x9e3779b97f4a7c15ULL;

	h ^= (uint64_t)reason * 0xc2b2ae3d27d4eb4fULL;
	h *= 0x9e3779b97f4a7c15ULL;
	return (size_t)(h >> 56) % LOG_LIMIT_SETS * LOG_LIMIT_WAYS;
}

static struct log_limit_entry *find(struct log_limit *l, struct vsr_vm_id vm, uint32_t reason)
{
	struct log_limit_entry *set = &l->entries[set_of(vm, reason)];

	for (size_t i = 0; i < LOG_LIMIT_WAYS; i++)
		if (set[i].until && set[i].vm.ns == vm.ns && set[i].vm.cid == vm.cid &&
		    set[i].reason == reason)
			return &set[i];
	return NULL;
}

/* The entry that is not in use, or that began longest ago. */
static struct log_limit_entry *oldest(struct log_limit *l, struct vsr_vm_id vm, uint32_t reason)
{
	struct log_limit_entry *set = &l->entries[set_of(vm, reason)], *found = set;

	for (size_t i = 1; i < LOG_LIMIT_WAYS; i++)
		if (set[i].until < found->until)
			found = &set[i];
	return found;
}

bool log_limit_pass(struct log_limit *l, struct vsr_vm_id vm, uint32_t reason, uint64_t now,
		    uint32_t *ret_held_back)
{
	struct log_limit_entry *e = find(l, vm, reason);

	if (e && now < e->until) {
		if (e->held_back++ == 0)
			l->n_holding++;
		return false;
	}
	if (!e)
		e = oldest(l, vm, reason);
	l->n_holding -= e->held_back > 0;
	*ret_held_back =
		e->vm.ns == vm.ns && e->vm.cid == vm.cid && e->reason == reason ? e->held_back : 0;
	*e = (struct log_limit_entry){ vm, reason, 0, usec_add(now, LOG_LIMIT_USEC) };
	return true;
}

bool log_limit_next(struct log_limit *l, uint64_t now, struct vsr_vm_id *ret_vm,
		    uint32_t *ret_reason, uint32_t *ret_held_back)
{
	for (size_t i = 0; l->n_holding > 0 && i < LOG_LIMIT_ENTRIES; i++) {
		struct log_limit_entry *e = &l->entries[i];

		if (e->held_back == 0 || now < e->until)
			continue;
		*ret_vm = e->vm;
		*ret_reason = e->reason;
		*ret_held_back = e->held_back;
		e->held_back = 0;
		e->until = usec_add(now, LOG_LIMIT_USEC);
		l->n_holding--;
		return true;
	}
	return false;
}

uint64_t log_limit_next_event(const struct log_limit *l)
{
	uint64_t next = USEC_INFINITY;

	for (size_t i = 0; l->n_holding > 0 && i < LOG_LIMIT_ENTRIES; i++)
		if (l->entries[i].held_back > 0)
			next = MIN(next, l->entries[i].until);
	return next;
}
