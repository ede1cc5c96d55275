/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections from accept to close on the event loop, without BPF, over socket pairs (SPEC 3).
 */
#include "ingest_test.h"

/* Connects as a VM's agent on a hybrid socket does; returns the agent's end. */
static int connect_as(struct ingest_world *w, uint32_t cid)
{
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
	ingest_accepted(w->ingest, fds[1], false, (struct vsr_vm_id){ .cid = cid }, 0);
	return fds[0];
}

/* Sends all of it, with turns of the loop in between where the socket is full. */
static void send_all(struct ingest_world *w, int fd, const uint8_t *p, size_t n)
{
	uint64_t until = clock_usec() + PATIENCE;

	while (n > 0) {
		ssize_t sent = send(fd, p, n, MSG_NOSIGNAL);

		if (sent > 0) {
			p += sent;
			n -= (size_t)sent;
			continue;
		}
		assert_int_equal(errno, EAGAIN);
		assert_true(clock_usec() < until);
		ingest_world_turn(w, USEC_PER_MSEC);
	}
}

/* Sends a report framed as VSR1 on a new connection; returns the answer. */
static int send_framed(struct ingest_world *w, uint32_t cid, char what, size_t size)
{
	_cleanup_free_ uint8_t *p = NULL;
	size_t n = make_report(cid, what, size, VSR_MODE_VSR1, &p);
	_cleanup_close_ int fd = connect_as(w, cid);
	int status;

	send_all(w, fd, p, n);
	TURN_UNTIL(w, (status = answer_of(fd)) != -EAGAIN);
	TURN_UNTIL(w, closed(fd));
	return status;
}

static struct admission_figures places(const struct ingest_world *w)
{
	struct admission_figures f;

	admission_figures(w->admission, &f);
	return f;
}

static size_t held(const struct ingest_world *w)
{
	struct relay_figures f;

	relay_figures(w->relay, clock_usec(), &f);
	return f.held;
}

/* A connection that has a place, and sent only the first bytes of a header. */
static int take_place(struct ingest_world *w, uint32_t cid)
{
	int fd = connect_as(w, cid);

	assert_int_equal(send(fd, "VSR1", 4, 0), 4);
	ingest_world_settle(w);
	return fd;
}

/* ---- reports ---------------------------------------------------------------------------------------- */

static void raw_report_is_taken_at_its_end_and_never_answered(void **state _unused_)
{
	_cleanup_free_ uint8_t *p = NULL;
	size_t n = make_report(42, 'a', 300000, VSR_MODE_RAW, &p);
	struct ingest_world w;
	int fd;

	ingest_world_defaults(&w);
	ingest_world_open(&w);
	w.hold = true;
	fd = connect_as(&w, 42);
	send_all(&w, fd, p, n);
	ingest_world_settle(&w);
	assert_int_equal(held(&w), 0);
	shutdown(fd, SHUT_WR);
	TURN_UNTIL(&w, w.n_sends == 1);
	assert_int_equal(buf_len(w.sends[0]->payload), n);
	assert_memory_equal(buf_data(w.sends[0]->payload), p, n);
	assert_int_equal(answer_of(fd), -ENODATA);
	assert_int_equal(ingest_connections(w.ingest), 0);
	assert_int_equal(metric_get(METRIC_REPORTS_RECEIVED, 0), 1);
	assert_int_equal(metric_get(METRIC_BYTES, METRIC_BYTES_ACCEPTED), n);
	close(fd);
	ingest_world_close(&w);
}

static void framed_report_is_answered_when_custody_has_begun(void **state _unused_)
{
	struct ingest_world w;

	ingest_world_defaults(&w);
	ingest_world_open(&w);
	w.hold = true;
	assert_int_equal(send_framed(&w, 42, 'a', 300000), VSR_STATUS_ACCEPTED);
	assert_int_equal(held(&w), 1);
	assert_int_equal(places(&w).places_used, 0);
	assert_int_equal(send_framed(&w, 42, 'a', 300000), VSR_STATUS_NOTHING_TO_DO);
	assert_int_equal(send_framed(&w, 42, 'b', 300000), VSR_STATUS_ACCEPTED);
	assert_int_equal(metric_get(METRIC_CONNECTIONS_ACCEPTED, 0), 3);
	ingest_world_close(&w);
}

static void a_report_of_another_vm_is_refused(void **state _unused_)
{
	_cleanup_free_ uint8_t *p = NULL;
	size_t n = make_report(43, 'a', 100, VSR_MODE_VSR1, &p);
	struct ingest_world w;
	int fd, status;

	ingest_world_defaults(&w);
	ingest_world_open(&w);
	fd = connect_as(&w, 42);
	send_all(&w, fd, p, n);
	TURN_UNTIL(&w, (status = answer_of(fd)) != -EAGAIN);
	assert_int_equal(status, VSR_STATUS_CID_MISMATCH);
	assert_int_equal(refused(REASON_CID_MISMATCH), 1);
	assert_int_equal(metric_get(METRIC_CID_MISMATCHES, 0), 1);
	assert_int_equal(metric_get(METRIC_VALID, 0), 0);
	close(fd);
	ingest_world_close(&w);
}

static void a_header_that_names_other_bytes_is_a_digest_mismatch(void **state _unused_)
{
	_cleanup_free_ uint8_t *p = NULL;
	size_t n = make_report(42, 'a', 100, VSR_MODE_VSR1, &p);
	struct ingest_world w;
	int fd, status;

	ingest_world_defaults(&w);
	ingest_world_open(&w);
	p[VSR_HEADER_SIZE - 1] ^= 1;
	fd = connect_as(&w, 42);
	send_all(&w, fd, p, n);
	TURN_UNTIL(&w, (status = answer_of(fd)) != -EAGAIN);
	assert_int_equal(status, VSR_STATUS_DIGEST_MISMATCH);
	close(fd);
	ingest_world_close(&w);
}

static void an_offer_is_reserved_then_received(void **state _unused_)
{
	_cleanup_free_ uint8_t *p = NULL;
	size_t n = make_report(42, 'a', 5 * MIB, VSR_MODE_VSR2, &p);
	struct ingest_world w;
	int fd, status;

	ingest_world_defaults(&w);
	ingest_world_open(&w);
	w.hold = true;
	fd = connect_as(&w, 42);
	send_all(&w, fd, p, VSR_HEADER_SIZE);
	TURN_UNTIL(&w, (status = answer_of(fd)) != -EAGAIN);
	assert_int_equal(status, VSR_STATUS_GO_ON);
	assert_int_equal(places(&w).reserved, n - VSR_HEADER_SIZE + ADMISSION_MARGIN);
	send_all(&w, fd, p + VSR_HEADER_SIZE, n - VSR_HEADER_SIZE);
	TURN_UNTIL(&w, (status = answer_of(fd)) != -EAGAIN);
	assert_int_equal(status, VSR_STATUS_ACCEPTED);
	assert_int_equal(places(&w).reserved, 0);
	close(fd);

	/* The same again costs 16 bytes. */
	fd = connect_as(&w, 42);
	send_all(&w, fd, p, VSR_HEADER_SIZE);
	TURN_UNTIL(&w, (status = answer_of(fd)) != -EAGAIN);
	assert_int_equal(status, VSR_STATUS_NOTHING_TO_DO);
	close(fd);
	ingest_world_close(&w);
}

static void without_a_cache_the_answer_is_the_sends(void **state _unused_)
{
	_cleanup_free_ uint8_t *p = NULL;
	size_t n = make_report(42, 'a', 1000, VSR_MODE_VSR1, &p);
	struct ingest_world w;
	int fd, status;

	for (unsigned fail = 0; fail < 2; fail++) {
		ingest_world_defaults(&w);
		w.slots = 0;
		ingest_world_open(&w);
		w.hold = true;
		fd = connect_as(&w, 42);
		send_all(&w, fd, p, n);
		TURN_UNTIL(&w, w.n_sends == 1);
		ingest_world_settle(&w);
		assert_int_equal(answer_of(fd), -EAGAIN);
		ingest_world_finish(&w, fail ? SEND_FAILED : SEND_ACKED);
		status = answer_of(fd);
		assert_int_equal(status, fail ? VSR_STATUS_BUSY : VSR_STATUS_ACCEPTED);
		assert_int_equal(ingest_connections(w.ingest), 0);
		close(fd);
		ingest_world_close(&w);
	}
}

static void a_stop_forgets_reports_that_wait_for_their_send(void **state _unused_)
{
	_cleanup_free_ uint8_t *p = NULL;
	size_t n = make_report(42, 'a', 1000, VSR_MODE_VSR1, &p);
	struct ingest_world w;
	int fd;

	ingest_world_defaults(&w);
	w.slots = 0;
	ingest_world_open(&w);
	w.hold = true;
	fd = connect_as(&w, 42);
	send_all(&w, fd, p, n);
	TURN_UNTIL(&w, w.n_sends == 1);
	w.ingest = ingest_free(w.ingest);
	ingest_world_finish(&w, SEND_ACKED);
	assert_int_equal(answer_of(fd), -ENODATA);
	close(fd);
	ingest_world_close(&w);
}

/* ---- places ------------------------------------------------------------------------------------------ */

static void who_waits_is_not_read_and_gets_its_turn(void **state _unused_)
{
	struct ingest_world w;
	int first, second;

	ingest_world_defaults(&w);
	w.admission_settings.places = 1;
	ingest_world_open(&w);
	first = take_place(&w, 42);
	second = connect_as(&w, 43);
	assert_int_equal(send(second, "VX", 2, 0), 2); /* would be refused at once */
	ingest_world_settle(&w);
	assert_int_equal(places(&w).waiting, 1);
	assert_int_equal(ingest_busy(w.ingest), 1);
	assert_int_equal(refused(REASON_BAD_HEADER), 0);
	close(first); /* its header is cut */
	TURN_UNTIL(&w, ingest_connections(w.ingest) == 0);
	assert_int_equal(refused(REASON_BAD_HEADER), 2);
	close(second);
	ingest_world_close(&w);
}

static void who_sent_all_and_left_while_it_waited_still_gets_its_turn(void **state _unused_)
{
	_cleanup_free_ uint8_t *p = NULL;
	size_t n = make_report(43, 'a', 1000, VSR_MODE_RAW, &p);
	struct ingest_world w;
	int first, second;

	ingest_world_defaults(&w);
	w.admission_settings.places = 1;
	ingest_world_open(&w);
	w.hold = true;
	first = take_place(&w, 42);
	second = connect_as(&w, 43);
	send_all(&w, second, p, n);
	close(second);
	ingest_world_settle(&w);
	assert_int_equal(places(&w).waiting, 1);
	close(first);
	TURN_UNTIL(&w, held(&w) == 1);
	assert_int_equal(w.sends[0]->vm.cid, 43);
	ingest_world_close(&w);
}

static void a_waiter_refused_is_answered_only_if_framed(void **state _unused_)
{
	struct ingest_world w;
	int holder, raw, framed, silent;

	ingest_world_defaults(&w);
	w.admission_settings.places = 1;
	ingest_world_open(&w);
	holder = take_place(&w, 42);
	raw = connect_as(&w, 43);
	framed = connect_as(&w, 44);
	silent = connect_as(&w, 45);
	assert_int_equal(send(raw, "\x0a\x04", 2, 0), 2);
	assert_int_equal(send(framed, "VSR10000", 8, 0), 8);
	ingest_stop(w.ingest);
	assert_int_equal(refused(REASON_SHUTDOWN), 3);
	assert_int_equal(answer_of(framed), VSR_STATUS_BUSY);
	assert_int_equal(answer_of(raw), -ENODATA);
	assert_int_equal(answer_of(silent), -ENODATA);
	assert_int_equal(metric_get(METRIC_SEM_FAILURES, METRIC_SEM_CANCELED), 3);
	/* Who has a place goes on, who comes now is refused. */
	assert_int_equal(ingest_busy(w.ingest), 1);
	assert_false(closed(holder));
	close(framed);
	framed = connect_as(&w, 46);
	assert_true(closed(framed));
	close(holder);
	close(raw);
	close(framed);
	close(silent);
	ingest_world_close(&w);
}

static void who_waits_too_long_is_busy(void **state _unused_)
{
	struct ingest_world w;
	int holder, waiter, status;

	ingest_world_defaults(&w);
	w.admission_settings.places = 1;
	w.admission_settings.wait = 50 * USEC_PER_MSEC;
	ingest_world_open(&w);
	holder = take_place(&w, 42);
	waiter = connect_as(&w, 43);
	assert_int_equal(send(waiter, "VSR2", 4, 0), 4);
	TURN_UNTIL(&w, (status = answer_of(waiter)) != -EAGAIN);
	assert_int_equal(status, VSR_STATUS_BUSY);
	assert_int_equal(refused(REASON_WAIT_TIMEOUT), 1);
	close(holder);
	close(waiter);
	ingest_world_close(&w);
}

static void reserved_cids_are_refused_on_vsock_alone(void **state _unused_)
{
	struct ingest_world w;
	int fds[2];

	ingest_world_defaults(&w);
	ingest_world_open(&w);
	for (uint32_t cid = 0; cid < 3; cid++) {
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
		ingest_accepted(w.ingest, fds[1], true, (struct vsr_vm_id){ .cid = cid }, 0);
		assert_true(closed(fds[0]));
		close(fds[0]);
	}
	assert_int_equal(refused(REASON_RESERVED_CID), 3);
	assert_int_equal(ingest_connections(w.ingest), 0);
	assert_int_equal(vm_table_count(w.vms), 0);
	ingest_world_close(&w);
}

/* ---- time -------------------------------------------------------------------------------------------- */

static void a_report_has_a_deadline_and_a_limit_of_idleness(void **state _unused_)
{
	struct ingest_world w;
	int fd, status;

	for (unsigned idle = 0; idle < 2; idle++) {
		uint64_t start;

		ingest_world_defaults(&w);
		*(idle ? &w.settings.idle : &w.settings.deadline) = 300 * USEC_PER_MSEC;
		ingest_world_open(&w);
		start = clock_usec();
		fd = connect_as(&w, 42);
		assert_int_equal(send(fd, "VSR1\0\0\0\1payload!", 16, 0), 16);
		TURN_UNTIL(&w, (status = answer_of(fd)) != -EAGAIN);
		assert_int_equal(status, VSR_STATUS_DEADLINE);
		assert_true(clock_usec() - start >= 300 * USEC_PER_MSEC);
		assert_int_equal(refused(idle ? REASON_IDLE : REASON_DEADLINE), 1);
		close(fd);
		ingest_world_close(&w);
	}
}

static void what_came_in_time_counts_also_when_looked_at_late(void **state _unused_)
{
	_cleanup_free_ uint8_t *p = NULL;
	size_t n = make_report(42, 'a', 1000, VSR_MODE_VSR1, &p);
	struct ingest_world w;
	int fd, status;

	ingest_world_defaults(&w);
	w.settings.deadline = w.settings.idle = 200 * USEC_PER_MSEC;
	ingest_world_open(&w);
	fd = connect_as(&w, 42);
	send_all(&w, fd, p, 100);
	ingest_world_turn(&w, 0);
	assert_int_equal(ingest_busy(w.ingest), 1);
	send_all(&w, fd, p + 100, n - 100);
	usleep(600000); /* the loop is busy with something else; the tick is long due */
	TURN_UNTIL(&w, (status = answer_of(fd)) != -EAGAIN);
	assert_int_equal(status, VSR_STATUS_ACCEPTED);
	close(fd);
	ingest_world_close(&w);
}

static void many_that_end_in_one_tick_end_well(void **state _unused_)
{
	struct ingest_world w;
	int fds[40];

	ingest_world_defaults(&w);
	w.settings.idle = 100 * USEC_PER_MSEC;
	ingest_world_open(&w);
	for (uint32_t i = 0; i < ARRAY_SIZE(fds); i++)
		fds[i] = take_place(&w, 100 + i / 2);
	usleep(300000);
	TURN_UNTIL(&w, ingest_connections(w.ingest) == 0);
	assert_int_equal(refused(REASON_IDLE), ARRAY_SIZE(fds));
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
		close(fds[i]);
	ingest_world_close(&w);
}

/* ---- answers ------------------------------------------------------------------------------------------ */

/* Fills what the relay can send to the agent, so that no answer fits. Returns the agent's end. */
static int connect_and_never_read(struct ingest_world *w, uint32_t cid)
{
	int fds[2], size = 1;
	char byte = 0;

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
	setsockopt(fds[1], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	while (send(fds[1], &byte, 1, MSG_DONTWAIT) == 1)
		;
	ingest_accepted(w->ingest, fds[1], false, (struct vsr_vm_id){ .cid = cid }, 0);
	return fds[0];
}

static void drain(int fd)
{
	char bytes[4096];

	while (recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT) == (ssize_t)sizeof(bytes))
		;
}

static void an_answer_waits_a_second_without_a_place(void **state _unused_)
{
	_cleanup_free_ uint8_t *p = NULL;
	size_t n = make_report(42, 'a', 1000, VSR_MODE_VSR1, &p);
	struct ingest_world w;
	uint64_t start;
	int fd;

	ingest_world_defaults(&w);
	ingest_world_open(&w);
	w.hold = true;
	fd = connect_and_never_read(&w, 42);
	send_all(&w, fd, p, n);
	start = clock_usec();
	TURN_UNTIL(&w, held(&w) == 1);
	/* Custody does not depend on it, nor does a place. */
	assert_int_equal(places(&w).places_used, 0);
	assert_int_equal(ingest_connections(w.ingest), 1);
	TURN_UNTIL(&w, ingest_connections(w.ingest) == 0);
	assert_true(clock_usec() - start >= USEC_PER_SEC);
	close(fd);
	ingest_world_close(&w);
}

static void an_answer_is_sent_as_soon_as_it_fits(void **state _unused_)
{
	_cleanup_free_ uint8_t *p = NULL;
	size_t n = make_report(42, 'a', 1000, VSR_MODE_VSR1, &p);
	struct ingest_world w;
	int fd, status;

	ingest_world_defaults(&w);
	ingest_world_open(&w);
	w.hold = true;
	fd = connect_and_never_read(&w, 42);
	send_all(&w, fd, p, n);
	TURN_UNTIL(&w, held(&w) == 1);
	drain(fd);
	TURN_UNTIL(&w, (status = answer_of(fd)) != -EAGAIN);
	assert_int_equal(status, VSR_STATUS_ACCEPTED);
	close(fd);
	ingest_world_close(&w);
}

static void at_most_64_wait_for_their_answer(void **state _unused_)
{
	struct ingest_world w;
	int fds[70];

	ingest_world_defaults(&w);
	ingest_world_open(&w);
	w.hold = true;
	for (uint32_t i = 0; i < ARRAY_SIZE(fds); i++) {
		_cleanup_free_ uint8_t *p = NULL;
		size_t n = make_report(100 + i, 'a', 100, VSR_MODE_VSR1, &p);

		fds[i] = connect_and_never_read(&w, 100 + i);
		send_all(&w, fds[i], p, n);
		ingest_world_turn(&w, 0);
	}
	TURN_UNTIL(&w, held(&w) == ARRAY_SIZE(fds));
	assert_in_range(ingest_connections(w.ingest), 1, 64);
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
		close(fds[i]);
	TURN_UNTIL(&w, ingest_connections(w.ingest) == 0);
	ingest_world_close(&w);
}

static void go_on_waits_for_the_window_too(void **state _unused_)
{
	_cleanup_free_ uint8_t *p = NULL;
	size_t n = make_report(42, 'a', 1000, VSR_MODE_VSR2, &p);
	struct ingest_world w;
	int fd, status;

	ingest_world_defaults(&w);
	ingest_world_open(&w);
	fd = connect_and_never_read(&w, 42);
	send_all(&w, fd, p, n); /* against the rules, but no harm */
	ingest_world_settle(&w);
	assert_int_equal(places(&w).places_used, 1);
	drain(fd);
	TURN_UNTIL(&w, (status = answer_of(fd)) != -EAGAIN);
	assert_int_equal(status, VSR_STATUS_GO_ON);
	TURN_UNTIL(&w, (status = answer_of(fd)) != -EAGAIN);
	assert_int_equal(status, VSR_STATUS_ACCEPTED);
	close(fd);
	ingest_world_close(&w);
}

/* ---- the log -------------------------------------------------------------------------------------------- */

static unsigned count_lines(FILE *f, const char *what)
{
	char line[1000];
	unsigned n = 0;

	rewind(f);
	while (fgets(line, sizeof(line), f))
		n += strstr(line, what) != NULL;
	return n;
}

static void a_refusal_is_logged_once_per_vm_and_a_while(void **state _unused_)
{
	struct ingest_world w;
	FILE *f;
	int was;

	ingest_world_defaults(&w);
	ingest_world_open(&w);
	was = dup(STDERR_FILENO);
	f = tmpfile();
	assert_non_null(f);
	assert_true(dup2(fileno(f), STDERR_FILENO) >= 0);
	for (unsigned i = 0; i < 5; i++)
		for (uint32_t cid = 42; cid < 44; cid++) {
			int fds[2], fd = connect_as(&w, cid);

			assert_int_equal(send(fd, "VX", 2, 0), 2);
			TURN_UNTIL(&w, closed(fd));
			close(fd);
			/* Also for those of whom no record is kept. */
			assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
			ingest_rejected(w.ingest, fds[1], (struct vsr_vm_id){ .cid = 2 },
					REASON_RESERVED_CID);
			close(fds[0]);
		}
	assert_true(dup2(was, STDERR_FILENO) >= 0);
	close(was);
	assert_int_equal(refused(REASON_BAD_HEADER), 10);
	assert_int_equal(refused(REASON_RESERVED_CID), 10);
	assert_int_equal(count_lines(f, "refused VM 0:42"), 1);
	assert_int_equal(count_lines(f, "refused VM 0:43"), 1);
	assert_int_equal(count_lines(f, "refused VM 0:2:"), 1);
	fclose(f);
	ingest_world_close(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(raw_report_is_taken_at_its_end_and_never_answered),
		cmocka_unit_test(framed_report_is_answered_when_custody_has_begun),
		cmocka_unit_test(a_report_of_another_vm_is_refused),
		cmocka_unit_test(a_header_that_names_other_bytes_is_a_digest_mismatch),
		cmocka_unit_test(an_offer_is_reserved_then_received),
		cmocka_unit_test(without_a_cache_the_answer_is_the_sends),
		cmocka_unit_test(a_stop_forgets_reports_that_wait_for_their_send),
		cmocka_unit_test(who_waits_is_not_read_and_gets_its_turn),
		cmocka_unit_test(who_sent_all_and_left_while_it_waited_still_gets_its_turn),
		cmocka_unit_test(a_waiter_refused_is_answered_only_if_framed),
		cmocka_unit_test(who_waits_too_long_is_busy),
		cmocka_unit_test(reserved_cids_are_refused_on_vsock_alone),
		cmocka_unit_test(a_report_has_a_deadline_and_a_limit_of_idleness),
		cmocka_unit_test(what_came_in_time_counts_also_when_looked_at_late),
		cmocka_unit_test(many_that_end_in_one_tick_end_well),
		cmocka_unit_test(an_answer_waits_a_second_without_a_place),
		cmocka_unit_test(an_answer_is_sent_as_soon_as_it_fits),
		cmocka_unit_test(at_most_64_wait_for_their_answer),
		cmocka_unit_test(go_on_waits_for_the_window_too),
		cmocka_unit_test(a_refusal_is_logged_once_per_vm_and_a_while),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
