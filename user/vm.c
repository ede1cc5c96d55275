/* SPDX-License-Identifier: Apache-2.0 */
#include "vm.h"

struct vm_table {
	struct vmmap map;
	struct list by_use; /* struct vm, least recently used first */
	size_t max;
	struct bucket_rate grants, reports;
	uint64_t evicted, refused;
	bool (*before)(struct vsr_vm_id id, struct vsr_vm_state *ret, void *userdata);
	void *before_data;
};

static struct vm *vm_free(struct vm_table *t, struct vm *vm)
{
	if (!vm)
		return NULL;
	vmmap_remove(&t->map, &vm->node);
	list_del(&vm->by_use);
	free(vm);
	return NULL;
}

int vm_table_new(size_t max, struct bucket_rate grants, struct bucket_rate reports,
		 struct vm_table **ret)
{
	struct vm_table *t;
	int r;

	t = calloc(1, sizeof(*t));
	if (!t)
		return -ENOMEM;
	r = vmmap_init(&t->map);
	if (r < 0) {
		free(t);
		return r;
	}
	list_init(&t->by_use);
	t->max = max;
	t->grants = grants;
	t->reports = reports;
	*ret = t;
	return 0;
}

struct vm_table *vm_table_free(struct vm_table *t)
{
	if (!t)
		return NULL;
	list_for_each_safe(l, &t->by_use)
		vm_free(t, container_of(l, struct vm, by_use));
	vmmap_done(&t->map);
	free(t);
	return NULL;
}

void vm_table_set_rates(struct vm_table *t, struct bucket_rate grants, struct bucket_rate reports)
{
	t->grants = grants;
	t->reports = reports;
}

void vm_table_remember(struct vm_table *t,
		       bool (*before)(struct vsr_vm_id id, struct vsr_vm_state *ret,
				      void *userdata),
		       void *userdata)
{
	t->before = before;
	t->before_data = userdata;
}

bool vm_pinned(const struct vm_table *t, const struct vm *vm, uint64_t now)
{
	return vm->custody || vm->storing || vm->in_flight || vm->acks || vm->debt > 0 ||
	       vm->kept > 0 || vm->open > 0 || bucket_peek(&vm->grants, &t->grants, now) == 0 ||
	       bucket_peek(&vm->reports, &t->reports, now) == 0;
}

struct vm *vm_table_find(const struct vm_table *t, struct vsr_vm_id id)
{
	return vmmap_entry(vmmap_find(&t->map, id), struct vm, node);
}

/* Drops the least recently used record that is not pinned. With a full table this passes the
 * pinned ones each time: 16384 at most, and their owners choose neither how many VMs a node has
 * nor their CIDs. */
static int make_room(struct vm_table *t, uint64_t now)
{
	list_for_each(l, &t->by_use) {
		struct vm *vm = container_of(l, struct vm, by_use);

		if (vm_pinned(t, vm, now))
			continue;
		vm_free(t, vm);
		t->evicted++;
		return 0;
	}
	t->refused++;
	return -ENOBUFS;
}

static void go_on_from_before(const struct vm_table *t, struct vm *vm)
{
	struct vsr_vm_state before;

	if (!t->before || !t->before(vm->node.id, &before, t->before_data))
		return;
	vm->received = before.received;
	vm->accepts = before.accepted;
	vm->duplicates = before.duplicates;
	vm->refused = before.refused;
	vm->last_accepted = before.last_accepted_ns / NSEC_PER_USEC;
	vm->acked_before = before.last_ack_ns;
}

int vm_table_obtain(struct vm_table *t, struct vsr_vm_id id, uint64_t now, struct vm **ret)
{
	struct vm *vm = vm_table_find(t, id);
	int r;

	if (!vm) {
		if (t->map.n >= t->max) {
			r = make_room(t, now);
			if (r < 0)
				return r;
		}
		vm = calloc(1, sizeof(*vm));
		if (!vm)
			return -ENOMEM;
		list_init(&vm->by_use);
		list_init(&vm->debtor);
		list_init(&vm->keeper);
		list_init(&vm->waiters);
		list_init(&vm->turn);
		vmmap_add(&t->map, &vm->node, id);
		go_on_from_before(t, vm);
	}
	vm->last_used = now;
	list_move_last(&t->by_use, &vm->by_use);
	*ret = vm;
	return 0;
}

size_t vm_table_sweep(struct vm_table *t, uint64_t now)
{
	size_t n = 0;

	list_for_each_safe(l, &t->by_use) {
		struct vm *vm = container_of(l, struct vm, by_use);

		if (now < usec_add(vm->last_used, VM_IDLE_USEC))
			break;
		if (vm_pinned(t, vm, now))
			continue;
		vm_free(t, vm);
		n++;
	}
	return n;
}

size_t vm_table_count(const struct vm_table *t)
{
	return t->map.n;
}

uint64_t vm_table_evicted(const struct vm_table *t)
{
	return t->evicted;
}

uint64_t vm_table_refused(const struct vm_table *t)
{
	return t->refused;
}

struct vm *vm_table_next(const struct vm_table *t, const struct vm *vm)
{
	return vmmap_entry(vmmap_next(&t->map, vm ? &vm->node : NULL), struct vm, node);
}

bool vm_grants_limited(const struct vm_table *t)
{
	return t->grants.interval > 0;
}

bool vm_take_grant(const struct vm_table *t, struct vm *vm, uint64_t now)
{
	return bucket_take(&vm->grants, &t->grants, now);
}

uint64_t vm_next_grant(const struct vm_table *t, const struct vm *vm, uint64_t now)
{
	return bucket_next(&vm->grants, &t->grants, now);
}

bool vm_take_report(const struct vm_table *t, struct vm *vm, uint64_t now)
{
	return bucket_take(&vm->reports, &t->reports, now);
}

void vm_give_back_report(const struct vm_table *t, struct vm *vm)
{
	bucket_give_back(&vm->reports, &t->reports);
}

uint64_t vm_next_report(const struct vm_table *t, const struct vm *vm, uint64_t now)
{
	return bucket_next(&vm->reports, &t->reports, now);
}

void vm_export(const struct vm *vm, struct vsr_vm_state *ret)
{
	*ret = (struct vsr_vm_state){
		.received = vm->received,
		.accepted = vm->accepts,
		.duplicates = vm->duplicates,
		.refused = vm->refused,
		.record_length = vm->has_record ? vm->record_length : 0,
		.record_digest = vm->has_record ? vm->record_digest : 0,
		.generation = vm->generation,
		.custody = vm->custody != NULL,
		.last_accepted_ns = vm->last_accepted * NSEC_PER_USEC,
		.last_ack_ns = vm->last_ack ? vm->last_ack * NSEC_PER_USEC : vm->acked_before,
		.debt = vm->debt + vm->kept,
	};
}
