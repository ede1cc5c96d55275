/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The whole agent, each time in a process of its own: options, exit codes, retries, signals.
 */
#include "mini_relay.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>

/* main.c is no part of the library; its main() becomes a function of the test. */
#define main agent_main
#include "agent/main.c"
#undef main

#define MAX_ARGS 20

/* Starts the agent with the words of the NULL-terminated list. */
static pid_t start(const char *tree, va_list words)
{
	char *argv[MAX_ARGS + 1] = { (char *)"vsock-agent" };
	int argc = 1;
	pid_t pid;

	while (argc < MAX_ARGS && (argv[argc] = va_arg(words, char *)))
		argc++;
	fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		char log[300];
		int fd;

		snprintf(log, sizeof(log), "%s/log", tree);
		fd = open(log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
		dup2(fd, STDOUT_FILENO);
		dup2(fd, STDERR_FILENO);
		alarm(60);
		_exit(agent_main(argc, argv));
	}
	return pid;
}

static int wait_code(pid_t pid)
{
	int status;

	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

/* Runs the agent. Returns its exit code; what it wrote is in tree/log. */
static int run_agent(const char *tree, ...)
{
	va_list words;
	pid_t pid;

	va_start(words, tree);
	pid = start(tree, words);
	va_end(words);
	return wait_code(pid);
}

static pid_t start_agent(const char *tree, ...)
{
	va_list words;
	pid_t pid;

	va_start(words, tree);
	pid = start(tree, words);
	va_end(words);
	return pid;
}

static char *read_text(const char *tree, const char *name)
{
	struct rootfs root = open_tree(tree);
	char *text;
	size_t len;

	assert_int_equal(rootfs_read(&root, name, 64 * MIB, &text, &len), 0);
	rootfs_close(&root);
	return text;
}

static void expect_log(const char *tree, const char *part)
{
	char *text = read_text(tree, "log");

	if (!strstr(text, part))
		fail_msg("no \"%s\" in: %s", part, text);
	free(text);
}

static void make_guest(const char *tree)
{
	write_text(tree, "var/lib/dpkg/status",
		   "Package: bash\nStatus: install ok installed\nArchitecture: amd64\n"
		   "Version: 5.2-1\n");
	write_text(tree, "etc/os-release", "ID=debian\nVERSION_ID=12\nNAME=Debian\n");
	write_text(tree, "etc/machine-id", "0123456789abcdef0123456789ABCDEF\n");
}

static void each_answer_has_its_exit_code(void **state)
{
	static const struct {
		uint32_t status;
		int code;
		const char *says;
	} cases[] = {
		{ VSR_STATUS_ACCEPTED, 0, "accepted" },
		{ VSR_STATUS_NOTHING_TO_DO, 0, "nothing to do" },
		{ VSR_STATUS_BUSY, 75, "busy" },
		{ VSR_STATUS_TOO_LARGE, 65, "too large" },
		{ VSR_STATUS_MALFORMED, 65, "malformed" },
		{ VSR_STATUS_CID_MISMATCH, 65, "CID mismatch" },
		{ VSR_STATUS_DIGEST_MISMATCH, 65, "digest mismatch" },
		{ VSR_STATUS_INTERNAL, 75, "internal error" },
		{ VSR_STATUS_REFUSED, 65, "policy" },
		{ VSR_STATUS_DEADLINE, 75, "deadline" },
		{ 42, 76, "no answer of a relay" },
	};
	char *tree = new_tree();

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		const uint32_t answers[] = { VSR_STATUS_GO_ON, cases[i].status };
		struct mini_relay m = { .serve = serve_answers, .answers = answers };

		mini_relay_start(&m);
		assert_int_equal(run_agent(tree, "--once", "--unix", m.path, "--cid", "42",
					   "--synthetic", "3", "--retries", "0", NULL),
				 cases[i].code);
		expect_log(tree, cases[i].says);
		mini_relay_stop(&m);
		assert_int_equal(m.connections, 1);
		mini_relay_done(&m);
	}
	remove_tree(tree);
}

static void busy_is_tried_again_until_it_is_taken(void **state)
{
	static const uint32_t answers[] = { VSR_STATUS_BUSY, VSR_STATUS_GO_ON, VSR_STATUS_DEADLINE,
					    VSR_STATUS_GO_ON, VSR_STATUS_ACCEPTED };
	struct mini_relay m = { .serve = serve_answers, .answers = answers };
	char *tree = new_tree();

	(void)state;
	mini_relay_start(&m);
	assert_int_equal(run_agent(tree, "--once", "--unix", m.path, "--cid", "42", "--synthetic",
				   "3", NULL),
			 0);
	mini_relay_stop(&m);
	assert_int_equal(m.connections, 3);
	mini_relay_done(&m);
	remove_tree(tree);
}

static void a_refused_report_is_never_tried_again(void **state)
{
	static const uint32_t refusals[] = { VSR_STATUS_TOO_LARGE, VSR_STATUS_MALFORMED,
					     VSR_STATUS_CID_MISMATCH, VSR_STATUS_DIGEST_MISMATCH,
					     VSR_STATUS_REFUSED };
	char *tree = new_tree();

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(refusals); i++) {
		const uint32_t answers[] = { refusals[i], VSR_STATUS_NOTHING_TO_DO };
		struct mini_relay m = { .serve = serve_answers, .answers = answers };

		mini_relay_start(&m);
		assert_int_equal(run_agent(tree, "--once", "--unix", m.path, "--cid", "42",
					   "--synthetic", "3", "--retries", "9", NULL),
				 65);
		mini_relay_stop(&m);
		assert_int_equal(m.connections, 1);
		mini_relay_done(&m);
	}
	remove_tree(tree);
}

static void retries_bounds_the_attempts(void **state)
{
	static const uint32_t answers[] = { VSR_STATUS_BUSY, VSR_STATUS_BUSY, VSR_STATUS_BUSY };
	struct mini_relay m = { .serve = serve_answers, .answers = answers };
	char *tree = new_tree();

	(void)state;
	mini_relay_start(&m);
	assert_int_equal(run_agent(tree, "--once", "--unix", m.path, "--cid", "42", "--synthetic",
				   "3", "--retries", "1", NULL),
			 75);
	mini_relay_stop(&m);
	assert_int_equal(m.connections, 2);
	mini_relay_done(&m);
	remove_tree(tree);
}

static void reports_follow_each_other_until_a_signal(void **state)
{
	static uint32_t answers[1000];
	struct mini_relay m = { .serve = serve_answers, .answers = answers };
	char *tree = new_tree();
	pid_t pid;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(answers); i++)
		answers[i] = VSR_STATUS_NOTHING_TO_DO;
	mini_relay_start(&m);
	pid = start_agent(tree, "--unix", m.path, "--cid", "42", "--synthetic", "3", "--interval",
			  "50ms", "--start-within", "0", NULL);
	for (int i = 0; i < 1500 && __atomic_load_n(&m.connections, __ATOMIC_RELAXED) < 3; i++)
		usleep(20000);
	assert_int_equal(kill(pid, SIGTERM), 0);
	assert_int_equal(wait_code(pid), 0);
	mini_relay_stop(&m);
	assert_true(m.connections >= 3);
	mini_relay_done(&m);
	remove_tree(tree);
}

static void a_signal_ends_a_wait_at_once(void **state)
{
	char *tree = new_tree();
	uint64_t sent;
	pid_t pid;

	(void)state;
	pid = start_agent(tree, "--unix", "/nonexistent", "--cid", "42", "--synthetic", "3", NULL);
	/* It waits as soon as it says so. */
	for (int i = 0; i < 1500; i++) {
		char path[300];

		snprintf(path, sizeof(path), "%s/log", tree);
		if (access(path, F_OK) == 0) {
			char *text = read_text(tree, "log");
			bool waits = strstr(text, "next report in");

			free(text);
			if (waits)
				break;
		}
		usleep(20000);
	}
	sent = clock_now();
	assert_int_equal(kill(pid, SIGTERM), 0);
	assert_int_equal(wait_code(pid), 0);
	/* The start is spread over 20 min; a signal ends it in less than a sixtieth of that. */
	assert_true(clock_now() - sent < 20 * USEC_PER_SEC);
	remove_tree(tree);
}

static void serve_never(struct mini_relay *m, int fd)
{
	uint8_t byte;

	(void)m;
	read_up_to(fd, m->header, sizeof(m->header));
	read_up_to(fd, &byte, 1);
}

static void a_signal_amid_an_undelivered_once_is_temporary(void **state)
{
	struct mini_relay m = { .serve = serve_never };
	char *tree = new_tree();
	pid_t pid;

	(void)state;
	mini_relay_start(&m);
	pid = start_agent(tree, "--once", "--unix", m.path, "--cid", "42", "--synthetic", "3",
			  "--timeout", "1h", NULL);
	for (int i = 0; i < 1500 && __atomic_load_n(&m.connections, __ATOMIC_RELAXED) < 1; i++)
		usleep(20000);
	assert_int_equal(kill(pid, SIGTERM), 0);
	assert_int_equal(wait_code(pid), 75);
	mini_relay_stop(&m);
	remove_tree(tree);
}

static void bad_options_are_usage_errors(void **state)
{
	char *tree = new_tree();

	(void)state;
	assert_int_equal(run_agent(tree, "--no-such-option", NULL), 64);
	assert_int_equal(run_agent(tree, "word", NULL), 64);
	assert_int_equal(run_agent(tree, "--mode", "vsr3", NULL), 64);
	assert_int_equal(run_agent(tree, "--interval", "4", NULL), 64);
	assert_int_equal(run_agent(tree, "--interval", "0", NULL), 64);
	assert_int_equal(run_agent(tree, "--timeout", "-1s", NULL), 64);
	assert_int_equal(run_agent(tree, "--port", "818x", NULL), 64);
	assert_int_equal(run_agent(tree, "--port", "-1", NULL), 64);
	assert_int_equal(run_agent(tree, "--cid", "4294967296", NULL), 64);
	assert_int_equal(run_agent(tree, "--cid", "", NULL), 64);
	assert_int_equal(run_agent(tree, "--cid", NULL), 64);
	assert_int_equal(run_agent(tree, "--unix", "/x", NULL), 64);
	assert_int_equal(run_agent(tree, "--file", "/x", "--synthetic", "1", NULL), 64);
	assert_int_equal(run_agent(tree, "--root", "relative", NULL), 64);
	remove_tree(tree);
}

static void help_names_every_option(void **state)
{
	char *tree = new_tree(), *text;

	(void)state;
	assert_int_equal(run_agent(tree, "--version", NULL), 0);
	expect_log(tree, "vsock-agent " VSR_VERSION);
	assert_int_equal(run_agent(tree, "--help", NULL), 0);
	text = read_text(tree, "log");
	static const char *const names[] = {
		"--once",      "--interval", "--start-within", "--host-cid", "--port",
		"--unix",      "--mode",     "--timeout",      "--retries",  "--root",
		"--cid",       "--vm-id",    "--file",	       "--print",    "--dump",
		"--synthetic", "--seed",     "--verbose",      "--version",  "--rpm-command",
	};
	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (!strstr(text, names[i]))
			fail_msg("%s is not explained", names[i]);
	free(text);
	remove_tree(tree);
}

static void a_guest_without_packages_sends_nothing(void **state)
{
	static const uint32_t answers[] = { VSR_STATUS_NOTHING_TO_DO };
	struct mini_relay m = { .serve = serve_answers, .answers = answers };
	char *tree = new_tree();

	(void)state;
	mini_relay_start(&m);
	assert_int_equal(run_agent(tree, "--once", "--unix", m.path, "--cid", "42", "--root", tree,
				   NULL),
			 66);
	expect_log(tree, "no database");
	/* An empty inventory would tell the receiver that nothing is installed. */
	write_text(tree, "var/lib/dpkg/status", "");
	assert_int_equal(run_agent(tree, "--once", "--unix", m.path, "--cid", "42", "--root", tree,
				   NULL),
			 66);
	expect_log(tree, "lists no package");
	mini_relay_stop(&m);
	assert_int_equal(m.connections, 0);
	remove_tree(tree);
}

static void missing_input_has_its_exit_code(void **state)
{
	char *tree = new_tree();

	(void)state;
	assert_int_equal(run_agent(tree, "--once", "--file", "/nonexistent", NULL), 66);
	assert_int_equal(run_agent(tree, "--print", "--cid", "42", "--root", "/nonexistent", NULL),
			 66);
	write_text(tree, "junk", "\x0a\xff");
	{
		char file[300];

		snprintf(file, sizeof(file), "%s/junk", tree);
		assert_int_equal(run_agent(tree, "--print", "--file", file, NULL), 66);
	}
	assert_int_equal(run_agent(tree, "--dump", "/nonexistent/x", "--cid", "42", "--synthetic",
				   "1", NULL),
			 74);
	assert_int_equal(run_agent(tree, "--dump", "/dev/full", "--cid", "42", "--synthetic", "1",
				   NULL),
			 74);
	remove_tree(tree);
}

static void what_is_dumped_is_what_is_sent(void **state)
{
	static const uint32_t answers[] = { VSR_STATUS_GO_ON, VSR_STATUS_ACCEPTED, VSR_STATUS_GO_ON,
					    VSR_STATUS_ACCEPTED };
	struct mini_relay m = { .serve = serve_answers, .answers = answers };
	char *tree = new_tree(), file[300], *data;
	struct rootfs root = open_tree(tree);
	size_t len, i;

	(void)state;
	make_guest(tree);
	snprintf(file, sizeof(file), "%s/report", tree);
	assert_int_equal(run_agent(tree, "--dump", file, "--cid", "42", "--root", tree, NULL), 0);
	assert_int_equal(rootfs_read(&root, "report", MIB, &data, &len), 0);
	for (i = 0; i < 2; i++) {
		mini_relay_start(&m);
		if (i == 0)
			assert_int_equal(run_agent(tree, "--once", "--unix", m.path, "--cid", "42",
						   "--root", tree, NULL),
					 0);
		else
			assert_int_equal(run_agent(tree, "--once", "--unix", m.path, "--file", file,
						   NULL),
					 0);
		mini_relay_stop(&m);
		assert_int_equal(m.payload_len, len);
		assert_memory_equal(m.payload, data, len);
		mini_relay_done(&m);
	}
	assert_int_equal(run_agent(tree, "--print", "--file", file, NULL), 0);
	expect_log(tree, "bash ");
	expect_log(tree, "os version     debian 12\n");
	expect_log(tree, "vm id          0123456789abcdef0123456789abcdef\n");
	free(data);
	rootfs_close(&root);
	remove_tree(tree);
}

static void the_vm_id_is_the_product_uuid_before_the_machine_id(void **state)
{
	char *tree = new_tree();

	(void)state;
	make_guest(tree);
	write_text(tree, "sys/class/dmi/id/product_uuid", "4C4C4544-0001\n");
	assert_int_equal(run_agent(tree, "--print", "--cid", "42", "--root", tree, NULL), 0);
	expect_log(tree, "vm id          4c4c4544-0001\n");
	assert_int_equal(run_agent(tree, "--print", "--cid", "42", "--root", tree, "--vm-id",
				   "Mine", NULL),
			 0);
	expect_log(tree, "vm id          Mine\n");
	/* What is no id, is none: here bytes that would break the report. */
	write_text(tree, "sys/class/dmi/id/product_uuid", "\xff\n");
	write_text(tree, "etc/machine-id", "\n");
	assert_int_equal(run_agent(tree, "--print", "--cid", "42", "--root", tree, NULL), 0);
	expect_log(tree, "vm id          -\n");
	remove_tree(tree);
}

static void a_report_above_the_limit_is_said_plainly_and_offered(void **state)
{
	static const uint32_t answers[] = { VSR_STATUS_TOO_LARGE };
	struct mini_relay m = { .serve = serve_answers, .answers = answers };
	char *tree = new_tree();

	(void)state;
	mini_relay_start(&m);
	assert_int_equal(run_agent(tree, "--once", "--unix", m.path, "--cid", "42", "--synthetic",
				   "25000", NULL),
			 65);
	expect_log(tree, "more than the 16384 KiB");
	mini_relay_stop(&m);
	assert_int_equal(m.connections, 1);
	assert_int_equal(m.payload_len, 0);
	mini_relay_done(&m);
	remove_tree(tree);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_answer_has_its_exit_code),
		cmocka_unit_test(busy_is_tried_again_until_it_is_taken),
		cmocka_unit_test(a_refused_report_is_never_tried_again),
		cmocka_unit_test(retries_bounds_the_attempts),
		cmocka_unit_test(reports_follow_each_other_until_a_signal),
		cmocka_unit_test(a_signal_ends_a_wait_at_once),
		cmocka_unit_test(a_signal_amid_an_undelivered_once_is_temporary),
		cmocka_unit_test(bad_options_are_usage_errors),
		cmocka_unit_test(help_names_every_option),
		cmocka_unit_test(a_guest_without_packages_sends_nothing),
		cmocka_unit_test(missing_input_has_its_exit_code),
		cmocka_unit_test(what_is_dumped_is_what_is_sent),
		cmocka_unit_test(the_vm_id_is_the_product_uuid_before_the_machine_id),
		cmocka_unit_test(a_report_above_the_limit_is_said_plainly_and_offered),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
