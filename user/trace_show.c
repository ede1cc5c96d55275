/* SPDX-License-Identifier: Apache-2.0 */
#include "trace_show.h"

#include <strings.h>
#include <sys/socket.h>
#include <time.h>

#define NSEC_PER_SEC (NSEC_PER_USEC * USEC_PER_SEC)
#define BAR_WIDTH    40

static uint64_t wall_usec(uint64_t ns, const struct show *how)
{
	return (ns + (uint64_t)how->clock) / NSEC_PER_USEC;
}

static void show_time(FILE *f, uint64_t ns, const struct show *how)
{
	uint64_t usec = wall_usec(ns, how);
	time_t seconds = (time_t)(usec / USEC_PER_SEC);
	struct tm tm;

	localtime_r(&seconds, &tm);
	fprintf(f, "%02d:%02d:%02d.%06u", tm.tm_hour, tm.tm_min, tm.tm_sec,
		(unsigned)(usec % USEC_PER_SEC));
}

static const char *name_of(uint32_t cid, const struct show *how)
{
	return how->name ? how->name(cid, how->userdata) : NULL;
}

/* "42:818", or with a name "42(web-1):818". */
static void show_address(FILE *f, uint32_t cid, uint32_t port, const struct show *how)
{
	const char *name = name_of(cid, how);

	if (name)
		fprintf(f, "%u(%s):%u", cid, name, port);
	else
		fprintf(f, "%u:%u", cid, port);
}

/* "42:1024 > 2:818: " */
static void show_way(FILE *f, uint32_t src_cid, uint32_t src_port, uint32_t dst_cid,
		     uint32_t dst_port, const struct show *how)
{
	show_address(f, src_cid, src_port, how);
	fputs(" > ", f);
	show_address(f, dst_cid, dst_port, how);
	fputs(": ", f);
}

static json_t *json_u64(uint64_t value)
{
	return json_integer((json_int_t)value);
}

/* ---- packets --------------------------------------------------------------------------------- */

const char *show_op_name(unsigned op)
{
	static const char *const names[VSR_OP_END] = {
		[VSR_OP_REQUEST] = "REQUEST",
		[VSR_OP_RESPONSE] = "RESPONSE",
		[VSR_OP_RST] = "RST",
		[VSR_OP_SHUTDOWN] = "SHUTDOWN",
		[VSR_OP_RW] = "RW",
		[VSR_OP_CREDIT_UPDATE] = "CREDIT_UPDATE",
		[VSR_OP_CREDIT_REQUEST] = "CREDIT_REQUEST",
	};

	return op < VSR_OP_END ? names[op] : NULL;
}

int show_ops_parse(const char *text, uint32_t *ret, const char **ret_bad)
{
	uint32_t ops = 0;

	for (;;) {
		size_t n = strcspn(text, ",");
		unsigned op;

		for (op = VSR_OP_REQUEST; op < VSR_OP_END; op++) {
			const char *name = show_op_name(op);

			if (strlen(name) == n && strncasecmp(text, name, n) == 0)
				break;
		}
		if (op == VSR_OP_END) {
			*ret_bad = text;
			return -EINVAL;
		}
		ops |= 1U << op;
		if (!text[n])
			break;
		text += n + 1;
	}
	*ret = ops;
	return 0;
}

static void show_flags(FILE *f, const struct vsr_trace_event *e)
{
	static const char *const sides[] = { "", " [rcv]", " [send]", " [rcv,send]" };

	if (e->op == VSR_OP_SHUTDOWN && !(e->flags & ~(unsigned)VSR_SHUTDOWN_BOTH))
		fputs(sides[e->flags], f);
	else if (e->flags)
		fprintf(f, " [0x%x]", e->flags);
}

void show_packet(FILE *f, const struct vsr_trace_event *e, const struct show *how)
{
	const char *name = show_op_name(e->op);

	show_time(f, e->ns, how);
	fputc(' ', f);
	show_way(f, e->src_cid, e->src_port, e->dst_cid, e->dst_port, how);
	if (name)
		fputs(name, f);
	else
		fprintf(f, "OP %u", e->op);
	show_flags(f, e);
	fprintf(f, ", length %u, buf_alloc %u, fwd_cnt %u%s\n", e->len, e->buf_alloc, e->fwd_cnt,
		e->type == 1   ? ""
		: e->type == 2 ? ", seqpacket"
			       : ", bad type");
}

json_t *show_packet_json(const struct vsr_trace_event *e, const struct show *how)
{
	json_t *op = show_op_name(e->op) ? json_string(show_op_name(e->op)) : json_integer(e->op);

	return json_pack(
		"{s:s, s:o, s:s, s:I, s:I, s:s?, s:I, s:I, s:s?, s:o, s:I, s:i, s:I, s:I, s:I}",
		"event", "packet", "time_usec", json_u64(wall_usec(e->ns, how)), "direction",
		e->sent ? "out" : "in", "src_cid", (json_int_t)e->src_cid, "src_port",
		(json_int_t)e->src_port, "src_name", name_of(e->src_cid, how), "dst_cid",
		(json_int_t)e->dst_cid, "dst_port", (json_int_t)e->dst_port, "dst_name",
		name_of(e->dst_cid, how), "op", op, "length", (json_int_t)e->len, "type", e->type,
		"flags", (json_int_t)e->flags, "buf_alloc", (json_int_t)e->buf_alloc, "fwd_cnt",
		(json_int_t)e->fwd_cnt);
}

/* ---- flows ----------------------------------------------------------------------------------- */

/* Who ended it; NULL: nobody did. */
static const struct flow_half *ender(const struct flow *flow)
{
	return flow->end >= FLOW_SHUTDOWN && flow->end <= FLOW_VANISHED
		       ? &flow->half[flow->ended_by]
		       : NULL;
}

static void show_half(FILE *f, const char *what, const struct flow_half *h)
{
	fprintf(f, "%s %llu byte%s in %llu packet%s", what, (unsigned long long)h->bytes,
		h->bytes == 1 ? "" : "s", (unsigned long long)h->packets,
		h->packets == 1 ? "" : "s");
	if (h->stalls)
		fprintf(f, " (%u stall%s, %.6f s)", h->stalls, h->stalls == 1 ? "" : "s",
			(double)h->stalled_ns / NSEC_PER_SEC);
}

void show_flow(FILE *f, const struct flow *flow, const struct show *how)
{
	const struct flow_half *c = &flow->half[FLOW_CLIENT], *s = &flow->half[FLOW_SERVER];
	const struct flow_half *by = ender(flow);

	show_time(f, flow->last_ns, how);
	fputc(' ', f);
	show_way(f, c->cid, c->port, s->cid, s->port, how);
	fprintf(f, "%s%.6f s, ", flow->begun ? "" : "began before, ",
		(double)usec_sub(flow->last_ns, flow->first_ns) / NSEC_PER_SEC);
	if (flow->begun && flow->credit_ns)
		fprintf(f, "credit after %.6f s, ",
			(double)usec_sub(flow->credit_ns, flow->first_ns) / NSEC_PER_SEC);
	show_half(f, "sent", c);
	show_half(f, ", received", s);
	fprintf(f, ", %s", flow_end_name(flow->end));
	if (by) {
		fputs(" by ", f);
		show_address(f, by->cid, by->port, how);
	}
	fputc('\n', f);
}

static json_t *half_json(const struct flow_half *h, const struct show *how)
{
	return json_pack("{s:I, s:I, s:s?, s:o, s:o, s:I, s:o, s:I, s:I}", "cid",
			 (json_int_t)h->cid, "port", (json_int_t)h->port, "name",
			 name_of(h->cid, how), "bytes", json_u64(h->bytes), "packets",
			 json_u64(h->packets), "stalls", (json_int_t)h->stalls, "stalled_usec",
			 json_u64(h->stalled_ns / NSEC_PER_USEC), "empty", (json_int_t)h->empty,
			 "overruns", (json_int_t)h->overruns);
}

/* From the REQUEST on; null: not seen. */
static json_t *since_request(const struct flow *flow, uint64_t ns)
{
	return flow->begun && ns ? json_u64(usec_sub(ns, flow->first_ns) / NSEC_PER_USEC)
				 : json_null();
}

json_t *show_flow_json(const struct flow *flow, const struct show *how)
{
	const char *by = !ender(flow) ? NULL : flow->ended_by == FLOW_CLIENT ? "client" : "server";

	return json_pack("{s:s, s:o, s:o, s:b, s:o, s:o, s:s, s:s?, s:o, s:o, s:o, s:o, s:o}",
			 "event", "flow", "time_usec", json_u64(wall_usec(flow->last_ns, how)),
			 "duration_usec",
			 json_u64(usec_sub(flow->last_ns, flow->first_ns) / NSEC_PER_USEC), "begun",
			 flow->begun, "client", half_json(&flow->half[FLOW_CLIENT], how), "server",
			 half_json(&flow->half[FLOW_SERVER], how), "end", flow_end_name(flow->end),
			 "ended_by", by, "response_usec", since_request(flow, flow->response_ns),
			 "accept_usec", since_request(flow, flow->accept_ns), "credit_usec",
			 since_request(flow, flow->credit_ns), "last_byte_usec",
			 since_request(flow, flow->last_byte_ns), "custody_usec",
			 since_request(flow, flow->custody_ns));
}

/* ---- alarms ---------------------------------------------------------------------------------- */

static const char *const alarm_names[] = {
	[ALARM_ZERO_LENGTH] = "zero_length_rw",
	[ALARM_CREDIT] = "credit_violation",
	[ALARM_RESET] = "reset",
	[ALARM_RAW_READ] = "raw_read",
	[ALARM_VERDICT] = "verdict_error",
};

static struct alarm *alarm_add(struct alarm *list, size_t *n, enum alarm_kind kind,
			       const struct vsr_trace_event *e)
{
	list[*n] = (struct alarm){
		.kind = kind,
		.ns = e->ns,
		.src_cid = e->src_cid,
		.src_port = e->src_port,
		.dst_cid = e->dst_cid,
		.dst_port = e->dst_port,
	};
	return &list[(*n)++];
}

size_t alarms_of_event(const struct vsr_trace_event *e, const struct flow_news *news,
		       struct alarm ret[static ALARMS_OF_EVENT])
{
	struct alarm *a;
	size_t n = 0;

	if (e->kind == VSR_TRACE_RAW_READ) {
		a = alarm_add(ret, &n, ALARM_RAW_READ, e);
		a->bytes = e->len;
		a->peek = e->flags & MSG_PEEK;
		a->pid = e->pid;
		memcpy(a->comm, e->comm, sizeof(a->comm) - 1);
		return n;
	}
	if (news->empty)
		alarm_add(ret, &n, ALARM_ZERO_LENGTH, e);
	if (news->overrun) {
		a = alarm_add(ret, &n, ALARM_CREDIT, e);
		a->bytes = news->flow->half[news->side].bytes;
		a->allowed = news->allowed;
	}
	if (flow_reset_alarms(news->reset))
		alarm_add(ret, &n, ALARM_RESET, e)->cause = news->reset;
	return n;
}

size_t alarms_of_stats(const struct vsr_stats *before, const struct vsr_stats *after, uint64_t ns,
		       struct alarm ret[static ALARMS_OF_STATS])
{
#define COUNTER(field)                                    \
	{                                                 \
#field, offsetof(struct vsr_stats, field) \
	}
	static const struct {
		const char *name;
		size_t offset;
	} counters[] = {
		COUNTER(zero_length), COUNTER(bad_header),	 COUNTER(too_large),
		COUNTER(bad_packet),  COUNTER(over_budget),	 COUNTER(unread_updates),
		COUNTER(no_conn),     COUNTER(no_slot),		 COUNTER(load_failed),
		COUNTER(event_lost),  COUNTER(vm_insert_failed),
	};
	size_t n = 0;

	_Static_assert(ARRAY_SIZE(counters) <= ALARMS_OF_STATS, "all may have grown");
	for (size_t i = 0; i < ARRAY_SIZE(counters); i++) {
		uint64_t was = *(const __u64 *)((const char *)before + counters[i].offset);
		uint64_t is = *(const __u64 *)((const char *)after + counters[i].offset);

		if (is <= was)
			continue;
		ret[n++] = (struct alarm){
			.kind = ALARM_VERDICT,
			.ns = ns,
			.counter = counters[i].name,
			.grown = is - was,
			.total = is,
		};
	}
	return n;
}

static const char *reset_words(enum flow_reset cause)
{
	switch (cause) {
	case FLOW_RESET_REFUSED:
		return "the answer to its REQUEST: nobody listens, or the backlog is full";
	case FLOW_RESET_OVERRUN:
		return "the other side has sent more than its credit";
	case FLOW_RESET_NO_CONNECTION:
		return "the answer to a packet that belongs to no connection";
	case FLOW_RESET_UNANSWERED:
		return "its SHUTDOWN was not answered in time";
	default:
		return "in the middle of the connection";
	}
}

/* A process may call itself anything. */
static void show_comm(FILE *f, const char *comm)
{
	for (; *comm; comm++)
		fputc(*comm >= ' ' && *comm < 0x7f ? *comm : '?', f);
}

void show_alarm(FILE *f, const struct alarm *a, const struct show *how)
{
	show_time(f, a->ns, how);
	fprintf(f, " %s ", alarm_names[a->kind]);
	if (a->kind == ALARM_VERDICT) {
		fprintf(f, "%s: %llu more, %llu since the daemon's start\n", a->counter,
			(unsigned long long)a->grown, (unsigned long long)a->total);
		return;
	}
	show_way(f, a->src_cid, a->src_port, a->dst_cid, a->dst_port, how);
	switch (a->kind) {
	case ALARM_ZERO_LENGTH:
		fputs("an RW without payload, which Linux never sends\n", f);
		break;
	case ALARM_CREDIT:
		fprintf(f, "%llu bytes sent, %llu allowed\n", (unsigned long long)a->bytes,
			(unsigned long long)a->allowed);
		break;
	case ALARM_RESET:
		fprintf(f, "%s: %s\n", flow_reset_name(a->cause), reset_words(a->cause));
		break;
	default:
		fprintf(f, "%llu bytes %s past the verdict by ", (unsigned long long)a->bytes,
			a->peek ? "looked at" : "read");
		show_comm(f, a->comm);
		fprintf(f, "[%u]\n", a->pid);
		break;
	}
}

static json_t *comm_json(const char *comm)
{
	char *text = NULL;
	size_t size;
	FILE *f = open_memstream(&text, &size);
	json_t *value;

	if (!f)
		return NULL;
	show_comm(f, comm);
	fclose(f);
	value = json_string(text);
	free(text);
	return value;
}

static json_t *json_name(uint32_t cid, const struct show *how)
{
	const char *name = name_of(cid, how);

	return name ? json_string(name) ?: json_string("?") : json_null();
}

json_t *show_alarm_json(const struct alarm *a, const struct show *how)
{
	json_t *o = json_pack("{s:s, s:s, s:o}", "event", "alarm", "alarm", alarm_names[a->kind],
			      "time_usec", json_u64(wall_usec(a->ns, how)));

	if (!o)
		return NULL;
	if (a->kind == ALARM_VERDICT) {
		json_object_set_new(o, "counter", json_string(a->counter));
		json_object_set_new(o, "grown", json_u64(a->grown));
		json_object_set_new(o, "total", json_u64(a->total));
		return o;
	}
	json_object_set_new(o, "src_cid", json_integer(a->src_cid));
	json_object_set_new(o, "src_port", json_integer(a->src_port));
	json_object_set_new(o, "src_name", json_name(a->src_cid, how));
	json_object_set_new(o, "dst_cid", json_integer(a->dst_cid));
	json_object_set_new(o, "dst_port", json_integer(a->dst_port));
	json_object_set_new(o, "dst_name", json_name(a->dst_cid, how));
	if (a->kind == ALARM_RESET)
		json_object_set_new(o, "cause", json_string(flow_reset_name(a->cause)));
	if (a->kind == ALARM_CREDIT || a->kind == ALARM_RAW_READ)
		json_object_set_new(o, "bytes", json_u64(a->bytes));
	if (a->kind == ALARM_CREDIT)
		json_object_set_new(o, "allowed", json_u64(a->allowed));
	if (a->kind == ALARM_RAW_READ) {
		json_object_set_new(o, "peek", json_boolean(a->peek));
		json_object_set_new(o, "pid", json_integer(a->pid));
		json_object_set_new(o, "comm", comm_json(a->comm));
	}
	return o;
}

/* ---- latency --------------------------------------------------------------------------------- */

void show_histogram(FILE *f, const char *what, const struct log2hist *h, const char *unseen)
{
	unsigned first, last;
	uint64_t most = 0;

	fprintf(f, "\n%s: %llu", what, (unsigned long long)h->count);
	if (!log2hist_range(h, &first, &last)) {
		fprintf(f, "%s%s%s\n", unseen ? " (" : "", unseen ? unseen : "", unseen ? ")" : "");
		return;
	}
	fprintf(f, ", average %llu usec, longest %llu usec\n",
		(unsigned long long)(h->sum / h->count), (unsigned long long)h->max);
	for (unsigned i = first; i <= last; i++)
		most = MAX(most, h->bucket[i]);
	fprintf(f, "%23s : %-8s |%-*s|\n", "usec", "count", BAR_WIDTH, " distribution");
	for (unsigned i = first; i <= last; i++) {
		unsigned stars = (unsigned)((h->bucket[i] * BAR_WIDTH + most - 1) / most);

		fprintf(f, "%10llu - %-10llu : %-8llu |%.*s%*s|\n",
			(unsigned long long)log2hist_from(i), (unsigned long long)log2hist_to(i),
			(unsigned long long)h->bucket[i], (int)stars,
			"****************************************", (int)(BAR_WIDTH - stars), "");
	}
}

json_t *show_histogram_json(const char *name, const struct log2hist *h, const char *unseen)
{
	json_t *buckets = json_array();
	unsigned first, last;

	if (log2hist_range(h, &first, &last))
		for (unsigned i = first; i <= last; i++)
			json_array_append_new(buckets, json_pack("{s:o, s:o, s:o}", "from",
								 json_u64(log2hist_from(i)), "to",
								 json_u64(log2hist_to(i)), "count",
								 json_u64(h->bucket[i])));
	return json_pack("{s:s, s:s, s:s, s:o, s:o, s:o, s:o, s:s?}", "event", "histogram", "name",
			 name, "unit", "usec", "count", json_u64(h->count), "sum", json_u64(h->sum),
			 "max", json_u64(h->max), "buckets", buckets, "unseen", unseen);
}
