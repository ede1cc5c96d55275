/* SPDX-License-Identifier: Apache-2.0 */
/* What `vsock-relayctl trace` prints of each thing, to the letter: people and programs read it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/socket.h>
#include <time.h>

#include <cmocka.h>

#include "trace_show.h"

/* 2026-01-02 03:04:05.123456 UTC, at 5 s since the boot. */
#define NS  5000000000ULL
#define HOW (&(struct show){ .clock = 1767323045123456LL * 1000 - (int64_t)NS })
#define NAMED                                                              \
	(&(struct show){ .clock = 1767323045123456LL * 1000 - (int64_t)NS, \
			 .name = a_name,                                   \
			 .userdata = (void *)"web-1" })
#define USEC "1767323045123456"

static int use_utc(void **state _unused_)
{
	setenv("TZ", "UTC", 1);
	tzset();
	return 0;
}

/* Compares what was written to f with the expected text, and closes it. */
#define assert_shown(call, expected)                      \
	do {                                              \
		char *_text = NULL;                       \
		size_t _size;                             \
		FILE *f = open_memstream(&_text, &_size); \
                                                          \
		assert_non_null(f);                       \
		call;                                     \
		fclose(f);                                \
		assert_string_equal(_text, expected);     \
		free(_text);                              \
	} while (0)

static void assert_json(json_t *value, const char *expected)
{
	char *text;

	assert_non_null(value);
	text = json_dumps(value, JSON_COMPACT);
	assert_string_equal(text, expected);
	free(text);
	json_decref(value);
}

static const struct vsr_trace_event plain = {
	.ns = NS,
	.kind = VSR_TRACE_PACKET,
	.src_cid = 42,
	.src_port = 355173,
	.dst_cid = 2,
	.dst_port = 818,
	.len = 65536,
	.type = 1,
	.op = VSR_OP_RW,
	.buf_alloc = 262144,
	.fwd_cnt = 8,
};

static struct flow flow(void)
{
	return (struct flow){
		.begun = true,
		.half = { { .cid = 42, .port = 355173, .bytes = 117470, .packets = 5 },
			  { .cid = 2, .port = 818, .bytes = 16, .packets = 8 } },
		.end = FLOW_SHUTDOWN,
		.ended_by = FLOW_CLIENT,
		.first_ns = NS - 72612000,
		.last_ns = NS,
		.response_ns = NS - 72000000,
		.credit_ns = NS - 57000000,
	};
}

static const char *a_name(uint32_t cid, void *userdata)
{
	return cid == 42 ? userdata : NULL;
}

static void a_packet_is_a_line(void **state _unused_)
{
	struct vsr_trace_event e = plain;

	assert_shown(show_packet(f, &e, HOW),
		     "03:04:05.123456 42:355173 > 2:818: RW, length 65536, buf_alloc 262144, "
		     "fwd_cnt 8\n");
	e.op = VSR_OP_SHUTDOWN;
	e.len = 0;
	e.flags = VSR_SHUTDOWN_SEND;
	e.type = 2;
	assert_shown(show_packet(f, &e, HOW),
		     "03:04:05.123456 42:355173 > 2:818: SHUTDOWN [send], length 0, buf_alloc "
		     "262144, fwd_cnt 8, seqpacket\n");
	e.flags = 7;
	e.type = 0;
	assert_shown(show_packet(f, &e, HOW),
		     "03:04:05.123456 42:355173 > 2:818: SHUTDOWN [0x7], length 0, buf_alloc "
		     "262144, fwd_cnt 8, bad type\n");
	e.op = 65535;
	e.flags = 0;
	e.type = 1;
	assert_shown(show_packet(f, &e, HOW),
		     "03:04:05.123456 42:355173 > 2:818: OP 65535, length 0, buf_alloc 262144, "
		     "fwd_cnt 8\n");
}

static void a_packet_is_an_object_with_stable_keys(void **state _unused_)
{
	struct vsr_trace_event e = plain;

	assert_json(
		show_packet_json(&e, HOW),
		"{\"event\":\"packet\",\"time_usec\":" USEC
		",\"direction\":\"in\",\"src_cid\":42,\"src_port\":355173,\"src_name\":null,\"dst_cid\":2,"
		"\"dst_port\":818,\"dst_name\":null,\"op\":\"RW\",\"length\":65536,\"type\":1,\"flags\":0,"
		"\"buf_alloc\":262144,\"fwd_cnt\":8}");
	e.op = 77;
	e.sent = 1;
	e.buf_alloc = e.fwd_cnt = e.flags = e.len = UINT32_MAX;
	assert_json(
		show_packet_json(&e, HOW),
		"{\"event\":\"packet\",\"time_usec\":" USEC
		",\"direction\":\"out\",\"src_cid\":42,\"src_port\":355173,\"src_name\":null,\"dst_cid\":2,"
		"\"dst_port\":818,\"dst_name\":null,\"op\":77,\"length\":4294967295,\"type\":1,"
		"\"flags\":4294967295,\"buf_alloc\":4294967295,\"fwd_cnt\":4294967295}");
}

static void a_name_stands_beside_the_cid(void **state _unused_)
{
	struct vsr_trace_event e = plain;
	struct flow fl = flow();
	struct alarm a = { .kind = ALARM_ZERO_LENGTH, .ns = NS, .src_cid = 2, .dst_cid = 42 };
	json_t *o;

	assert_shown(show_packet(f, &e, NAMED),
		     "03:04:05.123456 42(web-1):355173 > 2:818: RW, length 65536, buf_alloc "
		     "262144, fwd_cnt 8\n");
	o = show_packet_json(&e, NAMED);
	assert_string_equal(json_string_value(json_object_get(o, "src_name")), "web-1");
	assert_true(json_is_null(json_object_get(o, "dst_name")));
	json_decref(o);
	assert_shown(show_flow(f, &fl, NAMED),
		     "03:04:05.123456 42(web-1):355173 > 2:818: 0.072612 s, credit after 0.015612 "
		     "s, sent 117470 bytes in 5 packets, received 16 bytes in 8 packets, shutdown "
		     "by 42(web-1):355173\n");
	o = show_flow_json(&fl, NAMED);
	assert_string_equal(
		json_string_value(json_object_get(json_object_get(o, "client"), "name")), "web-1");
	assert_true(json_is_null(json_object_get(json_object_get(o, "server"), "name")));
	json_decref(o);
	assert_shown(show_alarm(f, &a, NAMED),
		     "03:04:05.123456 zero_length_rw 2:0 > 42(web-1):0: an RW without payload, "
		     "which Linux never sends\n");
	o = show_alarm_json(&a, NAMED);
	assert_true(json_is_null(json_object_get(o, "src_name")));
	assert_string_equal(json_string_value(json_object_get(o, "dst_name")), "web-1");
	json_decref(o);
	/* A name that is no UTF-8 can be in no JSON. */
	o = show_alarm_json(&a, (&(struct show){ .name = a_name, .userdata = (void *)"\xff" }));
	assert_string_equal(json_string_value(json_object_get(o, "dst_name")), "?");
	json_decref(o);
}

static void operations_are_read_in_any_case(void **state _unused_)
{
	const char *bad = NULL;
	uint32_t ops = 0;

	assert_int_equal(show_ops_parse("rw", &ops, &bad), 0);
	assert_int_equal(ops, 1 << VSR_OP_RW);
	assert_int_equal(show_ops_parse("Request,RST,credit_update", &ops, &bad), 0);
	assert_int_equal(ops, 1 << VSR_OP_REQUEST | 1 << VSR_OP_RST | 1 << VSR_OP_CREDIT_UPDATE);
	ops = 5;
	assert_int_equal(show_ops_parse("rw,foo,rst", &ops, &bad), -EINVAL);
	assert_string_equal(bad, "foo,rst");
	assert_int_equal(show_ops_parse("", &ops, &bad), -EINVAL);
	assert_int_equal(show_ops_parse("rw,", &ops, &bad), -EINVAL);
	assert_int_equal(show_ops_parse("credit", &ops, &bad), -EINVAL);
	assert_int_equal(ops, 5);
	for (unsigned op = VSR_OP_REQUEST; op < VSR_OP_END; op++) {
		assert_int_equal(show_ops_parse(show_op_name(op), &ops, &bad), 0);
		assert_int_equal(ops, 1U << op);
	}
}

static void a_flow_is_a_line(void **state _unused_)
{
	struct flow fl = flow();

	assert_shown(show_flow(f, &fl, HOW),
		     "03:04:05.123456 42:355173 > 2:818: 0.072612 s, credit after 0.015612 s, sent "
		     "117470 bytes in 5 packets, received 16 bytes in 8 packets, shutdown by "
		     "42:355173\n");
	fl.credit_ns = 0;
	assert_shown(show_flow(f, &fl, HOW),
		     "03:04:05.123456 42:355173 > 2:818: 0.072612 s, sent 117470 bytes in 5 "
		     "packets, received 16 bytes in 8 packets, shutdown by 42:355173\n");
	fl.begun = false;
	fl.half[FLOW_CLIENT].stalls = 3;
	fl.half[FLOW_CLIENT].stalled_ns = 1500000000;
	fl.end = FLOW_RESET;
	fl.ended_by = FLOW_SERVER;
	assert_shown(show_flow(f, &fl, HOW),
		     "03:04:05.123456 42:355173 > 2:818: began before, 0.072612 s, sent 117470 "
		     "bytes in 5 packets (3 stalls, 1.500000 s), received 16 bytes in 8 packets, "
		     "reset by 2:818\n");
	fl.half[FLOW_CLIENT].stalls = 1;
	fl.half[FLOW_SERVER].bytes = fl.half[FLOW_SERVER].packets = 1;
	fl.end = FLOW_OPEN;
	assert_shown(
		show_flow(f, &fl, HOW),
		"03:04:05.123456 42:355173 > 2:818: began before, 0.072612 s, sent 117470 "
		"bytes in 5 packets (1 stall, 1.500000 s), received 1 byte in 1 packet, open\n");
}

#define HALF_OF_CLIENT                                                                           \
	"{\"cid\":42,\"port\":355173,\"name\":null,\"bytes\":117470,\"packets\":5,\"stalls\":0," \
	"\"stalled_usec\":0,\"empty\":0,\"overruns\":0}"
#define HALF_OF_SERVER                                                                                      \
	"{\"cid\":2,\"port\":818,\"name\":null,\"bytes\":16,\"packets\":8,\"stalls\":0,\"stalled_usec\":0," \
	"\"empty\":0,\"overruns\":0}"

static void a_flow_is_an_object_with_stable_keys(void **state _unused_)
{
	struct flow fl = flow();
	json_t *o;

	assert_json(show_flow_json(&fl, HOW),
		    "{\"event\":\"flow\",\"time_usec\":" USEC
		    ",\"duration_usec\":72612,\"begun\":true,\"client\":" HALF_OF_CLIENT
		    ",\"server\":" HALF_OF_SERVER
		    ",\"end\":\"shutdown\",\"ended_by\":\"client\",\"response_usec\":612,"
		    "\"accept_usec\":null,\"credit_usec\":15612,\"last_byte_usec\":null,"
		    "\"custody_usec\":null}");
	fl.ended_by = FLOW_SERVER;
	o = show_flow_json(&fl, HOW);
	assert_string_equal(json_string_value(json_object_get(o, "ended_by")), "server");
	json_decref(o);
	fl.begun = false;
	fl.end = FLOW_REPLACED;
	assert_json(show_flow_json(&fl, HOW),
		    "{\"event\":\"flow\",\"time_usec\":" USEC
		    ",\"duration_usec\":72612,\"begun\":false,\"client\":" HALF_OF_CLIENT
		    ",\"server\":" HALF_OF_SERVER
		    ",\"end\":\"replaced\",\"ended_by\":null,\"response_usec\":null,"
		    "\"accept_usec\":null,\"credit_usec\":null,\"last_byte_usec\":null,"
		    "\"custody_usec\":null}");
}

/* ---- alarms ---------------------------------------------------------------------------------- */

static void an_event_may_be_several_alarms(void **state _unused_)
{
	struct alarm a[ALARMS_OF_EVENT];
	struct flow fl = flow();
	struct flow_news news = { .flow = &fl };
	struct vsr_trace_event e = plain;

	assert_int_equal(alarms_of_event(&e, &news, a), 0);
	news.reset = FLOW_RESET_CLOSE;
	assert_int_equal(alarms_of_event(&e, &news, a), 0);
	news.empty = true;
	news.overrun = true;
	news.allowed = 65536;
	news.reset = FLOW_RESET_REFUSED;
	assert_int_equal(alarms_of_event(&e, &news, a), 3);
	assert_shown(show_alarm(f, &a[0], HOW),
		     "03:04:05.123456 zero_length_rw 42:355173 > 2:818: an RW without payload, "
		     "which Linux never sends\n");
	assert_shown(show_alarm(f, &a[1], HOW),
		     "03:04:05.123456 credit_violation 42:355173 > 2:818: 117470 bytes sent, 65536 "
		     "allowed\n");
	assert_shown(show_alarm(f, &a[2], HOW),
		     "03:04:05.123456 reset 42:355173 > 2:818: refused: the answer to its REQUEST: "
		     "nobody listens, or the backlog is full\n");
	assert_json(
		show_alarm_json(&a[0], HOW),
		"{\"event\":\"alarm\",\"alarm\":\"zero_length_rw\",\"time_usec\":" USEC
		",\"src_cid\":42,\"src_port\":355173,\"src_name\":null,\"dst_cid\":2,\"dst_port\":818,"
		"\"dst_name\":null}");
	assert_json(
		show_alarm_json(&a[1], HOW),
		"{\"event\":\"alarm\",\"alarm\":\"credit_violation\",\"time_usec\":" USEC
		",\"src_cid\":42,\"src_port\":355173,\"src_name\":null,\"dst_cid\":2,\"dst_port\":818,"
		"\"dst_name\":null,"
		"\"bytes\":117470,\"allowed\":65536}");
	assert_json(
		show_alarm_json(&a[2], HOW),
		"{\"event\":\"alarm\",\"alarm\":\"reset\",\"time_usec\":" USEC
		",\"src_cid\":42,\"src_port\":355173,\"src_name\":null,\"dst_cid\":2,\"dst_port\":818,"
		"\"dst_name\":null,"
		"\"cause\":\"refused\"}");
}

static void every_cause_of_a_reset_has_a_name_and_words(void **state _unused_)
{
	struct alarm a = { .kind = ALARM_RESET, .ns = NS };

	for (unsigned i = 0; i < FLOW_RESET_MAX; i++)
		assert_non_null(flow_reset_name(i));
	for (unsigned i = 0; i < FLOW_END_MAX; i++)
		assert_non_null(flow_end_name(i));
	a.cause = FLOW_RESET_OVERRUN;
	assert_shown(show_alarm(f, &a, HOW), "03:04:05.123456 reset 0:0 > 0:0: overrun: the other "
					     "side has sent more than its credit\n");
	a.cause = FLOW_RESET_NO_CONNECTION;
	assert_shown(show_alarm(f, &a, HOW),
		     "03:04:05.123456 reset 0:0 > 0:0: no_connection: the answer to a packet that "
		     "belongs to no connection\n");
	a.cause = FLOW_RESET_UNANSWERED;
	assert_shown(show_alarm(f, &a, HOW), "03:04:05.123456 reset 0:0 > 0:0: unanswered: its "
					     "SHUTDOWN was not answered in time\n");
	a.cause = FLOW_RESET_ABORT;
	assert_shown(show_alarm(f, &a, HOW),
		     "03:04:05.123456 reset 0:0 > 0:0: abort: in the middle of the connection\n");
}

static void a_raw_read_names_the_reader_without_its_control_bytes(void **state _unused_)
{
	struct vsr_trace_event e = plain;
	struct flow_news news = { 0 };
	struct alarm a[ALARMS_OF_EVENT];

	e.kind = VSR_TRACE_RAW_READ;
	e.len = 5000;
	e.pid = 170;
	memcpy(e.comm, "a\x1b[31m\x7f\"b", 10);
	assert_int_equal(alarms_of_event(&e, &news, a), 1);
	assert_shown(show_alarm(f, &a[0], HOW),
		     "03:04:05.123456 raw_read 42:355173 > 2:818: 5000 bytes read past the verdict "
		     "by a?[31m?\"b[170]\n");
	assert_json(
		show_alarm_json(&a[0], HOW),
		"{\"event\":\"alarm\",\"alarm\":\"raw_read\",\"time_usec\":" USEC
		",\"src_cid\":42,\"src_port\":355173,\"src_name\":null,\"dst_cid\":2,\"dst_port\":818,"
		"\"dst_name\":null,"
		"\"bytes\":5000,\"peek\":false,\"pid\":170,\"comm\":\"a?[31m?\\\"b\"}");
	/* Not terminated, and looked at only. */
	memset(e.comm, 'x', sizeof(e.comm));
	e.flags = MSG_PEEK | MSG_DONTWAIT;
	alarms_of_event(&e, &news, a);
	assert_shown(show_alarm(f, &a[0], HOW),
		     "03:04:05.123456 raw_read 42:355173 > 2:818: 5000 bytes looked at past the "
		     "verdict by xxxxxxxxxxxxxxx[170]\n");
}

static void counters_that_have_grown_are_alarms(void **state _unused_)
{
	struct vsr_stats before = { .packets = 5, .no_conn = 2 }, after = before;
	struct alarm a[ALARMS_OF_STATS];

	after.packets = 500;
	after.bytes = 500;
	after.bytes_refused = 1;
	after.pool_draws = 9;
	assert_int_equal(alarms_of_stats(&before, &after, NS, a), 0);
	after.no_conn = 7;
	after.vm_insert_failed = 1;
	assert_int_equal(alarms_of_stats(&before, &after, NS, a), 2);
	assert_shown(show_alarm(f, &a[0], HOW),
		     "03:04:05.123456 verdict_error no_conn: 5 more, 7 since the daemon's start\n");
	assert_json(show_alarm_json(&a[1], HOW),
		    "{\"event\":\"alarm\",\"alarm\":\"verdict_error\",\"time_usec\":" USEC
		    ",\"counter\":\"vm_insert_failed\",\"grown\":1,\"total\":1}");
	memset(&after, 0xff, sizeof(after));
	assert_int_equal(alarms_of_stats(&before, &after, NS, a), 11);
	assert_int_equal(alarms_of_stats(&after, &before, NS, a), 0);
}

/* ---- histograms ------------------------------------------------------------------------------ */

static void values_fall_into_powers_of_two(void **state _unused_)
{
	struct log2hist h = { 0 };
	unsigned first, last;

	assert_false(log2hist_range(&h, &first, &last));
	for (unsigned i = 0; i < LOG2HIST_BUCKETS; i++) {
		uint64_t before = h.bucket[i];

		log2hist_add(&h, log2hist_from(i));
		log2hist_add(&h, log2hist_to(i));
		assert_int_equal(h.bucket[i], before + 2);
		if (i > 0)
			assert_int_equal(log2hist_from(i), log2hist_to(i - 1) + 1);
	}
	assert_int_equal(h.count, 2 * LOG2HIST_BUCKETS);
	assert_true(log2hist_range(&h, &first, &last));
	assert_int_equal(first, 0);
	assert_int_equal(last, 63);
	assert_int_equal(h.max, UINT64_MAX);
}

static void a_histogram_is_drawn(void **state _unused_)
{
	struct log2hist h = { 0 };

	for (int i = 0; i < 4; i++)
		log2hist_add(&h, 5);
	log2hist_add(&h, 30);
	assert_shown(
		show_histogram(f, "REQUEST to RESPONSE", &h, NULL),
		"\nREQUEST to RESPONSE: 5, average 10 usec, longest 30 usec\n"
		"                   usec : count    | distribution                           |\n"
		"         4 - 7          : 4        |****************************************|\n"
		"         8 - 15         : 0        |                                        |\n"
		"        16 - 31         : 1        |**********                              |\n");
	assert_json(show_histogram_json("request_to_response", &h, NULL),
		    "{\"event\":\"histogram\",\"name\":\"request_to_response\",\"unit\":\"usec\","
		    "\"count\":5,\"sum\":50,\"max\":30,\"buckets\":[{\"from\":4,\"to\":7,"
		    "\"count\":4},{\"from\":8,\"to\":15,\"count\":0},{\"from\":16,\"to\":31,"
		    "\"count\":1}],\"unseen\":null}");
}

static void an_empty_histogram_says_why(void **state _unused_)
{
	struct log2hist h = { 0 };

	assert_shown(show_histogram(f, "last byte to accepted", &h, NULL),
		     "\nlast byte to accepted: 0\n");
	assert_shown(show_histogram(f, "last byte to accepted", &h, "no daemon runs"),
		     "\nlast byte to accepted: 0 (no daemon runs)\n");
	assert_json(
		show_histogram_json("last_byte_to_accepted", &h, "no daemon runs"),
		"{\"event\":\"histogram\",\"name\":\"last_byte_to_accepted\",\"unit\":\"usec\","
		"\"count\":0,\"sum\":0,\"max\":0,\"buckets\":[],\"unseen\":\"no daemon runs\"}");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_packet_is_a_line),
		cmocka_unit_test(a_packet_is_an_object_with_stable_keys),
		cmocka_unit_test(a_name_stands_beside_the_cid),
		cmocka_unit_test(operations_are_read_in_any_case),
		cmocka_unit_test(a_flow_is_a_line),
		cmocka_unit_test(a_flow_is_an_object_with_stable_keys),
		cmocka_unit_test(an_event_may_be_several_alarms),
		cmocka_unit_test(every_cause_of_a_reset_has_a_name_and_words),
		cmocka_unit_test(a_raw_read_names_the_reader_without_its_control_bytes),
		cmocka_unit_test(counters_that_have_grown_are_alarms),
		cmocka_unit_test(values_fall_into_powers_of_two),
		cmocka_unit_test(a_histogram_is_drawn),
		cmocka_unit_test(an_empty_histogram_says_why),
	};

	return cmocka_run_group_tests_name("trace show", tests, use_utc, NULL);
}
