/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A relay that has something to lose, for fuzzers of what is said to it: three VMs whose contents
 * are in custody, each sent once and not ACKed. The clock stands still.
 */
#ifndef VSR_FUZZ_WORLD_H
#define VSR_FUZZ_WORLD_H

#include "check.h"
#include "relay.h"

#define WORLD_VMS 3
#define WORLD_CID 100
#define WORLD_NOW (1000 * USEC_PER_HOUR)

static const char *const world_ids[WORLD_VMS] = { "vm-a", "vm-b", "" };

struct world {
	struct upstream *up;
	struct vm_table *vms;
	struct relay *relay;
	struct vm *vm[WORLD_VMS];
};

static struct upstream_send *world_sent[WORLD_VMS];

static int world_send(struct upstream *u _unused_, struct upstream_send *s)
{
	world_sent[s->vm.cid - WORLD_CID] = s;
	return 0;
}

static void world_answer(void)
{
	for (size_t i = 0; i < WORLD_VMS; i++) {
		struct upstream_send *s = world_sent[i];

		world_sent[i] = NULL;
		if (s)
			s->done(s, SEND_DELIVERED, WORLD_NOW);
	}
}

static const struct upstream_ops world_ops = { .name = "fuzz", .send = world_send };

static double world_half(void *userdata _unused_)
{
	return 0.5;
}

static struct buf *world_content(void)
{
	static struct buf *content;

	if (!content) {
		CHECK(buf_new(64, &content) == 0);
		memset(buf_tail(content), 'x', 64);
		buf_advance(content, 64);
		buf_seal(content);
	}
	return content;
}

/* up is the caller's: ops, and that ACKs come apart, are set here. */
static void world_new(struct world *w, struct upstream *up)
{
	static const struct bucket_rate unlimited;
	const struct relay_settings s = {
		.custody_max_age = UINT64_MAX,
		.cache = { .slots = 100, .bytes = MIB, .ttl = USEC_PER_HOUR },
		.retry = tracker_defaults,
	};

	up->ops = &world_ops;
	up->acks_apart = up->ready = true;
	w->up = up;
	CHECK(vm_table_new(100, unlimited, unlimited, &w->vms) == 0);
	CHECK(relay_new(&s, w->vms, up, world_half, NULL, &w->relay) == 0);
	for (uint32_t i = 0; i < WORLD_VMS; i++) {
		struct relay_report report = {
			.content = world_content(),
			.digest = i,
			.framed = true,
			.vm_id = world_ids[i],
			.vm_id_len = strlen(world_ids[i]),
		};
		struct vsr_vm_id id = { .cid = WORLD_CID + i };
		enum relay_verdict verdict;

		CHECK(vm_table_obtain(w->vms, id, WORLD_NOW, &w->vm[i]) == 0);
		report.vm = w->vm[i];
		CHECK(relay_submit(w->relay, &report, WORLD_NOW, &verdict) == 0);
	}
	relay_run(w->relay, WORLD_NOW);
	world_answer();
}

static void world_done(struct world *w)
{
	relay_free(w->relay);
	world_answer();
	vm_table_free(w->vms);
	*w = (struct world){};
}

#endif
