/* SPDX-License-Identifier: Apache-2.0 */
/* The tree itself; what settings make of it is test_settings.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "util.h"
#include "yaml_tree.h"

static void only_plain_words_for_nothing_are_null(void **state _unused_)
{
	static const struct {
		const char *yaml;
		bool null;
	} table[] = {
		{ "a: null", true },	 { "a: ~", true },	{ "a:", true },
		{ "a: 'null'", false },	 { "a: \"~\"", false }, { "a: ''", false },
		{ "a: Nothing", false }, { "a: [~]", false },	{ "a: {}", false },
	};

	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		_cleanup_(yaml_tree_freep)
		struct yaml_tree *t = NULL;
		struct yaml_tree_error error;

		assert_int_equal(yaml_tree_parse(table[i].yaml, strlen(table[i].yaml), &t, &error),
				 0);
		assert_int_equal(t->n_children, 2);
		assert_int_equal(yaml_tree_is_null(t->children[1]), table[i].null);
	}
}

static void what_is_not_taken_is_named_with_its_place(void **state _unused_)
{
	static const char *const bad[] = { "a: &x 1\nb: *x", "a: !tag 1",      "a: [1",
					   "a: \"\\0\"",     "a: b: c",	       "\xff",
					   "a: \x01",	     "--- a\n--- b\n", "{a: 1}}" };

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct yaml_tree *t = NULL;
		struct yaml_tree_error error = {};

		assert_int_equal(yaml_tree_parse(bad[i], strlen(bad[i]), &t, &error), -EINVAL);
		assert_null(t);
		assert_true(error.line > 0 && error.column > 0 && error.text[0]);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(only_plain_words_for_nothing_are_null),
		cmocka_unit_test(what_is_not_taken_is_named_with_its_place),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
