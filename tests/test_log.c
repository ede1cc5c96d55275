/* SPDX-License-Identifier: Apache-2.0 */
/* Logging: one line an event, whatever is in it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <fcntl.h>
#include <jansson.h>
#include <sys/stat.h>

#include "log.h"
#include "log_journal.h"

static int stderr_was = -1, pipe_fd = -1;
static char said[8192];

/* Standard error goes to a pipe between these two. */
static void listen_in(void)
{
	int fds[2];

	assert_int_equal(pipe2(fds, O_CLOEXEC | O_NONBLOCK), 0);
	stderr_was = dup(STDERR_FILENO);
	assert_true(dup2(fds[1], STDERR_FILENO) >= 0);
	close(fds[1]);
	pipe_fd = fds[0];
}

static const char *heard(void)
{
	ssize_t n;

	assert_true(dup2(stderr_was, STDERR_FILENO) >= 0);
	close(stderr_was);
	n = read(pipe_fd, said, sizeof(said) - 1);
	close(pipe_fd);
	said[MAX(n, 0)] = '\0';
	return said;
}

static int setup(void **state _unused_)
{
	unsetenv("JOURNAL_STREAM");
	log_set_level(LOG_INFO);
	return 0;
}

static void an_event_is_a_line(void **state _unused_)
{
	listen_in();
	log_error("one %d", 1);
	log_warning("two");
	log_notice("three");
	log_info("four");
	assert_string_equal(heard(), "one 1\ntwo\nthree\nfour\n");
}

static void less_important_ones_are_left_out(void **state _unused_)
{
	assert_int_equal(log_level(), LOG_INFO);
	listen_in();
	log_debug("hidden");
	log_set_level(LOG_ERR);
	log_warning("hidden too");
	log_error("shown");
	log_set_level(LOG_DEBUG);
	log_debug("shown too");
	assert_string_equal(heard(), "shown\nshown too\n");
}

static void a_guest_cannot_write_lines_of_its_own(void **state _unused_)
{
	listen_in();
	log_info("it says %s", "42\nroot logged in\r\x1b[2J\x7f\t!");
	assert_string_equal(heard(), "it says 42?root logged in??[2J?\?!\n");
}

static void a_long_line_is_cut(void **state _unused_)
{
	char long_one[5000];

	memset(long_one, 'x', sizeof(long_one) - 1);
	long_one[sizeof(long_one) - 1] = '\0';
	listen_in();
	log_info("%s", long_one);
	heard();
	assert_true(strlen(said) > 500 && strlen(said) <= 1024);
	assert_int_equal(said[strlen(said) - 1], '\n');
}

static void the_error_is_named_and_returned_negative(void **state _unused_)
{
	listen_in();
	assert_int_equal(log_error_errno(ENOENT, "cannot open %s", "x"), -ENOENT);
	assert_int_equal(log_warning_errno(-ENOSPC, "cannot write"), -ENOSPC);
	/* Also when the line is left out. */
	log_set_level(LOG_ERR);
	assert_int_equal(log_warning_errno(EIO, "hidden"), -EIO);
	assert_string_equal(heard(), "cannot open x: No such file or directory\n"
				     "cannot write: No space left on device\n");
}

static void errno_is_kept(void **state _unused_)
{
	listen_in();
	close(STDERR_FILENO); /* writing fails */
	errno = ENOTTY;
	log_error("nobody hears this");
	assert_int_equal(errno, ENOTTY);
	heard();
}

static void the_journal_is_told_the_level(void **state _unused_)
{
	setenv("JOURNAL_STREAM", "8:1", 1);
	listen_in();
	log_error("bad");
	log_info("good");
	assert_int_equal(log_warning_errno(EIO, "so so"), -EIO);
	assert_string_equal(heard(), "<3>bad\n<6>good\n<4>so so: Input/output error\n");
	unsetenv("JOURNAL_STREAM");
}

static void json_is_an_object_a_line(void **state _unused_)
{
	const struct vsr_vm_id vm = { .ns = 1, .cid = 42 };
	const struct log_about about = {
		.vm = &vm, .reason = "zero_length", .generation = 7, .held_back = 3
	};
	json_t *line;
	char *next;

	log_set_format(LOG_FORMAT_JSON);
	listen_in();
	log_write_about(LOG_NOTICE, &about, "it says \"%s\" \\ \xc3\xa4\xff\n", "x");
	log_error_errno(ENOENT, "no file");
	log_set_format(LOG_FORMAT_TEXT);
	heard();
	next = strchr(said, '\n');
	assert_non_null(next);
	*next++ = '\0';
	line = json_loads(said, 0, NULL);
	assert_non_null(line);
	assert_string_equal(json_string_value(json_object_get(line, "level")), "notice");
	assert_string_equal(json_string_value(json_object_get(line, "message")),
			    "it says \"x\" \\ \xc3\xa4?\?");
	assert_string_equal(json_string_value(json_object_get(line, "vm")), "1:42");
	assert_string_equal(json_string_value(json_object_get(line, "reason")), "zero_length");
	assert_int_equal(json_integer_value(json_object_get(line, "generation")), 7);
	assert_int_equal(json_integer_value(json_object_get(line, "held_back")), 3);
	assert_int_equal(strlen(json_string_value(json_object_get(line, "time"))), 27);
	json_decref(line);
	line = json_loads(next, 0, NULL);
	assert_non_null(line);
	assert_string_equal(json_string_value(json_object_get(line, "message")),
			    "no file: No such file or directory");
	assert_int_equal(json_object_size(line), 3);
	json_decref(line);
}

static struct log_entry taken;
static int taking;

static int take(const struct log_entry *e)
{
	taken = *e;
	taken.message = e->level == LOG_INFO ? "info" : "other";
	return taking;
}

static void a_sink_takes_entries_and_standard_error_those_that_fail(void **state _unused_)
{
	const struct vsr_vm_id vm = { .cid = 42 };

	log_set_sink(take);
	listen_in();
	taking = 0;
	log_write_about(LOG_INFO, &(struct log_about){ .vm = &vm }, "taken");
	assert_string_equal(taken.message, "info");
	assert_int_equal(taken.about.vm->cid, 42);
	taking = -ENOENT;
	log_info("not taken");
	log_set_sink(NULL);
	assert_string_equal(heard(), "not taken\n");
}

static void who_asked_hears_it_too(void **state _unused_)
{
	_cleanup_free_ char *text = NULL;
	size_t len;
	FILE *f = open_memstream(&text, &len);

	assert_non_null(f);
	listen_in();
	log_info("before");
	log_copy_to(f);
	log_info("one");
	log_debug("hidden");
	log_error_errno(EIO, "two");
	log_copy_to(NULL);
	log_info("after");
	fclose(f);
	assert_string_equal(text, "one\ntwo: Input/output error\n");
	assert_string_equal(heard(), "before\none\ntwo: Input/output error\nafter\n");
}

static void levels_have_names(void **state _unused_)
{
	for (int level = LOG_ERR; level <= LOG_DEBUG; level++)
		assert_int_equal(log_level_from_name(log_level_name(level)), level);
	assert_int_equal(log_level_from_name("loud"), -EINVAL);
	assert_null(log_level_name(LOG_CRIT));
	assert_null(log_level_name(8));
}

static void only_the_stream_that_systemd_names_is_the_journal(void **state _unused_)
{
	char text[64];
	struct stat st;

	assert_false(log_journal_is_ours());
	assert_int_equal(fstat(STDERR_FILENO, &st), 0);
	snprintf(text, sizeof(text), "%llu:%llu", (unsigned long long)st.st_dev,
		 (unsigned long long)st.st_ino);
	setenv("JOURNAL_STREAM", text, 1);
	assert_true(log_journal_is_ours());
	snprintf(text, sizeof(text), "%llu:%llu", (unsigned long long)st.st_dev,
		 (unsigned long long)st.st_ino + 1);
	setenv("JOURNAL_STREAM", text, 1);
	assert_false(log_journal_is_ours());
	setenv("JOURNAL_STREAM", "nonsense", 1);
	assert_false(log_journal_is_ours());
	unsetenv("JOURNAL_STREAM");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(an_event_is_a_line, setup),
		cmocka_unit_test_setup(less_important_ones_are_left_out, setup),
		cmocka_unit_test_setup(a_guest_cannot_write_lines_of_its_own, setup),
		cmocka_unit_test_setup(a_long_line_is_cut, setup),
		cmocka_unit_test_setup(the_error_is_named_and_returned_negative, setup),
		cmocka_unit_test_setup(errno_is_kept, setup),
		cmocka_unit_test_setup(the_journal_is_told_the_level, setup),
		cmocka_unit_test_setup(json_is_an_object_a_line, setup),
		cmocka_unit_test_setup(a_sink_takes_entries_and_standard_error_those_that_fail,
				       setup),
		cmocka_unit_test_setup(who_asked_hears_it_too, setup),
		cmocka_unit_test_setup(levels_have_names, setup),
		cmocka_unit_test_setup(only_the_stream_that_systemd_names_is_the_journal, setup),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
