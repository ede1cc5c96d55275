/* SPDX-License-Identifier: Apache-2.0 */
#include "agent_test.h"

#include <fcntl.h>
#include <signal.h>

#include "agent/clock.h"
#include "agent/command.h"
#include "agent/rpm.h"

#define DB "sqlite:var/lib/rpm"

static struct inventory *parse(const char *text)
{
	struct inventory *inv = new_inventory();

	assert_int_equal(rpm_parse(inv, text, strlen(text), DB), 0);
	return inv;
}

static void each_field_of_a_full_line_is_read(void **state)
{
	struct inventory *inv = parse(
		"nodejs\t1\t16.20.2\t4.module+el9.3.0\tx86_64\tnodejs-16.20.2-4.module+el9.3.0.src.rpm\t"
		"nodejs:18:920231:rhel9:x86_64\t8\t0123abcd\t"
		"RSA/SHA256, Tue 05 Apr 2022 12:00:00 PM UTC, Key ID 199e2f91fd431d51\n");
	const struct package *p = &inv->packages[0];

	(void)state;
	assert_int_equal(inv->n_packages, 1);
	assert_string_equal(p->name, "nodejs");
	assert_string_equal(p->version, "1:16.20.2-4.module+el9.3.0");
	assert_string_equal(p->arch, "x86_64");
	assert_string_equal(p->source, "nodejs");
	assert_string_equal(p->source_version, "16.20.2-4.module+el9.3.0");
	assert_string_equal(p->module, "nodejs:18");
	assert_string_equal(p->repository_hint, "hash=sha256%3A0123abcd&key=199e2f91fd431d51");
	assert_string_equal(p->db, DB);
	inventory_free(inv);
}

static void the_basic_line_of_an_old_rpm_is_read(void **state)
{
	struct inventory *inv =
		parse("glibc\t(none)\t2.17\t326.el7\tx86_64\tglibc-2.17-326.el7.src.rpm\n");

	(void)state;
	assert_int_equal(inv->n_packages, 1);
	assert_string_equal(inv->packages[0].version, "2.17-326.el7");
	assert_string_equal(inv->packages[0].repository_hint, "");
	assert_string_equal(inv->packages[0].module, "");
	inventory_free(inv);
}

static void what_rpm_has_not_is_left_out(void **state)
{
	struct inventory *inv =
		parse("a\t0\t1\t2\t(none)\t(none)\t(none)\t(none)\t(none)\t(none)\n");
	const struct package *p = &inv->packages[0];

	(void)state;
	assert_int_equal(inv->n_packages, 1);
	assert_string_equal(p->version, "1-2");
	assert_string_equal(p->arch, "");
	assert_string_equal(p->source, "");
	assert_string_equal(p->module, "");
	assert_string_equal(p->repository_hint, "");
	inventory_free(inv);
}

static void hints_hold_sha256_digests_and_whole_keys_only(void **state)
{
	static const struct {
		const char *fields, *hint;
	} cases[] = {
		{ "8\tabc0\t(none)", "hash=sha256%3Aabc0" },
		{ "10\tabc0\t(none)", "" },
		{ "8\tnot hex\t(none)", "" },
		{ "(none)\t(none)\tRSA/SHA1, x, Key ID 0123456789abcdef", "key=0123456789abcdef" },
		{ "(none)\t(none)\tRSA/SHA1, x, Key ID ", "" },
		{ "(none)\t(none)\tRSA/SHA1, x, Key ID 12&x=y", "" },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct inventory *inv;
		char line[256];

		snprintf(line, sizeof(line), "a\t0\t1\t2\tnoarch\t(none)\t(none)\t%s\n",
			 cases[i].fields);
		inv = parse(line);
		assert_int_equal(inv->n_packages, 1);
		assert_string_equal(inv->packages[0].repository_hint, cases[i].hint);
		inventory_free(inv);
	}
}

static void sources_of_another_form_are_left_out(void **state)
{
	static const char *const names[] = { "",	 "-",	 "--",		 "a",
					     "a-1",	 "-1-2", "a-1-.src.rpm", ".src.rpm",
					     "-.src.rpm" };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		struct inventory *inv;
		char line[256];

		snprintf(line, sizeof(line), "a\t0\t1\t2\tnoarch\t%s\n", names[i]);
		inv = parse(line);
		assert_int_equal(inv->n_packages, 1);
		assert_string_equal(inv->packages[0].source, "");
		inventory_free(inv);
	}
}

static void keys_are_no_packages(void **state)
{
	struct inventory *inv = parse("gpg-pubkey\t(none)\tfd431d51\t4ae0493b\t(none)\t(none)\n");

	(void)state;
	assert_int_equal(inv->n_packages, 0);
	assert_int_equal(inv->skipped, 0);
	inventory_free(inv);
}

static void damaged_lines_are_skipped_and_counted(void **state)
{
	struct inventory *inv = parse("a\t0\t1\n"
				      "\n"
				      "a\t0\t1\t2\tx\ty\tz\n"
				      "\t0\t1\t2\tx\ty\n"
				      "a\t0\t\t2\tx\ty\n"
				      "error: something\n"
				      "a\tb\tc\td\te\tf\tg\th\ti\tj\tk\n"
				      "good\t0\t1\t2\tx\ty-1-2.src.rpm");

	(void)state;
	assert_int_equal(inv->n_packages, 1);
	assert_int_equal(inv->skipped, 6);
	inventory_free(inv);
}

/* A program in the tree that behaves as the script says. */
static char *make_program(const char *tree, const char *script)
{
	static char path[512];
	char text[2048];

	snprintf(text, sizeof(text), "#!/bin/sh\n%s\n", script);
	write_text(tree, "bin/fake-rpm", text);
	snprintf(path, sizeof(path), "%s/bin/fake-rpm", tree);
	assert_int_equal(chmod(path, 0755), 0);
	return path;
}

static void the_database_decides_the_name_and_the_path(void **state)
{
	static const struct {
		const char *file, *db;
	} cases[] = {
		{ "var/lib/rpm/rpmdb.sqlite", "sqlite:var/lib/rpm" },
		{ "var/lib/rpm/Packages", "bdb:var/lib/rpm" },
		{ "usr/lib/sysimage/rpm/Packages.db", "ndb:usr/lib/sysimage/rpm" },
		{ "usr/share/rpm/rpmdb.sqlite", "sqlite:usr/share/rpm" },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct inventory *inv = new_inventory();
		char *tree = new_tree(), *program;
		struct rootfs root = open_tree(tree);

		/* It lists one package, named after the path that it was given. */
		program = make_program(
			tree, "[ $# = 5 ] && [ \"$1 $3 $4\" = '--dbpath -qa --qf' ] || exit 1\n"
			      "case $5 in *MODULARITYLABEL*) ;; *) exit 1;; esac\n"
			      "printf '%s\\t0\\t1\\t2\\tnoarch\\t(none)\\n' \"$2\"");
		assert_int_equal(rpm_read(inv, &root, program, -1), -ENOENT);
		write_text(tree, cases[i].file, "");
		assert_int_equal(rpm_read(inv, &root, program, -1), 0);
		assert_int_equal(inv->n_packages, 1);
		assert_string_equal(inv->packages[0].db, cases[i].db);
		assert_memory_equal(inv->packages[0].name, tree, strlen(tree));
		assert_non_null(strstr(inv->packages[0].name, strchr(cases[i].db, ':') + 1));
		rootfs_close(&root);
		remove_tree(tree);
		inventory_free(inv);
	}
}

static void an_rpm_that_knows_not_all_tags_is_asked_for_the_basic_ones(void **state)
{
	struct inventory *inv = new_inventory();
	char *tree = new_tree();
	struct rootfs root = open_tree(tree);

	(void)state;
	write_text(tree, "var/lib/rpm/Packages", "");
	assert_int_equal(rpm_read(inv, &root,
				  make_program(tree, "case $5 in *MODULARITYLABEL*) exit 1;; esac\n"
						     "printf 'a\\t0\\t1\\t2\\tnoarch\\t(none)\\n'"),
				  -1),
			 0);
	assert_int_equal(inv->n_packages, 1);
	rootfs_close(&root);
	remove_tree(tree);
	inventory_free(inv);
}

static void a_missing_command_and_a_failing_one_are_told_apart(void **state)
{
	struct inventory *inv = new_inventory();
	char *tree = new_tree();
	struct rootfs root = open_tree(tree);

	(void)state;
	write_text(tree, "var/lib/rpm/Packages", "");
	assert_int_equal(rpm_read(inv, &root, "vsr-no-such-command", -1), -ENOPKG);
	assert_int_equal(rpm_read(inv, &root, make_program(tree, "exit 3"), -1), -EIO);
	assert_int_equal(rpm_read(inv, &root, make_program(tree, "kill -9 $$"), -1), -EIO);
	assert_int_equal(inv->n_packages, 0);
	rootfs_close(&root);
	remove_tree(tree);
	inventory_free(inv);
}

static int run(const char *script, size_t max, uint64_t timeout, int stop_fd, char **ret,
	       size_t *ret_len)
{
	char *argv[] = { (char *)"sh", (char *)"-c", (char *)script, NULL };

	return command_run(argv, max, timeout, stop_fd, ret, ret_len);
}

static void a_commands_output_is_taken_up_to_its_bound(void **state)
{
	char *out = NULL;
	size_t len;

	(void)state;
	assert_int_equal(run("printf 12345", 5, USEC_PER_MIN, -1, &out, &len), 0);
	assert_int_equal(len, 5);
	assert_string_equal(out, "12345");
	free(out);
	assert_int_equal(run("printf 12345", 4, USEC_PER_MIN, -1, &out, &len), -EFBIG);
	/* One that never ends. */
	assert_int_equal(run("exec yes", MIB, USEC_PER_MIN, -1, &out, &len), -EFBIG);
}

static void a_command_has_an_english_environment_and_no_input(void **state)
{
	char *out = NULL;
	size_t len;

	(void)state;
	setenv("LC_MESSAGES", "de_DE.UTF-8", 1);
	setenv("LANG", "de_DE.UTF-8", 1);
	assert_int_equal(
		run("cat; echo $LC_ALL $LC_MESSAGES $LANG", 100, USEC_PER_MIN, -1, &out, &len), 0);
	assert_string_equal(out, "C\n");
	free(out);
}

/* Whether the process whose id the file holds still runs. */
static bool alive(const char *tree)
{
	char path[512];
	int pid = 0;
	FILE *f;

	snprintf(path, sizeof(path), "%s/pid", tree);
	f = fopen(path, "re");
	assert_non_null(f);
	assert_int_equal(fscanf(f, "%d", &pid), 1);
	fclose(f);
	/* An orphan that was killed may wait for init to reap it. */
	for (int i = 0; i < 100 && kill(pid, 0) == 0; i++) {
		char state = 0;

		snprintf(path, sizeof(path), "/proc/%d/stat", pid);
		f = fopen(path, "re");
		if (!f)
			return false;
		if (fscanf(f, "%*d %*s %c", &state) != 1)
			state = 0;
		fclose(f);
		if (state == 'Z')
			return false;
		usleep(20000);
	}
	return kill(pid, 0) == 0;
}

static void a_command_that_takes_too_long_is_ended_with_its_children(void **state)
{
	static const char *const scripts[] = {
		"sleep 600 & echo $! > %s/pid; wait",		    /* output open */
		"sleep 600 >&- & echo $! > %s/pid; exec >&-; wait", /* output closed */
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(scripts); i++) {
		char *tree = new_tree(), script[1024], *out = NULL;
		uint64_t start = clock_now();
		size_t len;

		snprintf(script, sizeof(script), scripts[i], tree);
		assert_int_equal(run(script, 100, USEC_PER_SEC, -1, &out, &len), -ETIMEDOUT);
		assert_true(clock_now() - start < USEC_PER_MIN);
		assert_false(alive(tree));
		remove_tree(tree);
	}
}

static void a_command_is_ended_when_the_agent_stops(void **state)
{
	char *out = NULL;
	size_t len;
	int fds[2];

	(void)state;
	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	assert_int_equal(write(fds[1], "x", 1), 1);
	assert_int_equal(run("sleep 600", 100, USEC_PER_HOUR, fds[0], &out, &len), -ECANCELED);
	close(fds[0]);
	close(fds[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_field_of_a_full_line_is_read),
		cmocka_unit_test(the_basic_line_of_an_old_rpm_is_read),
		cmocka_unit_test(what_rpm_has_not_is_left_out),
		cmocka_unit_test(hints_hold_sha256_digests_and_whole_keys_only),
		cmocka_unit_test(sources_of_another_form_are_left_out),
		cmocka_unit_test(keys_are_no_packages),
		cmocka_unit_test(damaged_lines_are_skipped_and_counted),
		cmocka_unit_test(the_database_decides_the_name_and_the_path),
		cmocka_unit_test(an_rpm_that_knows_not_all_tags_is_asked_for_the_basic_ones),
		cmocka_unit_test(a_missing_command_and_a_failing_one_are_told_apart),
		cmocka_unit_test(a_commands_output_is_taken_up_to_its_bound),
		cmocka_unit_test(a_command_has_an_english_environment_and_no_input),
		cmocka_unit_test(a_command_that_takes_too_long_is_ended_with_its_children),
		cmocka_unit_test(a_command_is_ended_when_the_agent_stops),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
