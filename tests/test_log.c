/* SPDX-License-Identifier: Apache-2.0 */
/* Logging: one line an event, whatever is in it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <fcntl.h>

#include "log.h"

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
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
