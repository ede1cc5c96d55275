/* SPDX-License-Identifier: Apache-2.0 */
/* Names of VMs, from a file and from the command lines of QEMU. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "ctl/names.h"

static const struct vsr_vm_id vm42 = { 0, 42 }, vm7 = { 3, 7 };

static int read_text(struct names *names, const char *text, size_t *line)
{
	char path[] = "/tmp/test_names.XXXXXX";
	int fd = mkstemp(path), r;

	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), strlen(text));
	close(fd);
	r = names_read_file(names, path, 0, line);
	unlink(path);
	return r;
}

static void a_line_is_an_id_and_a_name(void **state _unused_)
{
	_cleanup_(names_freep)
	struct names *n = calloc(1, sizeof(*n));
	struct vsr_vm_id id;
	size_t line;

	assert_int_equal(read_text(n, "# VMs\n\n 42  web 1 \t\n3:7\tdb # the old one\n", &line), 0);
	assert_string_equal(names_find(n, vm42), "web 1");
	assert_string_equal(names_find(n, vm7), "db");
	assert_null(names_find(n, (struct vsr_vm_id){ 0, 7 }));
	assert_int_equal(names_lookup(n, "db", &id), 0);
	assert_int_equal(id.ns, 3);
	assert_int_equal(id.cid, 7);
	assert_int_equal(names_lookup(n, "web", &id), -ENOENT);
	assert_int_equal(names_read_file(n, "/nonexistent", 0, &line), -ENOENT);
}

static void a_bad_line_is_named(void **state _unused_)
{
	static const char *const bad[] = { "x web",	     "42",
					   "4294967296 web", "-1 web",
					   "1:2:3 web",	     ":42 web",
					   "1: web",	     "00000000042 web" };

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		_cleanup_(names_freep)
		struct names *n = calloc(1, sizeof(*n));
		char text[64];
		size_t line = 0;

		snprintf(text, sizeof(text), "42 good\n%s\n", bad[i]);
		assert_int_equal(read_text(n, text, &line), -EINVAL);
		assert_int_equal(line, 2);
	}
}

static void a_name_is_fit_for_a_terminal(void **state _unused_)
{
	_cleanup_(names_freep)
	struct names *n = calloc(1, sizeof(*n));
	size_t line;

	assert_int_equal(read_text(n, "42 a\033[2Jb\n", &line), 0);
	assert_string_equal(names_find(n, vm42), "a?[2Jb");
}

static void two_vms_of_one_name_are_ambiguous(void **state _unused_)
{
	_cleanup_(names_freep)
	struct names *n = calloc(1, sizeof(*n));
	struct vsr_vm_id id;
	size_t line;

	assert_int_equal(read_text(n, "42 web\n43 web\n", &line), 0);
	assert_int_equal(names_lookup(n, "web", &id), -ENOTUNIQ);
}

#define ARGS(text) text, sizeof(text) - 1

static void qemu_says_cid_and_name(void **state _unused_)
{
	static const struct {
		const char *args;
		size_t len;
		const char *name; /* NULL: none */
	} cases[] = {
		{ ARGS("qemu\0-name\0web-1\0-device\0vhost-vsock-pci,guest-cid=42\0"), "web-1" },
		{ ARGS("qemu\0-device\0vhost-vsock-pci,id=v,guest-cid=42,disable-legacy=on\0-name\0"
		       "guest=web-1,debug-threads=on\0"),
		  "web-1" },
		/* As libvirt writes it. */
		{ ARGS("qemu\0-name\0guest=a,,b,process=x\0-device\0{\"driver\":\"vhost-vsock-pci\","
		       "\"guest-cid\":42,\"vhostfd\":\"28\"}\0"),
		  "a,b" },
		{ ARGS("qemu\0-device\0vhost-vsock-pci,guest-cid=42\0"), NULL },
		{ ARGS("qemu\0-name\0web-1\0-device\0e1000\0"), NULL },
		{ ARGS("vi\0guest-cid=42\0-name\0x\0"), NULL },
		{ ARGS("qemu\0-name\0web\0-device\0x,guest-cid=99999999999\0"), NULL },
		{ ARGS("qemu\0-name"), NULL },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		_cleanup_(names_freep)
		struct names *n = calloc(1, sizeof(*n));
		const char *name;

		assert_int_equal(names_add_command_line(n, cases[i].args, cases[i].len, 0),
				 cases[i].name != NULL);
		name = names_find(n, vm42);
		if (cases[i].name)
			assert_string_equal(name, cases[i].name);
		else
			assert_null(name);
	}
}

static void the_file_wins_over_qemu(void **state _unused_)
{
	_cleanup_(names_freep)
	struct names *n = calloc(1, sizeof(*n));
	size_t line;

	assert_int_equal(read_text(n, "42 mine\n", &line), 0);
	assert_int_equal(
		names_add_command_line(
			n, ARGS("qemu\0-name\0web-1\0-device\0vhost-vsock-pci,guest-cid=42\0"), 0),
		0);
	assert_string_equal(names_find(n, vm42), "mine");
}

static void processes_are_scanned(void **state _unused_)
{
	_cleanup_(names_freep)
	struct names *n = calloc(1, sizeof(*n));
	static const char args[] = "qemu\0-name\0web-1\0-device\0vhost-vsock-pci,guest-cid=42";
	char dir[] = "/tmp/test_names.XXXXXX", path[64], netns[64];
	struct settings_listener item = { .netns = netns, .ns = 7 };
	const struct settings_listeners none = {}, inside = { .n = 1, .item = &item };
	int fd;

	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/123", dir);
	assert_int_equal(mkdir(path, 0700), 0);
	snprintf(path, sizeof(path), "%s/self", dir); /* no process */
	assert_int_equal(mkdir(path, 0700), 0);
	snprintf(path, sizeof(path), "%s/123/cmdline", dir);
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	assert_int_equal(write(fd, args, sizeof(args)), sizeof(args));
	close(fd);
	names_scan_processes(n, dir, 0, &none);
	assert_int_equal(n->n, 1);
	assert_string_equal(names_find(n, vm42), "web-1");
	names_scan_processes(n, "/nonexistent", 0, &none);

	/* Of the network namespace that a listener is in. */
	snprintf(netns, sizeof(netns), "%s/123/ns", dir);
	assert_int_equal(mkdir(netns, 0700), 0);
	snprintf(netns, sizeof(netns), "%s/123/ns/net", dir);
	assert_int_equal(symlink("../cmdline", netns), 0);
	names_scan_processes(n, dir, 0, &inside);
	assert_string_equal(names_find(n, (struct vsr_vm_id){ .ns = 7, .cid = 42 }), "web-1");
	unlink(netns);
	snprintf(netns, sizeof(netns), "%s/123/ns", dir);
	rmdir(netns);
	unlink(path);
	snprintf(path, sizeof(path), "%s/123", dir);
	rmdir(path);
	snprintf(path, sizeof(path), "%s/self", dir);
	rmdir(path);
	assert_int_equal(rmdir(dir), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_line_is_an_id_and_a_name),
		cmocka_unit_test(a_bad_line_is_named),
		cmocka_unit_test(a_name_is_fit_for_a_terminal),
		cmocka_unit_test(two_vms_of_one_name_are_ambiguous),
		cmocka_unit_test(qemu_says_cid_and_name),
		cmocka_unit_test(the_file_wins_over_qemu),
		cmocka_unit_test(processes_are_scanned),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
