/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Explores all that can happen to the rules of model.h, breadth first, and prints TAP: the rules of
 * the contract keep the invariants whatever comes; each rule that is known to be wrong, and each
 * assumption that is given up, has a counterexample, the shortest of which is printed. Then random
 * walks of the model are done to user/relay*.c and user/tracker.c too, which must decide the same.
 *
 *   explore [STEPS]        steps of the walks, 200000 by default
 */
#include "model.h"

#include <stdarg.h>

#include "metrics.h"
#include "relay.h"

/* ---- states as numbers --------------------------------------------------------------------------- */

#define VMS_MAX	      2
#define BITS_OF_SEND  8
#define BITS_OF_VM    6
#define SLOTS_OF_PAIR 3 /* 2 VMs of 3 slots fit into 60 bits, one of 7 into 62 */

static uint64_t pack_vm(const struct model_vm *vm)
{
	uint64_t v = vm->held | (uint64_t)vm->record << 2 | (uint64_t)vm->acked << 4 |
		     (uint64_t)vm->nacked << 5;

	for (unsigned int i = 0; i < vm->n; i++) {
		const struct model_send *s = &vm->send[i];
		uint64_t bits = s->remembered | s->current << 1 | s->claim << 2 | s->net << 3 |
				s->flight << 6;

		v |= bits << (BITS_OF_VM + BITS_OF_SEND * i);
	}
	return v;
}

/* A send that says anything has at least one bit set, so that their number need not be kept. */
static void unpack_vm(uint64_t v, struct model_vm *ret)
{
	*ret = (struct model_vm){
		.held = v & 3, .record = v >> 2 & 3, .acked = v >> 4 & 1, .nacked = v >> 5 & 1
	};
	for (v >>= BITS_OF_VM; v; v >>= BITS_OF_SEND)
		ret->send[ret->n++] = (struct model_send){
			.remembered = v & 1,
			.current = v >> 1 & 1,
			.claim = v >> 2 & 1,
			.net = v >> 3 & 7,
			.flight = v >> 6 & 3,
		};
}

struct world {
	struct model_vm vm[VMS_MAX];
};

/* Which of two VMs is the first makes no difference to any rule: one order stands for both. */
static uint64_t pack(const struct world *w, unsigned int vms)
{
	uint64_t a = pack_vm(&w->vm[0]), b;

	if (vms == 1)
		return a;
	b = pack_vm(&w->vm[1]);
	return MIN(a, b) | MAX(a, b) << (BITS_OF_VM + BITS_OF_SEND * SLOTS_OF_PAIR);
}

static void unpack(uint64_t v, unsigned int vms, struct world *ret)
{
	unsigned int shift = BITS_OF_VM + BITS_OF_SEND * SLOTS_OF_PAIR;

	if (vms == 2) {
		unpack_vm(v & ((1ULL << shift) - 1), &ret->vm[0]);
		unpack_vm(v >> shift, &ret->vm[1]);
	} else {
		unpack_vm(v, &ret->vm[0]);
	}
}

/* ---- the states seen ------------------------------------------------------------------------------ */

struct node {
	uint64_t state;
	uint32_t parent;
	uint8_t vm, kind, arg;
};

struct search {
	const struct model_config *config;
	unsigned int vms;
	struct node *nodes; /* in the order found, which is the queue too */
	size_t n, room;
	uint32_t *table; /* index + 1 of a node, by hash; 0: free */
	size_t table_size;
	uint64_t transitions;
	const char *broken;
	struct node last; /* the step that broke it */
};

static void *must(void *p)
{
	if (!p) {
		perror("explore");
		exit(1);
	}
	return p;
}

static size_t slot_of(const struct search *s, uint64_t state)
{
	uint64_t h = state * 0x9e3779b97f4a7c15ULL;

	return (h ^ h >> 32) & (s->table_size - 1);
}

static void insert(struct search *s, uint32_t i)
{
	size_t k = slot_of(s, s->nodes[i].state);

	while (s->table[k])
		k = (k + 1) & (s->table_size - 1);
	s->table[k] = i + 1;
}

static bool seen(const struct search *s, uint64_t state)
{
	for (size_t k = slot_of(s, state); s->table[k]; k = (k + 1) & (s->table_size - 1))
		if (s->nodes[s->table[k] - 1].state == state)
			return true;
	return false;
}

static void add(struct search *s, const struct node *node)
{
	if (s->n == s->room) {
		s->room = s->room ? 2 * s->room : 1 << 16;
		s->nodes = must(reallocarray(s->nodes, s->room, sizeof(*s->nodes)));
		free(s->table);
		s->table_size = 4 * s->room;
		s->table = must(calloc(s->table_size, sizeof(*s->table)));
		for (size_t i = 0; i < s->n; i++)
			insert(s, (uint32_t)i);
	}
	s->nodes[s->n] = *node;
	insert(s, (uint32_t)s->n++);
}

/* One step of the world: an event of a VM, or of all. */
static bool step(const struct search *s, struct world *w, const struct node *node,
		 const char **ret_broken)
{
	struct event e = { node->kind, node->arg };
	unsigned int first = node->vm, end = first + 1;
	enum model_match match;

	if (e.kind >= EVENT_KINDS_OF_VM) {
		first = 0;
		end = s->vms;
	}
	for (unsigned int i = first; i < end; i++)
		if (!model_step(s->config, &w->vm[i], e, ret_broken, &match) || *ret_broken)
			return *ret_broken != NULL;
	return true;
}

static void visit(struct search *s, uint32_t parent, const struct world *from, uint8_t vm,
		  enum event_kind kind)
{
	unsigned int last = model_event_args(&from->vm[vm], kind);

	for (unsigned int arg = 0; arg <= last && !s->broken; arg++) {
		struct node node = { 0, parent, vm, (uint8_t)kind, (uint8_t)arg };
		struct world w = *from;
		const char *broken = NULL;

		if (!step(s, &w, &node, &broken))
			continue;
		s->transitions++;
		node.state = pack(&w, s->vms);
		if (broken) {
			s->broken = broken;
			s->last = node;
		} else if (!seen(s, node.state)) {
			add(s, &node);
		}
	}
}

/* Each VM for itself: what is known of one need not be asked of two. */
static void check_progress(struct search *s, const struct world *w, uint32_t i)
{
	if (s->vms == 1 && w->vm[0].held && !model_can_deliver(s->config, w->vm[0])) {
		s->broken = "what is in custody can never be delivered";
		s->last = s->nodes[i];
	}
}

static void explore(struct search *s)
{
	struct node start = { 0 };

	add(s, &start);
	for (uint32_t i = 0; i < s->n && !s->broken; i++) {
		struct world w;

		unpack(s->nodes[i].state, s->vms, &w);
		check_progress(s, &w, i);
		for (uint8_t v = 0; v < s->vms; v++)
			for (int kind = 0; kind < EVENT_KINDS_OF_VM; kind++)
				visit(s, i, &w, v, (enum event_kind)kind);
		visit(s, i, &w, 0, EVENT_RESTART_KEEPS);
		visit(s, i, &w, 0, EVENT_RESTART_LOSES);
	}
}

static void search_done(struct search *s)
{
	free(s->nodes);
	free(s->table);
}

/* ---- what comes out ------------------------------------------------------------------------------- */

static unsigned int tests, failures;

static void tell(bool ok, const char *name, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
static void tell(bool ok, const char *name, const char *fmt, ...)
{
	va_list ap;

	tests++;
	failures += !ok;
	printf("%sok %u - %s: ", ok ? "" : "not ", tests, name);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	printf("\n");
	fflush(stdout);
}

static void print_node(const struct search *s, const struct node *node)
{
	printf("#   ");
	if (s->vms > 1 && node->kind < EVENT_KINDS_OF_VM)
		printf("one VM: ");
	printf("%s", model_event_name(node->kind));
	if (node->kind <= EVENT_REPORT_REFRESHED ||
	    (node->kind >= EVENT_TAKEN_ACK && node->kind <= EVENT_LOST) ||
	    node->kind == EVENT_ANSWER || node->kind == EVENT_ANSWER_LOST)
		printf(" %u", node->arg);
	printf("\n");
}

static void print_path(const struct search *s, const struct node *node)
{
	if (node->state == 0 && node->parent == 0 && node->kind == 0)
		return;
	print_path(s, &s->nodes[node->parent]);
	print_node(s, node);
}

static void run(const char *name, struct model_config c, unsigned int vms, bool holds)
{
	struct search s = { .config = &c, .vms = vms };

	explore(&s);
	tell(holds == !s.broken, name, "%zu states, %llu transitions%s%s", s.n,
	     (unsigned long long)s.transitions, s.broken ? "; " : "", s.broken ? s.broken : "");
	if (s.broken)
		print_path(&s, &s.last);
	search_done(&s);
}

/* ---- the same walk with the real code -------------------------------------------------------------- */

/* A clock that steps far enough for any retry between two events, and never so far that a send is
 * forgotten by the way. */
#define RETRY_BASE (1 * USEC_PER_MSEC)
#define CIDS	   100
#define BYTES	   64

struct real {
	struct relay_settings settings;
	struct vm_table *vms;
	struct relay *relay;
	struct upstream up;
	struct upstream_send *flight[VMS_MAX];
	int allowed; /* the VM whose send the upstream takes now; -1: none */
	uint64_t now;
	struct buf *content[CONTENTS + 1];
};

static int real_send(struct upstream *u, struct upstream_send *s)
{
	struct real *r = container_of(u, struct real, up);
	int v = (int)s->vm.cid - CIDS;

	if (v != r->allowed || r->flight[v])
		return -EBUSY;
	r->flight[v] = s;
	return 0;
}

static double no_chance(void *userdata _unused_)
{
	return 0.5;
}

static void real_start(struct real *r)
{
	static const struct bucket_rate unlimited;

	if (vm_table_new(100, unlimited, unlimited, &r->vms) < 0 ||
	    relay_new(&r->settings, r->vms, &r->up, no_chance, NULL, &r->relay) < 0)
		must(NULL);
}

static void real_stop(struct real *r)
{
	r->relay = relay_free(r->relay);
	for (size_t v = 0; v < VMS_MAX; v++)
		if (r->flight[v]) {
			r->flight[v]->done(r->flight[v], SEND_FAILED, r->now);
			r->flight[v] = NULL;
		}
	r->vms = vm_table_free(r->vms);
}

static const char *claim_text(unsigned int claim)
{
	return claim ? "vm-b" : "vm-a";
}

static void real_report(struct real *r, unsigned int v, unsigned int content, bool refreshed)
{
	const char *claim = claim_text(content == CONTENTS);
	enum relay_verdict verdict;
	struct relay_report report = {
		.content = r->content[content],
		.digest = content,
		.framed = true,
		.vm_id = claim,
		.vm_id_len = strlen(claim),
	};

	r->settings.suppress_unchanged = !refreshed;
	if (vm_table_obtain(r->vms, (struct vsr_vm_id){ .cid = CIDS + v }, r->now, &report.vm) <
		    0 ||
	    relay_set(r->relay, &r->settings, r->now) < 0 ||
	    relay_submit(r->relay, &report, r->now, &verdict) < 0)
		must(NULL);
}

/* Lets the upstream take this VM's send. Returns whether it came. */
static bool real_send_now(struct real *r, unsigned int v)
{
	r->allowed = (int)v;
	for (int i = 0; i < 20 && !r->flight[v]; i++) {
		r->now += 200 * USEC_PER_MSEC;
		relay_run(r->relay, r->now);
	}
	r->allowed = -1;
	return r->flight[v];
}

static void real_result(struct real *r, unsigned int v, enum send_result result)
{
	struct upstream_send *s = r->flight[v];

	r->flight[v] = NULL;
	s->done(s, result, r->now);
}

static enum model_match real_answer(struct real *r, unsigned int v, const struct model_send *s,
				    bool bare)
{
	double before[3];
	char resource[32];
	struct upstream_ack ack = {
		.nack = s->net != NET_ACK,
		.resource = resource,
		.reason = s->net == NET_NACK_PERMANENT ? "unsupported action" : "busy",
	};

	ack.resource_len = (size_t)(bare ? snprintf(resource, sizeof(resource), "%u", CIDS + v)
					 : snprintf(resource, sizeof(resource), "%s:%u",
						    claim_text(s->claim), CIDS + v));
	for (unsigned int i = 0; i < 3; i++)
		before[i] = metric_get(METRIC_ACK_OUTCOMES, i);
	r->up.on_ack(&ack, r->up.userdata, r->now);
	if (metric_get(METRIC_ACK_OUTCOMES, METRIC_ACK_SETTLED) > before[METRIC_ACK_SETTLED])
		return MATCH_SETTLED;
	if (metric_get(METRIC_ACK_OUTCOMES, METRIC_ACK_STALE) > before[METRIC_ACK_STALE])
		return MATCH_STALE;
	return metric_get(METRIC_ACK_OUTCOMES, METRIC_ACK_UNMATCHED) > before[METRIC_ACK_UNMATCHED]
		       ? MATCH_UNMATCHED
		       : MATCH_NONE;
}

/* All that is in custody is too old. */
static void real_expire(struct real *r)
{
	r->now += USEC_PER_MSEC;
	r->settings.custody_max_age = 1;
	(void)relay_set(r->relay, &r->settings, r->now);
	relay_run(r->relay, r->now);
	r->settings.custody_max_age = UINT64_MAX;
	(void)relay_set(r->relay, &r->settings, r->now);
}

static bool same(struct real *r, unsigned int v, const struct model_vm *m, const char **ret_what)
{
	const struct vm *vm = vm_table_find(r->vms, (struct vsr_vm_id){ .cid = CIDS + v });
	uint64_t record = vm && vm->has_record ? vm->record_digest : 0;

	*ret_what = NULL;
	if ((vm && vm->custody) != (m->held != 0))
		*ret_what = "custody";
	else if (record != m->record)
		*ret_what = "the digest of record";
	else if ((vm && vm->in_flight) != (r->flight[v] != NULL))
		*ret_what = "the send in flight";
	return !*ret_what;
}

struct walk {
	struct model_config c;
	struct real real;
	struct model_vm vm[VMS_MAX];
	uint64_t random;
	unsigned long counts[EVENT_KINDS];
	const char *differs;
};

static unsigned int chance(struct walk *w, unsigned int n)
{
	w->random ^= w->random << 13;
	w->random ^= w->random >> 7;
	w->random ^= w->random << 17;
	return (unsigned int)(w->random >> 33) % n;
}

/* Whether the real world can be made to do this to this VM alone; what it does to all is done to
 * all in the model too (walk_all()). */
static bool for_one(enum event_kind kind)
{
	return kind != EVENT_EVICTED && kind != EVENT_FORGOTTEN && kind < EVENT_KINDS_OF_VM &&
	       kind != EVENT_RESULT_REJECTED;
}

static void walk_one(struct walk *w, unsigned int v, struct event e)
{
	struct model_send sent = w->vm[v].send[e.arg];
	struct model_vm after = w->vm[v];
	const char *broken;
	enum model_match match, real_match = MATCH_NONE;

	if (!model_step(&w->c, &after, e, &broken, &match))
		return;
	w->counts[e.kind]++;
	switch (e.kind) {
	case EVENT_REPORT:
	case EVENT_REPORT_REFRESHED:
		real_report(&w->real, v, e.arg, e.kind == EVENT_REPORT_REFRESHED);
		break;
	case EVENT_SEND:
		if (!real_send_now(&w->real, v))
			w->differs = "the relay does not send";
		break;
	case EVENT_RESULT_DELIVERED:
		real_result(&w->real, v, SEND_DELIVERED);
		break;
	case EVENT_RESULT_FAILED:
		real_result(&w->real, v, SEND_FAILED);
		break;
	case EVENT_RESULT_NOT_DELIVERED:
		real_result(&w->real, v, SEND_NOT_DELIVERED);
		break;
	case EVENT_ANSWER:
		real_match = real_answer(&w->real, v, &sent, w->c.bare);
		break;
	default: /* the upstream's and the network's: nobody here sees it */
		break;
	}
	w->vm[v] = after;
	if (broken)
		w->differs = broken;
	else if (match != real_match)
		w->differs = "how an answer is matched";
}

static void forget_all(struct walk *w)
{
	struct event e = { EVENT_FORGOTTEN, 0 };
	struct model_vm after[VMS_MAX];
	const char *broken;
	enum model_match match;

	memcpy(after, w->vm, sizeof(after));
	for (unsigned int v = 0; v < VMS_MAX; v++) {
		while (model_step(&w->c, &after[v], e, &broken, &match))
			;
		for (unsigned int i = 0; i < after[v].n; i++)
			if (after[v].send[i].remembered)
				return; /* an answer is still to come */
	}
	memcpy(w->vm, after, sizeof(after));
	w->counts[EVENT_FORGOTTEN]++;
	w->real.now += TRACKER_REMEMBER;
	relay_run(w->real.relay, w->real.now);
}

static void walk_all(struct walk *w, enum event_kind kind)
{
	const char *broken;
	enum model_match match;

	if (kind == EVENT_FORGOTTEN) {
		forget_all(w);
		return;
	}
	if (kind != EVENT_EVICTED && kind != EVENT_RESTART_LOSES)
		return; /* others cannot be had from the relay alone */
	w->counts[kind]++;
	for (unsigned int v = 0; v < VMS_MAX; v++)
		(void)model_step(&w->c, &w->vm[v], (struct event){ kind, 0 }, &broken, &match);
	if (kind == EVENT_EVICTED) {
		real_expire(&w->real);
	} else {
		real_stop(&w->real);
		real_start(&w->real);
	}
}

static void walk(struct walk *w, unsigned long steps)
{
	const char *what;

	for (unsigned long i = 0; i < steps && !w->differs; i++) {
		enum event_kind kind = (enum event_kind)chance(w, EVENT_KINDS);
		unsigned int v = chance(w, VMS_MAX);

		/* The end of all is rare, or nothing would ever happen. */
		if (!for_one(kind) && chance(w, 16) > 0)
			continue;
		if (for_one(kind))
			walk_one(w, v,
				 (struct event){
					 kind, chance(w, model_event_args(&w->vm[v], kind) + 1) });
		else
			walk_all(w, kind);
		for (v = 0; v < VMS_MAX && !w->differs; v++)
			if (!same(&w->real, v, &w->vm[v], &what))
				w->differs = what;
	}
}

static void replay(const char *name, bool bare, bool nacks, unsigned long steps)
{
	static const struct upstream_ops ops = { .name = "model", .send = real_send };
	struct walk w = {
		.c = { .slots = SLOTS_MAX, .sends = TRACKER_SENDS, .bare = bare, .nacks = nacks },
		.random = 0x5eed5eed5eedULL + bare + 2 * nacks,
		.real = {
			.up = { .ops = &ops, .acks_apart = true, .ready = true },
			.allowed = -1,
			.now = 1000 * USEC_PER_HOUR,
			.settings = {
				.custody_max_age = UINT64_MAX,
				.stale_ack = 4 * USEC_PER_HOUR,
				.cache = { .slots = 100, .bytes = MIB, .ttl = USEC_INFINITY / 4 },
				.retry = tracker_defaults,
			},
		},
	};
	unsigned long done = 0;

	w.real.settings.retry.base = RETRY_BASE;
	for (unsigned int i = 1; i <= CONTENTS; i++) {
		if (buf_new(BYTES, &w.real.content[i]) < 0)
			must(NULL);
		memset(buf_tail(w.real.content[i]), (int)i, BYTES);
		buf_advance(w.real.content[i], BYTES);
		buf_seal(w.real.content[i]);
	}
	real_start(&w.real);
	walk(&w, steps);
	real_stop(&w.real);
	for (unsigned int i = 1; i <= CONTENTS; i++)
		buf_unref(w.real.content[i]);
	for (unsigned int i = 0; i < EVENT_KINDS; i++)
		done += w.counts[i];
	tell(!w.differs && w.counts[EVENT_ANSWER] > steps / 200, name,
	     "%lu events, %lu sends, %lu answers%s%s", done, w.counts[EVENT_SEND],
	     w.counts[EVENT_ANSWER], w.differs ? "; the relay differs in " : "",
	     w.differs ? w.differs : "");
}

/* ---- all ------------------------------------------------------------------------------------------- */

int main(int argc, char *argv[])
{
	static const char *const wrong[RULES_MAX] = {
		[RULES_ACK_ENDS_ANY] =
			"found: an ACK ends newer unsent content (the reference's fault)",
		[RULES_ACK_SETTLES_NEWEST] = "found: an ACK settles the newest send",
		[RULES_NEW_CONTENT_FORGETS] = "found: new content forgets the sends of the old",
		[RULES_FAILURE_SETTLES] = "found: a failed call is not remembered",
		[RULES_RECORD_STAYS] = "found: the digest of lost content stays of record",
	};
	struct model_config pair = { .slots = SLOTS_OF_PAIR, .sends = 2, .nacks = true };
	struct model_config deep = { .slots = 5, .sends = 4, .nacks = true }, c;
	unsigned long steps = argc > 1 ? strtoul(argv[1], NULL, 10) : 200000;

	run("2 VMs, 3 contents", pair, 2, true);
	run("one VM, up to 4 unsettled sends", deep, 1, true);
	deep.bare = true;
	run("the same, ACKs without a vm_id", deep, 1, true);

	deep = (struct model_config){ .slots = 4, .sends = 3, .reorder = true };
	run("calls taken in any order, no NACKs", deep, 1, true);
	for (int rules = 1; rules < RULES_MAX; rules++) {
		c = pair;
		c.rules = (enum rules)rules;
		run(wrong[rules], c, 1, false);
	}
	/* What docs/delivery.md says of answers that the contract excludes. */
	c = pair;
	c.late = true;
	run("found: an answer that is 10 min late, or from before a restart", c, 1, false);
	c = pair;
	c.reorder = true;
	run("found: calls taken in another order, one ACKed and one NACKed", c, 1, false);

	replay("the relay takes the model's decisions", false, true, steps);
	replay("likewise with ACKs without a vm_id", true, true, steps);
	printf("1..%u\n", tests);
	return failures > 0;
}
