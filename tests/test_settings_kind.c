/* SPDX-License-Identifier: Apache-2.0 */
/* How each kind of setting reads and writes its value; what the settings make of it is test_settings.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "failing_malloc.h"
#include "settings_kind.h"
#include "util.h"

static unsigned int copies_left = UINT32_MAX; /* then strdup() fails */

char *strdup(const char *s)
{
	size_t n = strlen(s) + 1;
	char *copy = copies_left > 0 ? allocate(n) : NULL;

	if (copies_left != UINT32_MAX && copies_left > 0)
		copies_left--;
	return copy ? memcpy(copy, s, n) : NULL;
}

/* The field, at the beginning of the settings. */
static union {
	struct settings s;
	bool truth;
	uint32_t number;
	uint64_t large;
	double fraction;
	int choice;
	char *text;
	struct settings_address address;
	struct settings_uids uids;
} field;

static int parse(const struct settings_row *row, const char *text)
{
	return settings_kind_parse(row, text, &field.s);
}

static void refuses(const struct settings_row *row, const char *const *texts, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (parse(row, texts[i]) != -EINVAL)
			fail_msg("\"%s\" is taken", texts[i]);
}
#define REFUSES(row, ...)                                  \
	refuses(row, (const char *const[]){ __VA_ARGS__ }, \
		sizeof((const char *const[]){ __VA_ARGS__ }) / sizeof(const char *))

static void writes(const struct settings_row *row, const char *text)
{
	char *written = settings_kind_format(row, &field.s);

	assert_string_equal(written, text);
	free(written);
}

static int clear(void **state _unused_)
{
	memset(&field, 0, sizeof(field));
	fail_at = 0;
	copies_left = UINT32_MAX;
	return 0;
}

static void numbers_are_digits_within_their_bounds(void **state _unused_)
{
	const struct settings_row row = {
		.kind = KIND_UINT, .min = 2, .max = 20, .word = "auto", .word_value = 7
	};

	assert_int_equal(parse(&row, "20"), 0);
	assert_int_equal(field.number, 20);
	writes(&row, "20");
	assert_int_equal(parse(&row, "auto"), 0);
	assert_int_equal(field.number, 7);
	writes(&row, "auto");
	/* The last two do not fit into 64 bits, by the product and by the sum. */
	REFUSES(&row, "", "x", "2x", "-2", "1", "21", "99999999999999999999",
		"18446744073709551616");
}

static void modes_are_octal(void **state _unused_)
{
	const struct settings_row row = { .kind = KIND_MODE };

	assert_int_equal(parse(&row, "660"), 0);
	assert_int_equal(field.number, 0660);
	writes(&row, "0660");
	REFUSES(&row, "", "8", "1000", "rw");
}

static void fractions_have_one_point_and_no_sign(void **state _unused_)
{
	struct settings_row row = { .kind = KIND_NUMBER, .min = 1, .max = 100 };

	assert_int_equal(parse(&row, "2.5"), 0);
	assert_true(field.fraction == 2.5);
	writes(&row, "2.5");
	REFUSES(&row, "", ".5", "2.", "2.5.1", "-2", "1e1", "2%", "0.5", "100.5",
		"1.00000000000000000000000000000000000000000");
	row.unit = "%";
	assert_int_equal(parse(&row, "20%"), 0);
	REFUSES(&row, "20 %", "20%%");
	field.fraction = 0.1;
	writes(&row, "0.1");
}

static void durations_may_mean_none(void **state _unused_)
{
	struct settings_row row = { .kind = KIND_DURATION,
				    .min = USEC_PER_SEC,
				    .max = USEC_PER_HOUR };

	assert_int_equal(parse(&row, "90s"), 0);
	writes(&row, "1m30s");
	REFUSES(&row, "", "x", "-1s", "0s", "2h");
	row.instead_of_none = USEC_PER_MIN;
	assert_int_equal(parse(&row, "-1s"), 0);
	assert_int_equal(field.large, USEC_PER_MIN);
}

static void sizes_have_units_of_1024(void **state _unused_)
{
	const struct settings_row row = { .kind = KIND_SIZE, .max = 1ULL << 40 };
	const struct settings_row kib = { .kind = KIND_KIB, .min = 1, .max = 100 };

	assert_int_equal(parse(&row, "3MiB"), 0);
	assert_int_equal(field.large, 3 * MIB);
	writes(&row, "3MiB");
	field.large = 1025;
	writes(&row, "1025");
	field.large = 0;
	writes(&row, "0");
	REFUSES(&row, "", "MiB", "3MB", "3 MiB", "2000GiB", "99999999999999GiB",
		"111111111111111111111111", "99999999999999999999");
	assert_int_equal(parse(&kib, "16"), 0);
	assert_int_equal(field.large, 16 * KIB);
	writes(&kib, "16");
	REFUSES(&kib, "", "16KiB", "0", "101");
}

static void words_are_of_a_list(void **state _unused_)
{
	static const struct settings_choice choices[] = { { "a", 1 }, { "b", 2 }, { NULL, 0 } };
	const struct settings_row row = { .kind = KIND_CHOICE, .choices = choices };
	const struct settings_row truth = { .kind = KIND_BOOL };

	assert_int_equal(parse(&row, "b"), 0);
	writes(&row, "b");
	REFUSES(&row, "", "c", "B");
	assert_int_equal(parse(&truth, "true"), 0);
	writes(&truth, "true");
	assert_int_equal(parse(&truth, "false"), 0);
	writes(&truth, "false");
	REFUSES(&truth, "", "maybe");
}

static void paths_are_absolute_plain_and_do_not_go_up(void **state _unused_)
{
	const struct settings_row row = { .kind = KIND_TEXT, .valid = settings_valid_path };
	static char lengthy[4010];

	memset(lengthy, 'a', sizeof(lengthy) - 1);
	lengthy[0] = '/';
	assert_int_equal(parse(&row, "/a/..b/c..d"), 0);
	writes(&row, "/a/..b/c..d");
	REFUSES(&row, "", "a", lengthy, "/a\n", "/a\x7f", "/..", "/a/../b");
	copies_left = 0;
	assert_int_equal(parse(&row, "/b"), -ENOMEM);
	writes(&row, "/a/..b/c..d"); /* what was there stays */
	settings_kind_done(&row, &field.s);
}

static void addresses_are_numeric(void **state _unused_)
{
	const struct settings_row row = { .kind = KIND_ADDRESS };
	static char lengthy[100];

	memset(lengthy, '1', sizeof(lengthy) - 1);
	memcpy(lengthy + 90, ":80", 4);
	assert_int_equal(parse(&row, "[::1]:80"), 0);
	writes(&row, "[::1]:80");
	assert_int_equal(parse(&row, "192.0.2.1:80"), 0);
	writes(&row, "192.0.2.1:80");
	assert_int_equal(parse(&row, ":80"), 0);
	writes(&row, ":80");
	assert_int_equal(parse(&row, "80"), 0);
	writes(&row, "127.0.0.1:80");
	assert_int_equal(parse(&row, ""), 0);
	assert_int_equal(parse(&row, "disabled"), 0);
	assert_int_equal(parse(&row, "off"), 0);
	writes(&row, "off");
	REFUSES(&row, "a:80", "[]:80", "[::1:80", "::1]:80", "[192.0.2.1]:80", "1.2.3.4:0",
		"1.2.3.4:65536", "1.2.3.4:", lengthy);
}

static void lists_have_their_bounds(void **state _unused_)
{
	const struct settings_row uids = { .kind = KIND_UIDS };
	const struct settings_row words = { .kind = KIND_WORDS };
	char many[1000] = "1", word[SETTINGS_WORD_MAX_LEN + 2];

	for (unsigned int i = 0; i < SETTINGS_UIDS_MAX; i++)
		strcat(many, ",1");
	memset(word, 'w', sizeof(word) - 1);
	word[sizeof(word) - 1] = '\0';

	assert_int_equal(parse(&uids, "any"), 0);
	writes(&uids, "any");
	assert_int_equal(parse(&uids, "0,818"), 0);
	writes(&uids, "0,818");
	REFUSES(&uids, "", "root", "4294967295", many);
	copies_left = 0;
	assert_int_equal(parse(&uids, "1"), -ENOMEM);

	clear(NULL);
	assert_int_equal(parse(&words, "one,two words"), 0);
	writes(&words, "one,two words");
	REFUSES(&words, ",", " a", "a ", word, many);
	for (copies_left = 0; copies_left < 3;) {
		unsigned int n = copies_left;
		int r = parse(&words, "three,four");

		assert_int_equal(r, n < 3 ? -ENOMEM : 0);
		writes(&words, "one,two words");
		copies_left = n + 1;
	}
	copies_left = UINT32_MAX;
	settings_kind_done(&words, &field.s);
}

static void sockets_are_named_by_cid_or_pattern(void **state _unused_)
{
	const struct settings_row row = { .kind = KIND_SOCKETS };
	static char lengthy[200];

	memset(lengthy, 'a', sizeof(lengthy) - 1);
	memcpy(lengthy, "3=/", 3);
	assert_int_equal(parse(&row, "42=/run/a.sock,/run/{cid}/v.sock"), 0);
	writes(&row, "42=/run/a.sock,/run/{cid}/v.sock");
	REFUSES(&row, "42", "0=/a", "4294967295=/a", "x=/a", "42=a", "42=/a/", "42=/{cid}", "/a",
		"/{cid}/{cid}", lengthy);
	assert_int_equal(settings_sockets_add(&row, &field.s, "/a,b", 3), -EINVAL);
	copies_left = 0;
	assert_int_equal(parse(&row, "43=/run/b.sock"), -ENOMEM);
	copies_left = 1;
	assert_int_equal(parse(&row, "43=/run/b.sock"), -ENOMEM);
	copies_left = UINT32_MAX;
	fail_at = 1;
	assert_int_equal(parse(&row, "43=/run/b.sock"), -ENOMEM);
	fail_at = 0;
	writes(&row, "42=/run/a.sock,/run/{cid}/v.sock");
	settings_kind_done(&row, &field.s);
}

static void listeners_are_of_a_namespace(void **state _unused_)
{
	const struct settings_row row = { .kind = KIND_LISTENERS };

	assert_int_equal(parse(&row, "7=/run/netns/a,8:819=/run/netns/b"), 0);
	writes(&row, "7=/run/netns/a,8:819=/run/netns/b");
	REFUSES(&row, "7", "7=a", "0=/a", "4294967296=/a", "x=/a", "7:0=/a", "7:x=/a",
		"7:4294967295=/a");
	assert_int_equal(settings_listeners_add(&row, &field.s, "7=/a,b"), -EINVAL);
	for (unsigned int n = 0; n < 3; n++) {
		copies_left = n;
		assert_int_equal(parse(&row, "9=/c"), -ENOMEM);
	}
	copies_left = UINT32_MAX;
	fail_at = 1;
	assert_int_equal(parse(&row, "9=/c"), -ENOMEM);
	fail_at = 0;
	writes(&row, "7=/run/netns/a,8:819=/run/netns/b");
	settings_kind_done(&row, &field.s);
}

static void a_kind_that_is_none_takes_nothing_and_writes_nothing(void **state _unused_)
{
	const struct settings_row row = { .kind = (enum settings_kind)99 };

	REFUSES(&row, "", "1");
	writes(&row, "");
	settings_kind_done(&row, &field.s);
}

#define TEST(f) cmocka_unit_test_setup(f, clear)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(numbers_are_digits_within_their_bounds),
		TEST(modes_are_octal),
		TEST(fractions_have_one_point_and_no_sign),
		TEST(durations_may_mean_none),
		TEST(sizes_have_units_of_1024),
		TEST(words_are_of_a_list),
		TEST(paths_are_absolute_plain_and_do_not_go_up),
		TEST(addresses_are_numeric),
		TEST(lists_have_their_bounds),
		TEST(sockets_are_named_by_cid_or_pattern),
		TEST(listeners_are_of_a_namespace),
		TEST(a_kind_that_is_none_takes_nothing_and_writes_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
