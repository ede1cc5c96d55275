/* SPDX-License-Identifier: Apache-2.0 */
#include "ingest.h"

#include <sys/epoll.h>
#include <sys/socket.h>

#include "clock.h"
#include "crash_point.h"
#include "log.h"
#include "log_limit.h"
#include "metrics.h"
#include "report.h"
#include "stream.h"
#include "unseen.h"
#include "usdt.h"

/* Connections are looked at this often even if no event came (SPEC 11). */
#define TICK_USEC (250 * USEC_PER_MSEC)
/* sd-event's default of 250 ms would make it half a second. */
#define TICK_ACCURACY (10 * USEC_PER_MSEC)
/* What an agent gets to take its answer (SPEC 3, answers). */
#define ANSWER_USEC   USEC_PER_SEC
#define ANSWERING_MAX 64

enum conn_state {
	CONN_WAITING,	/* at zero credit, or unread; holds nothing */
	CONN_RECEIVING, /* has a place */
	CONN_OFFERED,	/* the same, and "go on" is not sent yet */
	CONN_SUBMITTED, /* the relay has the report and will say what becomes of it */
	CONN_ANSWERING, /* place given back; the answer is not sent yet */
};

struct conn {
	struct list list; /* in ingest.conns */
	struct ingest *ingest;
	struct vm *vm;
	struct admission_ticket ticket;
	struct stream stream;
	struct relay_report report;
	sd_event_source *io;
	int fd;
	uint32_t port; /* of the peer */
	bool vsock;
	bool header_seen; /* the reservation follows the length that a header announced */
	bool let_go;	  /* the peer has ended the connection: the kernel keeps nothing of it */
	enum conn_state state;
	uint64_t since;	 /* of the state: accept, grant, answer */
	uint64_t unseen; /* bytes in its queue that no verdict was shown, at the last look */
	uint8_t answer[VSR_ANSWER_SIZE];
	uint8_t answered; /* bytes of it sent */
};

struct ingest {
	struct ingest_settings settings;
	struct ingest_parts parts;
	struct stream_config stream;
	struct vsr_pool own_pool; /* the shared reserve of user-space mode */
	sd_event_source *tick, *events;
	struct unseen *look; /* for packets that no verdict was shown; NULL: impossible here */
	bool look_failed;    /* and was said */
	struct list conns;
	unsigned n_conns, n_waiting, n_answering;
	struct conn **by_slot;
	uint32_t *free_slots;
	uint32_t n_free_slots;
	bool stopping;
	bool bpf_proved;	  /* a socket of this kernel's was attached */
	struct log_limit limit;	  /* of refusals in the log */
	sd_event_source *summary; /* of those that were held back */
};

/* ---- what people see -------------------------------------------------------------------------- */

static void export_vm(struct ingest *i, const struct vm *vm)
{
	struct vsr_vm_state state;

	if (!i->parts.bpf)
		return;
	vm_export(vm, &state);
	ingest_bpf_vm_state_update(i->parts.bpf, &vm->node.id, &state);
}

/* User-space mode writes vsr_vms itself, once a connection. */
static void export_seen(struct ingest *i, const struct conn *c, enum reason reason)
{
	const struct vsr_conn *seen = &c->stream.seen;
	struct vsr_vm_seen v = { 0 };
	uint64_t now = clock_usec() * NSEC_PER_USEC;

	if (!i->parts.bpf || !ingest_bpf_maps_only(i->parts.bpf) || seen->packets == 0)
		return;
	if (ingest_bpf_vm_seen_lookup(i->parts.bpf, &c->vm->node.id, &v) < 0)
		v.first_seen_ns = now;
	v.last_seen_ns = now;
	v.connections++;
	v.packets += seen->packets;
	v.bytes += seen->seen;
	v.bytes_known += seen->known;
	v.duplicates += c->stream.ended && stream_repeats(&c->stream);
	v.bad_header += reason == REASON_BAD_HEADER;
	v.too_large += reason == REASON_TOO_LARGE;
	v.over_budget += reason == REASON_OVER_BUDGET;
	v.unread_updates += reason == REASON_UNREAD_UPDATES;
	ingest_bpf_vm_seen_update(i->parts.bpf, &c->vm->node.id, &v);
}

static void log_held_back(struct vsr_vm_id id, enum reason reason, uint32_t n)
{
	struct log_about about = { .vm = &id, .reason = reason_name(reason), .held_back = n };

	if (id.cid == 0) {
		about.vm = NULL;
		log_write_about(LOG_NOTICE, &about, "refused: %s (%s): %u more were not logged",
				reason_words(reason), reason_name(reason), n);
		return;
	}
	log_write_about(LOG_NOTICE, &about, "refused VM %u:%u: %s (%s): %u more were not logged",
			id.ns, id.cid, reason_words(reason), reason_name(reason), n);
}

static void arm_summary(struct ingest *i)
{
	uint64_t next = log_limit_next_event(&i->limit);

	sd_event_source_set_time(i->summary, next);
	sd_event_source_set_enabled(i->summary,
				    next == USEC_INFINITY ? SD_EVENT_OFF : SD_EVENT_ONESHOT);
}

static int on_summary(sd_event_source *source _unused_, uint64_t usec _unused_, void *userdata)
{
	struct ingest *i = userdata;
	struct vsr_vm_id id;
	uint32_t reason, n;

	while (log_limit_next(&i->limit, clock_usec(), &id, &reason, &n))
		log_held_back(id, (enum reason)reason, n);
	arm_summary(i);
	return 0;
}

static void count_refusal(struct ingest *i, struct vm *vm, struct vsr_vm_id id, enum reason reason,
			  const char *detail, uint64_t now)
{
	/* Peers without a record share one limit. */
	struct vsr_vm_id limited = vm ? id : (struct vsr_vm_id){ 0 };
	uint32_t before, holding = i->limit.n_holding;

	metric_inc_label(METRIC_REFUSED, reason);
	if (reason == REASON_KERNEL_DIGEST)
		metric_inc(METRIC_BPF_DIGEST);
	if (reason == REASON_CID_MISMATCH)
		metric_inc(METRIC_CID_MISMATCHES);
	USDT_REFUSED(id, reason_name(reason), detail);
	if (vm)
		vm->refused++;
	if (!log_limit_pass(&i->limit, limited, reason, now, &before)) {
		metric_inc(METRIC_LOG_HELD_BACK);
		if (i->limit.n_holding != holding)
			arm_summary(i);
		return;
	}
	if (before)
		log_held_back(limited, reason, before);
	log_write_about(LOG_NOTICE, &(struct log_about){ .vm = &id, .reason = reason_name(reason) },
			"refused VM %u:%u: %s (%s)%s%s", id.ns, id.cid, reason_words(reason),
			reason_name(reason), detail ? ": " : "", detail ? detail : "");
}

/* ---- end of a connection ---------------------------------------------------------------------- */

static uint64_t conn_wmem(const struct conn *c)
{
	uint32_t rmem, wmem;

	/* AF_UNIX has no queue of ours: what was sent is charged to nobody after the close. */
	if (!c->vsock || socket_memory(c->fd, &rmem, &wmem) < 0)
		return 0;
	return wmem;
}

/* Packets that no verdict is shown (user/unseen.h). */
static void on_unseen(uint64_t cookie, uint32_t packets, void *userdata)
{
	struct ingest *i = userdata;

	for (uint32_t slot = 0; slot < i->parts.places; slot++)
		if (i->by_slot[slot] && i->by_slot[slot]->stream.cookie == cookie)
			i->by_slot[slot]->unseen = packets * UNSEEN_PACKET_COST;
}

static void look_for_unseen(struct ingest *i)
{
	int r;

	if (!i->look || !i->stream.bpf)
		return;
	r = unseen_look(i->look, on_unseen, i);
	if (r < 0 && !i->look_failed)
		log_error_errno(r, "cannot look for packets that no verdict was shown: only credit "
				   "bounds them");
	i->look_failed = r < 0;
}

static void end_credit(struct conn *c)
{
	if (c->stream.credit.bytes > 0)
		c->let_go = stream_end_credit(&c->stream);
}

/* How much the kernel keeps for a connection that is about to be closed. Where that is anything, the
 * credit ends first, so that it stays as much: without credit there is no answer either. */
static void find_unseen(struct conn *c)
{
	if (!c->stream.attached)
		return;
	look_for_unseen(c->ingest);
	if (c->unseen == 0)
		return;
	end_credit(c);
	look_for_unseen(c->ingest);
}

static struct conn *conn_close(struct conn *c, uint64_t now)
{
	struct ingest *i = c->ingest;
	uint64_t wmem = conn_wmem(c);

	/* Nobody looked any more while the answer waited. */
	if (c->state == CONN_ANSWERING)
		c->unseen = MAX(c->unseen, unseen_most(c->stream.credit.bytes));
	end_credit(c);
	if (!c->let_go)
		admission_kept(i->parts.admission, c->vm, c->unseen, now);

	if (c->state == CONN_WAITING)
		i->n_waiting--;
	if (c->state == CONN_ANSWERING)
		i->n_answering--;
	if (c->state == CONN_SUBMITTED)
		relay_forget(i->parts.relay, &c->report);
	stream_close(&c->stream);
	c->io = sd_event_source_disable_unref(c->io);
	close(c->fd);
	admission_close(i->parts.admission, &c->ticket, wmem, now);
	list_del(&c->list);
	i->n_conns--;
	free(c);
	return NULL;
}

/* One try to send what is left of the answer. Returns 0 when all is sent, -EAGAIN, or -errno. */
static int send_answer(struct conn *c)
{
	ssize_t n = send(c->fd, c->answer + c->answered, VSR_ANSWER_SIZE - c->answered,
			 MSG_DONTWAIT | MSG_NOSIGNAL);

	if (n < 0)
		return -errno;
	c->answered += (uint8_t)n;
	return c->answered == VSR_ANSWER_SIZE ? 0 : -EAGAIN;
}

static int start_answer(struct conn *c, enum vsr_status status)
{
	vsr_answer_write(c->answer, status);
	c->answered = 0;
	return send_answer(c);
}

static void listen_for(struct conn *c, uint32_t events)
{
	if (!c->io)
		return;
	if (events)
		sd_event_source_set_io_events(c->io, events);
	/* Off, not 0: HUP and ERR come unasked, again and again. */
	sd_event_source_set_enabled(c->io, events ? SD_EVENT_ON : SD_EVENT_OFF);
}

static void answer_and_close(struct conn *c, enum vsr_status status, uint64_t now)
{
	int r = start_answer(c, status);

	if (r == 0 && status == VSR_STATUS_ACCEPTED)
		CRASH_POINT("answered");
	if (r != -EAGAIN || c->ingest->n_answering >= ANSWERING_MAX) {
		if (r < 0)
			log_debug("VM %u:%u did not take its answer %d: %s", c->vm->node.id.ns,
				  c->vm->node.id.cid, status, strerror(-r));
		conn_close(c, now);
		return;
	}
	c->state = CONN_ANSWERING;
	c->since = now;
	c->ingest->n_answering++;
	listen_for(c, EPOLLOUT);
}

/* How the reference calls it. */
static enum metric_sem no_place_reason(enum reason reason)
{
	switch (reason) {
	case REASON_WAIT_TIMEOUT:
	case REASON_WAITING_FULL:
	case REASON_VM_CONNECTIONS:
		return METRIC_SEM_LIMIT;
	case REASON_SHUTDOWN:
	case REASON_WAITER_GONE:
		return METRIC_SEM_CANCELED;
	default:
		return METRIC_SEM_UNKNOWN;
	}
}

/* A connection that holds nothing yet is refused. On vsock nobody is answered: any credit would
 * make the guest's send() look successful. A framed agent on a hybrid socket is. */
static void refuse_waiter(struct conn *c, enum reason reason, uint64_t now)
{
	uint8_t magic[VSR_MAGIC_SIZE];
	bool framed = !c->vsock &&
		      recv(c->fd, magic, sizeof(magic), MSG_PEEK | MSG_DONTWAIT) ==
			      (ssize_t)sizeof(magic) &&
		      magic[0] == 'V';

	count_refusal(c->ingest, c->vm, c->vm->node.id, reason, NULL, now);
	metric_inc_label(METRIC_SEM_FAILURES, no_place_reason(reason));
	export_vm(c->ingest, c->vm);
	if (framed)
		start_answer(c, reason_status(reason));
	conn_close(c, now);
}

/* What a connection with a place came to: gives back place and memory, then answers. */
static void conn_end(struct conn *c, enum reason reason, enum vsr_status status, uint64_t now)
{
	struct ingest *i = c->ingest;
	bool framed = stream_framed(&c->stream);
	uint64_t length = reason == REASON_NONE ? stream_length(&c->stream) : 0;
	uint64_t wmem = conn_wmem(c);

	export_seen(i, c, reason);
	export_vm(i, c->vm);
	find_unseen(c);
	metric_add(METRIC_BYTES_READ, c->stream.received);
	metric_add_label(METRIC_BYTES_KNOWN, c->stream.attached ? METRIC_KERNEL : METRIC_DAEMON,
			 c->stream.seen.known);
	i->by_slot[c->stream.slot] = NULL;
	i->free_slots[i->n_free_slots++] = c->stream.slot;
	stream_close(&c->stream);
	/* The answer is queued for the guest a moment before the close: what it leaves is paid
	 * off here, where a polite guest has read all that came before. */
	if (c->vsock && wmem == 0)
		admission_drained(i->parts.admission, &c->ticket);
	admission_release(i->parts.admission, &c->ticket, reason, length, wmem);
	c->state = CONN_RECEIVING; /* no relay to ask, no list to leave */
	if (framed && c->unseen == 0)
		answer_and_close(c, status, now);
	else
		conn_close(c, now);
}

static void conn_refuse(struct conn *c, enum reason reason, const char *detail, uint64_t now)
{
	count_refusal(c->ingest, c->vm, c->vm->node.id, reason, detail, now);
	metric_add_label(METRIC_BYTES, METRIC_BYTES_REFUSED, c->stream.seen.seen);
	conn_end(c, reason, reason_status(reason), now);
}

static void conn_known(struct conn *c, enum relay_verdict verdict, uint64_t now)
{
	static const enum metric_outcome outcome[] = {
		[RELAY_ACCEPTED] = METRIC_BYTES_ACCEPTED,
		[RELAY_DUPLICATE] = METRIC_BYTES_DUPLICATE,
		[RELAY_SUPPRESSED] = METRIC_BYTES_SUPPRESSED,
	};
	uint64_t length = stream_length(&c->stream);

	metric_add_label(METRIC_BYTES, outcome[verdict], length);
	if (verdict == RELAY_ACCEPTED)
		USDT_ACCEPTED(c->vm->node.id, c->port, c->vm->generation, length);
	else
		USDT_DUPLICATE(c->vm->node.id, c->port, length, !c->stream.ended);
	conn_end(c, REASON_NONE,
		 verdict == RELAY_ACCEPTED ? VSR_STATUS_ACCEPTED : VSR_STATUS_NOTHING_TO_DO, now);
}

/* ---- a report ---------------------------------------------------------------------------------- */

/* All of it has come in; what it is worth is found out next. */
static void count_received(const struct conn *c)
{
	metric_inc(METRIC_REPORTS_RECEIVED);
	USDT_RECEIVED(c->vm->node.id, c->port, stream_length(&c->stream),
		      stream_framed(&c->stream));
}

static void report_decided(struct relay_report *report, enum reason reason, uint64_t now)
{
	struct conn *c = container_of(report, struct conn, report);

	c->state = CONN_RECEIVING;
	if (reason == REASON_NONE)
		conn_known(c, report->verdict, now);
	else
		conn_refuse(c, reason, NULL, now);
}

static void describe_report_error(const struct report_error *e, char *buf, size_t size)
{
	if (e->claimed_cid[0])
		snprintf(buf, size, "it says %s", e->claimed_cid);
	else
		snprintf(buf, size, "%s, field %u of %s at byte %zu", e->what, e->field,
			 e->message ? e->message : "the report", e->offset);
}

/* All bytes are here: validate them, and give them to the relay. */
static void conn_submit(struct conn *c, uint64_t now)
{
	struct report_error error = { 0 };
	struct report_info info;
	struct buf *content = c->stream.buf;
	enum relay_verdict verdict;
	uint64_t xxh64 = 0, digest;
	char detail[160];
	bool hashed;
	int r;

	count_received(c);
	CRASH_POINT("received");
	hashed = stream_xxh64(&c->stream, &xxh64);
	if (stream_framed(&c->stream)) {
		struct vsr_header h;

		stream_header(&c->stream, &h);
		if (h.xxh64 != xxh64) {
			conn_refuse(c, REASON_DIGEST_MISMATCH, NULL, now);
			return;
		}
	}
	r = stream_validate(&c->stream, c->vm->node.id.cid, &error, &info);
	if (r < 0) {
		describe_report_error(&error, detail, sizeof(detail));
		conn_refuse(c, report_reason(r), detail, now);
		return;
	}
	r = stream_digest(&c->stream, &digest);
	if (r < 0) {
		conn_refuse(c, REASON_INTERNAL, "no digest", now);
		return;
	}
	c->report = (struct relay_report){
		.vm = c->vm,
		.content = content,
		.digest = digest,
		.xxh64 = xxh64,
		.xxh64_unknown = !hashed,
		.blocks = stream_blocks(&c->stream),
		.framed = stream_framed(&c->stream),
		.vm_id = info.vm_id,
		.vm_id_len = info.vm_id_len,
		.decided = report_decided,
	};
	CRASH_POINT("validated");
	r = relay_submit(c->ingest->parts.relay, &c->report, now, &verdict);
	if (r == -EINPROGRESS) {
		c->state = CONN_SUBMITTED;
		listen_for(c, 0);
	} else if (r < 0) {
		conn_refuse(c,
			    r == -ENOSPC   ? REASON_NO_CACHE
			    : r == -EAGAIN ? REASON_NO_SPOOL
					   : REASON_INTERNAL,
			    NULL, now);
	} else {
		conn_known(c, verdict, now);
	}
}

static bool timed_out(const struct conn *c, uint64_t now, enum reason *ret_reason)
{
	const struct ingest_settings *s = &c->ingest->settings;
	uint64_t last = MAX(c->since, stream_last_byte(&c->stream));

	if (usec_sub(now, c->since) >= s->deadline)
		*ret_reason = REASON_DEADLINE;
	else if (usec_sub(now, last) >= s->idle)
		*ret_reason = REASON_IDLE;
	else
		return false;
	return true;
}

/* The kernel keeps back bytes that BPF has passed. It is given as long again as a guest. */
static bool kept_back_for_too_long(const struct conn *c, uint64_t now)
{
	const struct ingest_settings *s = &c->ingest->settings;

	return usec_sub(now, c->since) >= usec_add(s->deadline, s->idle);
}

/* The stream is complete. What BPF hashed, or what equals the cached content, may be known; then it
 * need not be read or kept. */
static void conn_complete(struct conn *c, uint64_t now)
{
	struct relay *relay = c->ingest->parts.relay;
	struct stream *s = &c->stream;
	enum relay_verdict verdict;
	enum reason reason;
	uint64_t digest, xxh64;
	int r;

	if (stream_unread(s) && stream_length(s) > 0) {
		struct vsr_header h;

		stream_header(s, &h);
		xxh64 = h.xxh64;
		r = stream_digest(s, &digest);
		if (r == 0)
			r = relay_known(relay, c->vm, stream_length(s), digest,
					stream_framed(s) ? &xxh64 : NULL,
					s->attached ? METRIC_KERNEL : METRIC_DAEMON, now, &verdict);
		if (r == -EBADMSG) {
			conn_refuse(c, REASON_DIGEST_MISMATCH, NULL, now);
			return;
		}
		if (r == 0 && verdict != RELAY_NEW) {
			count_received(c);
			conn_known(c, verdict, now);
			return;
		}
	}
	r = stream_take(s, &reason);
	if (r == -EAGAIN && kept_back_for_too_long(c, now)) {
		conn_refuse(c, REASON_DEADLINE, "the kernel keeps bytes back", now);
		return;
	}
	if (r == -EAGAIN) {
		listen_for(c, 0); /* readable all the time; the tick looks again */
		return;
	}
	if (r == -EINPROGRESS) {
		listen_for(c, EPOLLIN); /* others first, then the rest */
		return;
	}
	if (r < 0)
		conn_refuse(c, reason, NULL, now);
	else
		conn_submit(c, now);
}

static void conn_offer(struct conn *c, uint64_t now)
{
	struct ingest *i = c->ingest;
	enum relay_verdict verdict;
	struct vsr_header h;
	uint64_t reservation;
	int r;

	stream_header(&c->stream, &h);
	verdict = relay_offer(i->parts.relay, c->vm, h.length, h.xxh64, now);
	if (verdict != RELAY_NEW) {
		conn_known(c, verdict, now);
		return;
	}
	c->header_seen = true;
	reservation = h.length + ADMISSION_MARGIN;
	if (admission_resize(i->parts.admission, &c->ticket, reservation) < 0) {
		conn_refuse(c, REASON_OFFER_BUSY, NULL, now);
		return;
	}
	stream_reserve(&c->stream, reservation);
	r = start_answer(c, VSR_STATUS_GO_ON);
	if (r == -EAGAIN) {
		c->state = CONN_OFFERED;
		listen_for(c, EPOLLOUT);
	} else if (r < 0) {
		conn_refuse(c, REASON_ABORTED, NULL, now);
	}
}

/* ---- memory ------------------------------------------------------------------------------------- */

/* The reservation follows what a header announces, and grows with the report while the budget
 * lasts. What cannot be had now is asked for again at the next look. */
static void conn_grow(struct conn *c)
{
	struct admission *a = c->ingest->parts.admission;
	uint64_t want = c->ticket.reservation;

	if (!c->header_seen && stream_framed(&c->stream)) {
		struct vsr_header h;

		stream_header(&c->stream, &h);
		c->header_seen = true;
		want = h.length + ADMISSION_MARGIN;
	} else if (stream_wants_input(&c->stream) &&
		   stream_charge(&c->stream) > c->ticket.reservation / 2) {
		want = MIN(2 * c->ticket.reservation, admission_maximum(a));
	}
	if (want != c->ticket.reservation && admission_resize(a, &c->ticket, want) == 0)
		stream_reserve(&c->stream, want);
}

/* Whether it costs more than it has, as what it is compared with has left the cache, and is now kept
 * for it alone. */
static bool pins_too_much(struct conn *c)
{
	uint64_t pinned = stream_pinned(&c->stream);

	if (pinned <= c->ticket.reservation)
		return false;
	if (admission_resize(c->ingest->parts.admission, &c->ticket, pinned) < 0)
		return true;
	stream_reserve(&c->stream, pinned);
	return false;
}

/* ---- looking at a connection -------------------------------------------------------------------- */

static uint32_t wanted_events(const struct conn *c)
{
	if (!c->stream.attached)
		return EPOLLIN;
	return EPOLLRDHUP | (stream_wants_input(&c->stream) ? EPOLLIN : 0);
}

static void conn_step(struct conn *c, uint64_t now)
{
	enum reason reason = REASON_NONE;

	switch (stream_look(&c->stream, &reason)) {
	case STREAM_MORE:
		/* Only now: what came in time counts, also when we look late. */
		if (timed_out(c, now, &reason)) {
			conn_refuse(c, reason, NULL, now);
			break;
		}
		conn_grow(c);
		if (pins_too_much(c))
			conn_refuse(c, REASON_OVER_BUDGET, NULL, now);
		else
			listen_for(c, wanted_events(c));
		break;
	case STREAM_OFFER:
		conn_offer(c, now);
		break;
	case STREAM_ENDED:
		conn_complete(c, now);
		break;
	case STREAM_REFUSED:
		conn_refuse(c, reason, NULL, now);
		break;
	}
}

static void conn_look(struct conn *c, uint64_t now)
{
	struct vm *vm = c->vm;
	uint64_t start;

	/* Until "go on" is sent there is nothing to look for. */
	if (c->state != CONN_RECEIVING)
		return;
	/* What a busy node does meanwhile is not this VM's fault. */
	start = clock_cpu_usec();
	conn_step(c, now);
	admission_worked(vm, clock_cpu_usec() - start, now);
}

static void continue_answer(struct conn *c, uint64_t now)
{
	int r = send_answer(c);

	if (r == -EAGAIN)
		return;
	if (c->state == CONN_ANSWERING) {
		conn_close(c, now);
	} else if (r < 0) {
		conn_refuse(c, REASON_ABORTED, NULL, now);
	} else {
		c->state = CONN_RECEIVING;
		listen_for(c, wanted_events(c));
		conn_look(c, now);
	}
}

static int on_io(sd_event_source *source _unused_, int fd _unused_, uint32_t revents _unused_,
		 void *userdata)
{
	struct conn *c = userdata;
	uint64_t now = clock_usec();

	switch (c->state) {
	case CONN_WAITING:
		/* vsock at zero credit: nothing can have come but the end. */
		refuse_waiter(c, REASON_WAITER_GONE, now);
		break;
	case CONN_RECEIVING:
		conn_look(c, now);
		break;
	case CONN_OFFERED:
	case CONN_ANSWERING:
		continue_answer(c, now);
		break;
	case CONN_SUBMITTED:
		break;
	}
	return 0;
}

static void on_bpf_event(const struct vsr_event *e, void *userdata)
{
	struct ingest *i = userdata;
	struct conn *c = e->slot < i->parts.places ? i->by_slot[e->slot] : NULL;

	/* Only a wake-up, maybe of a connection that is gone. */
	if (c && c->stream.cookie == e->cookie)
		conn_look(c, clock_usec());
}

static int on_bpf_events(sd_event_source *source _unused_, int fd _unused_,
			 uint32_t revents _unused_, void *userdata)
{
	struct ingest *i = userdata;

	ingest_bpf_events_consume(i->parts.bpf, on_bpf_event, i);
	return 0;
}

static void conn_tick(struct conn *c, uint64_t now)
{
	struct admission *a = c->ingest->parts.admission;
	uint64_t wmem = conn_wmem(c);
	enum reason reason;

	if (c->vsock && wmem == 0 && admission_wants_wmem(&c->ticket))
		admission_drained(a, &c->ticket);
	switch (c->state) {
	case CONN_RECEIVING:
		/* The verdict sees data only: requests for credit queue updates without it. */
		if (wmem > VSR_UNREAD_UPDATES)
			conn_refuse(c, REASON_UNREAD_UPDATES, NULL, now);
		else if (c->unseen > 0)
			conn_refuse(c, REASON_ZERO_LENGTH, NULL, now);
		else
			conn_look(c, now);
		break;
	case CONN_OFFERED:
		if (timed_out(c, now, &reason))
			conn_refuse(c, reason, NULL, now);
		break;
	case CONN_ANSWERING:
		if (usec_sub(now, c->since) >= ANSWER_USEC)
			conn_close(c, now);
		break;
	case CONN_WAITING:
		/* Credit can be asked for before there is any. */
		if (wmem > VSR_UNREAD_UPDATES)
			refuse_waiter(c, REASON_UNREAD_UPDATES, now);
		break;
	case CONN_SUBMITTED:
		break;
	}
}

static int on_tick(sd_event_source *source, uint64_t usec _unused_, void *userdata)
{
	struct ingest *i = userdata;
	uint64_t now = clock_usec();

	if (i->n_conns > i->n_waiting)
		look_for_unseen(i);
	list_for_each_safe(n, &i->conns)
		conn_tick(list_entry(n, struct conn, list), now);
	if (i->n_conns > 0) {
		sd_event_source_set_time_relative(source, TICK_USEC);
		sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
	}
	return 0;
}

/* ---- arrival and grant -------------------------------------------------------------------------- */

static struct conn *conn_new(struct ingest *i, int fd, bool vsock, struct vm *vm, uint64_t now)
{
	struct conn *c = calloc(1, sizeof(*c));
	int enabled;

	if (!c)
		return NULL;
	c->ingest = i;
	c->fd = fd;
	c->vsock = vsock;
	c->vm = vm;
	c->since = now;
	c->state = CONN_WAITING;
	if (sd_event_add_io(i->parts.event, &c->io, fd, EPOLLRDHUP, on_io, c) < 0) {
		free(c);
		return NULL;
	}
	/* A hybrid peer may have sent everything and closed: it still gets its turn. */
	if (!vsock)
		listen_for(c, 0);
	list_add_last(&i->conns, &c->list);
	i->n_waiting++;
	if (i->n_conns++ == 0 &&
	    (sd_event_source_get_enabled(i->tick, &enabled) < 0 || enabled == SD_EVENT_OFF)) {
		sd_event_source_set_time_relative(i->tick, TICK_USEC);
		sd_event_source_set_enabled(i->tick, SD_EVENT_ONESHOT);
	}
	return c;
}

void ingest_rejected(struct ingest *i, int fd, struct vsr_vm_id id, enum reason reason)
{
	uint64_t now = clock_usec();
	struct vm *vm = vm_table_find(i->parts.vms, id);

	count_refusal(i, vm, id, reason, NULL, now);
	close(fd);
}

void ingest_accepted(struct ingest *i, int fd, bool vsock, struct vsr_vm_id id, uint32_t port)
{
	uint64_t now = clock_usec();
	enum reason reason;
	struct conn *c;
	struct vm *vm;
	int r;

	metric_inc(METRIC_CONNECTIONS_ACCEPTED);
	/* A port that only its hypervisor, the loopback or the host itself can have. */
	if (vsock && id.cid <= 2 && !i->settings.allow_reserved_cids) {
		ingest_rejected(i, fd, id, REASON_RESERVED_CID);
		return;
	}
	if (i->stopping) {
		ingest_rejected(i, fd, id, REASON_SHUTDOWN);
		return;
	}
	r = vm_table_obtain(i->parts.vms, id, now, &vm);
	if (r < 0) {
		ingest_rejected(i, fd, id, r == -ENOBUFS ? REASON_VM_TABLE_FULL : REASON_INTERNAL);
		return;
	}
	c = conn_new(i, fd, vsock, vm, now);
	if (!c) {
		ingest_rejected(i, fd, id, REASON_INTERNAL);
		return;
	}
	c->port = port;
	r = admission_arrive(i->parts.admission, &c->ticket, vm, now, &reason);
	if (r < 0) {
		/* It has no ticket: what the kernel has queued for the guest is debt right away. */
		admission_debt_add(i->parts.admission, vm, conn_wmem(c), now);
		refuse_waiter(c, reason, now);
	}
}

void ingest_backlog_empty(struct ingest *i)
{
	admission_backlog_empty(i->parts.admission);
}

/* This kernel takes no vsock socket into a sockmap: from now on user space does it all. Only the
 * first connection can tell; later nothing that a guest does takes BPF away. */
static void leave_bpf(struct ingest *i)
{
	log_warning("vsock reports are checked in user space: %s", ingest_bpf_why());
	i->stream.bpf = NULL;
}

static void conn_grant(struct conn *c, uint64_t now)
{
	struct ingest *i = c->ingest;
	uint32_t slot = i->free_slots[--i->n_free_slots];
	struct match *match = relay_match(i->parts.relay, c->vm);
	int r;

	i->n_waiting--;
	c->state = CONN_RECEIVING;
	c->since = now;
	i->by_slot[slot] = c;
	r = stream_open(&c->stream, &i->stream, c->fd, c->vsock, c->vm->node.id, slot,
			c->ticket.reservation, match);
	i->bpf_proved = i->bpf_proved || c->stream.attached;
	if (r == -EOPNOTSUPP && i->stream.bpf && !i->bpf_proved && !i->settings.bpf_required) {
		leave_bpf(i);
		r = stream_open(&c->stream, &i->stream, c->fd, c->vsock, c->vm->node.id, slot,
				c->ticket.reservation, match);
	}
	match_unref(match);
	if (r < 0) {
		conn_refuse(c, r == -ENOTCONN ? REASON_WAITER_GONE : REASON_INTERNAL,
			    r == -ENOTCONN ? NULL
			    : r == -EOPNOTSUPP
				    ? "bpf: required, but this kernel's vsock knows no sockmap"
				    : strerror(-r),
			    now);
		return;
	}
	/* What the reserve could not pay is the reservation's to pay: let there be as much more. */
	if (c->stream.credit.charged > 0 &&
	    admission_resize(i->parts.admission, &c->ticket,
			     c->ticket.reservation + c->stream.credit.charged) == 0)
		stream_reserve(&c->stream, c->ticket.reservation);
	listen_for(c, wanted_events(c));
	/* Hybrid: all of it may be there already. */
	conn_look(c, now);
}

void ingest_run(struct ingest *i, uint64_t now)
{
	struct admission *a = i->parts.admission;
	struct admission_ticket *t;
	enum reason reason;

	while (i->n_free_slots > 0 && (t = admission_next(a, now)))
		conn_grant(container_of(t, struct conn, ticket), now);
	while ((t = admission_expired(a, now, &reason)))
		refuse_waiter(container_of(t, struct conn, ticket), reason, now);
}

void ingest_stop(struct ingest *i)
{
	struct admission_ticket *t;
	uint64_t now = clock_usec();

	i->stopping = true;
	while ((t = admission_first_waiter(i->parts.admission)))
		refuse_waiter(container_of(t, struct conn, ticket), REASON_SHUTDOWN, now);
}

unsigned ingest_busy(const struct ingest *i)
{
	return i->n_conns - i->n_waiting;
}

unsigned ingest_connections(const struct ingest *i)
{
	return i->n_conns;
}

uint64_t ingest_pool_drawn(const struct ingest *i)
{
	return __atomic_load_n(&i->stream.pool->drawn, __ATOMIC_RELAXED);
}

bool ingest_bpf_active(const struct ingest *i)
{
	return i->stream.bpf;
}

void ingest_set(struct ingest *i, const struct ingest_settings *s)
{
	i->settings = *s;
}

int ingest_new(const struct ingest_settings *s, const struct ingest_parts *parts,
	       struct ingest **ret)
{
	_cleanup_(ingest_freep)
	struct ingest *i = NULL;
	bool bpf = parts->bpf && !ingest_bpf_maps_only(parts->bpf);
	int r;

	i = calloc(1, sizeof(*i));
	if (!i)
		return -ENOMEM;
	list_init(&i->conns);
	i->settings = *s;
	i->parts = *parts;
	i->own_pool.limit = admission_reserve(parts->admission);
	i->stream = (struct stream_config){
		.bpf = bpf ? parts->bpf : NULL,
		.pool = bpf ? ingest_bpf_pool(parts->bpf) : &i->own_pool,
		.seed = parts->seed,
		.max_report = s->max_report,
		.xxh64_of_raw = parts->durable,
	};
	i->look = bpf ? ingest_bpf_unseen(parts->bpf) : NULL;
	i->by_slot = calloc(parts->places, sizeof(*i->by_slot));
	i->free_slots = calloc(parts->places, sizeof(*i->free_slots));
	if (!i->by_slot || !i->free_slots)
		return -ENOMEM;
	for (uint32_t slot = parts->places; slot-- > 0;)
		i->free_slots[i->n_free_slots++] = slot;

	r = sd_event_add_time_relative(parts->event, &i->tick, CLOCK_BOOTTIME, TICK_USEC,
				       TICK_ACCURACY, on_tick, i);
	if (r < 0)
		return r;
	r = sd_event_add_time(parts->event, &i->summary, CLOCK_BOOTTIME, USEC_INFINITY,
			      USEC_PER_SEC, on_summary, i);
	if (r < 0)
		return r;
	if (bpf) {
		r = sd_event_add_io(parts->event, &i->events, ingest_bpf_events_fd(parts->bpf),
				    EPOLLIN, on_bpf_events, i);
		if (r < 0)
			return r;
	}
	*ret = TAKE_PTR(i);
	return 0;
}

struct ingest *ingest_free(struct ingest *i)
{
	if (!i)
		return NULL;
	list_for_each_safe(n, &i->conns)
		conn_close(list_entry(n, struct conn, list), clock_usec());
	i->tick = sd_event_source_disable_unref(i->tick);
	i->events = sd_event_source_disable_unref(i->events);
	i->summary = sd_event_source_disable_unref(i->summary);
	free(i->by_slot);
	free(i->free_slots);
	free(i);
	return NULL;
}
