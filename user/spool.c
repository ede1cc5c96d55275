/* SPDX-License-Identifier: Apache-2.0 */
#include "spool.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <xxhash.h>

#include "clock.h"
#include "digest.h"
#include "list.h"
#include "log.h"
#include "metrics.h"
#include "spool_file.h"
#include "vmmap.h"

#define REMOVE_BATCH  64
#define SCAN_CHUNK    (256 * KIB)
#define PROBE_BYTES   4096
#define FULL_LOG_USEC (10 * USEC_PER_SEC)
#define PROBE_NAME    ".probe"

/* The worker uses the numbers; a directory that was opened again takes them over (dup3()). */
struct dirs {
	int state, spool, damaged; /* -1: not there */
};

/* The files of a VM, by generation, the oldest first. */
struct spool_vm {
	struct vmmap_node node;
	struct list files;
};

enum file_state {
	FILE_WRITING,
	FILE_KEPT,
	FILE_DEAD,     /* to be removed; in spool.dead */
	FILE_REMOVING, /* in the batch that the worker has */
};

struct spool_file {
	struct list of_vm;
	struct list dead;
	struct spool_vm *vm;
	uint64_t generation;
	uint64_t bytes;
	enum file_state state;
	bool dropped; /* while it is being written */
};

struct spool_job {
	struct disk_job job;
	struct spool *spool;
	const struct dirs *dirs;
	struct spool_file *file; /* write */
	struct store_write *write;
	struct store_read *read;
	struct buf *payload;
	struct spool_header header; /* what is written, or expected */
	int result;
	const char *wrong; /* damaged, in words */
	bool set_aside;
};

struct removal {
	struct disk_job job;
	struct spool *spool;
	bool under_way;
	size_t n;
	struct {
		struct vsr_vm_id vm;
		uint64_t generation;
		int result;
	} files[REMOVE_BATCH];
};

struct probe {
	struct disk_job job;
	struct spool *spool;
	bool under_way;
	uint64_t wanted; /* bytes */
	struct dirs found;
	bool lost; /* the directory had vanished */
	int result;
};

struct spool {
	struct store store;
	struct disk *disk;
	char *directory;
	uid_t uid;
	gid_t gid;
	bool give; /* what is made is given to them */
	struct dirs dirs;
	uint64_t seed;
	struct spool_limits limits;

	struct vmmap vms;
	struct list dead;
	size_t n_files;
	uint64_t bytes;
	unsigned writes, reads;
	struct removal removal;
	struct probe probe;

	bool full;	      /* said so, and nothing was removed since */
	uint64_t full_logged; /* 0: never */
	bool hangs;
	int error;	 /* errno of what failed; 0: none */
	uint64_t wanted; /* bytes that it failed with */
	uint64_t next_probe;
};

/* Wall time: the only clock that means something to the next process. */
static uint64_t wall_usec(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (uint64_t)ts.tv_sec * USEC_PER_SEC + (uint64_t)ts.tv_nsec / NSEC_PER_USEC;
}

const char *spool_state_name(enum spool_state state)
{
	static const char *const names[SPOOL_STATE_MAX] = {
		[SPOOL_OK] = "ok",
		[SPOOL_FULL] = "full",
		[SPOOL_FAILED] = "failed",
		[SPOOL_HANGS] = "hangs",
	};

	return names[state];
}

/* ---- what is on the disk --------------------------------------------------------------------------- */

static struct spool_vm *find_vm(const struct spool *s, struct vsr_vm_id id)
{
	return vmmap_entry(vmmap_find(&s->vms, id), struct spool_vm, node);
}

static struct spool_file *find_file(const struct spool *s, struct vsr_vm_id id, uint64_t generation)
{
	struct spool_vm *vm = find_vm(s, id);

	if (!vm)
		return NULL;
	list_for_each(l, &vm->files) {
		struct spool_file *f = container_of(l, struct spool_file, of_vm);

		if (f->generation == generation)
			return f;
	}
	return NULL;
}

/* The VM's files stay ordered: a generation that is written late (it was held in memory) goes
 * before newer ones. */
static void add_to_vm(struct spool_vm *vm, struct spool_file *f)
{
	struct list *after = vm->files.prev;

	while (after != &vm->files &&
	       container_of(after, struct spool_file, of_vm)->generation > f->generation)
		after = after->prev;
	list_add_after(after, &f->of_vm);
	f->vm = vm;
}

/* A file of this generation that is not known yet. */
static struct spool_file *add_file(struct spool *s, struct vsr_vm_id id, uint64_t generation,
				   uint64_t bytes)
{
	struct spool_file *f = calloc(1, sizeof(*f));
	struct spool_vm *vm = find_vm(s, id);

	if (f && !vm) {
		vm = calloc(1, sizeof(*vm));
		if (vm) {
			list_init(&vm->files);
			vmmap_add(&s->vms, &vm->node, id);
		}
	}
	if (!f || !vm) {
		free(f);
		return NULL;
	}
	list_init(&f->dead);
	f->generation = generation;
	f->bytes = bytes;
	add_to_vm(vm, f);
	s->n_files++;
	s->bytes += bytes;
	return f;
}

static struct spool_file *file_free(struct spool *s, struct spool_file *f)
{
	struct spool_vm *vm = f->vm;

	s->n_files--;
	s->bytes -= f->bytes;
	list_del(&f->of_vm);
	list_del(&f->dead);
	free(f);
	if (list_empty(&vm->files)) {
		vmmap_remove(&s->vms, &vm->node);
		free(vm);
	}
	return NULL;
}

static void bury(struct spool *s, struct spool_file *f)
{
	f->state = FILE_DEAD;
	list_move_last(&s->dead, &f->dead);
}

/* ---- a disk that takes nothing --------------------------------------------------------------------- */

static void update_ready(struct spool *s)
{
	s->store.ready = !s->error && !s->hangs;
}

/* wanted: bytes that did not get onto the disk. A directory that vanished can be opened again at
 * once if it is back; anything else takes its time. */
static void fail(struct spool *s, int error, uint64_t wanted, const char *what, uint64_t now)
{
	s->wanted = wanted;
	if (s->error)
		return;
	s->error = -error;
	s->next_probe = error == -ENOENT ? now : usec_add(now, SPOOL_PROBE_INTERVAL);
	update_ready(s);
	log_error_errno(error,
			"state_directory %s: cannot %s; until it takes writes again, reports that "
			"want an answer are answered busy",
			s->directory, what);
}

static void recover(struct spool *s)
{
	if (s->error)
		log_notice("state_directory %s: takes writes again", s->directory);
	s->error = 0;
	update_ready(s);
}

/* Makes and opens a directory of ours beneath another one, or at a path. */
static int open_dir(const struct spool *s, int at, const char *name, int *ret)
{
	_cleanup_close_ int fd = -1;
	struct stat st;
	int r;

	r = privilege_make_directory(at, name, at == AT_FDCWD ? 0750 : 0700,
				     s->give ? s->uid : (uid_t)-1, s->give ? s->gid : (gid_t)-1,
				     &fd);
	if (r < 0)
		return r;
	if (fstat(fd, &st) < 0)
		return -errno;
	if (st.st_uid != s->uid || (st.st_mode & 022))
		return -EPERM;
	*ret = TAKE_FD(fd);
	return 0;
}

static void dirs_close(struct dirs *d)
{
	d->state = safe_close(d->state);
	d->spool = safe_close(d->spool);
	d->damaged = safe_close(d->damaged);
}

static int dirs_open(const struct spool *s, struct dirs *ret)
{
	struct dirs d = { -1, -1, -1 };
	int r;

	r = open_dir(s, AT_FDCWD, s->directory, &d.state);
	if (r == 0)
		r = open_dir(s, d.state, "spool", &d.spool);
	if (r == 0)
		r = open_dir(s, d.state, "damaged", &d.damaged);
	if (r < 0) {
		dirs_close(&d);
		return r;
	}
	*ret = d;
	return 0;
}

/* The number that jobs have stays; what is behind it changes. */
static void take_over(int *number, int *found)
{
	if (*number < 0)
		*number = TAKE_FD(*found);
	else
		(void)dup3(*found, *number, O_CLOEXEC);
	*found = safe_close(*found);
}

static bool vanished(const struct dirs *d)
{
	struct stat st;

	return d->spool < 0 || (fstat(d->spool, &st) == 0 && st.st_nlink == 0);
}

static int probe_write(int fd, uint64_t wanted)
{
	static uint8_t bytes[PROBE_BYTES];
	const struct iovec part = { .iov_base = bytes, .iov_len = sizeof(bytes) };
	struct statvfs v;
	int r;

	/* A small file may fit where what failed does not. */
	if (fstatvfs(fd, &v) == 0 && (uint64_t)v.f_bavail * v.f_frsize < wanted + PROBE_BYTES)
		return -ENOSPC;
	r = disk_write_file(fd, PROBE_NAME ".tmp", PROBE_NAME, &part, 1);
	if (r == 0 && unlinkat(fd, PROBE_NAME, 0) < 0)
		r = -errno;
	return r;
}

static void probe_run(struct disk_job *job)
{
	struct probe *p = container_of(job, struct probe, job);
	const struct spool *s = p->spool;

	p->lost = vanished(&s->dirs);
	p->result = p->lost ? dirs_open(s, &p->found) : 0;
	if (p->result == 0)
		p->result = probe_write(p->lost ? p->found.spool : s->dirs.spool, p->wanted);
	if (p->result < 0)
		dirs_close(&p->found);
}

/* Nothing that was there is there any more; what is being written fails, or goes to the new one. */
static void forget_all(struct spool *s)
{
	struct vmmap_node *node, *next;

	for (node = vmmap_next(&s->vms, NULL); node; node = next) {
		struct spool_vm *vm = container_of(node, struct spool_vm, node);

		next = vmmap_next(&s->vms, node);
		list_for_each_safe(l, &vm->files) {
			struct spool_file *f = container_of(l, struct spool_file, of_vm);
			bool last = f->of_vm.next == &vm->files;

			if (f->state != FILE_WRITING)
				file_free(s, f);
			if (last)
				break; /* vm may be gone */
		}
	}
}

static void probe_done(struct disk_job *job)
{
	struct probe *p = container_of(job, struct probe, job);
	struct spool *s = p->spool;
	uint64_t now = clock_usec();

	p->under_way = false;
	s->next_probe = usec_add(now, SPOOL_PROBE_INTERVAL);
	if (p->lost) {
		forget_all(s);
		if (s->store.on_lost)
			s->store.on_lost(s->store.userdata, now);
	}
	if (p->result < 0) {
		metric_inc_label(METRIC_SPOOL_ERRORS, METRIC_SPOOL_PROBE);
		return;
	}
	if (p->lost) {
		take_over(&s->dirs.state, &p->found.state);
		take_over(&s->dirs.spool, &p->found.spool);
		take_over(&s->dirs.damaged, &p->found.damaged);
	}
	recover(s);
}

static void start_probe(struct spool *s)
{
	struct probe *p = &s->probe;

	p->job.run = probe_run;
	p->job.done = probe_done;
	p->spool = s;
	p->wanted = s->wanted;
	p->found = (struct dirs){ -1, -1, -1 };
	p->under_way = disk_submit(s->disk, &p->job) == 0;
}

/* ---- damaged files ----------------------------------------------------------------------------------- */

static size_t count_entries(int dir_fd)
{
	int fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	size_t n = 0;

	if (!dir) {
		safe_close(fd);
		return SIZE_MAX;
	}
	for (struct dirent *e; (e = readdir(dir));)
		n += !streq(e->d_name, ".") && !streq(e->d_name, "..");
	closedir(dir);
	return n;
}

/* Where it can be looked at, but is in nobody's way; beyond the bound it goes. */
static int set_aside(const struct dirs *d, const char *name)
{
	if (count_entries(d->damaged) < SPOOL_DAMAGED_MAX)
		return renameat(d->spool, name, d->damaged, name) < 0 ? -errno : 0;
	return unlinkat(d->spool, name, 0) < 0 ? -errno : 0;
}

static void tell_set_aside(const struct spool *s, const char *name, const char *wrong)
{
	metric_inc(METRIC_SPOOL_SET_ASIDE);
	log_error("state_directory %s: spool/%s: %s; set aside in damaged/, not used", s->directory,
		  name, wrong);
}

/* Opens a regular file of ours, and nothing that is a link or not a file. */
static int open_file(int dir_fd, const char *name, int *ret, uint64_t *ret_size)
{
	_cleanup_close_ int fd =
		openat(dir_fd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode))
		return -EISDIR;
	*ret = TAKE_FD(fd);
	*ret_size = (uint64_t)st.st_size;
	return 0;
}

/* Reads up to n bytes; fewer only at the end of the file. Returns how many, or -errno. */
static ssize_t read_all(int fd, uint8_t *p, size_t n)
{
	size_t have = 0;

	while (have < n) {
		ssize_t got = read(fd, p + have, n - have);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -errno;
		if (got == 0)
			break;
		have += (size_t)got;
	}
	return (ssize_t)have;
}

static int read_header(int fd, uint64_t size, struct spool_header *ret, const char **ret_wrong)
{
	uint8_t bytes[SPOOL_HEADER_SIZE];
	ssize_t n = read_all(fd, bytes, sizeof(bytes));

	if (n < 0)
		return (int)n;
	*ret_wrong = spool_header_read(bytes, (size_t)n, size, ret);
	return *ret_wrong ? -EBADMSG : 0;
}

/* ---- jobs of the worker -------------------------------------------------------------------------------- */

static struct spool_job *job_new(struct spool *s)
{
	struct spool_job *j = calloc(1, sizeof(*j));

	if (j) {
		j->spool = s;
		j->dirs = &s->dirs;
	}
	return j;
}

static struct spool_job *job_free(struct spool_job *j)
{
	buf_unref(j->payload);
	free(j);
	return NULL;
}
DEFINE_CLEANUP(struct spool_job, job_free);

static void write_run(struct disk_job *job)
{
	struct spool_job *j = container_of(job, struct spool_job, job);
	_Alignas(SPOOL_HEADER_SIZE) uint8_t header[SPOOL_HEADER_SIZE];
	const struct iovec part = { .iov_base = header, .iov_len = sizeof(header) };
	char name[SPOOL_NAME_MAX], tmp[SPOOL_NAME_MAX + 5];

	spool_header_write(header, &j->header);
	spool_name_write(name, &j->header);
	snprintf(tmp, sizeof(tmp), ".%s.tmp", name);
	j->result = disk_write_content(j->dirs->spool, tmp, name, &part, j->payload);
}

/* What the disk is not to blame for. */
static bool is_trouble_of_memory(int r)
{
	return r == -EBADMSG || r == -ENOMEM;
}

static void write_done(struct disk_job *job)
{
	struct spool_job *j = container_of(job, struct spool_job, job);
	struct spool *s = j->spool;
	struct store_write *w = j->write;
	uint64_t now = clock_usec();
	int r = j->result;

	s->writes--;
	if (r < 0) {
		metric_inc_label(METRIC_SPOOL_ERRORS, METRIC_SPOOL_WRITE);
		if (!is_trouble_of_memory(r))
			fail(s, r, j->file->bytes, "write to it", now);
	}
	/* Of a failed write there may be a file nevertheless: whose directory was not fsynced. */
	if (r < 0 || j->file->dropped)
		bury(s, j->file);
	else
		j->file->state = FILE_KEPT;
	job_free(j);
	w->done(w, r, now);
}

/* The payload, if it is what the header says. */
static int read_payload(struct spool_job *j, int fd, const struct spool_header *h)
{
	ssize_t n;

	if (!vm_id_equal(h->vm, j->header.vm) || h->generation != j->header.generation ||
	    h->length != j->header.length) {
		j->wrong = "it holds other content than it is named after";
		return -EBADMSG;
	}
	n = read_all(fd, buf_tail(j->payload), h->length);
	if (n < 0)
		return (int)n;
	if ((uint64_t)n != h->length || XXH64(buf_tail(j->payload), h->length, 0) != h->xxh64) {
		j->wrong = "the checksum of its payload is wrong";
		return -EBADMSG;
	}
	buf_advance(j->payload, h->length);
	buf_seal(j->payload);
	return 0;
}

static void read_run(struct disk_job *job)
{
	struct spool_job *j = container_of(job, struct spool_job, job);
	_cleanup_close_ int fd = -1;
	char name[SPOOL_NAME_MAX];
	struct spool_header h;
	uint64_t size;

	spool_name_write(name, &j->header);
	j->result = open_file(j->dirs->spool, name, &fd, &size);
	if (j->result == 0)
		j->result = read_header(fd, size, &h, &j->wrong);
	if (j->result == 0)
		j->result = read_payload(j, fd, &h);
	if (j->result == -EBADMSG)
		j->set_aside = set_aside(j->dirs, name) == 0;
}

static void read_done(struct disk_job *job)
{
	_cleanup_(job_freep)
	struct spool_job *j = container_of(job, struct spool_job, job);
	struct spool *s = j->spool;
	struct spool_file *f = find_file(s, j->header.vm, j->header.generation);
	char name[SPOOL_NAME_MAX];

	s->reads--;
	if (j->result < 0)
		metric_inc_label(METRIC_SPOOL_ERRORS, METRIC_SPOOL_READ);
	spool_name_write(name, &j->header);
	if (j->result == -EBADMSG)
		tell_set_aside(s, name, j->wrong);
	else if (j->result < 0)
		log_warning_errno(j->result, "state_directory %s: cannot read spool/%s",
				  s->directory, name);
	/* What is gone is not counted, nor removed. */
	if (f && f->state == FILE_KEPT && (j->set_aside || j->result == -ENOENT))
		file_free(s, f);
	j->read->done(j->read, j->result, j->result == 0 ? j->payload : NULL, clock_usec());
}

static void removal_run(struct disk_job *job)
{
	struct removal *rm = container_of(job, struct removal, job);
	int dir = rm->spool->dirs.spool;

	for (size_t i = 0; i < rm->n; i++) {
		const struct spool_header h = { .vm = rm->files[i].vm,
						.generation = rm->files[i].generation };
		char name[SPOOL_NAME_MAX];

		spool_name_write(name, &h);
		rm->files[i].result = unlinkat(dir, name, 0) < 0 && errno != ENOENT ? -errno : 0;
	}
	/* Before the next batch: after a loss of power an older generation must not be there while
	 * the newer one, which was removed after it, is not. An error shows with the next write. */
	(void)fsync(dir);
}

static void removal_done(struct disk_job *job)
{
	struct removal *rm = container_of(job, struct removal, job);
	struct spool *s = rm->spool;

	rm->under_way = false;
	for (size_t i = 0; i < rm->n; i++) {
		struct spool_file *f = find_file(s, rm->files[i].vm, rm->files[i].generation);

		/* Written anew meanwhile, or forgotten. */
		if (!f || f->state != FILE_REMOVING)
			continue;
		if (rm->files[i].result == 0) {
			file_free(s, f);
			s->full = false;
		} else {
			bury(s, f);
			metric_inc_label(METRIC_SPOOL_ERRORS, METRIC_SPOOL_REMOVE);
			fail(s, rm->files[i].result, 0, "remove from it", clock_usec());
		}
	}
}

/* In each batch only the oldest file of a VM: the order of removals holds also for the disk. */
static void start_removal(struct spool *s)
{
	struct removal *rm = &s->removal;

	rm->n = 0;
	list_for_each_safe(l, &s->dead) {
		struct spool_file *f = container_of(l, struct spool_file, dead);

		if (rm->n == REMOVE_BATCH)
			break;
		if (list_first(&f->vm->files) != &f->of_vm)
			continue;
		rm->files[rm->n].vm = f->vm->node.id;
		rm->files[rm->n++].generation = f->generation;
		f->state = FILE_REMOVING;
		list_del(&f->dead);
	}
	if (rm->n == 0)
		return;
	rm->job.run = removal_run;
	rm->job.done = removal_done;
	rm->spool = s;
	rm->under_way = disk_submit(s->disk, &rm->job) == 0;
	for (size_t i = 0; i < rm->n && !rm->under_way; i++)
		bury(s, find_file(s, rm->files[i].vm, rm->files[i].generation));
}

/* ---- for the relay --------------------------------------------------------------------------------------- */

/* Older files of the VM go when this one is there: they do not keep it out. */
static bool has_room(const struct spool *s, struct vsr_vm_id id, uint64_t bytes)
{
	const struct spool_vm *vm = find_vm(s, id);
	uint64_t others = s->bytes;
	size_t n = s->n_files;

	if (vm)
		list_for_each(l, &vm->files) {
			others -= container_of(l, struct spool_file, of_vm)->bytes;
			n--;
		}
	return n < s->limits.max_files && others + bytes <= s->limits.max_bytes;
}

/* A spool that is drained and filled again says so once in a while. */
static void tell_full(struct spool *s, uint64_t now)
{
	s->full = true;
	if (s->full_logged && now < usec_add(s->full_logged, FULL_LOG_USEC))
		return;
	s->full_logged = now;
	log_error("state_directory %s: full: %zu files, %llu MiB (spool.max_files, "
		  "spool.max_bytes); reports that want an answer are answered busy",
		  s->directory, s->n_files, (unsigned long long)(s->bytes / MIB));
}

static struct spool_header header_of(const struct spool *s, const struct store_content *c)
{
	uint64_t wall = wall_usec();

	return (struct spool_header){
		.vm = c->vm,
		.generation = c->generation,
		.length = c->length,
		.xxh64 = c->xxh64,
		.digest = c->digest,
		.seed_check = spool_seed_check(s->seed),
		.vm_id_hash = c->vm_id_hash,
		.accepted = usec_sub(wall, c->age),
	};
}

/* The entry for a file that will be written: a new one, or one that was to be removed. */
static struct spool_file *prepare(struct spool *s, const struct store_content *c, uint64_t bytes)
{
	struct spool_file *f = find_file(s, c->vm, c->generation);

	if (!f)
		return add_file(s, c->vm, c->generation, bytes);
	list_del(&f->dead);
	s->bytes += bytes - f->bytes;
	f->bytes = bytes;
	return f;
}

static int spool_write(struct store *store, struct store_write *w)
{
	struct spool *s = container_of(store, struct spool, store);
	uint64_t bytes = SPOOL_HEADER_SIZE + w->content.length;
	_cleanup_(job_freep)
	struct spool_job *j = NULL;
	struct spool_file *f;

	if (!store->ready)
		return -EIO;
	if (s->writes == SPOOL_WRITES_MAX)
		return -EBUSY;
	if (!has_room(s, w->content.vm, bytes)) {
		tell_full(s, clock_usec());
		return -ENOSPC;
	}
	j = job_new(s);
	if (!j)
		return -ENOMEM;
	j->job.run = write_run;
	j->job.done = write_done;
	j->write = w;
	j->payload = buf_ref(w->payload);
	j->header = header_of(s, &w->content);
	j->file = f = prepare(s, &w->content, bytes);
	if (!f)
		return -ENOMEM;
	f->state = FILE_WRITING;
	f->dropped = false;
	if (disk_submit(s->disk, &j->job) < 0) {
		bury(s, f);
		return -EBUSY;
	}
	s->writes++;
	TAKE_PTR(j);
	return 0;
}

static int spool_read(struct store *store, struct store_read *rd)
{
	struct spool *s = container_of(store, struct spool, store);
	const struct spool_file *f = find_file(s, rd->vm, rd->generation);
	_cleanup_(job_freep)
	struct spool_job *j = NULL;

	if (!f || f->state != FILE_KEPT)
		return -ENOENT;
	j = job_new(s);
	if (!j)
		return -ENOMEM;
	j->job.run = read_run;
	j->job.done = read_done;
	j->read = rd;
	j->header.vm = rd->vm;
	j->header.generation = rd->generation;
	j->header.length = f->bytes - SPOOL_HEADER_SIZE;
	if (buf_new(j->header.length, &j->payload) < 0)
		return -ENOMEM;
	if (disk_submit(s->disk, &j->job) < 0)
		return -EBUSY;
	metric_inc(METRIC_SPOOL_READS);
	s->reads++;
	TAKE_PTR(j);
	return 0;
}

static void spool_drop(struct store *store, struct vsr_vm_id id, uint64_t first, uint64_t last)
{
	struct spool *s = container_of(store, struct spool, store);
	struct spool_vm *vm = find_vm(s, id);

	if (!vm)
		return;
	list_for_each(l, &vm->files) {
		struct spool_file *f = container_of(l, struct spool_file, of_vm);

		if (f->generation < first || f->generation > last)
			continue;
		if (f->state == FILE_WRITING)
			f->dropped = true;
		else if (f->state == FILE_KEPT)
			bury(s, f);
	}
}

static uint64_t spool_newest(const struct store *store, struct vsr_vm_id id)
{
	const struct spool *s = container_of(store, const struct spool, store);
	const struct spool_vm *vm = find_vm(s, id);

	return vm ? container_of(vm->files.prev, struct spool_file, of_vm)->generation : 0;
}

static const struct store_ops spool_ops = {
	.write = spool_write,
	.read = spool_read,
	.drop = spool_drop,
	.newest = spool_newest,
};

struct store *spool_store(struct spool *s)
{
	return &s->store;
}

void spool_run(struct spool *s, bool hangs, uint64_t now)
{
	s->hangs = hangs;
	update_ready(s);
	if (hangs)
		return;
	if (!s->error && !s->removal.under_way)
		start_removal(s);
	if (s->error && !s->probe.under_way && now >= s->next_probe)
		start_probe(s);
}

uint64_t spool_next_event(const struct spool *s)
{
	return s->error && !s->hangs && !s->probe.under_way ? s->next_probe : USEC_INFINITY;
}

void spool_set_limits(struct spool *s, const struct spool_limits *limits)
{
	s->limits = *limits;
	s->full = false;
}

void spool_figures(const struct spool *s, struct spool_figures *ret)
{
	*ret = (struct spool_figures){
		.state = s->hangs   ? SPOOL_HANGS
			 : s->error ? SPOOL_FAILED
			 : s->full  ? SPOOL_FULL
				    : SPOOL_OK,
		.error = s->error,
		.files = s->n_files,
		.bytes = s->bytes,
		.busy = s->writes + s->reads + s->removal.under_way +
			(!s->error && !list_empty(&s->dead)),
	};
}

/* ---- the start -------------------------------------------------------------------------------------------- */

/* A content that was found, and what its file is called. */
struct found {
	struct store_content content;
	char name[SPOOL_NAME_MAX];
};

struct scan {
	struct found *found;
	size_t n, room;
	uint8_t *chunk;
};

/* Checks the payload, and hashes it anew if the seed is another one. */
static int check_payload(const struct spool *s, int fd, uint8_t *chunk, struct spool_header *h,
			 const char **ret_wrong)
{
	bool hash = h->seed_check != spool_seed_check(s->seed);
	XXH64_state_t *state = XXH64_createState();
	struct digest digest;
	uint64_t sum;
	ssize_t n;

	if (!state)
		return -ENOMEM;
	XXH64_reset(state, 0);
	digest_init(&digest, s->seed);
	while ((n = read_all(fd, chunk, SCAN_CHUNK)) > 0) {
		XXH64_update(state, chunk, (size_t)n);
		if (hash)
			digest_update(&digest, chunk, (size_t)n);
	}
	sum = XXH64_digest(state);
	XXH64_freeState(state);
	if (n < 0)
		return (int)n;
	if (sum != h->xxh64) {
		*ret_wrong = "the checksum of its payload is wrong";
		return -EBADMSG;
	}
	if (hash)
		h->digest = digest_final(&digest);
	return 0;
}

static int check_file(const struct spool *s, const char *name, uint8_t *chunk,
		      struct spool_header *ret, const char **ret_wrong)
{
	_cleanup_close_ int fd = -1;
	struct vsr_vm_id vm;
	uint64_t generation, size;
	int r;

	if (!spool_name_read(name, &vm, &generation)) {
		*ret_wrong = "it is no file of the spool's";
		return -EBADMSG;
	}
	r = open_file(s->dirs.spool, name, &fd, &size);
	if (r == -EISDIR || r == -ELOOP) {
		*ret_wrong = "it is not a regular file";
		return -EBADMSG;
	}
	if (r == 0)
		r = read_header(fd, size, ret, ret_wrong);
	if (r == 0 && (!vm_id_equal(ret->vm, vm) || ret->generation != generation)) {
		*ret_wrong = "it holds other content than it is named after";
		return -EBADMSG;
	}
	return r < 0 ? r : check_payload(s, fd, chunk, ret, ret_wrong);
}

static int add_found(struct scan *scan, const struct spool_header *h, uint64_t wall)
{
	if (scan->n == scan->room) {
		size_t room = MAX(2 * scan->room, (size_t)64);
		struct found *found = reallocarray(scan->found, room, sizeof(*found));

		if (!found)
			return -ENOMEM;
		scan->found = found;
		scan->room = room;
	}
	scan->found[scan->n].content = (struct store_content){
		.vm = h->vm,
		.generation = h->generation,
		.length = h->length,
		.digest = h->digest,
		.xxh64 = h->xxh64,
		.vm_id_hash = h->vm_id_hash,
		.age = usec_sub(wall, h->accepted),
	};
	spool_name_write(scan->found[scan->n++].name, h);
	return 0;
}

static int look_at(struct spool *s, const char *name, struct scan *scan, uint64_t wall)
{
	struct spool_header h;
	const char *wrong = NULL;
	int r;

	/* What was being written when the last process ended. */
	if (name[0] == '.' && unlinkat(s->dirs.spool, name, 0) == 0)
		return 0;
	r = check_file(s, name, scan->chunk, &h, &wrong);
	if (r == 0)
		return add_found(scan, &h, wall);
	if (r == -ENOMEM)
		return r;
	if (r == -EBADMSG)
		r = set_aside(&s->dirs, name);
	if (r == 0) {
		tell_set_aside(s, name, wrong);
	} else {
		/* It stays where it is. */
		metric_inc_label(METRIC_SPOOL_ERRORS, METRIC_SPOOL_READ);
		log_error_errno(r, "state_directory %s: spool/%s: %s", s->directory, name,
				wrong ? wrong : "cannot be read");
	}
	return 0;
}

static int look_at_all(struct spool *s, struct scan *scan)
{
	int fd = openat(s->dirs.spool, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), r = 0;
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	uint64_t wall = wall_usec();

	if (!dir) {
		r = -errno;
		safe_close(fd);
		return r;
	}
	while (r == 0) {
		struct dirent *e;

		errno = 0;
		e = readdir(dir);
		if (!e) {
			r = -errno;
			break;
		}
		if (!streq(e->d_name, ".") && !streq(e->d_name, ".."))
			r = look_at(s, e->d_name, scan, wall);
	}
	closedir(dir);
	return r;
}

/* By VM, the newest generation first. */
static int by_generation(const void *pa, const void *pb)
{
	const struct store_content *a = &((const struct found *)pa)->content,
				   *b = &((const struct found *)pb)->content;

	if (a->vm.ns != b->vm.ns)
		return a->vm.ns < b->vm.ns ? -1 : 1;
	if (a->vm.cid != b->vm.cid)
		return a->vm.cid < b->vm.cid ? -1 : 1;
	return a->generation > b->generation ? -1 : a->generation < b->generation;
}

static int oldest_first(const void *pa, const void *pb)
{
	const struct store_content *a = &((const struct found *)pa)->content,
				   *b = &((const struct found *)pb)->content;

	return a->age > b->age ? -1 : a->age < b->age;
}

/* Of two contents of a VM the newer counts: the older was to be removed. */
static void keep_newest(struct spool *s, struct scan *scan)
{
	size_t n = 0;

	if (scan->n > 0)
		qsort(scan->found, scan->n, sizeof(*scan->found), by_generation);
	for (size_t i = 0; i < scan->n; i++) {
		const struct found *f = &scan->found[i];

		if (n > 0 && vm_id_equal(scan->found[n - 1].content.vm, f->content.vm))
			(void)unlinkat(s->dirs.spool, f->name, 0);
		else
			scan->found[n++] = *f;
	}
	scan->n = n;
	if (n > 0)
		qsort(scan->found, n, sizeof(*scan->found), oldest_first);
}

static int restore(struct spool *s, const struct found *f, spool_restored_t restored,
		   void *userdata)
{
	struct spool_file *file = add_file(s, f->content.vm, f->content.generation,
					   SPOOL_HEADER_SIZE + f->content.length);
	int r;

	if (!file)
		return -ENOMEM;
	file->state = FILE_KEPT;
	r = restored(&f->content, userdata);
	if (r < 0) {
		file_free(s, file);
		metric_inc_label(METRIC_SPOOL_ERRORS, METRIC_SPOOL_READ);
		log_error_errno(r, "state_directory %s: spool/%s stays for the next start",
				s->directory, f->name);
	}
	return 0;
}

int spool_scan(struct spool *s, spool_restored_t restored, void *userdata)
{
	struct scan scan = { 0 };
	int r = 0;

	if (s->dirs.spool < 0)
		return 0;
	scan.chunk = malloc(SCAN_CHUNK);
	if (!scan.chunk)
		r = -ENOMEM;
	if (r == 0)
		r = look_at_all(s, &scan);
	if (r == 0) {
		keep_newest(s, &scan);
		for (size_t i = 0; i < scan.n && r == 0; i++)
			r = restore(s, &scan.found[i], restored, userdata);
		if (scan.n > 0)
			log_info("%zu reports that were accepted before are in the state directory",
				 scan.n);
	}
	free(scan.chunk);
	free(scan.found);
	return r;
}

/* A seed of an earlier process, or a new one, which is stored. */
static int find_seed(struct spool *s)
{
	uint8_t bytes[SPOOL_SEED_SIZE + 1];
	const struct iovec part = { .iov_base = bytes, .iov_len = SPOOL_SEED_SIZE };
	_cleanup_close_ int fd = -1;
	uint64_t size;
	ssize_t n = -1;
	int r = 0;

	if (s->dirs.state >= 0 && open_file(s->dirs.state, "seed", &fd, &size) == 0)
		n = read_all(fd, bytes, sizeof(bytes));
	if (n >= 0 && spool_seed_read(bytes, (size_t)n, &s->seed))
		return 0;
	if (n >= 0)
		log_warning("state_directory %s: the seed is damaged; a new one is drawn",
			    s->directory);
	if (getrandom(&s->seed, sizeof(s->seed), 0) != sizeof(s->seed))
		return -errno;
	spool_seed_write(bytes, s->seed);
	if (s->dirs.state >= 0)
		r = disk_write_file(s->dirs.state, ".seed.tmp", "seed", &part, 1);
	if (r == 0 && s->give &&
	    fchownat(s->dirs.state, "seed", s->uid, s->gid, AT_SYMLINK_NOFOLLOW) < 0)
		r = -errno;
	return r;
}

/* What passes by itself, or when somebody mends the disk: no reason not to start. */
static bool is_trouble_of_disk(int r)
{
	return r == -EROFS || r == -ENOSPC || r == -EDQUOT || r == -EIO;
}

static int begin(struct spool *s)
{
	int r;

	r = dirs_open(s, &s->dirs);
	if (r == -EPERM)
		return log_error_errno(
			r,
			"state_directory %s: it, spool/ and damaged/ in it must "
			"belong to user %u and be writable by nobody else (mode 0750 "
			"or stricter)",
			s->directory, s->uid);
	if (r < 0 && !is_trouble_of_disk(r))
		return log_error_errno(r, "state_directory %s", s->directory);
	if (r < 0)
		fail(s, r, 0, "write to it", clock_usec());
	r = find_seed(s);
	if (r < 0 && !is_trouble_of_disk(r))
		return log_error_errno(r, "state_directory %s: the seed", s->directory);
	if (r < 0)
		fail(s, r, 0, "write to it", clock_usec());
	return 0;
}

int spool_open(const char *directory, const struct privilege_identity *id,
	       const struct spool_limits *limits, struct disk *disk, struct spool **ret)
{
	_cleanup_(spool_freep)
	struct spool *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return log_error_errno(-ENOMEM, "state_directory");
	s->dirs = (struct dirs){ -1, -1, -1 };
	list_init(&s->dead);
	s->store.ops = &spool_ops;
	s->store.ready = true;
	s->disk = disk;
	s->limits = *limits;
	s->give = id != NULL;
	s->uid = id ? id->uid : geteuid();
	s->gid = id ? id->gid : getegid();
	s->directory = strdup(directory);
	if (!s->directory || vmmap_init(&s->vms) < 0)
		return log_error_errno(-ENOMEM, "state_directory");
	r = begin(s);
	if (r < 0)
		return r;
	*ret = TAKE_PTR(s);
	return 0;
}

uint64_t spool_seed(const struct spool *s)
{
	return s->seed;
}

struct spool *spool_free(struct spool *s)
{
	/* A job that hangs in the worker was left behind with what it uses. */
	if (!s || s->writes + s->reads + s->removal.under_way + s->probe.under_way > 0)
		return NULL;
	while (s->vms.n > 0) {
		struct vmmap_node *node = vmmap_next(&s->vms, NULL);
		struct spool_vm *vm = container_of(node, struct spool_vm, node);
		size_t n = 0;

		list_for_each(l, &vm->files)
			n++;
		while (n-- > 0) /* the last one frees vm */
			file_free(s, container_of(vm->files.next, struct spool_file, of_vm));
	}
	vmmap_done(&s->vms);
	dirs_close(&s->dirs);
	free(s->directory);
	free(s);
	return NULL;
}
