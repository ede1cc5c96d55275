/* SPDX-License-Identifier: Apache-2.0 */
#include "mini_relay.h"

#include <fcntl.h>
#include <poll.h>

#include <xxhash.h>

#include "agent/answer.h"
#include "agent/clock.h"
#include "agent/retry.h"
#include "agent/send.h"

#define LONG_TIME (1 * USEC_PER_MIN)
#define SMALL	  10000
#define LARGE	  (4 * MIB) /* more than the socket's buffers hold */

static uint8_t *new_payload(size_t n)
{
	uint8_t *data = malloc(n);

	assert_non_null(data);
	for (size_t i = 0; i < n; i++)
		data[i] = i * 2654435761u >> 13;
	return data;
}

/* One attempt against m, which is started and stopped around it. */
static struct send_result attempt(struct mini_relay *m, uint32_t mode, size_t n, uint64_t timeout)
{
	struct relay_address relay;
	struct send_result result;
	uint8_t *data = new_payload(n);

	mini_relay_start(m);
	relay = (struct relay_address){ .unix_path = m->path };
	send_report(&relay, mode, data, n, timeout, -1, &result);
	mini_relay_stop(m);
	free(data);
	return result;
}

static void expect_payload(const struct mini_relay *m, size_t n)
{
	uint8_t *data = new_payload(n);

	assert_int_equal(m->payload_len, n);
	assert_memory_equal(m->payload, data, n);
	free(data);
}

static void expect_header(const struct mini_relay *m, uint32_t mode, size_t n)
{
	uint8_t *data = new_payload(n);
	struct vsr_header h;

	vsr_header_read(m->header, &h);
	assert_int_equal(h.mode, mode);
	assert_int_equal(h.length, n);
	assert_true(h.xxh64 == XXH64(data, n, 0));
	free(data);
}

/* What each answer means, whether it comes to the offer or to the payload. */
static const struct {
	uint32_t status;
	enum verdict verdict;
	int code;
} meanings[] = {
	{ VSR_STATUS_ACCEPTED, VERDICT_DONE, 0 },
	{ VSR_STATUS_NOTHING_TO_DO, VERDICT_DONE, 0 },
	{ VSR_STATUS_BUSY, VERDICT_RETRY, 75 },
	{ VSR_STATUS_TOO_LARGE, VERDICT_REFUSED, 65 },
	{ VSR_STATUS_MALFORMED, VERDICT_REFUSED, 65 },
	{ VSR_STATUS_CID_MISMATCH, VERDICT_REFUSED, 65 },
	{ VSR_STATUS_DIGEST_MISMATCH, VERDICT_REFUSED, 65 },
	{ VSR_STATUS_INTERNAL, VERDICT_RETRY, 75 },
	{ VSR_STATUS_REFUSED, VERDICT_REFUSED, 65 },
	{ VSR_STATUS_DEADLINE, VERDICT_RETRY, 75 },
};

static void expect_meaning(size_t i, const struct send_result *result)
{
	char text[ANSWER_TEXT_MAX];

	assert_int_equal(result->end, SEND_ANSWERED);
	assert_int_equal(result->status, meanings[i].status);
	assert_int_equal(answer_verdict(result), meanings[i].verdict);
	assert_int_equal(answer_exit_code(result), meanings[i].code);
	assert_true(strlen(answer_describe(result, text)) > 0);
}

static void an_offer_is_followed_by_the_payload_only_after_100(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(meanings); i++) {
		const uint32_t answers[] = { VSR_STATUS_GO_ON, meanings[i].status };
		struct mini_relay m = { .serve = serve_answers, .answers = answers };
		struct send_result result = attempt(&m, VSR_MODE_VSR2, SMALL, LONG_TIME);

		expect_meaning(i, &result);
		expect_header(&m, VSR_MODE_VSR2, SMALL);
		expect_payload(&m, SMALL);
		mini_relay_done(&m);
	}
}

static void a_final_answer_to_the_offer_costs_no_payload_byte(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(meanings); i++) {
		struct mini_relay m = { .serve = serve_answers, .answers = &meanings[i].status };
		struct send_result result = attempt(&m, VSR_MODE_VSR2, SMALL, LONG_TIME);

		expect_meaning(i, &result);
		assert_int_equal(result.sent, 0);
		expect_header(&m, VSR_MODE_VSR2, SMALL);
		assert_int_equal(m.payload_len, 0);
		mini_relay_done(&m);
	}
}

static void vsr1_sends_header_and_payload_together(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(meanings); i++) {
		struct mini_relay m = { .serve = serve_answers, .answers = &meanings[i].status };
		struct send_result result = attempt(&m, VSR_MODE_VSR1, SMALL, LONG_TIME);

		expect_meaning(i, &result);
		expect_header(&m, VSR_MODE_VSR1, SMALL);
		expect_payload(&m, SMALL);
		mini_relay_done(&m);
	}
}

static void an_empty_payload_is_sent_like_any_other(void **state)
{
	const uint32_t answers[] = { VSR_STATUS_GO_ON, VSR_STATUS_MALFORMED };
	struct mini_relay m = { .serve = serve_answers, .answers = answers };
	struct send_result result = attempt(&m, VSR_MODE_VSR2, 0, LONG_TIME);

	(void)state;
	assert_int_equal(result.end, SEND_ANSWERED);
	assert_int_equal(result.status, VSR_STATUS_MALFORMED);
	mini_relay_done(&m);
}

static void serve_raw(struct mini_relay *m, int fd)
{
	m->payload = malloc(LARGE + 1);
	/* Ends with the half-close; the agent waits for our close after it. */
	m->payload_len = m->payload ? read_up_to(fd, m->payload, LARGE + 1) : 0;
}

static void raw_mode_half_closes_and_waits_for_the_relays_close(void **state)
{
	struct mini_relay m = { .serve = serve_raw };
	struct send_result result = attempt(&m, VSR_MODE_RAW, LARGE, LONG_TIME);
	char text[ANSWER_TEXT_MAX];

	(void)state;
	assert_int_equal(result.end, SEND_CLOSED);
	assert_int_equal(result.sent, LARGE);
	assert_int_equal(answer_exit_code(&result), 0);
	assert_non_null(strstr(answer_describe(&result, text), "no answer"));
	expect_payload(&m, LARGE);
	mini_relay_done(&m);
}

static void serve_raw_then_answer(struct mini_relay *m, int fd)
{
	serve_raw(m, fd);
	send_answer(fd, VSR_STATUS_ACCEPTED);
}

static void bytes_from_the_relay_in_raw_mode_are_no_relays(void **state)
{
	struct mini_relay m = { .serve = serve_raw_then_answer };
	struct send_result result = attempt(&m, VSR_MODE_RAW, SMALL, LONG_TIME);

	(void)state;
	assert_int_equal(result.end, SEND_BAD_ANSWER);
	assert_int_equal(answer_exit_code(&result), 76);
	mini_relay_done(&m);
}

static void serve_some_raw(struct mini_relay *m, int fd)
{
	uint8_t byte;

	(void)m;
	read_up_to(fd, &byte, 1);
}

static void a_raw_report_cut_by_the_relay_is_not_taken_for_sent(void **state)
{
	struct mini_relay m = { .serve = serve_some_raw };
	struct send_result result = attempt(&m, VSR_MODE_RAW, LARGE, LONG_TIME);

	(void)state;
	assert_int_equal(result.end, SEND_CUT);
	assert_true(result.sent < LARGE);
	assert_int_equal(answer_verdict(&result), VERDICT_RETRY);
	assert_int_equal(answer_exit_code(&result), 75);
}

static void serve_slowly(struct mini_relay *m, int fd)
{
	int small = 2048;

	setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small));
	read_up_to(fd, m->header, sizeof(m->header));
	usleep(100000);
	send_answer(fd, VSR_STATUS_GO_ON);
	m->payload = malloc(LARGE);
	for (m->payload_len = 0; m->payload && m->payload_len < LARGE;) {
		size_t n = read_up_to(fd, m->payload + m->payload_len,
				      MIN(LARGE - m->payload_len, (size_t)100000));

		if (n == 0)
			return;
		m->payload_len += n;
		usleep(1000);
	}
	/* The answer byte by byte. */
	for (size_t i = 0; i < VSR_ANSWER_SIZE; i++) {
		uint8_t answer[VSR_ANSWER_SIZE];

		vsr_answer_write(answer, VSR_STATUS_ACCEPTED);
		(void)!send(fd, answer + i, 1, MSG_NOSIGNAL);
		usleep(1000);
	}
}

static void a_slow_relay_gets_every_byte(void **state)
{
	struct mini_relay m = { .serve = serve_slowly };
	struct send_result result = attempt(&m, VSR_MODE_VSR2, LARGE, LONG_TIME);

	(void)state;
	assert_int_equal(result.end, SEND_ANSWERED);
	assert_int_equal(result.status, VSR_STATUS_ACCEPTED);
	assert_int_equal(result.sent, LARGE);
	expect_payload(&m, LARGE);
	mini_relay_done(&m);
}

static void serve_busy_amid_payload(struct mini_relay *m, int fd)
{
	uint8_t some[1000];

	read_up_to(fd, m->header, sizeof(m->header));
	read_up_to(fd, some, sizeof(some));
	send_answer(fd, VSR_STATUS_BUSY);
}

static void an_answer_amid_the_payload_is_heard(void **state)
{
	struct mini_relay m = { .serve = serve_busy_amid_payload };
	struct send_result result = attempt(&m, VSR_MODE_VSR1, LARGE, LONG_TIME);

	(void)state;
	assert_int_equal(result.end, SEND_ANSWERED);
	assert_int_equal(result.status, VSR_STATUS_BUSY);
	assert_true(result.sent < LARGE);
}

/* Answers with the bytes that the test put into header. */
static const char *odd_answer;
static size_t odd_answer_len;

static void serve_odd_answer(struct mini_relay *m, int fd)
{
	read_up_to(fd, m->header, sizeof(m->header));
	(void)!send(fd, odd_answer, odd_answer_len, MSG_NOSIGNAL);
}

static void what_is_no_answer_ends_with_a_protocol_error(void **state)
{
	static const char *const answers[] = {
		"HTTP/1.1",	  "VSA2\0\0\0\0",	  "VSA1\0\0\0\x0a",
		"VSA1\0\0\0\xc8", "VSA1\xff\xff\xff\xff",
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(answers); i++) {
		struct mini_relay m = { .serve = serve_odd_answer };
		struct send_result result;

		odd_answer = answers[i];
		odd_answer_len = VSR_ANSWER_SIZE;
		result = attempt(&m, VSR_MODE_VSR2, SMALL, LONG_TIME);
		assert_int_equal(result.end, SEND_BAD_ANSWER);
		assert_int_equal(answer_verdict(&result), VERDICT_REFUSED);
		assert_int_equal(answer_exit_code(&result), 76);
	}
}

static void a_second_100_is_no_answer(void **state)
{
	const uint32_t answers[] = { VSR_STATUS_GO_ON, VSR_STATUS_GO_ON };
	struct mini_relay m = { .serve = serve_answers, .answers = answers };
	struct send_result result = attempt(&m, VSR_MODE_VSR2, SMALL, LONG_TIME);

	(void)state;
	assert_int_equal(result.end, SEND_BAD_ANSWER);
	mini_relay_done(&m);
}

static void a_close_without_a_whole_answer_is_temporary(void **state)
{
	(void)state;
	for (size_t n = 0; n < VSR_ANSWER_SIZE; n++) {
		struct mini_relay m = { .serve = serve_odd_answer };
		struct send_result result;

		odd_answer = "VSA1\0\0\0\0";
		odd_answer_len = n;
		result = attempt(&m, VSR_MODE_VSR2, SMALL, LONG_TIME);
		assert_int_equal(result.end, SEND_CUT);
		assert_int_equal(answer_verdict(&result), VERDICT_RETRY);
		assert_int_equal(answer_exit_code(&result), 75);
	}
}

static void a_close_before_a_byte_was_taken_is_busy(void **state)
{
	const struct send_result result = { .end = SEND_REFUSED, .error = EPIPE };
	char text[ANSWER_TEXT_MAX];

	(void)state;
	assert_int_equal(answer_verdict(&result), VERDICT_RETRY);
	assert_int_equal(answer_exit_code(&result), 75);
	assert_non_null(strstr(answer_describe(&result, text), "busy"));
}

static void serve_nothing(struct mini_relay *m, int fd)
{
	struct pollfd pfd = { .fd = fd, .events = POLLRDHUP };

	(void)m;
	poll(&pfd, 1, 60000);
}

static void the_timeout_holds_for_the_whole_attempt(void **state)
{
	static const uint32_t modes[] = { VSR_MODE_VSR2, VSR_MODE_VSR1, VSR_MODE_RAW };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
		struct mini_relay m = { .serve = serve_nothing };
		uint64_t start = clock_now(), took;
		struct send_result result;

		result = attempt(&m, modes[i], LARGE, 300 * USEC_PER_MSEC);
		took = clock_now() - start;
		assert_int_equal(result.end, SEND_TIMEOUT);
		assert_int_equal(answer_exit_code(&result), 75);
		assert_true(took >= 300 * USEC_PER_MSEC);
		/* A hundred times the timeout is hung, not slow. */
		assert_true(took < 30 * USEC_PER_SEC);
	}
}

static void raw_mode_does_not_wait_for_the_close_for_ever(void **state)
{
	struct mini_relay m = { .serve = serve_nothing };
	struct relay_address relay;
	struct send_result result;
	uint8_t *data = new_payload(SMALL);

	(void)state;
	/* Nobody accepts: small bytes are sent into the socket's buffer and nothing follows. */
	mini_relay_listen(&m, 8);
	relay = (struct relay_address){ .unix_path = m.path };
	send_report(&relay, VSR_MODE_RAW, data, SMALL, 100 * USEC_PER_MSEC, -1, &result);
	assert_int_equal(result.end, SEND_TIMEOUT);
	assert_int_equal(result.sent, SMALL);
	close(m.listen_fd);
	remove_tree(m.tree);
	free(data);
}

static void a_signal_ends_the_attempt(void **state)
{
	struct mini_relay m = { .serve = serve_nothing };
	struct relay_address relay;
	struct send_result result;
	int fds[2];

	(void)state;
	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	assert_int_equal(write(fds[1], "x", 1), 1);
	mini_relay_start(&m);
	relay = (struct relay_address){ .unix_path = m.path };
	send_report(&relay, VSR_MODE_VSR2, (const uint8_t *)"x", 1, USEC_PER_HOUR, fds[0], &result);
	assert_int_equal(result.end, SEND_STOPPED);
	assert_int_equal(answer_verdict(&result), VERDICT_STOPPED);
	assert_int_equal(answer_exit_code(&result), 75);
	mini_relay_stop(&m);
	close(fds[0]);
	close(fds[1]);
}

static void a_relay_that_is_not_there_is_temporary(void **state)
{
	struct relay_address relay = { .unix_path = "/nonexistent/relay" };
	struct send_result result;
	char name[300];

	(void)state;
	send_report(&relay, VSR_MODE_VSR2, (const uint8_t *)"x", 1, LONG_TIME, -1, &result);
	assert_int_equal(result.end, SEND_UNREACHABLE);
	assert_int_equal(result.error, ENOENT);
	assert_int_equal(answer_verdict(&result), VERDICT_RETRY);
	assert_int_equal(answer_exit_code(&result), 75);

	memset(name, 'x', sizeof(name) - 1);
	name[sizeof(name) - 1] = '\0';
	relay.unix_path = name;
	send_report(&relay, VSR_MODE_VSR2, (const uint8_t *)"x", 1, LONG_TIME, -1, &result);
	assert_int_equal(result.end, SEND_UNREACHABLE);
	assert_int_equal(result.error, ENAMETOOLONG);
}

static void a_full_backlog_is_temporary(void **state)
{
	struct mini_relay m = {};
	struct relay_address relay;
	struct send_result result;
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fds[8];

	(void)state;
	mini_relay_listen(&m, 0);
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", m.path);
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
		fds[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		(void)!connect(fds[i], (struct sockaddr *)&address, sizeof(address));
	}
	relay = (struct relay_address){ .unix_path = m.path };
	send_report(&relay, VSR_MODE_VSR2, (const uint8_t *)"x", 1, LONG_TIME, -1, &result);
	assert_int_equal(result.end, SEND_UNREACHABLE);
	assert_int_equal(answer_verdict(&result), VERDICT_RETRY);
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
		close(fds[i]);
	close(m.listen_fd);
	remove_tree(m.tree);
}

static void a_kernel_without_vsock_has_an_exit_code_of_its_own(void **state)
{
	static const int errors[] = { EAFNOSUPPORT, ENODEV };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(errors); i++) {
		const struct send_result result = { .end = SEND_UNREACHABLE, .error = errors[i] };

		/* Modules may still be loading: it is tried again all the same. */
		assert_int_equal(answer_verdict(&result), VERDICT_RETRY);
		assert_int_equal(answer_exit_code(&result), 69);
	}
}

static void waits_double_to_their_cap_and_spread_over_the_upper_half(void **state)
{
	uint64_t whole = RETRY_FIRST;

	(void)state;
	for (unsigned int n = 0; n < 100; n++, whole = MIN(whole * 2, RETRY_LONGEST)) {
		assert_true(retry_delay(n, 0) == whole);
		assert_in_range(retry_delay(n, UINT64_MAX), whole / 2, whole / 2 + 1);
		assert_in_range(retry_delay(n, UINT64_MAX / 2), whole / 4 * 3 - 1,
				whole / 4 * 3 + 1);
	}
	assert_true(retry_delay(UINT32_MAX, 0) == RETRY_LONGEST);
}

static void intervals_vary_by_a_twentieth(void **state)
{
	(void)state;
	assert_int_equal(retry_jitter(20000, 0), 19000);
	assert_in_range(retry_jitter(20000, UINT64_MAX), 20999, 21000);
	assert_int_equal(retry_jitter(0, UINT64_MAX), 0);
	assert_true(retry_jitter(USEC_INFINITY, UINT64_MAX) >= USEC_INFINITY / 20 * 19);
	assert_int_equal(retry_share(0, UINT64_MAX), 0);
	assert_int_equal(retry_share(1000, 0), 0);
	assert_int_equal(retry_share(1000, UINT64_MAX), 999);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(an_offer_is_followed_by_the_payload_only_after_100),
		cmocka_unit_test(a_final_answer_to_the_offer_costs_no_payload_byte),
		cmocka_unit_test(vsr1_sends_header_and_payload_together),
		cmocka_unit_test(an_empty_payload_is_sent_like_any_other),
		cmocka_unit_test(raw_mode_half_closes_and_waits_for_the_relays_close),
		cmocka_unit_test(bytes_from_the_relay_in_raw_mode_are_no_relays),
		cmocka_unit_test(a_raw_report_cut_by_the_relay_is_not_taken_for_sent),
		cmocka_unit_test(a_slow_relay_gets_every_byte),
		cmocka_unit_test(an_answer_amid_the_payload_is_heard),
		cmocka_unit_test(what_is_no_answer_ends_with_a_protocol_error),
		cmocka_unit_test(a_second_100_is_no_answer),
		cmocka_unit_test(a_close_without_a_whole_answer_is_temporary),
		cmocka_unit_test(a_close_before_a_byte_was_taken_is_busy),
		cmocka_unit_test(the_timeout_holds_for_the_whole_attempt),
		cmocka_unit_test(raw_mode_does_not_wait_for_the_close_for_ever),
		cmocka_unit_test(a_signal_ends_the_attempt),
		cmocka_unit_test(a_relay_that_is_not_there_is_temporary),
		cmocka_unit_test(a_full_backlog_is_temporary),
		cmocka_unit_test(a_kernel_without_vsock_has_an_exit_code_of_its_own),
		cmocka_unit_test(waits_double_to_their_cap_and_spread_over_the_upper_half),
		cmocka_unit_test(intervals_vary_by_a_twentieth),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
