/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What each gRPC status means for a content (SPEC 8). The rest of the grpc upstream is tested
 * against a real server: tests/host/upstream.py.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "upstream_grpc.h"

static void every_status_has_an_outcome(void **state _unused_)
{
	static const enum send_result expected[GRPC_STATUS_MAX] = {
		[GRPC_CANCELLED] = SEND_FAILED,
		[GRPC_UNKNOWN] = SEND_FAILED,
		[GRPC_DEADLINE_EXCEEDED] = SEND_FAILED,
		[GRPC_RESOURCE_EXHAUSTED] = SEND_FAILED,
		[GRPC_ABORTED] = SEND_FAILED,
		[GRPC_INTERNAL] = SEND_FAILED,
		[GRPC_UNAVAILABLE] = SEND_FAILED,
		[GRPC_NOT_FOUND] = SEND_FAILED,
		[GRPC_ALREADY_EXISTS] = SEND_FAILED,
		[GRPC_UNIMPLEMENTED] = SEND_REFUSED,
		[GRPC_UNAUTHENTICATED] = SEND_REFUSED,
		[GRPC_PERMISSION_DENIED] = SEND_REFUSED,
		[GRPC_INVALID_ARGUMENT] = SEND_REJECTED,
		[GRPC_OUT_OF_RANGE] = SEND_REJECTED,
		[GRPC_FAILED_PRECONDITION] = SEND_REJECTED,
		[GRPC_DATA_LOSS] = SEND_REJECTED,
	};

	for (int s = GRPC_OK + 1; s < GRPC_STATUS_MAX; s++)
		assert_int_equal(upstream_grpc_outcome((enum grpc_status)s, false), expected[s]);
}

/* Whatever the status is: the token comes back. At once only where the connection was at fault. */
static void what_cannot_have_arrived_costs_no_token(void **state _unused_)
{
	for (int s = GRPC_OK + 1; s < GRPC_STATUS_MAX; s++)
		assert_int_equal(upstream_grpc_outcome((enum grpc_status)s, true),
				 s == GRPC_UNAVAILABLE ? SEND_AGAIN : SEND_NOT_DELIVERED);
}

static void an_address_is_of_a_form_that_can_be_connected_to(void **state _unused_)
{
	char path[200] = "unix:/";

	memset(path + 6, 'x', sizeof(path) - 7);
	assert_true(grpc_conn_valid_address("sensor.stackrox.svc:443"));
	assert_true(grpc_conn_valid_address("[fe80::1]:443"));
	assert_true(grpc_conn_valid_address("unix:/run/a"));
	assert_false(grpc_conn_valid_address(path)); /* longer than a socket's path can be */
	assert_false(grpc_conn_valid_address(""));
	assert_false(grpc_conn_valid_address("fe80::1:443"));
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_status_has_an_outcome),
		cmocka_unit_test(what_cannot_have_arrived_costs_no_token),
		cmocka_unit_test(an_address_is_of_a_form_that_can_be_connected_to),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
