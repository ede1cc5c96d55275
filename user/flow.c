// SPDX-License-Identifier: Apache-2.0
#include "flow.h"

#include <xxhash.h>

/* CIDs of this machine itself: loopback may be asked for as 1 or as 2, and answers as 1. */
#define CID_LOCAL    1
#define CID_HOST     2
#define BUCKETS_MASK 4095

struct flow_table {
	struct flow *buckets[BUCKETS_MASK + 1];
	struct list by_age; /* the longest silent first */
	size_t n, max;
	uint64_t seed;
	uint32_t lost, epoch;
	struct flow displaced; /* what flow_news.displaced points to */
};

/* ---- names ----------------------------------------------------------------------------------- */

const char *flow_end_name(enum flow_end end)
{
	static const char *const names[FLOW_END_MAX] = {
		[FLOW_OPEN] = "open",		[FLOW_SHUTDOWN] = "shutdown",
		[FLOW_RESET] = "reset",		[FLOW_REFUSED] = "refused",
		[FLOW_CANCELLED] = "cancelled", [FLOW_VANISHED] = "vanished",
		[FLOW_REPLACED] = "replaced",	[FLOW_FORGOTTEN] = "forgotten",
	};

	return names[end];
}

const char *flow_reset_name(enum flow_reset reset)
{
	static const char *const names[FLOW_RESET_MAX] = {
		[FLOW_RESET_NONE] = "none",
		[FLOW_RESET_CLOSE] = "close",
		[FLOW_RESET_AGAIN] = "again",
		[FLOW_RESET_REFUSED] = "refused",
		[FLOW_RESET_ABORT] = "abort",
		[FLOW_RESET_OVERRUN] = "overrun",
		[FLOW_RESET_NO_CONNECTION] = "no_connection",
		[FLOW_RESET_UNANSWERED] = "unanswered",
	};

	return names[reset];
}

bool flow_reset_alarms(enum flow_reset reset)
{
	return reset >= FLOW_RESET_REFUSED;
}

/* ---- the table ------------------------------------------------------------------------------- */

static uint64_t end_key(uint32_t cid, uint32_t port)
{
	return (uint64_t)(cid == CID_HOST ? CID_LOCAL : cid) << 32 | port;
}

/* The same for both directions. */
static void make_key(const struct vsr_trace_event *e, uint64_t key[2])
{
	uint64_t a = end_key(e->src_cid, e->src_port), b = end_key(e->dst_cid, e->dst_port);

	key[0] = MIN(a, b);
	key[1] = MAX(a, b);
}

static struct flow **bucket(struct flow_table *t, const uint64_t key[2])
{
	return &t->buckets[XXH64(key, 2 * sizeof(*key), t->seed) & BUCKETS_MASK];
}

static struct flow *find(struct flow_table *t, const uint64_t key[2])
{
	struct flow *f = *bucket(t, key);

	while (f && (f->key[0] != key[0] || f->key[1] != key[1]))
		f = f->next;
	return f;
}

static void forget(struct flow_table *t, struct flow *f)
{
	struct flow **at = bucket(t, f->key);

	while (*at != f)
		at = &(*at)->next;
	*at = f->next;
	list_del(&f->by_age);
	t->n--;
	free(f);
}

/* Takes a flow out; if it was open, that is news. */
static void displace(struct flow_table *t, struct flow *f, enum flow_end end,
		     struct flow_news *news)
{
	if (f->end == FLOW_OPEN) {
		t->displaced = *f;
		t->displaced.end = end;
		news->displaced = &t->displaced;
	}
	forget(t, f);
}

static struct flow *add(struct flow_table *t, const struct vsr_trace_event *e,
			enum flow_side sender, const uint64_t key[2], struct flow_news *news)
{
	struct flow *f = calloc(1, sizeof(*f));
	struct flow **at = bucket(t, key);

	if (!f)
		return NULL;
	if (t->n == t->max)
		displace(t, list_first_entry(&t->by_age, struct flow, by_age), FLOW_FORGOTTEN,
			 news);
	f->half[sender].cid = e->src_cid;
	f->half[sender].port = e->src_port;
	f->half[!sender].cid = e->dst_cid;
	f->half[!sender].port = e->dst_port;
	f->first_ns = e->ns;
	f->last_ns = e->ns;
	f->epoch = t->epoch;
	f->key[0] = key[0];
	f->key[1] = key[1];
	f->next = *at;
	*at = f;
	list_add_last(&t->by_age, &f->by_age);
	t->n++;
	return f;
}

int flow_table_new(size_t max, uint64_t seed, struct flow_table **ret)
{
	struct flow_table *t;

	if (max == 0)
		return -EINVAL;
	t = calloc(1, sizeof(*t));
	if (!t)
		return -ENOMEM;
	list_init(&t->by_age);
	t->max = max;
	t->seed = seed;
	*ret = t;
	return 0;
}

struct flow_table *flow_table_free(struct flow_table *t)
{
	if (!t)
		return NULL;
	list_for_each_safe(n, &t->by_age)
		forget(t, container_of(n, struct flow, by_age));
	free(t);
	return NULL;
}

void flow_foreach_open(const struct flow_table *t, void (*cb)(const struct flow *f, void *userdata),
		       void *userdata)
{
	list_for_each(n, &t->by_age) {
		const struct flow *f = container_of(n, struct flow, by_age);

		if (f->end == FLOW_OPEN)
			cb(f, userdata);
	}
}

/* ---- credit ---------------------------------------------------------------------------------- */

/* Bytes that the side may still send; negative: it has sent more than it may. */
static int64_t credit_left(const struct flow_half *h)
{
	return (int64_t)h->buf_alloc - (int64_t)(uint32_t)(h->tx_cnt - h->fwd_cnt);
}

/* The other side's packet says what it has room for. Two packets may overtake each other on their
 * way to the trace, so what was consumed never goes back. */
static void credit_given(struct flow_half *h, const struct vsr_trace_event *e)
{
	if (!h->credit_known || (int32_t)(e->fwd_cnt - h->fwd_cnt) > 0)
		h->fwd_cnt = e->fwd_cnt;
	h->buf_alloc = e->buf_alloc;
	h->credit_known = true;
	if (h->stalled_since && credit_left(h) > 0) {
		h->stalled_ns += usec_sub(e->ns, h->stalled_since);
		h->stalled_since = 0;
	}
}

static void payload_sent(struct flow_half *h, const struct vsr_trace_event *e, bool sure,
			 struct flow_news *news)
{
	h->bytes += e->len;
	h->tx_cnt += e->len;
	if (e->len == 0) {
		h->empty++;
		news->empty = true;
		return;
	}
	if (!sure || !h->credit_known)
		return;
	if (credit_left(h) < 0) {
		news->overrun = h->overruns++ == 0;
		news->allowed = h->bytes + (uint64_t)credit_left(h);
	} else if (credit_left(h) == 0 && !h->stalled_since) {
		h->stalls++;
		h->stalled_since = e->ns;
	}
}

/* ---- packets --------------------------------------------------------------------------------- */

static enum flow_side sender_of(const struct flow *f, const struct vsr_trace_event *e)
{
	const struct flow_half *c = &f->half[FLOW_CLIENT];

	return end_key(c->cid, c->port) == end_key(e->src_cid, e->src_port) ? FLOW_CLIENT
									    : FLOW_SERVER;
}

static bool shut(const struct flow_half *h)
{
	return h->shutdown == VSR_SHUTDOWN_BOTH;
}

static void end(struct flow *f, enum flow_end how, enum flow_side by, struct flow_news *news)
{
	f->end = how;
	f->ended_by = by;
	news->ended = true;
}

static void reset(struct flow *f, enum flow_side side, struct flow_news *news)
{
	struct flow_half *me = &f->half[side], *other = &f->half[!side];
	bool answered = f->response_ns || !f->begun;

	if (f->vm_ended[!side]) {
		/* The other side was told of the end, and has closed. */
		news->reset = FLOW_RESET_CLOSE;
		end(f, FLOW_VANISHED, !side, news);
	} else if (shut(other) || shut(me)) {
		/* Who shut down first has ended it; with both, the answer came from who did not. */
		news->reset = shut(other) ? FLOW_RESET_CLOSE : FLOW_RESET_UNANSWERED;
		end(f, answered ? FLOW_SHUTDOWN : FLOW_CANCELLED, f->ended_by, news);
	} else if (!answered) {
		news->reset = side == FLOW_SERVER ? FLOW_RESET_REFUSED : FLOW_RESET_ABORT;
		end(f, side == FLOW_SERVER ? FLOW_REFUSED : FLOW_CANCELLED, side, news);
	} else {
		/* Of an older connection nothing was seen but one side's packets and the answer
		 * that there is none. */
		news->reset = other->overruns		      ? FLOW_RESET_OVERRUN
			      : !f->begun && me->packets == 1 ? FLOW_RESET_NO_CONNECTION
							      : FLOW_RESET_ABORT;
		end(f, FLOW_RESET, side, news);
	}
}

/* What comes after the end: a second RST is usual, and so is what a side says that closes while the
 * other's close comes in, its SHUTDOWN and updates of its credit. All else belongs to no connection. */
static void after_end(struct flow *f, const struct vsr_trace_event *e, enum flow_side side,
		      struct flow_news *news)
{
	if (e->op != VSR_OP_RST) {
		bool crossed = e->op == VSR_OP_SHUTDOWN || e->op == VSR_OP_CREDIT_UPDATE;

		f->stray[side] |= f->end != FLOW_SHUTDOWN || !crossed;
		return;
	}
	news->reset = f->stray[!side] ? FLOW_RESET_NO_CONNECTION : FLOW_RESET_AGAIN;
	f->stray[!side] = false;
}

/* Of whom is a packet that begins no connection, and belongs to none that is known? A guest's. */
static enum flow_side guess_side(const struct vsr_trace_event *e)
{
	if (e->src_cid > CID_HOST && e->dst_cid > CID_HOST)
		return FLOW_CLIENT;
	if (e->src_cid <= CID_HOST && e->dst_cid <= CID_HOST)
		return e->src_port < e->dst_port ? FLOW_SERVER : FLOW_CLIENT;
	return e->src_cid > CID_HOST ? FLOW_CLIENT : FLOW_SERVER;
}

/* The flow that the packet belongs to, a new one if need be. NULL: none. */
static struct flow *flow_of(struct flow_table *t, const struct vsr_trace_event *e,
			    struct flow_news *news, int *ret_error)
{
	enum flow_side side = FLOW_CLIENT;
	struct flow *f;
	uint64_t key[2];

	make_key(e, key);
	f = find(t, key);
	if (e->op == VSR_OP_REQUEST && f && (f->end != FLOW_OPEN || f->response_ns || !f->begun)) {
		displace(t, f, FLOW_REPLACED, news);
		f = NULL;
	}
	if (f)
		return f;
	/* An RST alone is the end of something that was not seen at all. */
	if (e->op == VSR_OP_RST)
		return NULL;
	if (e->op != VSR_OP_REQUEST)
		side = guess_side(e);
	f = add(t, e, side, key, news);
	if (!f)
		*ret_error = -ENOMEM;
	else
		f->begun = e->op == VSR_OP_REQUEST;
	return f;
}

static void packet(struct flow_table *t, struct flow *f, const struct vsr_trace_event *e,
		   struct flow_news *news)
{
	enum flow_side side = sender_of(f, e);
	struct flow_half *me = &f->half[side], *other = &f->half[!side];

	news->side = side;
	if (f->end != FLOW_OPEN) {
		news->empty = e->op == VSR_OP_RW && e->len == 0;
		after_end(f, e, side, news);
		return;
	}
	f->last_ns = e->ns;
	list_move_last(&t->by_age, &f->by_age);
	me->packets++;
	if (e->op != VSR_OP_RST)
		credit_given(other, e);
	if (side == FLOW_SERVER && e->op != VSR_OP_RST && e->buf_alloc > 0 && !f->credit_ns) {
		f->credit_ns = e->ns;
		news->credited = f->begun;
	}
	switch (e->op) {
	case VSR_OP_RESPONSE:
		if (side == FLOW_SERVER && !f->response_ns) {
			f->response_ns = e->ns;
			news->responded = f->begun;
		}
		break;
	case VSR_OP_RW:
		payload_sent(me, e, f->begun && f->epoch == t->epoch, news);
		if (side == FLOW_CLIENT && e->len > 0)
			f->last_byte_ns = e->ns;
		break;
	case VSR_OP_SHUTDOWN:
		me->shutdown |= e->flags & VSR_SHUTDOWN_BOTH;
		if (shut(me) && !shut(other))
			f->ended_by = side;
		break;
	case VSR_OP_RST:
		reset(f, side, news);
		break;
	}
}

/* ---- other events ---------------------------------------------------------------------------- */

/* The daemon names its agent only; the newest connection of that CID and port is it. */
static struct flow *find_client(const struct flow_table *t, uint32_t cid, uint32_t port)
{
	for (struct list *n = t->by_age.prev; n != &t->by_age; n = n->prev) {
		struct flow *f = container_of(n, struct flow, by_age);

		if (f->half[FLOW_CLIENT].cid == cid && f->half[FLOW_CLIENT].port == port)
			return f;
	}
	return NULL;
}

static void vm_ends(struct flow_table *t, uint32_t cid)
{
	list_for_each(n, &t->by_age) {
		struct flow *f = container_of(n, struct flow, by_age);

		for (int side = 0; side < 2; side++)
			f->vm_ended[side] |= f->half[side].cid == cid;
	}
}

static void taken(struct flow *f, const struct vsr_trace_event *e, struct flow_news *news)
{
	if (f->custody_ns)
		return;
	f->custody_ns = e->ns;
	f->custody_bytes = e->len;
	news->custody = f->last_byte_ns != 0;
}

int flow_observe(struct flow_table *t, const struct vsr_trace_event *e, struct flow_news *ret)
{
	struct flow_news news = { 0 };
	struct flow *f;
	uint64_t key[2];
	int r = 0;

	*ret = news;
	if (e->lost != t->lost) {
		t->lost = e->lost;
		t->epoch++;
	}
	make_key(e, key);
	switch (e->kind) {
	case VSR_TRACE_PACKET:
		f = flow_of(t, e, &news, &r);
		if (f)
			packet(t, f, e, &news);
		break;
	case VSR_TRACE_VM_END:
		vm_ends(t, e->src_cid);
		return 0;
	case VSR_TRACE_CUSTODY:
		f = find_client(t, e->src_cid, e->src_port);
		if (f)
			taken(f, e, &news);
		break;
	default:
		f = find(t, key);
		if (f && e->kind == VSR_TRACE_ACCEPT && !f->accept_ns) {
			f->accept_ns = e->ns;
			news.accepted = f->begun;
		}
		if (f && e->kind == VSR_TRACE_VANISHED && f->end == FLOW_OPEN) {
			f->last_ns = e->ns;
			end(f, FLOW_VANISHED, sender_of(f, e), &news);
		}
		break;
	}
	if (r < 0)
		return r;
	news.flow = f;
	*ret = news;
	return 0;
}
