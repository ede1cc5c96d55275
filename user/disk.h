/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The disk worker: the one thread besides the event loop. It runs jobs that may block for as long
 * as the disk pleases, one after the other, and touches nothing but the job it was given. What a
 * job needs (buffers, directory) is immutable and referenced; its result is taken over by the
 * event loop when the worker's eventfd says so.
 */
#ifndef VSR_DISK_H
#define VSR_DISK_H

#include <sys/uio.h>

#include "buf.h"

struct disk;

/* A job, embedded in the owner's object. run() is called in the worker and must not touch what
 * the event loop owns; done() is called in the event loop, by disk_dispatch(). */
struct disk_job {
	void (*run)(struct disk_job *job);
	void (*done)(struct disk_job *job);
	struct disk_job *next; /* the worker's own */
};

/* At most queue_max jobs are queued or running; the thread starts with the first. Returns 0,
 * -ENOMEM or -errno of eventfd(). */
int disk_new(unsigned queue_max, struct disk **ret);

/* Waits up to grace usec for queued jobs, dispatches their done(), and frees. A worker that hangs
 * in the kernel cannot be ended: it is left behind with its job, which is leaked on purpose.
 * Returns NULL. */
struct disk *disk_free(struct disk *d, uint64_t grace);

/* Readable when disk_dispatch() has something to do. */
int disk_fd(const struct disk *d);

/* Queues a job. Returns 0, or -EBUSY when queue_max jobs are there already, or no thread can be
 * had. */
int disk_submit(struct disk *d, struct disk_job *job);

/* Calls done() of every finished job. Event loop only. */
void disk_dispatch(struct disk *d);

/* Jobs queued or running. */
unsigned disk_pending(struct disk *d);

/* How long the running job has been at it, in usec of CLOCK_BOOTTIME; 0 if none runs. A value
 * above DISK_DEADLINE means that the disk hangs. */
uint64_t disk_busy_for(struct disk *d);
#define DISK_DEADLINE (10 * USEC_PER_SEC)

/* Writes the parts, one behind the other, as name beneath dir_fd so that the file is there whole or
 * not at all, also after a power loss: a temporary name (tmp), fsync, rename, fsync of the
 * directory. Nothing is followed that is a link. Whole pages of memory that fall on whole pages of
 * the file go to the disk as they are, past the page cache, where the file system knows how
 * (O_DIRECT): a buffer's content costs half as much then (docs/design.md). Blocks: for jobs.
 * Returns 0 or -errno; on error the temporary file is removed. */
int disk_write_file(int dir_fd, const char *tmp, const char *name, const struct iovec *parts,
		    unsigned n_parts);

/* The same for a header (NULL: none) and a content behind it. A packed content (user/pack.h) is
 * unpacked a piece at a time. Returns also -ENOMEM; -EBADMSG: the content is damaged. */
int disk_write_content(int dir_fd, const char *tmp, const char *name, const struct iovec *header,
		       const struct buf *content);

#endif
