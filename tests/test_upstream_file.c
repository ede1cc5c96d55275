/* SPDX-License-Identifier: Apache-2.0 */
/* The `file` upstream (SPEC 8): each VM's newest report, replaced atomically; that is its ACK. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>

#include "clock.h"
#include "upstream_file.h"

#define PATIENCE 20000 /* ms */

struct world {
	char path[64];
	char log_path[80];
	int stderr_was;
	struct disk *disk;
	struct upstream *up;
};

struct sent {
	struct upstream_send send;
	unsigned done;
	enum send_result result;
	uint64_t at;
};

static void on_done(struct upstream_send *s, enum send_result result, uint64_t now)
{
	struct sent *sent = container_of(s, struct sent, send);

	sent->done++;
	sent->result = result;
	sent->at = now;
}

static int world_open(void **state)
{
	struct world *w = calloc(1, sizeof(*w));
	int fd;

	assert_non_null(w);
	strcpy(w->path, "/tmp/test_upstream.XXXXXX");
	assert_non_null(mkdtemp(w->path));
	/* The log, to be read. */
	snprintf(w->log_path, sizeof(w->log_path), "%s.log", w->path);
	fd = open(w->log_path, O_RDWR | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	w->stderr_was = dup(STDERR_FILENO);
	assert_true(dup2(fd, STDERR_FILENO) >= 0);
	close(fd);

	fd = open(w->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(disk_new(4, &w->disk), 0);
	assert_int_equal(upstream_file_new(w->disk, fd, &w->up), 0);
	assert_string_equal(w->up->ops->name, "file");
	assert_false(w->up->acks_apart);
	*state = w;
	return 0;
}

static int world_close(void **state)
{
	struct world *w = *state;
	char command[200];

	assert_null(disk_free(w->disk, 20 * USEC_PER_SEC));
	assert_null(w->up->ops->free(w->up));
	assert_true(dup2(w->stderr_was, STDERR_FILENO) >= 0);
	close(w->stderr_was);
	snprintf(command, sizeof(command), "rm -rf %s %s", w->path, w->log_path);
	assert_int_equal(system(command), 0);
	free(w);
	return 0;
}

/* How often the log says so. */
static unsigned logged(const struct world *w, const char *what)
{
	_cleanup_fclose_ FILE *f = fopen(w->log_path, "r");
	char line[1000];
	unsigned n = 0;

	assert_non_null(f);
	while (fgets(line, sizeof(line), f))
		n += strstr(line, what) != NULL;
	return n;
}

static struct buf *content(const char *text)
{
	struct buf *b;

	assert_int_equal(buf_new(strlen(text) + 1, &b), 0);
	memcpy(buf_tail(b), text, strlen(text));
	buf_advance(b, strlen(text));
	buf_seal(b);
	return b;
}

static int start(struct world *w, struct sent *sent, uint32_t ns, uint32_t cid, struct buf *b)
{
	*sent = (struct sent){
		.send = { .vm = { .ns = ns, .cid = cid }, .payload = b, .done = on_done },
	};
	return w->up->ops->send(w->up, &sent->send);
}

static void wait_for(struct world *w, const struct sent *sent)
{
	while (!sent->done) {
		struct pollfd p = { .fd = disk_fd(w->disk), .events = POLLIN };

		assert_int_equal(poll(&p, 1, PATIENCE), 1);
		disk_dispatch(w->disk);
	}
	assert_int_equal(sent->done, 1);
}

static enum send_result send_text(struct world *w, uint32_t ns, uint32_t cid, const char *text)
{
	_cleanup_(buf_unrefp)
	struct buf *b = content(text);
	uint64_t before = clock_usec();
	struct sent sent;

	assert_int_equal(start(w, &sent, ns, cid, b), 0);
	assert_int_equal(sent.done, 0); /* never from within send() */
	wait_for(w, &sent);
	assert_true(sent.at >= before && sent.at <= clock_usec());
	return sent.result;
}

static void assert_stored(const struct world *w, const char *name, const char *text)
{
	char path[200], got[100] = "";
	int fd;

	snprintf(path, sizeof(path), "%s/%s", w->path, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(read(fd, got, sizeof(got) - 1), strlen(text));
	assert_string_equal(got, text);
	close(fd);
}

static void each_vms_newest_report_is_a_file_of_its_own(void **state)
{
	struct world *w = *state;

	assert_int_equal(send_text(w, 0, 42, "first"), SEND_ACKED);
	assert_int_equal(send_text(w, 7, 42, "other namespace"), SEND_ACKED);
	assert_int_equal(send_text(w, UINT32_MAX, UINT32_MAX - 1, "largest"), SEND_ACKED);
	assert_stored(w, "0-42.pb", "first");
	assert_stored(w, "7-42.pb", "other namespace");
	assert_stored(w, "4294967295-4294967294.pb", "largest");
	assert_int_equal(send_text(w, 0, 42, "2nd"), SEND_ACKED);
	assert_stored(w, "0-42.pb", "2nd");
	assert_int_equal(logged(w, ""), 0);
}

static void a_failure_may_be_tried_again_and_is_said_once(void **state)
{
	struct world *w = *state;
	char path[200];

	snprintf(path, sizeof(path), "%s/0-42.pb", w->path);
	assert_int_equal(mkdir(path, 0700), 0);
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(send_text(w, 0, 42, "x"), SEND_NOT_DELIVERED);
	assert_int_equal(logged(w, "cannot write the report of VM 0:42"), 1);
	assert_int_equal(rmdir(path), 0);
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(send_text(w, 0, 42, "x"), SEND_ACKED);
	assert_int_equal(logged(w, "reports are written again"), 1);
	assert_int_equal(logged(w, ""), 2);
	/* And anew the next time. */
	assert_int_equal(unlink(path), 0);
	assert_int_equal(mkdir(path, 0700), 0);
	assert_int_equal(send_text(w, 0, 42, "x"), SEND_NOT_DELIVERED);
	assert_int_equal(logged(w, "cannot write the report of VM 0:42"), 2);
}

/* A disk that is slow, as it seems to the worker. */
struct slow {
	struct disk_job job;
	int fd;
	bool done;
};

static void slow_run(struct disk_job *job)
{
	struct slow *s = container_of(job, struct slow, job);
	char byte;

	assert_int_equal(read(s->fd, &byte, 1), 1);
}

static void slow_done(struct disk_job *job)
{
	container_of(job, struct slow, job)->done = true;
}

static void a_full_queue_is_busy_and_calls_nobody(void **state)
{
	struct world *w = *state;
	_cleanup_(buf_unrefp)
	struct buf *b = content("x");
	struct sent sent[4];
	struct slow slow = { .job = { .run = slow_run, .done = slow_done } };
	int fds[2];

	assert_int_equal(pipe(fds), 0);
	slow.fd = fds[0];
	assert_int_equal(disk_submit(w->disk, &slow.job), 0);
	for (uint32_t i = 0; i < 3; i++)
		assert_int_equal(start(w, &sent[i], 0, 10 + i, b), 0);
	assert_int_equal(start(w, &sent[3], 0, 20, b), -EBUSY);
	assert_int_equal(write(fds[1], "", 1), 1);
	for (size_t i = 0; i < 3; i++) {
		wait_for(w, &sent[i]);
		assert_int_equal(sent[i].result, SEND_ACKED);
	}
	assert_true(slow.done);
	assert_int_equal(sent[3].done, 0);
	close(fds[0]);
	close(fds[1]);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, world_open, world_close)
	const struct CMUnitTest tests[] = {
		TEST(each_vms_newest_report_is_a_file_of_its_own),
		TEST(a_failure_may_be_tried_again_and_is_said_once),
		TEST(a_full_queue_is_busy_and_calls_nobody),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
