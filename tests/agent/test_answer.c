/* SPDX-License-Identifier: Apache-2.0 */
#include "agent_test.h"

#include <errno.h>

#include "agent/answer.h"
#include "vsr_frame.h"

static enum exit_code code_of(enum send_end end, uint32_t status, int error)
{
	const struct send_result r = { .end = end, .status = status, .error = error };

	return answer_exit_code(&r);
}

static void each_answer_is_retried_where_that_is_of_use(void **state)
{
	static const struct {
		uint32_t status;
		enum exit_code code;
	} table[] = {
		{ VSR_STATUS_ACCEPTED, AGENT_EXIT_OK },
		{ VSR_STATUS_NOTHING_TO_DO, AGENT_EXIT_OK },
		{ VSR_STATUS_BUSY, AGENT_EXIT_TEMPORARY },
		{ VSR_STATUS_TOO_LARGE, AGENT_EXIT_REFUSED },
		{ VSR_STATUS_MALFORMED, AGENT_EXIT_REFUSED },
		{ VSR_STATUS_CID_MISMATCH, AGENT_EXIT_REFUSED },
		{ VSR_STATUS_INTERNAL, AGENT_EXIT_TEMPORARY },
		{ VSR_STATUS_DEADLINE, AGENT_EXIT_TEMPORARY },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(table); i++)
		assert_int_equal(code_of(SEND_ANSWERED, table[i].status, 0), table[i].code);
}

static void what_is_no_answer_has_a_code_of_its_own(void **state)
{
	(void)state;
	assert_int_equal(code_of(SEND_CLOSED, 0, 0), AGENT_EXIT_OK);
	assert_int_equal(code_of(SEND_BAD_ANSWER, 0, 0), AGENT_EXIT_PROTOCOL);
	assert_int_equal(code_of(SEND_REFUSED, 0, EPIPE), AGENT_EXIT_TEMPORARY);
	assert_int_equal(code_of(SEND_CUT, 0, ECONNRESET), AGENT_EXIT_TEMPORARY);
	assert_int_equal(code_of(SEND_TIMEOUT, 0, 0), AGENT_EXIT_TEMPORARY);
	assert_int_equal(code_of(SEND_STOPPED, 0, 0), AGENT_EXIT_TEMPORARY);
	assert_int_equal(code_of(SEND_UNREACHABLE, 0, ECONNRESET), AGENT_EXIT_TEMPORARY);
	assert_int_equal(code_of((enum send_end)99, 0, 0), AGENT_EXIT_REFUSED);
	/* Waiting does not bring a vsock device. */
	assert_int_equal(code_of(SEND_UNREACHABLE, 0, ENODEV), AGENT_EXIT_UNAVAILABLE);
	assert_int_equal(code_of(SEND_UNREACHABLE, 0, EAFNOSUPPORT), AGENT_EXIT_UNAVAILABLE);
}

static void each_end_is_said_in_words_that_tell_what_to_do(void **state)
{
	static const struct {
		struct send_result r;
		const char *words;
	} table[] = {
		{ { .end = SEND_ANSWERED, .status = VSR_STATUS_BUSY }, "(answer 2)" },
		{ { .end = SEND_CLOSED, .sent = 5 }, "all 5 bytes sent" },
		{ { .end = SEND_UNREACHABLE, .error = EAFNOSUPPORT }, "modprobe vsock" },
		{ { .end = SEND_UNREACHABLE, .error = ENODEV }, "no vsock device" },
		{ { .end = SEND_UNREACHABLE, .error = ECONNRESET }, "nobody listens" },
		{ { .end = SEND_UNREACHABLE, .error = ECONNREFUSED }, "nobody listens" },
		{ { .end = SEND_UNREACHABLE, .error = EAGAIN }, "queue is full" },
		{ { .end = SEND_UNREACHABLE, .error = EACCES }, "Permission denied" },
		{ { .end = SEND_REFUSED, .error = EPIPE }, "Broken pipe" },
		{ { .end = SEND_CUT, .sent = 7 }, "after 7 bytes of the report (closed)" },
		{ { .end = SEND_TIMEOUT, .header = 16 }, "no answer in time" },
		{ { .end = SEND_TIMEOUT }, "let the connection wait" },
		{ { .end = SEND_BAD_ANSWER }, "no answer of a relay" },
		{ { .end = SEND_STOPPED }, "stopped by a signal" },
	};
	char text[ANSWER_TEXT_MAX];

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(table); i++)
		assert_non_null(strstr(answer_describe(&table[i].r, text), table[i].words));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_answer_is_retried_where_that_is_of_use),
		cmocka_unit_test(what_is_no_answer_has_a_code_of_its_own),
		cmocka_unit_test(each_end_is_said_in_words_that_tell_what_to_do),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
