/* SPDX-License-Identifier: Apache-2.0 */
#include "upstream_file.h"

#include "clock.h"
#include "log.h"

struct upstream_file {
	struct upstream upstream;
	struct disk *disk;
	int dir_fd;
	bool failing; /* said so already */
};

struct file_send {
	struct disk_job job;
	struct upstream_send *send;
	struct upstream_file *upstream;
	int dir_fd;
	int result;
};

static void write_report(struct disk_job *job)
{
	struct file_send *f = container_of(job, struct file_send, job);
	const struct upstream_send *s = f->send;
	char name[32], tmp[40];

	snprintf(name, sizeof(name), "%u-%u.pb", s->vm.ns, s->vm.cid);
	snprintf(tmp, sizeof(tmp), ".%s.tmp", name);
	f->result = disk_write_content(f->dir_fd, tmp, name, NULL, s->payload);
}

/* A full disk fails every report: one line when it begins, one when it ends. */
static void tell(struct upstream_file *uf, const struct upstream_send *s, int r)
{
	if (r == -EBADMSG) {
		upstream_log_damaged(s);
		return;
	}
	if (r < 0 && !uf->failing)
		log_write_about(LOG_ERR,
				&(struct log_about){ .vm = &s->vm,
						     .reason = "write",
						     .generation = s->generation },
				"cannot write the report of VM %u:%u; will be tried again: %s",
				s->vm.ns, s->vm.cid, strerror(-r));
	else if (r == 0 && uf->failing)
		log_notice("reports are written again");
	uf->failing = r < 0;
}

static void report_written(struct disk_job *job)
{
	struct file_send *f = container_of(job, struct file_send, job);
	struct upstream_send *s = f->send;
	int r = f->result;

	tell(f->upstream, s, r);
	free(f);
	s->done(s,
		r == 0		? SEND_ACKED
		: r == -EBADMSG ? SEND_DAMAGED
				: SEND_NOT_DELIVERED,
		clock_usec());
}

static int file_send(struct upstream *u, struct upstream_send *s)
{
	struct upstream_file *uf = container_of(u, struct upstream_file, upstream);
	_cleanup_free_ struct file_send *f = NULL;
	int r;

	f = calloc(1, sizeof(*f));
	if (!f)
		return -EBUSY;
	f->job.run = write_report;
	f->job.done = report_written;
	f->send = s;
	f->upstream = uf;
	f->dir_fd = uf->dir_fd;
	r = disk_submit(uf->disk, &f->job);
	if (r < 0)
		return r;
	TAKE_PTR(f);
	return 0;
}

static struct upstream *file_free(struct upstream *u)
{
	struct upstream_file *uf;

	if (!u)
		return NULL;
	uf = container_of(u, struct upstream_file, upstream);
	close(uf->dir_fd);
	free(uf);
	return NULL;
}

static const struct upstream_ops file_ops = {
	.name = "file",
	.send = file_send,
	.free = file_free,
};

int upstream_file_new(struct disk *disk, int dir_fd, struct upstream **ret)
{
	struct upstream_file *uf;

	uf = calloc(1, sizeof(*uf));
	if (!uf)
		return -ENOMEM;
	uf->upstream.ops = &file_ops;
	uf->upstream.ready = true;
	uf->disk = disk;
	uf->dir_fd = dir_fd;
	*ret = &uf->upstream;
	return 0;
}
