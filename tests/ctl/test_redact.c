/* SPDX-License-Identifier: Apache-2.0 */
/* What leaves the node in a support archive holds no secrets. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "ctl/doctor.h"
#include "ctl/redact.h"

static void assert_redacted(const char *text, const char *expected)
{
	_cleanup_free_ char *clean = redact(text);

	assert_non_null(clean);
	assert_string_equal(clean, expected);
}

static void pem_blocks_go(void **state _unused_)
{
	assert_redacted(
		"a\n-----BEGIN PRIVATE KEY-----\nMIIE\nvQ==\n-----END PRIVATE KEY-----\nb\n",
		"a\n[removed]\nb\n");
	assert_redacted("x -----BEGIN CERTIFICATE-----\nMIIE", "x [removed]");
}

static void what_stands_behind_a_secret_s_name_goes(void **state _unused_)
{
	assert_redacted("password: hunter2 more", "password: [removed] more");
	assert_redacted("PASSWORD=hunter2\nnext", "PASSWORD=[removed]\nnext");
	assert_redacted("{\"token\": \"abc.def\", \"x\": 1}",
			"{\"token\": \"[removed]\", \"x\": 1}");
	assert_redacted("db_password=x", "db_password=[removed]");
	assert_redacted("Authorization: Bearer eyJh.x-y_z\n", "Authorization: Bearer [removed]\n");
	assert_redacted("bearer eyJh", "bearer [removed]");
	assert_redacted("api-key = k1, api_key=k2", "api-key = [removed], api_key=[removed]");
}

static void users_of_urls_go(void **state _unused_)
{
	assert_redacted("https://me:pw@host/path", "https://[removed]@host/path");
	assert_redacted("see https://host/a@b", "see https://host/a@b");
}

static void all_else_stays(void **state _unused_)
{
	static const char *const texts[] = {
		"",
		"refused VM 0:43: packet without payload (zero_length)\n",
		"the tokens of its bucket",
		"sent by the bearer\n",
		"password:",
		"password: \"\"",
		"upstream.grpc.key: /run/secrets/stackrox.io/certs/key.pem",
		"a key (PEM, without a password).",
		"-----END CERTIFICATE-----",
	};

	for (size_t i = 0; i < ARRAY_SIZE(texts); i++)
		assert_redacted(texts[i], texts[i]);
}

static void kernels_with_a_broken_sockmap_are_known(void **state _unused_)
{
	static const struct {
		const char *release;
		bool good;
		const char *says;
	} kernels[] = {
		{ "6.1.0-37-amd64", true, "before 6.4" },
		{ "6.4.0", false, "stalls" },
		{ "6.11.10+deb13-amd64", false, "stalls" },
		{ "6.12.4", false, "stalls" },
		{ "6.12.5", true, "expected to work" },
		{ "6.12.117+deb12-cloud-amd64", true, "expected to work" },
		{ "7.2.13", true, "expected to work" },
		{ "odd", true, "expected to work" },
	};
	const char *says;

	for (size_t i = 0; i < ARRAY_SIZE(kernels); i++) {
		assert_int_equal(doctor_kernel_release(kernels[i].release, &says), kernels[i].good);
		assert_non_null(strstr(says, kernels[i].says));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(pem_blocks_go),
		cmocka_unit_test(what_stands_behind_a_secret_s_name_goes),
		cmocka_unit_test(users_of_urls_go),
		cmocka_unit_test(all_else_stays),
		cmocka_unit_test(kernels_with_a_broken_sockmap_are_known),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
