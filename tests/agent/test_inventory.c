/* SPDX-License-Identifier: Apache-2.0 */
#include "agent_test.h"

#include <errno.h>

#include "agent/text.h"

static void add(struct inventory *inv, const char *name, const char *arch, const char *version,
		const char *db)
{
	const struct package p = { .name = name, .arch = arch, .version = version, .db = db };

	assert_int_equal(inventory_add_package(inv, &p), 0);
}

static void packages_are_sorted_by_name_architecture_version_and_database(void **state _unused_)
{
	struct inventory *inv = new_inventory();
	static const char *const expected[] = { "1 w", "1 x", "2 x", "3 x", "4 x" };

	inventory_finish(inv); /* nothing to sort */
	add(inv, "b", "all", "4", "x");
	add(inv, "a", "i386", "3", "x");
	add(inv, "a", "amd64", "2", "x");
	add(inv, "a", "amd64", "1", "x");
	add(inv, "a", "amd64", "1", "w");
	inventory_finish(inv);
	for (size_t i = 0; i < ARRAY_SIZE(expected); i++) {
		char text[8];

		snprintf(text, sizeof(text), "%s %s", inv->packages[i].version,
			 inv->packages[i].db);
		assert_string_equal(text, expected[i]);
	}
	inventory_free(inv);
}

static void a_repository_is_listed_once(void **state _unused_)
{
	struct inventory *inv = new_inventory();
	struct repository r = { .name = "a", .key = "", .uri = "u", .cpe = "" };

	assert_int_equal(inventory_add_repository(inv, &r), 0);
	assert_int_equal(inventory_add_repository(inv, &r), 0);
	r.uri = "v";
	assert_int_equal(inventory_add_repository(inv, &r), 0);
	assert_int_equal(inv->n_repositories, 2);
	for (unsigned int i = 2; i < INVENTORY_REPOSITORIES_MAX; i++) {
		r.uri = arena_printf(inv->arena, "%u", i);
		assert_int_equal(inventory_add_repository(inv, &r), 0);
	}
	r.uri = "one more";
	assert_int_equal(inventory_add_repository(inv, &r), -E2BIG);
	inventory_free(inv);
}

static void every_blank_is_trimmed_and_an_empty_text_is_only_itself(void **state _unused_)
{
	const struct text blank = { " \t\r\f\v", 5 }, padded = { "\v\fWord\r ", 8 };
	const struct text empty = text_trim(blank), word = text_trim(padded);

	assert_int_equal(empty.n, 0);
	assert_true(text_is(empty, ""));
	assert_true(text_is_nocase(empty, ""));
	assert_false(text_is(empty, "x"));
	assert_true(text_is(word, "Word"));
	assert_false(text_is(word, "word"));
	assert_true(text_is_nocase(word, "wORD"));
	assert_false(text_is_nocase(word, "ward"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(packages_are_sorted_by_name_architecture_version_and_database),
		cmocka_unit_test(a_repository_is_listed_once),
		cmocka_unit_test(every_blank_is_trimmed_and_an_empty_text_is_only_itself),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
