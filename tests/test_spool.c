/* SPDX-License-Identifier: Apache-2.0 */
/* The spool: the form of its files, what a start makes of every damage, and disks that fail. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <xxhash.h>

#include "clock.h"
#include "digest.h"
#include "metrics.h"
#include "spool.h"
#include "spool_file.h"

#define PATIENCE 20000 /* ms */
#define GRACE	 (20 * USEC_PER_SEC)

static const struct spool_limits limits = { .max_files = 1000, .max_bytes = 1024 * MIB };

/* ---- a spool in a folder of its own ------------------------------------------------------------- */

struct world {
	char path[64];
	struct disk *disk;
	struct spool *spool;
	/* what was restored, in order */
	struct store_content restored[16];
	size_t n_restored;
	int restored_result;
	unsigned lost;
};

/* A write with all that belongs to it. */
struct put {
	struct store_write write;
	int result;
	bool done;
};

struct get {
	struct store_read read;
	int result;
	bool done;
	struct buf *payload;
};

static int make_folder(void **state)
{
	struct world *w = calloc(1, sizeof(*w));

	assert_non_null(w);
	metrics_reset();
	strcpy(w->path, "/tmp/test_spool.XXXXXX");
	assert_non_null(mkdtemp(w->path));
	*state = w;
	return 0;
}

static void shut(struct world *w)
{
	w->disk = disk_free(w->disk, GRACE);
	w->spool = spool_free(w->spool);
}

static int remove_folder(void **state)
{
	struct world *w = *state;
	char command[100];

	shut(w);
	snprintf(command, sizeof(command), "rm -rf %s", w->path);
	assert_int_equal(system(command), 0);
	free(w);
	return 0;
}

static int on_restored(const struct store_content *c, void *userdata)
{
	struct world *w = userdata;

	assert_true(w->n_restored < ARRAY_SIZE(w->restored));
	if (w->restored_result == 0)
		w->restored[w->n_restored++] = *c;
	return w->restored_result;
}

static void on_lost(void *userdata, uint64_t now)
{
	assert_true(now > 0);
	((struct world *)userdata)->lost++;
}

static int try_open(struct world *w, const struct spool_limits *l)
{
	int r;

	shut(w);
	assert_int_equal(disk_new(SPOOL_JOBS_MAX, &w->disk), 0);
	r = spool_open(w->path, NULL, l, w->disk, &w->spool);
	if (r == 0) {
		spool_store(w->spool)->on_lost = on_lost;
		spool_store(w->spool)->userdata = w;
	}
	return r;
}

/* As a new process would. */
static void reopen(struct world *w)
{
	assert_int_equal(try_open(w, &limits), 0);
	w->n_restored = 0;
	assert_int_equal(spool_scan(w->spool, on_restored, w), 0);
}

static struct spool_figures figures(const struct world *w)
{
	struct spool_figures f;

	spool_figures(w->spool, &f);
	return f;
}

static void turn(struct world *w)
{
	struct pollfd p = { .fd = disk_fd(w->disk), .events = POLLIN };

	poll(&p, 1, 10);
	disk_dispatch(w->disk);
	spool_run(w->spool, false, clock_usec());
}

static void wait_idle(struct world *w)
{
	uint64_t until = clock_usec() + PATIENCE * USEC_PER_MSEC;

	do {
		turn(w);
		assert_true(clock_usec() < until);
	} while (figures(w).busy > 0 || disk_pending(w->disk) > 0);
}

static struct buf *payload_of(size_t size, unsigned char what)
{
	struct buf *b;

	assert_int_equal(buf_new(size, &b), 0);
	for (size_t i = 0; i < size; i++)
		buf_tail(b)[i] = (uint8_t)(i * 31 + what);
	buf_advance(b, size);
	buf_seal(b);
	return b;
}

static void on_put(struct store_write *write, int result, uint64_t now)
{
	struct put *p = container_of(write, struct put, write);

	assert_false(p->done);
	assert_true(now > 0);
	p->done = true;
	p->result = result;
}

static int start_put(struct world *w, struct put *p, uint32_t cid, uint64_t generation, size_t size,
		     unsigned char what)
{
	struct store *store = spool_store(w->spool);
	struct buf *b = payload_of(size, what);
	int r;

	*p = (struct put){
		.write = { .content = { .vm = { .cid = cid },
					.generation = generation,
					.length = size,
					.digest = digest_bytes(spool_seed(w->spool), buf_data(b),
							       size),
					.xxh64 = XXH64(buf_data(b), size, 0),
					.vm_id_hash = cid * 7 },
			   .payload = b,
			   .done = on_put },
	};
	r = store->ops->write(store, &p->write);
	buf_unref(b); /* the spool has its own */
	p->write.payload = NULL;
	return r;
}

static int put_sized(struct world *w, uint32_t cid, uint64_t generation, size_t size,
		     unsigned char what)
{
	struct put p;
	int r = start_put(w, &p, cid, generation, size, what);

	while (r == 0 && !p.done)
		turn(w);
	return r < 0 ? r : p.result;
}

static int put(struct world *w, uint32_t cid, uint64_t generation, unsigned char what)
{
	return put_sized(w, cid, generation, 5000, what);
}

static void drop(struct world *w, uint32_t cid, uint64_t generation)
{
	struct store *store = spool_store(w->spool);

	store->ops->drop(store, (struct vsr_vm_id){ .cid = cid }, generation, generation);
}

static uint64_t newest(struct world *w, uint32_t cid)
{
	struct store *store = spool_store(w->spool);

	return store->ops->newest(store, (struct vsr_vm_id){ .cid = cid });
}

static void on_get(struct store_read *rd, int result, struct buf *payload, uint64_t now)
{
	struct get *g = container_of(rd, struct get, read);

	assert_true(now > 0);
	g->done = true;
	g->result = result;
	g->payload = payload ? buf_ref(payload) : NULL;
}

/* Reads a content and compares it. */
static int get(struct world *w, uint32_t cid, uint64_t generation, size_t size, unsigned char what)
{
	struct store *store = spool_store(w->spool);
	struct get g = { .read = {
				 .vm = { .cid = cid }, .generation = generation, .done = on_get } };
	int r = store->ops->read(store, &g.read);

	while (r == 0 && !g.done)
		turn(w);
	if (r == 0)
		r = g.result;
	if (r == 0) {
		_cleanup_(buf_unrefp)
		struct buf *expected = payload_of(size, what);

		assert_int_equal(buf_len(g.payload), size);
		assert_memory_equal(buf_data(g.payload), buf_data(expected), size);
	}
	buf_unref(g.payload);
	return r;
}

static void path_in(const struct world *w, const char *name, char *out, size_t size)
{
	snprintf(out, size, "%s/%s", w->path, name);
}

static size_t entries(const struct world *w, const char *name)
{
	char path[128];
	DIR *dir;
	size_t n = 0;

	path_in(w, name, path, sizeof(path));
	dir = opendir(path);
	assert_non_null(dir);
	for (struct dirent *e; (e = readdir(dir));)
		n += !streq(e->d_name, ".") && !streq(e->d_name, "..");
	closedir(dir);
	return n;
}

static bool there(const struct world *w, const char *name)
{
	char path[128];

	path_in(w, name, path, sizeof(path));
	return access(path, F_OK) == 0;
}

static int open_in(const struct world *w, const char *name, int flags)
{
	char path[128];
	int fd;

	path_in(w, name, path, sizeof(path));
	fd = open(path, flags | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	return fd;
}

/* ---- the form of a file -------------------------------------------------------------------------- */

static const struct spool_header some_header = {
	.vm = { .ns = 3, .cid = 42 },
	.generation = 7,
	.length = 5000,
	.xxh64 = 1,
	.digest = 2,
	.seed_check = 3,
	.vm_id_hash = 4,
	.accepted = 5,
};

static void a_header_reads_as_it_was_written(void **state _unused_)
{
	uint8_t bytes[SPOOL_HEADER_SIZE];
	struct spool_header h;

	spool_header_write(bytes, &some_header);
	assert_null(spool_header_read(bytes, sizeof(bytes), SPOOL_HEADER_SIZE + 5000, &h));
	assert_memory_equal(&h, &some_header, sizeof(h));
}

static void each_flipped_bit_and_each_cut_of_a_header_is_found(void **state _unused_)
{
	uint8_t bytes[SPOOL_HEADER_SIZE];
	struct spool_header h;

	spool_header_write(bytes, &some_header);
	for (size_t bit = 0; bit < 8 * sizeof(bytes); bit++) {
		bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
		assert_non_null(
			spool_header_read(bytes, sizeof(bytes), SPOOL_HEADER_SIZE + 5000, &h));
		bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	for (size_t n = 0; n < sizeof(bytes); n++)
		assert_non_null(spool_header_read(bytes, n, n, &h));
	assert_non_null(spool_header_read(bytes, sizeof(bytes), SPOOL_HEADER_SIZE + 4999, &h));
	assert_non_null(spool_header_read(bytes, sizeof(bytes), SPOOL_HEADER_SIZE + 5001, &h));
}

static void impossible_figures_are_refused_though_the_checksum_is_right(void **state _unused_)
{
	struct spool_header bad = some_header, h;
	uint8_t bytes[SPOOL_HEADER_SIZE];

	bad.generation = 0;
	spool_header_write(bytes, &bad);
	assert_non_null(spool_header_read(bytes, sizeof(bytes), SPOOL_HEADER_SIZE + 5000, &h));
	bad = some_header;
	bad.length = SPOOL_PAYLOAD_MAX + 1;
	spool_header_write(bytes, &bad);
	assert_non_null(
		spool_header_read(bytes, sizeof(bytes), SPOOL_HEADER_SIZE + bad.length, &h));
	bad.length = UINT64_MAX - SPOOL_HEADER_SIZE + 1;
	spool_header_write(bytes, &bad);
	assert_non_null(spool_header_read(bytes, sizeof(bytes), 0, &h));
}

static void a_header_of_another_version_is_told_though_the_checksum_is_right(void **state _unused_)
{
	/* Version, size of the header, and what is kept free for the next version. */
	static const size_t places[] = { 8, 12, SPOOL_HEADER_SIZE - 16 };
	struct spool_header h;
	uint8_t bytes[SPOOL_HEADER_SIZE];

	for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
		uint64_t sum;

		spool_header_write(bytes, &some_header);
		bytes[places[i]] ^= 1;
		sum = htole64(XXH64(bytes, SPOOL_HEADER_SIZE - 8, 0));
		memcpy(bytes + SPOOL_HEADER_SIZE - 8, &sum, sizeof(sum));
		assert_string_equal(spool_header_read(bytes, sizeof(bytes),
						      SPOOL_HEADER_SIZE + 5000, &h),
				    "it was written by another version");
	}
}

static void only_names_in_canonical_form_are_names(void **state _unused_)
{
	static const char *const good[] = { "0-3-1.vsr",
					    "4294967295-4294967295-18446744073709551615.vsr" };
	static const char *const bad[] = {
		"",
		"0-3-1",
		"0-3-1.vsr ",
		" 0-3-1.vsr",
		"00-3-1.vsr",
		"0-03-1.vsr",
		"0-3-01.vsr",
		"0-3-0.vsr",
		"+0-3-1.vsr",
		"0--3-1.vsr",
		"0-3--1.vsr",
		"0-3-1.vsr.x",
		".0-3-1.vsr",
		"0-3-1.vs",
		"0-3-x.vsr",
		"0x0-3-1.vsr",
		"0-3-1.VSR",
		"0-4294967296-1.vsr",
		"0-3-18446744073709551616.vsr",
		"4294967295-4294967295-184467440737095516150.vsr",
	};
	struct vsr_vm_id vm;
	uint64_t generation;

	for (size_t i = 0; i < ARRAY_SIZE(good); i++)
		assert_true(spool_name_read(good[i], &vm, &generation));
	assert_int_equal(vm.ns, UINT32_MAX);
	assert_int_equal(vm.cid, UINT32_MAX);
	assert_true(generation == UINT64_MAX);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_false(spool_name_read(bad[i], &vm, &generation));
}

static void a_damaged_seed_is_no_seed(void **state _unused_)
{
	uint8_t bytes[SPOOL_SEED_SIZE + 1];
	uint64_t seed = 0;

	spool_seed_write(bytes, 12345);
	assert_true(spool_seed_read(bytes, SPOOL_SEED_SIZE, &seed));
	assert_int_equal(seed, 12345);
	assert_false(spool_seed_read(bytes, SPOOL_SEED_SIZE - 1, &seed));
	assert_false(spool_seed_read(bytes, SPOOL_SEED_SIZE + 1, &seed));
	for (size_t bit = 0; bit < 8 * SPOOL_SEED_SIZE; bit++) {
		bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
		assert_false(spool_seed_read(bytes, SPOOL_SEED_SIZE, &seed));
		bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
}

/* ---- what lasts ----------------------------------------------------------------------------------- */

static void a_content_survives_with_its_figures(void **state)
{
	struct world *w = *state;
	uint64_t seed, digest;

	reopen(w);
	seed = spool_seed(w->spool);
	assert_int_equal(put(w, 42, 7, 'a'), 0);
	assert_int_equal(figures(w).files, 1);
	assert_int_equal(figures(w).bytes, SPOOL_HEADER_SIZE + 5000);
	assert_int_equal(get(w, 42, 7, 5000, 'a'), 0);
	assert_true(metric_get(METRIC_SPOOL_READS, 0) == 1);
	digest = digest_bytes(seed, "", 0);
	assert_true(digest != 0);

	reopen(w);
	assert_true(spool_seed(w->spool) == seed);
	assert_int_equal(w->n_restored, 1);
	assert_int_equal(w->restored[0].vm.cid, 42);
	assert_int_equal(w->restored[0].generation, 7);
	assert_int_equal(w->restored[0].length, 5000);
	assert_int_equal(w->restored[0].vm_id_hash, 42 * 7);
	assert_true(w->restored[0].age < 60 * USEC_PER_SEC);
	assert_int_equal(newest(w, 42), 7);
	assert_int_equal(get(w, 42, 7, 5000, 'a'), 0);
	drop(w, 42, 7);
	assert_int_equal(get(w, 42, 7, 5000, 'a'), -ENOENT);
	wait_idle(w);
	assert_int_equal(entries(w, "spool"), 0);
	assert_int_equal(newest(w, 42), 0);
	assert_int_equal(figures(w).files + figures(w).bytes, 0);
	reopen(w);
	assert_int_equal(w->n_restored, 0);
}

static void of_two_contents_of_a_vm_the_newer_counts(void **state)
{
	struct world *w = *state;

	reopen(w);
	assert_int_equal(put(w, 42, 9, 'a'), 0);
	assert_int_equal(put(w, 42, 10, 'b'), 0);
	assert_int_equal(put(w, 43, 1, 'c'), 0);
	assert_int_equal(newest(w, 42), 10);
	/* As if the process had ended before the older one was removed. */
	reopen(w);
	assert_int_equal(w->n_restored, 2);
	assert_int_equal(w->restored[0].vm.cid + w->restored[1].vm.cid, 42 + 43);
	assert_int_equal(entries(w, "spool"), 2);
	assert_int_equal(get(w, 42, 10, 5000, 'b'), 0);
	assert_int_equal(get(w, 42, 9, 5000, 'a'), -ENOENT);
}

static void contents_come_back_oldest_custody_first(void **state)
{
	struct world *w = *state;

	reopen(w);
	for (uint32_t cid = 10; cid < 14; cid++) {
		struct put p;

		assert_int_equal(start_put(w, &p, cid, 1, 100, 'a'), 0);
		while (!p.done)
			turn(w);
	}
	reopen(w);
	assert_int_equal(w->n_restored, 4);
	for (size_t i = 1; i < 4; i++)
		assert_true(w->restored[i - 1].age >= w->restored[i].age);
}

static void a_content_dropped_while_it_is_written_goes(void **state)
{
	struct world *w = *state;
	struct put p;

	reopen(w);
	assert_int_equal(start_put(w, &p, 42, 1, 100, 'a'), 0);
	drop(w, 42, 1);
	assert_int_equal(newest(w, 42), 1);
	wait_idle(w);
	assert_true(p.done);
	assert_int_equal(p.result, 0);
	assert_int_equal(entries(w, "spool"), 0);
}

static void a_generation_can_be_written_again_after_its_drop(void **state)
{
	struct world *w = *state;
	struct put p;

	reopen(w);
	assert_int_equal(put(w, 42, 1, 'a'), 0);
	drop(w, 42, 1);
	assert_int_equal(put_sized(w, 42, 1, 300, 'b'), 0);
	wait_idle(w);
	assert_int_equal(get(w, 42, 1, 300, 'b'), 0);
	assert_int_equal(figures(w).bytes, SPOOL_HEADER_SIZE + 300);
	/* Also while the removal is under way. */
	drop(w, 42, 1);
	spool_run(w->spool, false, clock_usec());
	assert_int_equal(start_put(w, &p, 42, 1, 400, 'c'), 0);
	wait_idle(w);
	assert_true(p.done);
	assert_int_equal(get(w, 42, 1, 400, 'c'), 0);
	reopen(w);
	assert_int_equal(w->n_restored, 1);
}

static void many_drops_are_removed_in_batches(void **state)
{
	struct world *w = *state;

	reopen(w);
	for (uint32_t i = 0; i < 150; i++)
		assert_int_equal(put_sized(w, 1 + i % 5, 1 + i / 5, 10, 'a'), 0);
	assert_int_equal(entries(w, "spool"), 150);
	for (uint32_t i = 0; i < 150; i++)
		drop(w, 1 + i % 5, 1 + i / 5);
	wait_idle(w);
	assert_int_equal(entries(w, "spool"), 0);
	assert_int_equal(figures(w).files, 0);
}

static void temporary_files_are_removed_at_the_start(void **state)
{
	struct world *w = *state;

	reopen(w);
	close(open_in(w, "spool/.0-42-1.vsr.tmp", O_WRONLY | O_CREAT));
	close(open_in(w, "spool/.probe", O_WRONLY | O_CREAT));
	reopen(w);
	assert_int_equal(entries(w, "spool"), 0);
	assert_int_equal(entries(w, "damaged"), 0);
	assert_true(metric_get(METRIC_SPOOL_SET_ASIDE, 0) == 0);
}

static void without_its_seed_contents_are_hashed_again(void **state)
{
	struct world *w = *state;
	_cleanup_(buf_unrefp)
	struct buf *b = payload_of(5000, 'a');
	uint64_t first, second;
	uint8_t byte;
	int fd;

	reopen(w);
	first = spool_seed(w->spool);
	assert_int_equal(put(w, 42, 1, 'a'), 0);
	fd = open_in(w, "seed", O_RDWR);
	assert_int_equal(pread(fd, &byte, 1, 9), 1);
	byte ^= 1;
	assert_int_equal(pwrite(fd, &byte, 1, 9), 1);
	close(fd);
	reopen(w);
	second = spool_seed(w->spool);
	assert_true(second != first);
	assert_int_equal(w->n_restored, 1);
	assert_true(w->restored[0].digest == digest_bytes(second, buf_data(b), buf_len(b)));
	/* The new one is kept. */
	reopen(w);
	assert_true(spool_seed(w->spool) == second);
	assert_int_equal(w->n_restored, 1);
}

static void a_clock_set_back_makes_no_content_old(void **state)
{
	struct world *w = *state;
	struct spool_header h = some_header;
	uint8_t bytes[SPOOL_HEADER_SIZE];
	int fd;

	reopen(w);
	h.length = 0;
	h.xxh64 = XXH64("", 0, 0);
	h.accepted = UINT64_MAX; /* far ahead */
	spool_header_write(bytes, &h);
	fd = open_in(w, "spool/3-42-7.vsr", O_WRONLY | O_CREAT);
	assert_int_equal(write(fd, bytes, sizeof(bytes)), sizeof(bytes));
	close(fd);
	reopen(w);
	assert_int_equal(w->n_restored, 1);
	assert_int_equal(w->restored[0].age, 0);
}

/* ---- damage ------------------------------------------------------------------------------------------ */

/* Writes content 42-1 and lets `damage` have its file. Nothing of it may come back; the file is set
 * aside, and the content of another VM is there. */
static void damaged(struct world *w, void (*damage)(struct world *w))
{
	reopen(w);
	assert_int_equal(put(w, 42, 1, 'a'), 0);
	assert_int_equal(put(w, 43, 1, 'b'), 0);
	metrics_reset();
	damage(w);
	reopen(w);
	assert_int_equal(w->n_restored, 1);
	assert_int_equal(w->restored[0].vm.cid, 43);
	assert_int_equal(entries(w, "spool"), 1);
	assert_int_equal(entries(w, "damaged"), 1);
	assert_true(metric_get(METRIC_SPOOL_SET_ASIDE, 0) == 1);
	assert_int_equal(figures(w).files, 1);
	/* The VM's next content is taken as if nothing had been. */
	assert_int_equal(put(w, 42, 1, 'c'), 0);
	assert_int_equal(get(w, 42, 1, 5000, 'c'), 0);
}

#define VICTIM "spool/0-42-1.vsr"

static void set_size(const struct world *w, off_t size)
{
	int fd = open_in(w, VICTIM, O_WRONLY);

	assert_int_equal(ftruncate(fd, size), 0);
	close(fd);
}

static void empty(struct world *w)
{
	set_size(w, 0);
}

static void cut_in_header(struct world *w)
{
	set_size(w, SPOOL_HEADER_SIZE - 1);
}

static void cut_after_header(struct world *w)
{
	set_size(w, SPOOL_HEADER_SIZE);
}

static void cut_in_payload(struct world *w)
{
	set_size(w, SPOOL_HEADER_SIZE + 4999);
}

static void longer(struct world *w)
{
	set_size(w, SPOOL_HEADER_SIZE + 5001);
}

static void flip(const struct world *w, off_t at)
{
	int fd = open_in(w, VICTIM, O_RDWR);
	uint8_t byte;

	assert_int_equal(pread(fd, &byte, 1, at), 1);
	byte ^= 0x10;
	assert_int_equal(pwrite(fd, &byte, 1, at), 1);
	close(fd);
}

static void flipped_header(struct world *w)
{
	flip(w, 33);
}

static void flipped_payload(struct world *w)
{
	flip(w, SPOOL_HEADER_SIZE + 2500);
}

static void renamed(struct world *w)
{
	char from[128], to[128];

	path_in(w, VICTIM, from, sizeof(from));
	path_in(w, "spool/0-44-1.vsr", to, sizeof(to));
	assert_int_equal(rename(from, to), 0);
}

static void foreign_name(struct world *w)
{
	char from[128], to[128];

	path_in(w, VICTIM, from, sizeof(from));
	path_in(w, "spool/notes.txt", to, sizeof(to));
	assert_int_equal(rename(from, to), 0);
}

static void replace_by(struct world *w, int (*make)(const char *path))
{
	char path[128];

	path_in(w, VICTIM, path, sizeof(path));
	assert_int_equal(unlink(path), 0);
	assert_int_equal(make(path), 0);
}

static int make_directory(const char *path)
{
	return mkdir(path, 0700);
}

static int make_link(const char *path)
{
	return symlink("0-43-1.vsr", path);
}

static int make_fifo(const char *path)
{
	return mkfifo(path, 0600);
}

static void directory(struct world *w)
{
	replace_by(w, make_directory);
}

static void link_to_another(struct world *w)
{
	replace_by(w, make_link);
}

static void fifo(struct world *w)
{
	replace_by(w, make_fifo);
}

static void every_damage_is_set_aside_and_no_other_content_suffers(void **state)
{
	static void (*const damages[])(struct world * w) = {
		empty,	      cut_in_header,  cut_after_header, cut_in_payload,
		longer,	      flipped_header, flipped_payload,	renamed,
		foreign_name, directory,      link_to_another,	fifo,
	};
	struct world *w = *state;

	for (size_t i = 0; i < ARRAY_SIZE(damages); i++) {
		char command[200];

		damaged(w, damages[i]);
		shut(w);
		snprintf(command, sizeof(command), "rm -rf %s/spool %s/damaged", w->path, w->path);
		assert_int_equal(system(command), 0);
	}
}

static void damage_while_it_runs_is_found_by_the_read(void **state)
{
	struct world *w = *state;

	reopen(w);
	assert_int_equal(put(w, 42, 1, 'a'), 0);
	flipped_payload(w);
	assert_int_equal(get(w, 42, 1, 5000, 'a'), -EBADMSG);
	assert_int_equal(entries(w, "damaged"), 1);
	assert_int_equal(figures(w).files, 0);
	assert_int_equal(get(w, 42, 1, 5000, 'a'), -ENOENT);
	assert_int_equal(put(w, 42, 2, 'b'), 0);
	path_in(w, "spool/0-42-2.vsr", (char[128]){ 0 }, 128);
	assert_true(there(w, "spool/0-42-2.vsr"));
	{
		char path[128];

		path_in(w, "spool/0-42-2.vsr", path, sizeof(path));
		assert_int_equal(unlink(path), 0);
	}
	assert_int_equal(get(w, 42, 2, 5000, 'b'), -ENOENT);
	assert_int_equal(figures(w).files, 0);
	assert_true(metric_get(METRIC_SPOOL_ERRORS, METRIC_SPOOL_READ) == 2);
}

static void what_is_set_aside_is_bounded(void **state)
{
	struct world *w = *state;

	reopen(w);
	for (unsigned i = 0; i < SPOOL_DAMAGED_MAX + 10; i++) {
		char name[32];

		snprintf(name, sizeof(name), "spool/0-%u-1.vsr", i + 3);
		close(open_in(w, name, O_WRONLY | O_CREAT));
	}
	reopen(w);
	assert_int_equal(w->n_restored, 0);
	assert_int_equal(entries(w, "spool"), 0);
	assert_int_equal(entries(w, "damaged"), SPOOL_DAMAGED_MAX);
	assert_true(metric_get(METRIC_SPOOL_SET_ASIDE, 0) == SPOOL_DAMAGED_MAX + 10);
}

static void what_the_relay_cannot_take_stays_for_the_next_start(void **state)
{
	struct world *w = *state;

	reopen(w);
	assert_int_equal(put(w, 42, 1, 'a'), 0);
	w->restored_result = -ENOBUFS;
	reopen(w);
	assert_int_equal(w->n_restored, 0);
	assert_int_equal(entries(w, "spool"), 1);
	w->restored_result = 0;
	reopen(w);
	assert_int_equal(w->n_restored, 1);
}

/* ---- limits and disks that fail ------------------------------------------------------------------- */

static void files_and_bytes_are_bounded_but_a_vm_may_replace_its_own(void **state)
{
	static const struct spool_limits two = { .max_files = 2, .max_bytes = MIB };
	struct spool_limits more = { .max_files = 10, .max_bytes = 2 * (SPOOL_HEADER_SIZE + 5000) };
	struct world *w = *state;

	assert_int_equal(try_open(w, &two), 0);
	assert_int_equal(put(w, 1, 1, 'a'), 0);
	assert_int_equal(put(w, 2, 1, 'a'), 0);
	assert_int_equal(put(w, 3, 1, 'a'), -ENOSPC);
	assert_int_equal(figures(w).state, SPOOL_FULL);
	assert_int_equal(put(w, 2, 2, 'b'), 0);
	drop(w, 2, 1);
	drop(w, 1, 1);
	wait_idle(w);
	assert_int_equal(figures(w).state, SPOOL_OK);
	assert_int_equal(put(w, 3, 1, 'a'), 0);
	assert_int_equal(put(w, 4, 1, 'a'), -ENOSPC);
	/* Bytes. */
	spool_set_limits(w->spool, &more);
	assert_int_equal(figures(w).state, SPOOL_OK);
	assert_int_equal(put_sized(w, 4, 1, 1, 'a'), -ENOSPC);
	assert_int_equal(put_sized(w, 3, 2, 5001, 'a'), -ENOSPC);
	assert_int_equal(put_sized(w, 3, 2, 5000, 'a'), 0);
}

static void writes_under_way_are_bounded(void **state)
{
	static struct put puts[SPOOL_WRITES_MAX + 1];
	struct world *w = *state;

	reopen(w);
	for (uint32_t i = 0; i < SPOOL_WRITES_MAX; i++)
		assert_int_equal(start_put(w, &puts[i], 3 + i, 1, 100, 'a'), 0);
	assert_int_equal(start_put(w, &puts[SPOOL_WRITES_MAX], 1000, 1, 100, 'a'), -EBUSY);
	wait_idle(w);
	for (uint32_t i = 0; i < SPOOL_WRITES_MAX; i++)
		assert_true(puts[i].done && puts[i].result == 0);
	assert_int_equal(start_put(w, &puts[0], 1000, 1, 100, 'a'), 0);
	wait_idle(w);
}

/* Probes until the disk is used again, which takes up to SPOOL_PROBE_INTERVAL of fake time. */
static void probe_at(struct world *w, uint64_t now)
{
	spool_run(w->spool, false, now);
	while (disk_pending(w->disk) > 0) {
		struct pollfd p = { .fd = disk_fd(w->disk), .events = POLLIN };

		assert_int_equal(poll(&p, 1, PATIENCE), 1);
		disk_dispatch(w->disk);
	}
}

static void a_disk_that_fails_takes_nothing_until_a_probe_succeeds(void **state)
{
	struct rlimit was, small = { 4096 + 2000, RLIM_INFINITY };
	struct world *w = *state;
	uint64_t now;

	reopen(w);
	assert_int_equal(put_sized(w, 1, 1, 100, 'a'), 0);
	signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
	small.rlim_max = was.rlim_max;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
	assert_int_equal(put_sized(w, 1, 2, 50000, 'b'), -EFBIG);
	assert_int_equal(figures(w).state, SPOOL_FAILED);
	assert_int_equal(figures(w).error, EFBIG);
	assert_false(spool_store(w->spool)->ready);
	assert_int_equal(put_sized(w, 2, 1, 100, 'a'), -EIO);
	/* Reads go on. */
	assert_int_equal(get(w, 1, 1, 100, 'a'), 0);

	small.rlim_cur = 10;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
	now = clock_usec() + SPOOL_PROBE_INTERVAL;
	assert_true(spool_next_event(w->spool) <= now);
	probe_at(w, now);
	assert_int_equal(figures(w).state, SPOOL_FAILED);
	assert_true(metric_get(METRIC_SPOOL_ERRORS, METRIC_SPOOL_PROBE) == 1);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &was), 0);
	signal(SIGXFSZ, SIG_DFL);
	probe_at(w, now + 1); /* not yet */
	assert_int_equal(figures(w).state, SPOOL_FAILED);
	probe_at(w, now + SPOOL_PROBE_INTERVAL);
	assert_int_equal(figures(w).state, SPOOL_OK);
	assert_int_equal(spool_next_event(w->spool), USEC_INFINITY);
	assert_int_equal(put_sized(w, 1, 2, 50000, 'b'), 0);
	wait_idle(w);
	assert_int_equal(entries(w, "spool"), 2); /* both contents of VM 1, no rest of a probe */
}

static void a_full_and_a_read_only_disk(void **state)
{
	struct world *w = *state;
	uint64_t now;

	if (mount("none", w->path, "tmpfs", 0, "size=256k,mode=700") < 0)
		skip(); /* needs root */
	reopen(w);
	assert_int_equal(put_sized(w, 1, 1, 100000, 'a'), 0);
	assert_int_equal(put_sized(w, 2, 1, 200000, 'b'), -ENOSPC);
	assert_int_equal(figures(w).error, ENOSPC);
	/* A small file would fit, but not what failed. */
	now = clock_usec() + SPOOL_PROBE_INTERVAL;
	probe_at(w, now);
	assert_int_equal(figures(w).state, SPOOL_FAILED);
	assert_int_equal(mount("none", w->path, "tmpfs", MS_REMOUNT, "size=2m"), 0);
	probe_at(w, now += SPOOL_PROBE_INTERVAL);
	assert_int_equal(figures(w).state, SPOOL_OK);
	assert_int_equal(put_sized(w, 2, 1, 200000, 'b'), 0);

	/* Read-only: what is there is restored and read, and removed when that works again. */
	assert_int_equal(mount("none", w->path, "tmpfs", MS_REMOUNT | MS_RDONLY, NULL), 0);
	reopen(w);
	assert_int_equal(w->n_restored, 2);
	assert_int_equal(get(w, 1, 1, 100000, 'a'), 0);
	drop(w, 1, 1);
	while (figures(w).state != SPOOL_FAILED)
		turn(w);
	assert_int_equal(figures(w).error, EROFS);
	assert_int_equal(put_sized(w, 3, 1, 100, 'c'), -EIO);
	assert_int_equal(newest(w, 1), 1);
	assert_int_equal(mount("none", w->path, "tmpfs", MS_REMOUNT, "size=2m"), 0);
	probe_at(w, clock_usec() + SPOOL_PROBE_INTERVAL);
	assert_int_equal(figures(w).state, SPOOL_OK);
	wait_idle(w);
	assert_false(there(w, "spool/0-1-1.vsr"));
	assert_int_equal(newest(w, 1), 0);
	shut(w);
	assert_int_equal(umount(w->path), 0);
}

static void a_start_on_a_read_only_disk_is_no_error(void **state)
{
	struct world *w = *state;

	if (mount("none", w->path, "tmpfs", MS_RDONLY, "mode=700") < 0)
		skip(); /* needs root */
	reopen(w);
	assert_int_equal(w->n_restored, 0);
	assert_int_equal(figures(w).state, SPOOL_FAILED);
	assert_int_equal(put(w, 1, 1, 'a'), -EIO);
	assert_int_equal(mount("none", w->path, "tmpfs", MS_REMOUNT, NULL), 0);
	probe_at(w, clock_usec() + SPOOL_PROBE_INTERVAL);
	assert_int_equal(figures(w).state, SPOOL_OK);
	assert_int_equal(put(w, 1, 1, 'a'), 0);
	shut(w);
	assert_int_equal(umount(w->path), 0);
}

static void a_directory_that_vanished_is_used_again_when_it_is_back(void **state)
{
	struct world *w = *state;
	char command[200];

	reopen(w);
	assert_int_equal(put(w, 1, 1, 'a'), 0);
	snprintf(command, sizeof(command), "rm -rf %s && touch %s", w->path, w->path);
	assert_int_equal(system(command), 0);
	assert_int_equal(put(w, 2, 1, 'b'), -ENOENT);
	assert_int_equal(figures(w).state, SPOOL_FAILED);
	probe_at(w, clock_usec()); /* at once */
	assert_int_equal(w->lost, 1);
	assert_int_equal(figures(w).state, SPOOL_FAILED); /* a file stands there */
	assert_int_equal(get(w, 1, 1, 5000, 'a'), -ENOENT);
	assert_int_equal(figures(w).files, 0);
	assert_int_equal(unlink(w->path), 0);
	probe_at(w, clock_usec() + SPOOL_PROBE_INTERVAL);
	assert_int_equal(figures(w).state, SPOOL_OK);
	assert_int_equal(put(w, 1, 1, 'a'), 0);
	assert_int_equal(get(w, 1, 1, 5000, 'a'), 0);
	wait_idle(w);
	assert_int_equal(entries(w, "spool"), 1);
	reopen(w);
	assert_int_equal(w->n_restored, 1);
}

static void a_disk_that_hangs_takes_nothing(void **state)
{
	struct world *w = *state;

	reopen(w);
	spool_run(w->spool, true, clock_usec());
	assert_int_equal(figures(w).state, SPOOL_HANGS);
	assert_string_equal(spool_state_name(SPOOL_HANGS), "hangs");
	assert_int_equal(put(w, 1, 1, 'a'), -EIO);
	spool_run(w->spool, false, clock_usec());
	assert_int_equal(put(w, 1, 1, 'a'), 0);
}

static void a_directory_of_somebody_else_is_an_error(void **state)
{
	struct world *w = *state;

	assert_int_equal(chmod(w->path, 0770), 0);
	assert_int_equal(try_open(w, &limits), -EPERM);
	assert_int_equal(chmod(w->path, 0700), 0);
	assert_int_equal(try_open(w, &limits), 0);
	if (geteuid() != 0)
		skip();
	shut(w);
	assert_int_equal(chown(w->path, 12345, 12345), 0);
	assert_int_equal(try_open(w, &limits), -EPERM);
	assert_int_equal(chown(w->path, 0, 0), 0);
	{
		char path[128];

		path_in(w, "spool", path, sizeof(path));
		assert_int_equal(chown(path, 12345, 12345), 0);
		assert_int_equal(try_open(w, &limits), -EPERM);
	}
}

static void what_is_made_is_the_service_users(void **state)
{
	const struct privilege_identity id = { .uid = 12345, .gid = 12346 };
	struct world *w = *state;
	struct stat st;
	static const char *const names[] = { "", "spool", "damaged", "seed" };

	if (geteuid() != 0)
		skip();
	assert_int_equal(rmdir(w->path), 0);
	assert_int_equal(disk_new(SPOOL_JOBS_MAX, &w->disk), 0);
	assert_int_equal(spool_open(w->path, &id, &limits, w->disk, &w->spool), 0);
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		char path[128];

		path_in(w, names[i], path, sizeof(path));
		assert_int_equal(stat(path, &st), 0);
		assert_int_equal(st.st_uid, 12345);
		assert_int_equal(st.st_gid, 12346);
		assert_int_equal(st.st_mode & 027, 0);
	}
}

static void no_directory_where_none_can_be_made(void **state)
{
	struct world *w = *state;

	assert_int_equal(disk_new(SPOOL_JOBS_MAX, &w->disk), 0);
	assert_int_equal(spool_open("/nonexistent/state", NULL, &limits, w->disk, &w->spool),
			 -ENOENT);
	assert_int_equal(spool_open("/dev/null", NULL, &limits, w->disk, &w->spool), -ENOTDIR);
	assert_null(w->spool);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_header_reads_as_it_was_written),
		cmocka_unit_test(each_flipped_bit_and_each_cut_of_a_header_is_found),
		cmocka_unit_test(impossible_figures_are_refused_though_the_checksum_is_right),
		cmocka_unit_test(a_header_of_another_version_is_told_though_the_checksum_is_right),
		cmocka_unit_test(only_names_in_canonical_form_are_names),
		cmocka_unit_test(a_damaged_seed_is_no_seed),
#define IN_FOLDER(name) cmocka_unit_test_setup_teardown(name, make_folder, remove_folder)
		IN_FOLDER(a_content_survives_with_its_figures),
		IN_FOLDER(of_two_contents_of_a_vm_the_newer_counts),
		IN_FOLDER(contents_come_back_oldest_custody_first),
		IN_FOLDER(a_content_dropped_while_it_is_written_goes),
		IN_FOLDER(a_generation_can_be_written_again_after_its_drop),
		IN_FOLDER(many_drops_are_removed_in_batches),
		IN_FOLDER(temporary_files_are_removed_at_the_start),
		IN_FOLDER(without_its_seed_contents_are_hashed_again),
		IN_FOLDER(a_clock_set_back_makes_no_content_old),
		IN_FOLDER(every_damage_is_set_aside_and_no_other_content_suffers),
		IN_FOLDER(damage_while_it_runs_is_found_by_the_read),
		IN_FOLDER(what_is_set_aside_is_bounded),
		IN_FOLDER(what_the_relay_cannot_take_stays_for_the_next_start),
		IN_FOLDER(files_and_bytes_are_bounded_but_a_vm_may_replace_its_own),
		IN_FOLDER(writes_under_way_are_bounded),
		IN_FOLDER(a_disk_that_fails_takes_nothing_until_a_probe_succeeds),
		IN_FOLDER(a_full_and_a_read_only_disk),
		IN_FOLDER(a_start_on_a_read_only_disk_is_no_error),
		IN_FOLDER(a_directory_that_vanished_is_used_again_when_it_is_back),
		IN_FOLDER(a_disk_that_hangs_takes_nothing),
		IN_FOLDER(a_directory_of_somebody_else_is_an_error),
		IN_FOLDER(what_is_made_is_the_service_users),
		IN_FOLDER(no_directory_where_none_can_be_made),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
