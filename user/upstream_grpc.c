/* SPDX-License-Identifier: Apache-2.0 */
#include "upstream_grpc.h"

#include "clock.h"
#include "log.h"
#include "metrics.h"
#include "sensor/compliance.pb-c.h"
#include "sensor/virtual_machine_index_report.pb-c.h"

#define PATH_UPSERT	 "/sensor.VirtualMachineIndexReportService/UpsertVirtualMachineIndexReport"
#define PATH_COMMUNICATE "/sensor.ComplianceService/Communicate"

/* The stream of ACKs, when it ends: again after this, doubled to the longest. A server that refuses
 * it is asked less often. One that lived for a while was good: again at once. */
#define STREAM_AGAIN	   (1 * USEC_PER_SEC)
#define STREAM_AGAIN_MAX   (30 * USEC_PER_SEC)
#define STREAM_REFUSED	   (30 * USEC_PER_SEC)
#define STREAM_REFUSED_MAX (10 * USEC_PER_MIN)
#define STREAM_GOOD_LIFE   (5 * USEC_PER_SEC)
/* What decoding a message may use: more than twice its length only for a hostile one. */
#define DECODE_EXTRA (64 * KIB)

struct upstream_grpc {
	struct upstream upstream;
	struct grpc_conn *conn;
	struct grpc_metadata metadata;
	char node[256];
	bool communicate;
	enum grpc_status said; /* the last failure that was logged; OK: none */

	struct grpc_call *stream; /* of ACKs; NULL: none */
	sd_event_source *stream_timer;
	uint64_t stream_since, stream_wait;
	enum grpc_status stream_said;
};

/* A report under way. */
struct grpc_send {
	struct upstream_grpc *u;
	struct upstream_send *send;
};

enum send_result upstream_grpc_outcome(enum grpc_status status, bool undelivered)
{
	if (undelivered)
		return status == GRPC_UNAVAILABLE ? SEND_AGAIN : SEND_NOT_DELIVERED;
	switch (status) {
	case GRPC_UNIMPLEMENTED:
	case GRPC_UNAUTHENTICATED:
	case GRPC_PERMISSION_DENIED:
		return SEND_REFUSED;
	case GRPC_INVALID_ARGUMENT:
	case GRPC_OUT_OF_RANGE:
	case GRPC_FAILED_PRECONDITION:
	case GRPC_DATA_LOSS:
		return SEND_REJECTED;
	default:
		/* NOT_FOUND and ALREADY_EXISTS too: nothing that an upsert should say. */
		return SEND_FAILED;
	}
}

/* ---- decoding ---------------------------------------------------------------------------------------- */

/* protobuf-c keeps unknown fields, at several times their size if they are small. */
static void *bounded_alloc(void *left, size_t size)
{
	size_t *bytes = left;

	if (size > *bytes)
		return NULL;
	*bytes -= size;
	return malloc(size);
}

static void bounded_free(void *left _unused_, void *p)
{
	free(p);
}

static bool read_success(const uint8_t *data, size_t len)
{
	size_t left = 2 * len + DECODE_EXTRA;
	ProtobufCAllocator allocator = { bounded_alloc, bounded_free, &left };
	Sensor__UpsertVirtualMachineIndexReportResponse *m;
	bool success;

	m = sensor__upsert_virtual_machine_index_report_response__unpack(&allocator, len, data);
	if (!m)
		return false;
	success = m->success;
	sensor__upsert_virtual_machine_index_report_response__free_unpacked(m, &allocator);
	return success;
}

/* ---- reports ----------------------------------------------------------------------------------------- */

/* A server that is in trouble fails every call: one line when that begins or changes, one when it
 * ends. */
static void tell(struct upstream_grpc *u, const struct vsr_vm_id *vm, enum grpc_status status,
		 const char *text)
{
	if (status == GRPC_OK && u->said != GRPC_OK)
		log_notice("reports are delivered again");
	else if (status != u->said)
		log_write_about(LOG_WARNING,
				&(struct log_about){ .vm = vm, .reason = grpc_status_name(status) },
				"report of VM %u:%u: %s%s%s", vm->ns, vm->cid,
				grpc_status_name(status), *text ? ": " : "", text);
	u->said = status;
}

static void on_report_done(struct grpc_call *call _unused_, const struct grpc_result *r,
			   void *userdata, uint64_t now)
{
	struct grpc_send *gs = userdata;
	struct upstream_grpc *u = gs->u;
	struct upstream_send *s = gs->send;
	enum send_result result;

	metric_inc_label(METRIC_UPSTREAM_RPCS, r->status);
	if (r->damaged) {
		upstream_log_damaged(s);
		result = SEND_DAMAGED;
	} else if (r->status != GRPC_OK) {
		tell(u, &s->vm, r->status, r->message);
		result = upstream_grpc_outcome(r->status, r->undelivered);
	} else if (!read_success(r->response, r->response_len)) {
		tell(u, &s->vm, GRPC_UNKNOWN, "the upstream says that it was no success");
		result = SEND_FAILED;
	} else {
		tell(u, &s->vm, GRPC_OK, "");
		result = u->communicate ? SEND_DELIVERED : SEND_ACKED;
	}
	free(gs);
	s->done(s, result, now);
}

static int grpc_send(struct upstream *upstream, struct upstream_send *s)
{
	struct upstream_grpc *u = container_of(upstream, struct upstream_grpc, upstream);
	struct grpc_send *gs = calloc(1, sizeof(*gs));
	struct grpc_call *call;
	struct grpc_request request = {
		.path = PATH_UPSERT,
		.payload = s->payload,
		.timeout = UPSTREAM_GRPC_DEADLINE,
		.done = on_report_done,
		.userdata = gs,
	};

	if (!gs)
		return -EBUSY;
	gs->u = u;
	gs->send = s;
	/* Reports are never longer than a message may be: the settings say so. */
	if (grpc_conn_call(u->conn, &request, clock_usec(), &call) < 0) {
		free(gs);
		return -EBUSY;
	}
	return 0;
}

/* ---- ACKs on a stream of their own ------------------------------------------------------------------- */

static void on_message(struct grpc_call *call _unused_, const uint8_t *data, size_t len,
		       void *userdata, uint64_t now)
{
	struct upstream_grpc *u = userdata;
	size_t left = 2 * len + DECODE_EXTRA;
	ProtobufCAllocator allocator = { bounded_alloc, bounded_free, &left };
	Sensor__MsgToCompliance *m;

	m = sensor__msg_to_compliance__unpack(&allocator, len, data);
	if (!m) {
		log_debug("a message of %zu bytes on the stream of ACKs is not understood", len);
		return;
	}
	if (m->msg_case == SENSOR__MSG_TO_COMPLIANCE__MSG_COMPLIANCE_ACK &&
	    m->compliance_ack->message_type ==
		    SENSOR__COMPLIANCE_ACK__MESSAGE_TYPE__VM_INDEX_REPORT &&
	    u->upstream.on_ack) {
		const Sensor__ComplianceACK *a = m->compliance_ack;
		struct upstream_ack ack = {
			.nack = a->action == SENSOR__COMPLIANCE_ACK__ACTION__NACK,
			.resource = a->resource_id,
			.resource_len = strlen(a->resource_id),
			.reason = a->reason,
		};

		/* An action that this version does not know is neither. */
		if (ack.nack || a->action == SENSOR__COMPLIANCE_ACK__ACTION__ACK)
			u->upstream.on_ack(&ack, u->upstream.userdata, now);
	}
	sensor__msg_to_compliance__free_unpacked(m, &allocator);
}

static void open_stream(struct upstream_grpc *u, uint64_t now);

static void stream_again(struct upstream_grpc *u, uint64_t wait)
{
	sd_event_source_set_time_relative(u->stream_timer, wait);
	sd_event_source_set_enabled(u->stream_timer, SD_EVENT_ONESHOT);
}

static uint64_t stream_wait(struct upstream_grpc *u, enum grpc_status status, uint64_t now)
{
	bool refused = upstream_grpc_outcome(status, false) == SEND_REFUSED;

	if (usec_sub(now, u->stream_since) >= STREAM_GOOD_LIFE)
		u->stream_wait = 0;
	else if (refused)
		u->stream_wait = MAX(MIN(2 * u->stream_wait, STREAM_REFUSED_MAX), STREAM_REFUSED);
	else
		u->stream_wait = MAX(MIN(2 * u->stream_wait, STREAM_AGAIN_MAX), STREAM_AGAIN);
	return u->stream_wait;
}

static void on_stream_done(struct grpc_call *call _unused_, const struct grpc_result *r,
			   void *userdata, uint64_t now)
{
	struct upstream_grpc *u = userdata;

	u->stream = NULL;
	if (!u->upstream.ready)
		return; /* it ended with the connection, and comes back with it */
	if (r->status != u->stream_said)
		log_warning("the stream of ACKs ended: %s%s%s", grpc_status_name(r->status),
			    *r->message ? ": " : "", r->message);
	u->stream_said = r->status;
	stream_again(u, stream_wait(u, r->status, now));
}

static int on_stream_timer(sd_event_source *source _unused_, uint64_t usec _unused_, void *userdata)
{
	struct upstream_grpc *u = userdata;

	if (!u->stream && u->upstream.ready)
		open_stream(u, clock_usec());
	return 0;
}

/* We say nothing on it: the node is named in the metadata, and a server would not know what to do
 * with a message that holds nothing else. */
static void open_stream(struct upstream_grpc *u, uint64_t now)
{
	struct grpc_request request = {
		.path = PATH_COMMUNICATE,
		.timeout = USEC_INFINITY,
		.message = on_message,
		.done = on_stream_done,
		.userdata = u,
	};

	u->stream_since = now;
	if (grpc_conn_call(u->conn, &request, now, &u->stream) < 0)
		stream_again(u, STREAM_AGAIN);
}

/* ---- the connection ------------------------------------------------------------------------------------ */

/* A new connection, the first or in the place of another: the stream goes there before any report
 * does, so that no ACK is missed. */
static void on_changed(bool ready, void *userdata)
{
	struct upstream_grpc *u = userdata;

	if (ready && u->communicate) {
		grpc_call_cancel(TAKE_PTR(u->stream));
		u->stream_said = GRPC_OK;
		open_stream(u, clock_usec());
	}
	u->upstream.ready = ready;
}

static struct upstream *grpc_upstream_free(struct upstream *upstream)
{
	struct upstream_grpc *u;

	if (!upstream)
		return NULL;
	u = container_of(upstream, struct upstream_grpc, upstream);
	upstream->ready = false;
	grpc_conn_free(u->conn);
	sd_event_source_disable_unref(u->stream_timer);
	free(u);
	return NULL;
}

static const struct upstream_ops grpc_ops = {
	.name = "grpc",
	.send = grpc_send,
	.free = grpc_upstream_free,
};

static int start(struct upstream_grpc *u, sd_event *event, const struct upstream_grpc_settings *s)
{
	struct grpc_conn_settings conn = s->conn;
	int r;

	u->upstream.ops = &grpc_ops;
	u->upstream.acks_apart = u->communicate = s->communicate;
	snprintf(u->node, sizeof(u->node), "%s", s->node_name);
	if (!*u->node && gethostname(u->node, sizeof(u->node) - 1) < 0)
		return log_error_errno(errno, "this host's name");
	u->metadata = (struct grpc_metadata){ "rox-compliance-nodename", u->node };
	conn.user_agent = "vsock-relayd/" VSR_VERSION;
	conn.metadata = &u->metadata;
	conn.n_metadata = 1;
	r = sd_event_add_time(event, &u->stream_timer, CLOCK_BOOTTIME, USEC_INFINITY, 1,
			      on_stream_timer, u);
	if (r >= 0)
		r = sd_event_source_set_enabled(u->stream_timer, SD_EVENT_OFF);
	return r < 0 ? r : grpc_conn_new(event, &conn, on_changed, u, &u->conn);
}

int upstream_grpc_new(sd_event *event, const struct upstream_grpc_settings *s,
		      struct upstream **ret)
{
	struct upstream_grpc *u = calloc(1, sizeof(*u));
	int r;

	if (!u)
		return -ENOMEM;
	r = start(u, event, s);
	if (r < 0) {
		grpc_upstream_free(&u->upstream);
		return r;
	}
	*ret = &u->upstream;
	return 0;
}
