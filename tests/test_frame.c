/* SPDX-License-Identifier: Apache-2.0 */
/* The framed mode's header and answer (include/vsr_frame.h), read from every wrong byte. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "util.h"
#include "vsr_frame.h"

static void the_magic_is_told_by_each_of_its_bytes(void **state _unused_)
{
	static const struct {
		const char *bytes;
		uint32_t mode;
		unsigned int possible; /* bytes that can still become a magic */
	} table[] = {
		{ "VSR1", VSR_MODE_VSR1, 4 },	 { "VSR2", VSR_MODE_VSR2, 4 },
		{ "VSR3", VSR_MODE_UNKNOWN, 3 }, { "VSX1", VSR_MODE_UNKNOWN, 2 },
		{ "VXR1", VSR_MODE_UNKNOWN, 1 }, { "\x0aSR1", VSR_MODE_RAW, 0 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		const uint8_t *p = (const uint8_t *)table[i].bytes;

		assert_int_equal(vsr_magic_mode(p), table[i].mode);
		for (unsigned int n = 1; n <= 4 && table[i].possible > 0; n++)
			assert_int_equal(!!vsr_magic_possible(p, n), n <= table[i].possible);
	}
}

static void a_header_is_read_as_it_was_written(void **state _unused_)
{
	const struct vsr_header headers[] = {
		{ .mode = VSR_MODE_VSR1, .length = 0x01020304, .xxh64 = 0x05060708090a0b0c },
		{ .mode = VSR_MODE_VSR2, .length = UINT32_MAX, .xxh64 = UINT64_MAX },
	};

	for (size_t i = 0; i < ARRAY_SIZE(headers); i++) {
		uint8_t bytes[VSR_HEADER_SIZE];
		struct vsr_header h = {};

		vsr_header_write(bytes, &headers[i]);
		vsr_header_read(bytes, &h);
		assert_int_equal(h.mode, headers[i].mode);
		assert_int_equal(h.length, headers[i].length);
		assert_int_equal(h.xxh64, headers[i].xxh64);
	}
}

static void an_answer_with_any_wrong_byte_in_its_magic_is_none(void **state _unused_)
{
	uint8_t bytes[VSR_ANSWER_SIZE];
	uint32_t status = 0;

	vsr_answer_write(bytes, VSR_STATUS_GO_ON);
	assert_int_equal(vsr_answer_read(bytes, &status), 0);
	assert_int_equal(status, VSR_STATUS_GO_ON);
	for (unsigned int i = 0; i < 4; i++) {
		bytes[i] ^= 1;
		assert_int_equal(vsr_answer_read(bytes, &status), -1);
		bytes[i] ^= 1;
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_magic_is_told_by_each_of_its_bytes),
		cmocka_unit_test(a_header_is_read_as_it_was_written),
		cmocka_unit_test(an_answer_with_any_wrong_byte_in_its_magic_is_none),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
