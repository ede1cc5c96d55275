/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernel says of a VM (tests/vm/kernel_facts.py has it say these things) becomes. The vsock
 * sockets are stood in for by pairs of AF_UNIX ones, as no machine has VMs of all these kinds.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <sys/socket.h>

#include "probe.h"

#define DEBT (3 * MIB)

static const struct vsr_vm_id vm = { .ns = 7, .cid = 42 };

/* ---- the kernel ---- */

static int says_socket, says_connect, says_later; /* errno values; 0: good */
static int peer[PROBES_MAX + 1];
static int fds[PROBES_MAX + 1];
static unsigned int n_sockets;
static uint32_t asked_cid;

int socket(int domain, int type, int protocol)
{
	static int (*volatile pair)(int, int, int, int[2]) = socketpair;
	int fd[2];

	assert_int_equal(domain, AF_VSOCK);
	assert_true(type & SOCK_NONBLOCK && type & SOCK_CLOEXEC);
	if (says_socket) {
		errno = says_socket;
		return -1;
	}
	assert_true(n_sockets < ARRAY_SIZE(peer));
	assert_int_equal(pair(AF_UNIX, type, protocol, fd), 0);
	peer[n_sockets] = fd[1];
	fds[n_sockets++] = fd[0];
	return fd[0];
}

int connect(int fd, const struct sockaddr *address, socklen_t len)
{
	const struct sockaddr_vm *a = (const struct sockaddr_vm *)address;
	char page[4096] = "";

	assert_int_equal(len, sizeof(*a));
	asked_cid = a->svm_cid;
	/* Not writable before there is an answer. */
	if (says_connect == EINPROGRESS)
		while (send(fd, page, sizeof(page), MSG_DONTWAIT) > 0)
			;
	errno = says_connect;
	return says_connect ? -1 : 0;
}

int getsockopt(int fd _unused_, int level, int option, void *value, socklen_t *len)
{
	assert_int_equal(level, SOL_SOCKET);
	assert_int_equal(option, SO_ERROR);
	assert_int_equal(*len, sizeof(says_later));
	memcpy(value, &says_later, sizeof(says_later));
	return 0;
}

/* The guest, or the kernel, has answered probe number i. */
static void answer(unsigned int i, int error)
{
	char page[4096];

	says_later = error;
	while (recv(peer[i], page, sizeof(page), MSG_DONTWAIT) > 0)
		;
}

/* ---- the daemon ---- */

static sd_event *event;
static struct probes *probes;
static unsigned int calls;
static enum probe_result result;

static void on_result(struct vsr_vm_id id, uint64_t debt, enum probe_result r, void *userdata)
{
	assert_int_equal(id.ns, vm.ns);
	assert_int_equal(id.cid, vm.cid);
	assert_int_equal(debt, DEBT);
	assert_ptr_equal(userdata, &calls);
	calls++;
	result = r;
}

static bool is_open(int fd)
{
	return fcntl(fd, F_GETFD) >= 0;
}

static int setup(void **state _unused_)
{
	says_socket = says_connect = says_later = 0;
	n_sockets = calls = 0;
	assert_int_equal(sd_event_new(&event), 0);
	assert_int_equal(probes_new(event, on_result, &calls, &probes), 0);
	return 0;
}

static int teardown(void **state _unused_)
{
	probes = probes_free(probes);
	event = sd_event_unref(event);
	for (unsigned int i = 0; i < n_sockets; i++) {
		assert_false(is_open(fds[i]));
		close(peer[i]);
	}
	return 0;
}

/* ---- tests ---- */

static void a_vm_that_is_gone_is_told_at_once(void **state _unused_)
{
	says_connect = ENODEV;
	assert_int_equal(probe_start(probes, vm, DEBT), 0);
	assert_int_equal(asked_cid, vm.cid);
	assert_int_equal(calls, 1);
	assert_int_equal(result, PROBE_GONE);
	assert_false(is_open(fds[0]));
}

static void any_answer_means_that_all_before_it_was_read(void **state _unused_)
{
	static const int answers[] = { ECONNRESET, 0 };

	for (unsigned int i = 0; i < ARRAY_SIZE(answers); i++) {
		says_connect = EINPROGRESS;
		assert_int_equal(probe_start(probes, vm, DEBT), 0);
		assert_int_equal(sd_event_run(event, 0), 0);
		assert_int_equal(calls, i);
		answer(i, answers[i]);
		assert_true(sd_event_run(event, 0) > 0);
		assert_int_equal(calls, i + 1);
		assert_int_equal(result, PROBE_READ);
		assert_false(is_open(fds[i]));
	}
	says_connect = 0;
	assert_int_equal(probe_start(probes, vm, DEBT), 0);
	assert_int_equal(calls, 3);
	assert_int_equal(result, PROBE_READ);
}

/* The first probe is under way, then ends with this. */
static void ends_later_with(int error)
{
	says_connect = EINPROGRESS;
	assert_int_equal(probe_start(probes, vm, DEBT), 0);
	answer(0, error);
	assert_true(sd_event_run(event, 0) > 0);
	assert_int_equal(calls, 1);
}

static void a_vm_that_does_not_answer_in_time_is_silent(void **state _unused_)
{
	ends_later_with(ETIMEDOUT);
	assert_int_equal(result, PROBE_SILENT);
}

static void a_vm_that_goes_while_it_is_asked_is_gone(void **state _unused_)
{
	ends_later_with(ENODEV);
	assert_int_equal(result, PROBE_GONE);
}

static void no_more_are_under_way_than_there_are_places(void **state _unused_)
{
	says_connect = EINPROGRESS;
	for (unsigned int i = 0; i < PROBES_MAX; i++)
		assert_int_equal(probe_start(probes, vm, DEBT), 0);
	assert_int_equal(probe_start(probes, vm, DEBT), -EBUSY);
	assert_int_equal(n_sockets, PROBES_MAX);
	answer(5, ECONNRESET);
	assert_true(sd_event_run(event, 0) > 0);
	assert_int_equal(calls, 1);
	assert_int_equal(probe_start(probes, vm, DEBT), 0);
	assert_int_equal(probe_start(probes, vm, DEBT), -EBUSY);
}

static void a_probe_under_way_is_given_up_with_all(void **state _unused_)
{
	says_connect = EINPROGRESS;
	assert_int_equal(probe_start(probes, vm, DEBT), 0);
	probes = probes_free(probes);
	assert_false(is_open(fds[0]));
	answer(0, 0);
	assert_int_equal(sd_event_run(event, 0), 0);
	assert_int_equal(calls, 0);
}

static void a_kernel_without_vsock_answers_nothing(void **state _unused_)
{
	says_socket = EAFNOSUPPORT;
	assert_int_equal(probe_start(probes, vm, DEBT), -EAFNOSUPPORT);
	assert_int_equal(calls, 0);
	says_socket = 0;
	says_connect = ENODEV;
	assert_int_equal(probe_start(probes, vm, DEBT), 0);
	assert_int_equal(calls, 1);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(a_vm_that_is_gone_is_told_at_once),
		TEST(any_answer_means_that_all_before_it_was_read),
		TEST(a_vm_that_does_not_answer_in_time_is_silent),
		TEST(a_vm_that_goes_while_it_is_asked_is_gone),
		TEST(no_more_are_under_way_than_there_are_places),
		TEST(a_probe_under_way_is_given_up_with_all),
		TEST(a_kernel_without_vsock_answers_nothing),
	};

	return cmocka_run_group_tests_name("probe", tests, NULL, NULL);
}
