/* SPDX-License-Identifier: Apache-2.0 */
#include "disk.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/stat.h>

#include "clock.h"
#include "pack.h"

/* What every file system with O_DIRECT takes: the size of a page, and of a block at most. */
#define DIRECT_ALIGN 4096
/* Less is not worth the wait for the disk before the fsync. */
#define DIRECT_MIN (64 * KIB)
/* Whole pages, so that pieces in the middle can go past the page cache too. */
#define UNPACK_PIECE (256 * KIB)

struct disk_queue {
	struct disk_job *first, **last;
};

struct disk {
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t wake; /* for the worker: a job, or stop */
	pthread_cond_t idle; /* for disk_free(): a job has ended */
	struct disk_queue queued, finished;
	unsigned pending, queue_max;
	bool started, stop;
	uint64_t running_since; /* 0: no job runs */
	int event_fd;
};

static void queue_init(struct disk_queue *q)
{
	q->first = NULL;
	q->last = &q->first;
}

static void queue_push(struct disk_queue *q, struct disk_job *job)
{
	job->next = NULL;
	*q->last = job;
	q->last = &job->next;
}

static struct disk_job *queue_pop(struct disk_queue *q)
{
	struct disk_job *job = q->first;

	if (!job)
		return NULL;
	q->first = job->next;
	if (!q->first)
		q->last = &q->first;
	return job;
}

static void *worker(void *arg)
{
	struct disk *d = arg;

	pthread_mutex_lock(&d->lock);
	for (;;) {
		struct disk_job *job = queue_pop(&d->queued);

		if (!job) {
			if (d->stop)
				break;
			pthread_cond_wait(&d->wake, &d->lock);
			continue;
		}
		d->running_since = clock_usec();
		pthread_mutex_unlock(&d->lock);
		job->run(job);
		pthread_mutex_lock(&d->lock);
		d->running_since = 0;
		queue_push(&d->finished, job);
		eventfd_write(d->event_fd, 1);
		pthread_cond_broadcast(&d->idle);
	}
	pthread_mutex_unlock(&d->lock);
	return NULL;
}

int disk_new(unsigned queue_max, struct disk **ret)
{
	pthread_condattr_t attr;
	struct disk *d;

	d = calloc(1, sizeof(*d));
	if (!d)
		return -ENOMEM;
	d->queue_max = queue_max;
	queue_init(&d->queued);
	queue_init(&d->finished);
	d->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (d->event_fd < 0) {
		int r = -errno;

		free(d);
		return r;
	}
	pthread_mutex_init(&d->lock, NULL);
	pthread_cond_init(&d->wake, NULL);
	/* Nobody sets this clock, so the grace of disk_free() is what it says. */
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&d->idle, &attr);
	pthread_condattr_destroy(&attr);
	*ret = d;
	return 0;
}

/* With the first job, and so after the drop of privileges, which belong to threads. */
static int start_worker(struct disk *d)
{
	sigset_t all, old;

	if (d->started)
		return 0;
	/* Signals belong to the event loop. */
	sigfillset(&all);
	sigdelset(&all, SIGSYS); /* the sandbox's: says which call was one too many */
	pthread_sigmask(SIG_SETMASK, &all, &old);
	d->started = pthread_create(&d->thread, NULL, worker, d) == 0;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return d->started ? 0 : -EBUSY;
}

struct disk *disk_free(struct disk *d, uint64_t grace)
{
	struct timespec until;
	uint64_t nsec;
	bool hangs = false;

	if (!d)
		return NULL;
	clock_gettime(CLOCK_MONOTONIC, &until);
	nsec = until.tv_nsec + grace % USEC_PER_SEC * NSEC_PER_USEC;
	until.tv_sec += grace / USEC_PER_SEC + nsec / 1000000000;
	until.tv_nsec = nsec % 1000000000;

	pthread_mutex_lock(&d->lock);
	d->stop = true;
	pthread_cond_signal(&d->wake);
	while (!hangs && (d->queued.first || d->running_since))
		hangs = pthread_cond_timedwait(&d->idle, &d->lock, &until) == ETIMEDOUT;
	pthread_mutex_unlock(&d->lock);
	if (hangs) {
		pthread_detach(d->thread);
		return NULL;
	}
	if (d->started)
		pthread_join(d->thread, NULL);
	disk_dispatch(d);
	close(d->event_fd);
	pthread_mutex_destroy(&d->lock);
	pthread_cond_destroy(&d->wake);
	pthread_cond_destroy(&d->idle);
	free(d);
	return NULL;
}

int disk_fd(const struct disk *d)
{
	return d->event_fd;
}

int disk_submit(struct disk *d, struct disk_job *job)
{
	int r;

	r = start_worker(d);
	if (r < 0)
		return r;
	pthread_mutex_lock(&d->lock);
	if (d->pending >= d->queue_max || d->stop) {
		r = -EBUSY;
	} else {
		d->pending++;
		queue_push(&d->queued, job);
		pthread_cond_signal(&d->wake);
	}
	pthread_mutex_unlock(&d->lock);
	return r;
}

void disk_dispatch(struct disk *d)
{
	struct disk_queue done;
	struct disk_job *job;
	eventfd_t count;

	eventfd_read(d->event_fd, &count);
	pthread_mutex_lock(&d->lock);
	done = d->finished;
	if (!done.first)
		done.last = &done.first;
	queue_init(&d->finished);
	for (job = done.first; job; job = job->next)
		d->pending--;
	pthread_mutex_unlock(&d->lock);
	/* done() may free the job or submit it again. */
	while ((job = queue_pop(&done)))
		job->done(job);
}

unsigned disk_pending(struct disk *d)
{
	unsigned n;

	pthread_mutex_lock(&d->lock);
	n = d->pending;
	pthread_mutex_unlock(&d->lock);
	return n;
}

uint64_t disk_busy_for(struct disk *d)
{
	uint64_t since;

	pthread_mutex_lock(&d->lock);
	since = d->running_since;
	pthread_mutex_unlock(&d->lock);
	return since ? usec_sub(clock_usec(), since) : 0;
}

/* Writes all of it, or returns -errno with *pos moved behind what was written. */
static int write_all(int fd, const uint8_t *data, size_t len, off_t *pos)
{
	while (len > 0) {
		ssize_t n = pwrite(fd, data, len, *pos);

		if (n < 0) {
			if (errno == EINTR)
				continue;
			return -errno;
		}
		data += n;
		len -= (size_t)n;
		*pos += n;
	}
	return 0;
}

static int set_direct(int fd, bool on)
{
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0 || fcntl(fd, F_SETFL, on ? flags | O_DIRECT : flags & ~O_DIRECT) < 0)
		return -errno;
	return 0;
}

/* How much of the part may go past the page cache. */
static size_t direct_length(const struct iovec *part, off_t pos)
{
	size_t len = part->iov_len & ~(size_t)(DIRECT_ALIGN - 1);

	if (pos % DIRECT_ALIGN != 0 || (uintptr_t)part->iov_base % DIRECT_ALIGN != 0)
		return 0;
	return len >= DIRECT_MIN ? len : 0;
}

static int write_part(int fd, const struct iovec *part, off_t *pos)
{
	size_t direct = direct_length(part, *pos);
	off_t begin = *pos;
	size_t done;
	int r;

	if (direct > 0 && set_direct(fd, true) == 0) {
		r = write_all(fd, part->iov_base, direct, pos);
		if (set_direct(fd, false) < 0)
			return -EIO;
		/* EINVAL: a file system with other ideas of alignment. What is left goes the
		 * usual way. */
		if (r < 0 && r != -EINVAL)
			return r;
	}
	done = (size_t)(*pos - begin);
	return write_all(fd, (const uint8_t *)part->iov_base + done, part->iov_len - done, pos);
}

/* Unpacks and writes a piece at a time. */
static int write_packed(int fd, const struct buf *content, off_t *pos)
{
	_cleanup_(reader_freep)
	struct reader *reader = NULL;
	_cleanup_free_ uint8_t *piece = aligned_alloc(DIRECT_ALIGN, UNPACK_PIECE);
	size_t left = buf_len(content);
	int r;

	r = piece ? reader_new(content, &reader) : -ENOMEM;
	while (r == 0 && left > 0) {
		struct iovec part = { piece, MIN(left, (size_t)UNPACK_PIECE) };

		r = reader_read(reader, piece, part.iov_len);
		if (r == 0)
			r = write_part(fd, &part, pos);
		left -= part.iov_len;
	}
	return r;
}

/* What a file is to hold: parts, and then a content, if there is one. */
struct body {
	const struct iovec *parts;
	unsigned n_parts;
	const struct buf *content;
};

static int write_body(int fd, const struct body *body)
{
	off_t pos = 0;
	int r = 0;

	for (unsigned i = 0; r == 0 && i < body->n_parts; i++)
		r = write_part(fd, &body->parts[i], &pos);
	if (r < 0 || !body->content)
		return r;
	if (buf_packed(body->content))
		return write_packed(fd, body->content, &pos);
	return write_part(fd,
			  &(struct iovec){ .iov_base = (void *)buf_data(body->content),
					   .iov_len = buf_len(body->content) },
			  &pos);
}

static int replace_file(int dir_fd, const char *tmp, const char *name, const struct body *body)
{
	_cleanup_close_ int fd = -1;
	int r;

	/* What is left of a crash in mid-write has our name for it; O_EXCL never opens a link. */
	if (unlinkat(dir_fd, tmp, 0) < 0 && errno != ENOENT)
		return -errno;
	fd = openat(dir_fd, tmp, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0640);
	if (fd < 0)
		return -errno;
	r = write_body(fd, body);
	if (r == 0 && fsync(fd) < 0)
		r = -errno;
	if (r == 0 && renameat(dir_fd, tmp, dir_fd, name) < 0)
		r = -errno;
	if (r < 0) {
		unlinkat(dir_fd, tmp, 0);
		return r;
	}
	return fsync(dir_fd) < 0 ? -errno : 0;
}

int disk_write_file(int dir_fd, const char *tmp, const char *name, const struct iovec *parts,
		    unsigned n_parts)
{
	return replace_file(dir_fd, tmp, name, &(struct body){ parts, n_parts, NULL });
}

int disk_write_content(int dir_fd, const char *tmp, const char *name, const struct iovec *header,
		       const struct buf *content)
{
	return replace_file(dir_fd, tmp, name, &(struct body){ header, header != NULL, content });
}
