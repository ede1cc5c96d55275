/* SPDX-License-Identifier: Apache-2.0 */
/* What traced packets mean together: ends, credit, resets by cause, times. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "flow.h"

#define GUEST  42
#define HOST   2
#define GPORT  1000
#define HPORT  818
#define CREDIT 65536

static struct flow_table *table;
static struct flow_news news;
static uint64_t now;
static uint32_t lost;

static int start(void **state _unused_)
{
	now = 1000;
	lost = 0;
	return flow_table_new(8, 7, &table);
}

static int stop(void **state _unused_)
{
	table = flow_table_free(table);
	return 0;
}

static struct vsr_trace_event event(uint32_t kind, bool from_guest)
{
	return (struct vsr_trace_event){
		.ns = now += 1000,
		.kind = kind,
		.src_cid = from_guest ? GUEST : HOST,
		.src_port = from_guest ? GPORT : HPORT,
		.dst_cid = from_guest ? HOST : GUEST,
		.dst_port = from_guest ? HPORT : GPORT,
		.type = 1,
		.buf_alloc = CREDIT,
		.lost = lost,
	};
}

static void observe(const struct vsr_trace_event *e)
{
	memset(&news, 0xff, sizeof(news));
	assert_int_equal(flow_observe(table, e, &news), 0);
}

static void packet(bool from_guest, uint16_t op, uint32_t len, uint32_t fwd_cnt)
{
	struct vsr_trace_event e = event(VSR_TRACE_PACKET, from_guest);

	e.op = op;
	e.len = len;
	e.fwd_cnt = fwd_cnt;
	observe(&e);
}

static void guest(uint16_t op, uint32_t len)
{
	packet(true, op, len, 0);
}

static void host(uint16_t op, uint32_t fwd_cnt)
{
	packet(false, op, 0, fwd_cnt);
}

static void shut_down(bool from_guest, uint32_t flags)
{
	struct vsr_trace_event e = event(VSR_TRACE_PACKET, from_guest);

	e.op = VSR_OP_SHUTDOWN;
	e.flags = flags;
	observe(&e);
}

static void open_flow(void)
{
	guest(VSR_OP_REQUEST, 0);
	host(VSR_OP_RESPONSE, 0);
}

static void ended(enum flow_end how, enum flow_side by, enum flow_reset reset)
{
	assert_true(news.ended);
	assert_int_equal(news.flow->end, how);
	assert_int_equal(news.flow->ended_by, by);
	assert_int_equal(news.reset, reset);
}

/* ---- ends ------------------------------------------------------------------------------------ */

static void a_close_is_ended_by_who_shut_down(void **state _unused_)
{
	open_flow();
	guest(VSR_OP_RW, 100);
	shut_down(true, VSR_SHUTDOWN_BOTH);
	assert_false(news.ended);
	host(VSR_OP_RST, 0);
	ended(FLOW_SHUTDOWN, FLOW_CLIENT, FLOW_RESET_CLOSE);
	assert_int_equal(news.side, FLOW_SERVER);
	assert_true(news.flow->begun);
	assert_int_equal(news.flow->half[FLOW_CLIENT].bytes, 100);
	assert_int_equal(news.flow->half[FLOW_CLIENT].packets, 3);
	assert_int_equal(news.flow->half[FLOW_SERVER].packets, 2);

	open_flow();
	assert_null(news.displaced);
	shut_down(false, VSR_SHUTDOWN_BOTH);
	guest(VSR_OP_RST, 0);
	ended(FLOW_SHUTDOWN, FLOW_SERVER, FLOW_RESET_CLOSE);
}

static void a_half_close_ends_nothing(void **state _unused_)
{
	open_flow();
	shut_down(true, VSR_SHUTDOWN_SEND);
	assert_false(news.ended);
	shut_down(false, VSR_SHUTDOWN_BOTH);
	guest(VSR_OP_RST, 0);
	ended(FLOW_SHUTDOWN, FLOW_SERVER, FLOW_RESET_CLOSE);

	/* Two halves are a whole. */
	open_flow();
	shut_down(true, VSR_SHUTDOWN_SEND);
	shut_down(true, VSR_SHUTDOWN_RCV);
	shut_down(false, VSR_SHUTDOWN_BOTH);
	host(VSR_OP_RST, 0);
	ended(FLOW_SHUTDOWN, FLOW_CLIENT, FLOW_RESET_CLOSE);
}

static void a_second_reset_is_no_news(void **state _unused_)
{
	open_flow();
	shut_down(true, VSR_SHUTDOWN_BOTH);
	host(VSR_OP_RST, 0);
	host(VSR_OP_RST, 0);
	assert_false(news.ended);
	assert_int_equal(news.reset, FLOW_RESET_AGAIN);
	assert_int_equal(news.flow->half[FLOW_SERVER].packets, 2);
}

static void closes_that_cross_are_no_alarm(void **state _unused_)
{
	open_flow();
	shut_down(true, VSR_SHUTDOWN_BOTH);
	host(VSR_OP_RST, 0);
	ended(FLOW_SHUTDOWN, FLOW_CLIENT, FLOW_RESET_CLOSE);
	host(VSR_OP_CREDIT_UPDATE, 0);
	shut_down(false, VSR_SHUTDOWN_BOTH);
	guest(VSR_OP_RST, 0);
	assert_int_equal(news.reset, FLOW_RESET_AGAIN);
	/* Payload after the end is none of that. */
	host(VSR_OP_RW, 10);
	guest(VSR_OP_RST, 0);
	assert_int_equal(news.reset, FLOW_RESET_NO_CONNECTION);
	/* And after another end nothing is said any more. */
	open_flow();
	guest(VSR_OP_RST, 0);
	ended(FLOW_RESET, FLOW_CLIENT, FLOW_RESET_ABORT);
	host(VSR_OP_SHUTDOWN, 0);
	guest(VSR_OP_RST, 0);
	assert_int_equal(news.reset, FLOW_RESET_NO_CONNECTION);
}

static void a_request_without_listener_is_refused(void **state _unused_)
{
	guest(VSR_OP_REQUEST, 0);
	host(VSR_OP_RST, 0);
	ended(FLOW_REFUSED, FLOW_SERVER, FLOW_RESET_REFUSED);
	assert_true(flow_reset_alarms(news.reset));
}

static void a_client_may_give_up_before_the_answer(void **state _unused_)
{
	guest(VSR_OP_REQUEST, 0);
	guest(VSR_OP_RST, 0);
	ended(FLOW_CANCELLED, FLOW_CLIENT, FLOW_RESET_ABORT);
	guest(VSR_OP_REQUEST, 0);
	shut_down(true, VSR_SHUTDOWN_BOTH);
	host(VSR_OP_RST, 0);
	ended(FLOW_CANCELLED, FLOW_CLIENT, FLOW_RESET_CLOSE);
}

static void a_reset_in_the_middle_is_an_abort(void **state _unused_)
{
	open_flow();
	guest(VSR_OP_RST, 0);
	ended(FLOW_RESET, FLOW_CLIENT, FLOW_RESET_ABORT);
	open_flow();
	shut_down(true, VSR_SHUTDOWN_SEND);
	host(VSR_OP_RST, 0);
	ended(FLOW_RESET, FLOW_SERVER, FLOW_RESET_ABORT);
}

static void a_shutdown_that_nobody_answers_is_told(void **state _unused_)
{
	open_flow();
	shut_down(false, VSR_SHUTDOWN_BOTH);
	host(VSR_OP_RST, 0);
	ended(FLOW_SHUTDOWN, FLOW_SERVER, FLOW_RESET_UNANSWERED);
	assert_true(flow_reset_alarms(news.reset));
	assert_false(flow_reset_alarms(FLOW_RESET_CLOSE));
	assert_false(flow_reset_alarms(FLOW_RESET_AGAIN));
}

static void a_packet_of_no_connection_is_told_by_its_reset(void **state _unused_)
{
	guest(VSR_OP_RW, 10);
	assert_false(news.flow->begun);
	host(VSR_OP_RST, 0);
	ended(FLOW_RESET, FLOW_SERVER, FLOW_RESET_NO_CONNECTION);
	/* Again, after the end. */
	guest(VSR_OP_RW, 10);
	assert_false(news.ended);
	host(VSR_OP_RST, 0);
	assert_int_equal(news.reset, FLOW_RESET_NO_CONNECTION);
	host(VSR_OP_RST, 0);
	assert_int_equal(news.reset, FLOW_RESET_AGAIN);
	/* A reset alone is the end of nothing. */
	stop(NULL);
	assert_int_equal(flow_table_new(8, 7, &table), 0);
	host(VSR_OP_RST, 0);
	assert_null(news.flow);
	/* Who has said more than that does know the connection. */
	guest(VSR_OP_RW, 10);
	host(VSR_OP_CREDIT_UPDATE, 10);
	host(VSR_OP_RST, 0);
	ended(FLOW_RESET, FLOW_SERVER, FLOW_RESET_ABORT);
}

static void a_byte_before_any_credit_was_seen_is_no_violation(void **state _unused_)
{
	guest(VSR_OP_RW, 1 << 30);
	assert_false(news.overrun);
	guest(VSR_OP_RW, 1 << 30);
	assert_false(news.overrun);
	assert_int_equal(news.flow->half[FLOW_CLIENT].stalls, 0);
}

static void an_older_connection_is_followed_from_the_middle(void **state _unused_)
{
	host(VSR_OP_CREDIT_UPDATE, 5);
	assert_int_equal(news.side, FLOW_SERVER);
	guest(VSR_OP_RW, 1 << 20);
	assert_false(news.overrun);
	shut_down(true, VSR_SHUTDOWN_BOTH);
	host(VSR_OP_RST, 0);
	ended(FLOW_SHUTDOWN, FLOW_CLIENT, FLOW_RESET_CLOSE);
	assert_false(news.flow->begun);
	assert_int_equal(news.flow->half[FLOW_CLIENT].cid, GUEST);
}

static void a_vm_that_ends_takes_its_flows_along(void **state _unused_)
{
	struct vsr_trace_event e;

	open_flow();
	e = event(VSR_TRACE_VANISHED, true);
	observe(&e);
	ended(FLOW_VANISHED, FLOW_CLIENT, FLOW_RESET_NONE);
	observe(&e);
	assert_false(news.ended);
}

static void a_close_after_the_end_of_a_vm_is_no_reset(void **state _unused_)
{
	struct vsr_trace_event e;

	open_flow();
	e = event(VSR_TRACE_VM_END, true);
	e.src_port = e.dst_cid = e.dst_port = 0;
	observe(&e);
	assert_null(news.flow);
	assert_false(news.ended);
	/* Who serves the connection was faster than the trace. */
	host(VSR_OP_RST, 0);
	ended(FLOW_VANISHED, FLOW_CLIENT, FLOW_RESET_CLOSE);
	/* Another VM's end is nothing to it. */
	open_flow();
	e.src_cid++;
	observe(&e);
	host(VSR_OP_RST, 0);
	ended(FLOW_RESET, FLOW_SERVER, FLOW_RESET_ABORT);
}

static void ports_that_are_used_again_are_another_flow(void **state _unused_)
{
	open_flow();
	guest(VSR_OP_RW, 7);
	guest(VSR_OP_REQUEST, 0);
	assert_false(news.ended);
	assert_non_null(news.displaced);
	assert_int_equal(news.displaced->end, FLOW_REPLACED);
	assert_int_equal(news.displaced->half[FLOW_CLIENT].bytes, 7);
	assert_int_equal(news.flow->half[FLOW_CLIENT].bytes, 0);
	/* The same REQUEST once more, unanswered, is none. */
	guest(VSR_OP_REQUEST, 0);
	assert_null(news.displaced);
	assert_int_equal(news.flow->half[FLOW_CLIENT].packets, 2);
	/* One after an older connection's packets is a new connection. */
	stop(NULL);
	assert_int_equal(flow_table_new(8, 7, &table), 0);
	guest(VSR_OP_CREDIT_UPDATE, 0);
	assert_false(news.flow->begun);
	guest(VSR_OP_REQUEST, 0);
	assert_non_null(news.displaced);
	assert_int_equal(news.displaced->end, FLOW_REPLACED);
	assert_true(news.flow->begun);
}

static void count_open(const struct flow *f _unused_, void *userdata)
{
	++*(int *)userdata;
}

static void a_full_table_forgets_the_longest_silent(void **state _unused_)
{
	struct vsr_trace_event e;
	int open = 0;

	for (uint32_t i = 0; i < 8; i++) {
		e = event(VSR_TRACE_PACKET, true);
		e.op = VSR_OP_REQUEST;
		e.src_port = i;
		observe(&e);
		assert_null(news.displaced);
	}
	/* The first one speaks again, so it is the second one that goes. */
	e.src_port = 0;
	observe(&e);
	e.src_port = 8;
	observe(&e);
	assert_int_equal(news.displaced->end, FLOW_FORGOTTEN);
	assert_int_equal(news.displaced->half[FLOW_CLIENT].port, 1);
	flow_foreach_open(table, count_open, &open);
	assert_int_equal(open, 8);
}

static void both_names_of_loopback_are_one_flow(void **state _unused_)
{
	struct vsr_trace_event e = event(VSR_TRACE_PACKET, true);

	/* connect() to CID 2 on the host itself: asked for as 2, answered as 1. */
	e.op = VSR_OP_REQUEST;
	e.src_cid = 1;
	observe(&e);
	e = event(VSR_TRACE_PACKET, false);
	e.op = VSR_OP_RESPONSE;
	e.src_cid = 1;
	e.dst_cid = 1;
	observe(&e);
	assert_true(news.responded);
	assert_int_equal(news.side, FLOW_SERVER);
}

/* ---- credit ---------------------------------------------------------------------------------- */

static void credit_that_is_used_up_is_a_stall_until_there_is_more(void **state _unused_)
{
	const struct flow_half *h;

	open_flow();
	guest(VSR_OP_RW, CREDIT - 1);
	h = &news.flow->half[FLOW_CLIENT];
	assert_int_equal(h->stalls, 0);
	guest(VSR_OP_RW, 1);
	assert_int_equal(h->stalls, 1);
	now += 5000;
	host(VSR_OP_CREDIT_UPDATE, 0); /* nothing new in it */
	assert_int_equal(h->stalled_ns, 0);
	host(VSR_OP_CREDIT_UPDATE, 10);
	assert_int_equal(h->stalled_ns, 7000);
	guest(VSR_OP_RW, 10);
	assert_int_equal(h->stalls, 2);
	assert_int_equal(h->overruns, 0);
}

static void a_byte_beyond_the_credit_is_a_violation_said_once(void **state _unused_)
{
	open_flow();
	guest(VSR_OP_RW, CREDIT - 10);
	assert_false(news.overrun);
	guest(VSR_OP_RW, 11);
	assert_true(news.overrun);
	assert_int_equal(news.allowed, CREDIT);
	guest(VSR_OP_RW, 1);
	assert_false(news.overrun);
	assert_int_equal(news.flow->half[FLOW_CLIENT].overruns, 2);
	host(VSR_OP_RST, 0);
	ended(FLOW_RESET, FLOW_SERVER, FLOW_RESET_OVERRUN);
}

static void credit_goes_round_at_32_bits(void **state _unused_)
{
	uint32_t sent = 0;

	open_flow();
	for (int i = 0; i < 65538; i++) {
		guest(VSR_OP_RW, CREDIT);
		assert_false(news.overrun);
		sent += CREDIT;
		host(VSR_OP_CREDIT_UPDATE, sent);
	}
	assert_int_equal(news.flow->half[FLOW_CLIENT].bytes, 65538ULL * CREDIT);
	assert_int_equal(news.flow->half[FLOW_CLIENT].stalls, 65538);
}

static void credit_updates_that_overtake_each_other_take_nothing_back(void **state _unused_)
{
	open_flow();
	guest(VSR_OP_RW, CREDIT);
	host(VSR_OP_CREDIT_UPDATE, 2000);
	host(VSR_OP_CREDIT_UPDATE, 1000);
	guest(VSR_OP_RW, 2000);
	assert_false(news.overrun);
}

static void zero_credit_is_waited_for_and_no_stall(void **state _unused_)
{
	struct vsr_trace_event e;

	guest(VSR_OP_REQUEST, 0);
	e = event(VSR_TRACE_PACKET, false);
	e.op = VSR_OP_RESPONSE;
	e.buf_alloc = 0;
	observe(&e);
	assert_true(news.responded);
	assert_false(news.credited);
	host(VSR_OP_CREDIT_UPDATE, 0);
	assert_true(news.credited);
	assert_int_equal(news.flow->credit_ns, now);
	host(VSR_OP_CREDIT_UPDATE, 0);
	assert_false(news.credited);
	assert_int_equal(news.flow->half[FLOW_CLIENT].stalls, 0);
}

static void after_a_loss_nothing_is_said_of_credit(void **state _unused_)
{
	open_flow();
	guest(VSR_OP_RW, CREDIT);
	/* The credit update is among the lost. */
	lost = 1;
	guest(VSR_OP_RW, CREDIT);
	assert_false(news.overrun);
	shut_down(true, VSR_SHUTDOWN_BOTH);
	host(VSR_OP_RST, 0);
	/* Of a flow that begins after it, everything. */
	open_flow();
	guest(VSR_OP_RW, CREDIT + 1);
	assert_true(news.overrun);
}

static void a_packet_without_payload_is_told_always(void **state _unused_)
{
	open_flow();
	guest(VSR_OP_RW, 1);
	assert_false(news.empty);
	guest(VSR_OP_RW, 0);
	assert_true(news.empty);
	assert_int_equal(news.flow->half[FLOW_CLIENT].empty, 1);
	guest(VSR_OP_RST, 0);
	guest(VSR_OP_RW, 0);
	assert_true(news.empty);
}

/* ---- times ----------------------------------------------------------------------------------- */

static void every_time_is_told_once(void **state _unused_)
{
	struct vsr_trace_event accept, custody;
	uint64_t asked, last;

	guest(VSR_OP_REQUEST, 0);
	asked = now;
	host(VSR_OP_RESPONSE, 0);
	assert_true(news.responded && news.credited);
	assert_int_equal(news.flow->response_ns, asked + 1000);
	accept = event(VSR_TRACE_ACCEPT, true);
	observe(&accept);
	assert_true(news.accepted);
	observe(&accept);
	assert_false(news.accepted);
	custody = event(VSR_TRACE_CUSTODY, true);
	custody.dst_cid = custody.dst_port = 0; /* the daemon names its agent only */
	custody.len = 16;
	guest(VSR_OP_RW, 8);
	guest(VSR_OP_RW, 8);
	last = now;
	custody.ns = now += 500;
	observe(&custody);
	assert_true(news.custody);
	assert_int_equal(news.flow->last_byte_ns, last);
	assert_int_equal(news.flow->custody_ns, last + 500);
	assert_int_equal(news.flow->custody_bytes, 16);
	observe(&custody);
	assert_false(news.custody);
	assert_int_equal(news.flow->first_ns, asked);

	custody.src_port++;
	observe(&custody);
	assert_null(news.flow);
}

/* The table has 4096 buckets or so: among so many flows several share one. */
static void flows_that_share_a_bucket_are_apart(void **state _unused_)
{
	enum { N = 20000 };
	size_t n = 0;

	stop(NULL);
	assert_int_equal(flow_table_new(N, 7, &table), 0);
	for (uint32_t i = 0; i < N; i++) {
		struct vsr_trace_event e = event(VSR_TRACE_PACKET, true);

		e.src_port = i;
		e.op = VSR_OP_REQUEST;
		observe(&e);
		assert_true(news.flow->begun);
		assert_int_equal(news.flow->half[FLOW_CLIENT].port, i);
	}
	flow_foreach_open(table, count_open, &n);
	assert_int_equal(n, N);
	/* The first ones are found and forgotten behind those that came later. */
	for (uint32_t i = 0; i < N; i++) {
		struct vsr_trace_event e = event(VSR_TRACE_PACKET, false);

		e.dst_port = i;
		e.op = VSR_OP_RST;
		observe(&e);
		ended(FLOW_REFUSED, FLOW_SERVER, FLOW_RESET_REFUSED);
	}
	n = 0;
	flow_foreach_open(table, count_open, &n);
	assert_int_equal(n, 0);
}

static void who_sent_the_first_packet_seen_is_guessed(void **state _unused_)
{
	struct vsr_trace_event e = event(VSR_TRACE_PACKET, true);

	/* Between two guests: who speaks. */
	e.dst_cid = GUEST + 1;
	e.op = VSR_OP_RW;
	e.len = 1;
	observe(&e);
	assert_int_equal(news.side, FLOW_CLIENT);
	/* Within the host: the lower port is the server's. */
	e.src_cid = e.dst_cid = 1;
	observe(&e);
	assert_int_equal(news.side, FLOW_CLIENT);
	e.src_port = 700;
	observe(&e);
	assert_int_equal(news.side, FLOW_SERVER);
}

static void what_comes_twice_is_told_once(void **state _unused_)
{
	struct vsr_trace_event e;

	/* A REQUEST that is repeated before its answer is the same flow. */
	guest(VSR_OP_REQUEST, 0);
	guest(VSR_OP_REQUEST, 0);
	assert_null(news.displaced);
	/* A RESPONSE of the client is none. */
	guest(VSR_OP_RESPONSE, 0);
	assert_false(news.responded);
	host(VSR_OP_RESPONSE, 0);
	assert_true(news.responded);
	host(VSR_OP_RESPONSE, 0);
	assert_false(news.responded);
	/* The server's payload is not the report's. */
	packet(false, VSR_OP_RW, 16, 0);
	assert_int_equal(news.flow->last_byte_ns, 0);
	e = event(VSR_TRACE_ACCEPT, true);
	observe(&e);
	assert_true(news.accepted);
	observe(&e);
	assert_false(news.accepted);
	/* Of a connection that is not known. */
	e.src_port = 5;
	observe(&e);
	assert_null(news.flow);
	e.kind = VSR_TRACE_VANISHED;
	observe(&e);
	assert_null(news.flow);
	e.kind = VSR_TRACE_CUSTODY;
	observe(&e);
	assert_null(news.flow);
}

static void a_stall_lasts_over_packets_that_need_no_credit(void **state _unused_)
{
	open_flow();
	guest(VSR_OP_RW, CREDIT);
	assert_int_equal(news.flow->half[FLOW_CLIENT].stalls, 1);
	guest(VSR_OP_RW, 0);
	assert_true(news.empty);
	assert_int_equal(news.flow->half[FLOW_CLIENT].stalls, 1);
}

static void a_table_of_nothing_is_refused(void **state _unused_)
{
	struct flow_table *t = NULL;

	assert_int_equal(flow_table_new(0, 0, &t), -EINVAL);
	assert_null(t);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, start, stop)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(a_close_is_ended_by_who_shut_down),
		TEST(a_half_close_ends_nothing),
		TEST(a_second_reset_is_no_news),
		TEST(closes_that_cross_are_no_alarm),
		TEST(a_request_without_listener_is_refused),
		TEST(a_client_may_give_up_before_the_answer),
		TEST(a_reset_in_the_middle_is_an_abort),
		TEST(a_shutdown_that_nobody_answers_is_told),
		TEST(a_packet_of_no_connection_is_told_by_its_reset),
		TEST(a_byte_before_any_credit_was_seen_is_no_violation),
		TEST(an_older_connection_is_followed_from_the_middle),
		TEST(a_vm_that_ends_takes_its_flows_along),
		TEST(a_close_after_the_end_of_a_vm_is_no_reset),
		TEST(ports_that_are_used_again_are_another_flow),
		TEST(a_full_table_forgets_the_longest_silent),
		TEST(both_names_of_loopback_are_one_flow),
		TEST(credit_that_is_used_up_is_a_stall_until_there_is_more),
		TEST(a_byte_beyond_the_credit_is_a_violation_said_once),
		TEST(credit_goes_round_at_32_bits),
		TEST(credit_updates_that_overtake_each_other_take_nothing_back),
		TEST(zero_credit_is_waited_for_and_no_stall),
		TEST(after_a_loss_nothing_is_said_of_credit),
		TEST(a_packet_without_payload_is_told_always),
		TEST(flows_that_share_a_bucket_are_apart),
		TEST(who_sent_the_first_packet_seen_is_guessed),
		TEST(what_comes_twice_is_told_once),
		TEST(a_stall_lasts_over_packets_that_need_no_credit),
		TEST(every_time_is_told_once),
		TEST(a_table_of_nothing_is_refused),
	};

	return cmocka_run_group_tests_name("flow", tests, NULL, NULL);
}
