/* SPDX-License-Identifier: Apache-2.0 */
#include "agent_test.h"

#include "agent/osrelease.h"

/* The value that NAME gets from the text. */
static void expect_name(const char *text, const char *name)
{
	struct arena *arena = NULL;
	struct osrelease os;

	assert_int_equal(arena_new(&arena), 0);
	osrelease_init(&os);
	assert_int_equal(osrelease_parse(arena, text, strlen(text), &os), 0);
	assert_string_equal(os.name, name);
	arena_free(arena);
}

static void bare_single_and_double_quoted_values_are_unquoted(void **state)
{
	(void)state;
	expect_name("NAME=Fedora\n", "Fedora");
	expect_name("NAME=\"Debian GNU/Linux\"\n", "Debian GNU/Linux");
	expect_name("NAME='Alpine Linux'\n", "Alpine Linux");
	expect_name("NAME=\"\"\n", "");
	expect_name("NAME=\n", "");
	expect_name("NAME=Fedora", "Fedora");
	expect_name("  NAME=Fedora  \r\n", "Fedora");
}

static void escapes_are_those_of_the_shell(void **state)
{
	(void)state;
	expect_name("NAME=\"a \\\"b\\\" \\$c \\`d \\\\\"\n", "a \"b\" $c `d \\");
	expect_name("NAME=\"a\\nb\"\n", "a\\nb");
	expect_name("NAME='a\\b'\n", "a\\b");
	expect_name("NAME='it'\\''s'\n", "it's");
	expect_name("NAME=a\\ b\n", "a b");
	expect_name("NAME=a\"b c\"'d e'\n", "ab cd e");
	expect_name("NAME=\"unfinished\n", "unfinished");
	expect_name("NAME=a\\\n", "a\\");
	expect_name("NAME=\"a=b#c\"\n", "a=b#c");
	expect_name("NAME=word comment\n", "word");
}

static void comments_and_other_lines_are_passed_over(void **state)
{
	(void)state;
	expect_name("#NAME=no\n\nnonsense\n=x\nNAMES=no\nNAM=no\nNAME=yes\n# end\n", "yes");
}

static void the_last_assignment_counts(void **state)
{
	(void)state;
	expect_name("NAME=one\nNAME=two\n", "two");
}

static void a_value_that_is_too_long_is_passed_over(void **state)
{
	char text[4096];

	(void)state;
	memset(text, 'x', sizeof(text));
	memcpy(text, "NAME=", 5);
	text[sizeof(text) - 1] = '\0';
	expect_name(text, "");
}

static void bytes_that_are_no_utf8_are_replaced(void **state)
{
	(void)state;
	expect_name("NAME=\"a\xff\"\n", "a\xef\xbf\xbd");
}

static void all_wanted_names_reach_their_field(void **state)
{
	static const char text[] = "PRETTY_NAME=p\nNAME=n\nVERSION_ID=i\nVERSION=v\n"
				   "VERSION_CODENAME=c\nID=d\nCPE_NAME=e\n";
	struct arena *arena = NULL;
	struct osrelease os;

	(void)state;
	assert_int_equal(arena_new(&arena), 0);
	osrelease_init(&os);
	assert_int_equal(osrelease_parse(arena, text, strlen(text), &os), 0);
	assert_string_equal(os.pretty_name, "p");
	assert_string_equal(os.name, "n");
	assert_string_equal(os.version_id, "i");
	assert_string_equal(os.version, "v");
	assert_string_equal(os.version_codename, "c");
	assert_string_equal(os.id, "d");
	assert_string_equal(os.cpe_name, "e");
	arena_free(arena);
}

static void usr_lib_serves_where_etc_has_none(void **state)
{
	char *tree = new_tree();
	struct rootfs root = open_tree(tree);
	struct arena *arena = NULL;
	struct osrelease os;

	(void)state;
	assert_int_equal(arena_new(&arena), 0);
	osrelease_init(&os);
	assert_int_equal(osrelease_read(arena, &root, &os), -ENOENT);
	write_text(tree, "usr/lib/os-release", "ID=usr\n");
	assert_int_equal(osrelease_read(arena, &root, &os), 0);
	assert_string_equal(os.id, "usr");
	write_text(tree, "etc/os-release", "ID=etc\n");
	assert_int_equal(osrelease_read(arena, &root, &os), 0);
	assert_string_equal(os.id, "etc");
	arena_free(arena);
	rootfs_close(&root);
	remove_tree(tree);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(bare_single_and_double_quoted_values_are_unquoted),
		cmocka_unit_test(escapes_are_those_of_the_shell),
		cmocka_unit_test(comments_and_other_lines_are_passed_over),
		cmocka_unit_test(the_last_assignment_counts),
		cmocka_unit_test(a_value_that_is_too_long_is_passed_over),
		cmocka_unit_test(bytes_that_are_no_utf8_are_replaced),
		cmocka_unit_test(all_wanted_names_reach_their_field),
		cmocka_unit_test(usr_lib_serves_where_etc_has_none),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
