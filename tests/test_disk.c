/* SPDX-License-Identifier: Apache-2.0 */
/* The disk worker: jobs run one after the other in a thread of their own, and end on the loop. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "clock.h"
#include "disk.h"
#include "packed.h"

#define PATIENCE 20000 /* ms */

/* A job that waits for a gate, and notes when and where it ran. */
struct job {
	struct disk_job job;
	pthread_mutex_t *gate; /* NULL: runs through */
	pthread_t ran_in;
	unsigned order;	    /* of run() */
	unsigned done;	    /* calls of done() */
	struct disk *again; /* submitted once more by done() */
};

static unsigned runs;

static void job_run(struct disk_job *j)
{
	struct job *job = container_of(j, struct job, job);

	if (job->gate) {
		pthread_mutex_lock(job->gate);
		pthread_mutex_unlock(job->gate);
	}
	job->ran_in = pthread_self();
	__atomic_store_n(&job->order, __atomic_add_fetch(&runs, 1, __ATOMIC_RELAXED),
			 __ATOMIC_RELEASE);
}

static void job_done(struct disk_job *j)
{
	struct job *job = container_of(j, struct job, job);
	struct disk *again = TAKE_PTR(job->again);

	job->done++;
	if (again)
		assert_int_equal(disk_submit(again, j), 0);
}

static struct job new_job(pthread_mutex_t *gate)
{
	return (struct job){ .job = { .run = job_run, .done = job_done }, .gate = gate };
}

/* Dispatches until `n` calls of done() came for this job. */
static void wait_done(struct disk *d, const struct job *job, unsigned n)
{
	while (job->done < n) {
		struct pollfd p = { .fd = disk_fd(d), .events = POLLIN };

		assert_int_equal(poll(&p, 1, PATIENCE), 1);
		disk_dispatch(d);
	}
}

static void jobs_run_in_order_in_another_thread_and_end_here(void **state _unused_)
{
	struct job jobs[10];
	struct disk *d;

	runs = 0;
	assert_int_equal(disk_new(10, &d), 0);
	for (size_t i = 0; i < ARRAY_SIZE(jobs); i++) {
		jobs[i] = new_job(NULL);
		assert_int_equal(disk_submit(d, &jobs[i].job), 0);
		assert_int_equal(jobs[i].done, 0);
	}
	wait_done(d, &jobs[9], 1);
	for (size_t i = 0; i < ARRAY_SIZE(jobs); i++) {
		assert_int_equal(jobs[i].order, i + 1);
		assert_int_equal(jobs[i].done, 1);
		assert_false(pthread_equal(jobs[i].ran_in, pthread_self()));
	}
	assert_int_equal(disk_pending(d), 0);
	assert_int_equal(disk_busy_for(d), 0);
	assert_null(disk_free(d, USEC_PER_SEC));
}

static void the_queue_is_bounded_running_job_and_finished_ones_included(void **state _unused_)
{
	pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
	struct job jobs[3];
	struct disk *d;

	assert_int_equal(disk_new(2, &d), 0);
	pthread_mutex_lock(&gate);
	for (size_t i = 0; i < ARRAY_SIZE(jobs); i++)
		jobs[i] = new_job(&gate);
	assert_int_equal(disk_submit(d, &jobs[0].job), 0);
	assert_int_equal(disk_submit(d, &jobs[1].job), 0);
	assert_int_equal(disk_submit(d, &jobs[2].job), -EBUSY);
	assert_int_equal(disk_pending(d), 2);
	pthread_mutex_unlock(&gate);
	/* Both have run, and neither was told. */
	while (__atomic_load_n(&jobs[1].order, __ATOMIC_ACQUIRE) == 0)
		usleep(1000);
	assert_int_equal(disk_pending(d), 2);
	wait_done(d, &jobs[1], 1);
	assert_int_equal(disk_submit(d, &jobs[2].job), 0);
	wait_done(d, &jobs[2], 1);
	assert_null(disk_free(d, USEC_PER_SEC));
}

static void done_may_submit_the_job_again(void **state _unused_)
{
	struct job job = new_job(NULL);
	struct disk *d;

	assert_int_equal(disk_new(1, &d), 0);
	job.again = d;
	assert_int_equal(disk_submit(d, &job.job), 0);
	wait_done(d, &job, 2);
	assert_null(disk_free(d, USEC_PER_SEC));
}

static void a_job_that_hangs_can_be_told(void **state _unused_)
{
	pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
	struct job job = new_job(&gate);
	uint64_t start = clock_usec(), first;
	struct disk *d;

	assert_int_equal(disk_new(1, &d), 0);
	assert_int_equal(disk_busy_for(d), 0);
	pthread_mutex_lock(&gate);
	assert_int_equal(disk_submit(d, &job.job), 0);
	while ((first = disk_busy_for(d)) == 0)
		usleep(1000);
	usleep(20000);
	assert_true(disk_busy_for(d) > first);
	assert_true(disk_busy_for(d) <= clock_usec() - start);
	pthread_mutex_unlock(&gate);
	wait_done(d, &job, 1);
	assert_int_equal(disk_busy_for(d), 0);
	assert_null(disk_free(d, USEC_PER_SEC));
}

static void free_finishes_what_is_queued(void **state _unused_)
{
	struct job jobs[5];
	struct disk *d;

	assert_int_equal(disk_new(5, &d), 0);
	for (size_t i = 0; i < ARRAY_SIZE(jobs); i++) {
		jobs[i] = new_job(NULL);
		assert_int_equal(disk_submit(d, &jobs[i].job), 0);
	}
	assert_null(disk_free(d, 20 * USEC_PER_SEC));
	for (size_t i = 0; i < ARRAY_SIZE(jobs); i++)
		assert_int_equal(jobs[i].done, 1);
}

static struct disk *being_freed;
static int late_submit;

static void submit_late(struct disk_job *j)
{
	static struct job late;

	late = new_job(NULL);
	late_submit = disk_submit(being_freed, &late.job);
	job_done(j);
}

static void free_takes_no_new_jobs(void **state _unused_)
{
	struct job job = new_job(NULL);

	/* done() runs within disk_free(). */
	job.job.done = submit_late;
	assert_int_equal(disk_new(5, &being_freed), 0);
	assert_int_equal(disk_submit(being_freed, &job.job), 0);
	assert_null(disk_free(being_freed, 20 * USEC_PER_SEC));
	assert_int_equal(job.done, 1);
	assert_int_equal(late_submit, -EBUSY);
	assert_null(disk_free(NULL, 0));
}

static void free_without_a_job_starts_no_thread(void **state _unused_)
{
	struct disk *d;

	assert_int_equal(disk_new(5, &d), 0);
	assert_null(disk_free(d, 0));
}

/* Leaked on purpose, as disk_free() says; static, so that it is no leak to a sanitizer. */
static struct job hung;
static struct disk *left_behind;
static pthread_mutex_t hung_gate = PTHREAD_MUTEX_INITIALIZER;

static void free_leaves_a_worker_that_hangs_behind(void **state _unused_)
{
	uint64_t start = clock_usec();

	hung = new_job(&hung_gate);
	assert_int_equal(disk_new(5, &left_behind), 0);
	pthread_mutex_lock(&hung_gate);
	assert_int_equal(disk_submit(left_behind, &hung.job), 0);
	while (disk_busy_for(left_behind) == 0)
		usleep(1000);
	assert_null(disk_free(left_behind, 50 * USEC_PER_MSEC));
	assert_true(clock_usec() - start >= 50 * USEC_PER_MSEC);
	assert_int_equal(hung.done, 0);
	/* It goes on when the disk does, and meets nothing that is gone. */
	pthread_mutex_unlock(&hung_gate);
	while (disk_busy_for(left_behind) > 0)
		usleep(1000);
}

/* ---- files ---------------------------------------------------------------------------------------- */

struct folder {
	char path[64];
	int fd;
};

static int open_folder(void **state)
{
	struct folder *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	strcpy(f->path, "/tmp/test_disk.XXXXXX");
	assert_non_null(mkdtemp(f->path));
	f->fd = open(f->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_true(f->fd >= 0);
	*state = f;
	return 0;
}

static int close_folder(void **state)
{
	struct folder *f = *state;
	char command[100];

	close(f->fd);
	snprintf(command, sizeof(command), "rm -rf %s", f->path);
	assert_int_equal(system(command), 0);
	free(f);
	return 0;
}

static int write_text(const struct folder *f, const char *text)
{
	const struct iovec part = { .iov_base = (void *)text, .iov_len = strlen(text) };

	return disk_write_file(f->fd, "tmp", "file", &part, 1);
}

static void assert_text(const struct folder *f, const char *name, const char *text)
{
	_cleanup_close_ int fd = openat(f->fd, name, O_RDONLY | O_CLOEXEC);
	char got[100] = "";

	assert_true(fd >= 0);
	assert_int_equal(read(fd, got, sizeof(got) - 1), strlen(text));
	assert_string_equal(got, text);
}

static void a_file_is_replaced_whole(void **state)
{
	struct folder *f = *state;
	struct stat st;

	assert_int_equal(write_text(f, "first"), 0);
	assert_text(f, "file", "first");
	assert_int_equal(write_text(f, "a second, longer one"), 0);
	assert_text(f, "file", "a second, longer one");
	assert_int_equal(write_text(f, ""), 0);
	assert_text(f, "file", "");
	assert_int_equal(fstatat(f->fd, "file", &st, 0), 0);
	assert_int_equal(st.st_mode & 0777 & ~0640, 0);
	assert_int_equal(faccessat(f->fd, "tmp", F_OK, 0), -1);
}

static void what_a_crash_left_is_in_nobodys_way(void **state)
{
	struct folder *f = *state;
	int fd = openat(f->fd, "tmp", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

	assert_int_equal(write(fd, "half", 4), 4);
	close(fd);
	assert_int_equal(write_text(f, "whole"), 0);
	assert_text(f, "file", "whole");
}

static void links_are_replaced_and_not_followed(void **state)
{
	struct folder *f = *state;
	struct stat st;
	int fd = openat(f->fd, "victim", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

	assert_int_equal(write(fd, "safe", 4), 4);
	close(fd);
	assert_int_equal(symlinkat("victim", f->fd, "tmp"), 0);
	assert_int_equal(symlinkat("victim", f->fd, "file"), 0);
	assert_int_equal(write_text(f, "new"), 0);
	assert_text(f, "victim", "safe");
	assert_text(f, "file", "new");
	assert_int_equal(fstatat(f->fd, "file", &st, AT_SYMLINK_NOFOLLOW), 0);
	assert_true(S_ISREG(st.st_mode));
}

static void a_write_that_fails_leaves_the_old_file_and_no_other(void **state)
{
	struct folder *f = *state;

	assert_int_equal(write_text(f, "old"), 0);
	assert_int_equal(unlinkat(f->fd, "file", 0), 0);
	assert_int_equal(mkdirat(f->fd, "file", 0700), 0);
	assert_int_equal(write_text(f, "new"), -EISDIR);
	assert_int_equal(faccessat(f->fd, "tmp", F_OK, 0), -1);
	assert_int_equal(unlinkat(f->fd, "file", AT_REMOVEDIR), 0);
	assert_int_equal(mkdirat(f->fd, "tmp", 0700), 0);
	assert_true(write_text(f, "new") < 0);
	assert_int_equal(unlinkat(f->fd, "tmp", AT_REMOVEDIR), 0);
	assert_int_equal(write_text(f, "new"), 0);
	assert_text(f, "file", "new");
}

static void assert_bytes(const struct folder *f, const uint8_t *head, size_t n_head,
			 const uint8_t *body, size_t n_body)
{
	_cleanup_close_ int fd = openat(f->fd, "file", O_RDONLY | O_CLOEXEC);
	static uint8_t got[MIB];

	assert_true(fd >= 0);
	assert_int_equal(read(fd, got, sizeof(got)), n_head + n_body);
	assert_memory_equal(got, head, n_head);
	assert_memory_equal(got + n_head, body, n_body);
}

/* Whole pages go past the page cache, the rest does not: no length, no place in memory and no place
 * in the file may make a difference. */
static void direct_or_not_the_bytes_are_the_same(void **state)
{
	static const size_t lengths[] = {
		0,
		1,
		4095,
		4096,
		4097,
		65535,
		64 * KIB,
		64 * KIB + 1,
		68 * KIB - 1,
		68 * KIB,
		300 * KIB + 77,
	};
	static const size_t heads[] = { 0, 16, 4096 };
	static _Alignas(4096) uint8_t memory[512 * KIB];
	struct folder *f = *state;

	for (size_t i = 0; i < sizeof(memory); i++)
		memory[i] = (uint8_t)(i * 2654435761U >> 13);
	for (size_t h = 0; h < ARRAY_SIZE(heads); h++)
		for (size_t off = 0; off <= 16; off += 16)
			for (size_t i = 0; i < ARRAY_SIZE(lengths); i++) {
				uint8_t *body = memory + 8192 + off;
				struct iovec parts[] = { { memory, heads[h] },
							 { body, lengths[i] } };

				assert_int_equal(disk_write_file(f->fd, "tmp", "file", parts, 2),
						 0);
				assert_bytes(f, memory, heads[h], body, lengths[i]);
			}
}

static void a_content_is_written_whether_it_is_packed_or_not(void **state)
{
	static const size_t lengths[] = { 5000, 256 * KIB, 700001 };
	struct iovec header = { .iov_base = (void *)"sixteen bytes...", .iov_len = 16 };
	struct folder *f = *state;

	for (size_t i = 0; i < ARRAY_SIZE(lengths); i++)
		for (int with = 0; with < 2; with++) {
			struct buf *b = packable(lengths[i]), *packed = pack_in_steps(b, MIB);
			const struct iovec *h = with ? &header : NULL;

			assert_non_null(packed);
			assert_int_equal(disk_write_content(f->fd, "tmp", "file", h, b), 0);
			assert_bytes(f, header.iov_base, with * 16, buf_data(b), lengths[i]);
			assert_int_equal(disk_write_content(f->fd, "tmp", "file", h, packed), 0);
			assert_bytes(f, header.iov_base, with * 16, buf_data(b), lengths[i]);
			buf_unref(b);
			buf_unref(packed);
		}
}

static void a_damaged_content_leaves_the_old_file_and_no_other(void **state)
{
	struct buf *b = packable(700001), *packed = pack_in_steps(b, MIB), *bad;
	struct folder *f = *state;
	size_t len;

	buf_stored(packed, &len);
	/* Of the checksum, which is read last; behind it is XXH64 alone. */
	bad = with_damage(packed, len - sizeof(uint64_t) - 1);
	assert_int_equal(write_text(f, "old"), 0);
	assert_int_equal(disk_write_content(f->fd, "tmp", "file", NULL, bad), -EBADMSG);
	assert_text(f, "file", "old");
	assert_int_equal(faccessat(f->fd, "tmp", F_OK, 0), -1);
	buf_unref(b);
	buf_unref(packed);
	buf_unref(bad);
}

static void a_full_disk_leaves_the_old_file_and_no_other(void **state)
{
	struct folder *f = *state, on = { .fd = -1 };
	static const uint8_t large[256 * 1024];
	const struct iovec part = { .iov_base = (void *)large, .iov_len = sizeof(large) };

	if (mount("none", f->path, "tmpfs", 0, "size=64k") < 0)
		skip(); /* needs root */
	on.fd = open(f->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_true(on.fd >= 0);
	assert_int_equal(write_text(&on, "old"), 0);
	assert_int_equal(disk_write_file(on.fd, "tmp", "file", &part, 1), -ENOSPC);
	assert_text(&on, "file", "old");
	assert_int_equal(faccessat(on.fd, "tmp", F_OK, 0), -1);
	assert_int_equal(mount("none", f->path, "tmpfs", MS_REMOUNT | MS_RDONLY, NULL), 0);
	assert_int_equal(write_text(&on, "new"), -EROFS);
	assert_text(&on, "file", "old");
	close(on.fd);
	assert_int_equal(umount(f->path), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(jobs_run_in_order_in_another_thread_and_end_here),
		cmocka_unit_test(the_queue_is_bounded_running_job_and_finished_ones_included),
		cmocka_unit_test(done_may_submit_the_job_again),
		cmocka_unit_test(a_job_that_hangs_can_be_told),
		cmocka_unit_test(free_finishes_what_is_queued),
		cmocka_unit_test(free_takes_no_new_jobs),
		cmocka_unit_test(free_without_a_job_starts_no_thread),
		cmocka_unit_test(free_leaves_a_worker_that_hangs_behind),
#define FILE_TEST(name) cmocka_unit_test_setup_teardown(name, open_folder, close_folder)
		FILE_TEST(a_file_is_replaced_whole),
		FILE_TEST(what_a_crash_left_is_in_nobodys_way),
		FILE_TEST(links_are_replaced_and_not_followed),
		FILE_TEST(a_write_that_fails_leaves_the_old_file_and_no_other),
		FILE_TEST(direct_or_not_the_bytes_are_the_same),
		FILE_TEST(a_content_is_written_whether_it_is_packed_or_not),
		FILE_TEST(a_damaged_content_leaves_the_old_file_and_no_other),
		FILE_TEST(a_full_disk_leaves_the_old_file_and_no_other),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
