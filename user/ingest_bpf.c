// SPDX-License-Identifier: Apache-2.0
#include "ingest_bpf.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/time.h>

#include <linux/vm_sockets.h>

#include "bpf_why.h"
#include "unseen.h"

/* The generated skeleton has the name that our own type has in the header. */
#define ingest_bpf ingest_skel
#include "ingest.skel.h"
#undef ingest_bpf

/* Sizes beyond these are mistakes; they keep products below far from overflow. */
#define SLOTS_MAX  65536
#define VMS_MAX	   (1U << 24)
#define BLOCKS_MAX (1U << 27)

/* One event takes 24 bytes of the ring, a connection raises at most 6, and between two turns of
 * the loop a slot can be used a few times: with room for all of them none is ever lost. */
#define RING_BYTES_PER_SLOT 1024
#define RING_BYTES_MIN	    65536

/* The maps that are pinned, and which of them outlive us. */
enum {
	MAP_SOCKS,
	MAP_CONNS,
	MAP_GRANTS,
	MAP_BUFS,
	MAP_POOL,
	MAP_BLOCKS,
	MAP_EVENTS,
	MAP_STATS,
	MAP_FIRST_KEPT,
	MAP_ABI = MAP_FIRST_KEPT,
	MAP_VMS,
	MAP_VM_STATE,
	MAP_COUNT,
};

static const char *const map_names[MAP_COUNT] = {
	[MAP_SOCKS] = "vsr_socks",   [MAP_CONNS] = "vsr_conns",	      [MAP_GRANTS] = "vsr_grants",
	[MAP_BUFS] = "vsr_bufs",     [MAP_POOL] = "vsr_pool",	      [MAP_BLOCKS] = "vsr_blocks",
	[MAP_EVENTS] = "vsr_events", [MAP_STATS] = "vsr_stats",	      [MAP_ABI] = "vsr_abi",
	[MAP_VMS] = "vsr_vms",	     [MAP_VM_STATE] = "vsr_vm_state",
};

struct ingest_bpf {
	struct ingest_bpf_settings s; /* pin_dir is ours */
	struct ingest_skel *skel;
	struct bpf_map *maps[MAP_COUNT];
	int fds[MAP_COUNT]; /* -1: not in this mode; owned by skel */
	struct vsr_grant *grants;
	struct vsr_pool *pool;
	uint64_t *blocks;
	size_t grants_bytes, pool_bytes, blocks_bytes;
	struct ring_buffer *ring;
	ingest_bpf_event_cb event_cb; /* during ingest_bpf_events_consume() */
	void *event_userdata;
	int pin_fd;		   /* the pin directory: pins are removed through it */
	bool pinned;		   /* our pins are there */
	int cpus;		   /* values of a per-CPU map */
	struct vsr_stats *per_cpu; /* room for them */
	struct unseen *unseen;	   /* NULL: this kernel has no such iterator */
};

/* ---- what failed ------------------------------------------------------------------------------ */

const char *ingest_bpf_why(void)
{
	return bpf_why();
}

/* What a failure to load means to the caller: whatever the kernel objects to but lack of memory,
 * of descriptors or of permission is that it cannot do it. */
static int classify(int r)
{
	switch (-r) {
	case ENOMEM:
	case EMFILE:
	case ENFILE:
	case EPERM:
		return r;
	default:
		return -EOPNOTSUPP;
	}
}

/* ---- open and load ------------------------------------------------------------------------------ */

static int check_settings(const struct ingest_bpf_settings *s)
{
	if (s->slots < 1 || s->slots > SLOTS_MAX)
		return bpf_fail(-EINVAL, "slots: %u is not in 1..%u", s->slots, SLOTS_MAX);
	if (s->vms < 1 || s->vms > VMS_MAX)
		return bpf_fail(-EINVAL, "vms: %u is not in 1..%u", s->vms, VMS_MAX);
	if (s->blocks < 1 || s->blocks > BLOCKS_MAX)
		return bpf_fail(-EINVAL, "blocks: %u is not in 1..%u", s->blocks, BLOCKS_MAX);
	if (s->report_limit < 1 || s->report_limit > UINT32_MAX)
		return bpf_fail(-EINVAL, "report limit: %llu is not in 1..%u",
				(unsigned long long)s->report_limit, UINT32_MAX);
	return 0;
}

static uint32_t ring_bytes(uint32_t slots)
{
	uint32_t bytes = RING_BYTES_MIN;

	while (bytes < slots * RING_BYTES_PER_SLOT)
		bytes *= 2;
	return bytes;
}

static bool map_wanted(const struct ingest_bpf *b, int i)
{
	return !b->s.maps_only || i == MAP_STATS || i >= MAP_FIRST_KEPT;
}

/* Sets everything that the kernel must know before the load. */
static int configure(struct ingest_bpf *b)
{
	const uint32_t entries[MAP_COUNT] = {
		[MAP_SOCKS] = b->s.slots,
		[MAP_CONNS] = b->s.slots,
		[MAP_GRANTS] = b->s.slots,
		[MAP_BUFS] = b->s.slots,
		[MAP_POOL] = 1,
		[MAP_BLOCKS] = b->s.blocks,
		[MAP_STATS] = 1,
		[MAP_EVENTS] = ring_bytes(b->s.slots),
		[MAP_ABI] = 1,
		[MAP_VMS] = b->s.vms,
		[MAP_VM_STATE] = b->s.vms,
	};
	int i, r;

	b->skel->rodata->vsr_seed = b->s.seed;
	b->skel->rodata->vsr_report_limit = b->s.report_limit;
	for (i = 0; i < MAP_COUNT; i++) {
		b->maps[i] = bpf_object__find_map_by_name(b->skel->obj, map_names[i]);
		if (!b->maps[i])
			return bpf_fail(-EOPNOTSUPP, "map %s is not in the BPF object",
					map_names[i]);
		r = bpf_map__set_max_entries(b->maps[i], entries[i]);
		if (r == 0 && !map_wanted(b, i))
			r = bpf_map__set_autocreate(b->maps[i], false);
		if (r < 0)
			return bpf_fail(r, "size of map %s: %s", map_names[i], strerror(-r));
	}
	r = bpf_program__set_autoload(b->skel->progs.vsr_ingest, !b->s.maps_only);
	if (r < 0)
		return bpf_fail(r, "program vsr_ingest: %s", strerror(-r));
	return 0;
}

static int load(struct ingest_bpf *b)
{
	int i, r;

	r = ingest_bpf__load(b->skel);
	if (r < 0)
		return bpf_fail(classify(r), "load: %s (%s)",
				*bpf_heard() ? bpf_heard() : "no message", strerror(-r));
	for (i = 0; i < MAP_COUNT; i++)
		if (map_wanted(b, i))
			b->fds[i] = bpf_map__fd(b->maps[i]);
	return 0;
}

/* Programs are copied to a socket when it enters the map: this comes before any socket. */
static int attach_program(struct ingest_bpf *b)
{
	int r;

	r = bpf_prog_attach(bpf_program__fd(b->skel->progs.vsr_ingest), b->fds[MAP_SOCKS],
			    BPF_SK_SKB_STREAM_VERDICT, 0);
	if (r < 0)
		return bpf_fail(classify(r), "attach of the program to vsr_socks: %s",
				strerror(-r));
	return 0;
}

static int map_memory(int fd, size_t size, void **ret, size_t *ret_bytes)
{
	size_t page = sysconf(_SC_PAGESIZE);
	size_t bytes = (size + page - 1) / page * page;
	void *p;

	p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		return -errno;
	*ret = p;
	*ret_bytes = bytes;
	return 0;
}

static int on_event(void *ctx, void *data, size_t size)
{
	struct ingest_bpf *b = ctx;

	if (size >= sizeof(struct vsr_event))
		b->event_cb(data, b->event_userdata);
	return 0;
}

/* Everything of the maps that needs more than their descriptor later. */
static int open_memory(struct ingest_bpf *b)
{
	int r;

	r = map_memory(b->fds[MAP_GRANTS], b->s.slots * sizeof(struct vsr_grant),
		       (void **)&b->grants, &b->grants_bytes);
	if (r < 0)
		return bpf_fail(r, "mmap of vsr_grants: %s", strerror(-r));
	r = map_memory(b->fds[MAP_POOL], sizeof(struct vsr_pool), (void **)&b->pool,
		       &b->pool_bytes);
	if (r < 0)
		return bpf_fail(r, "mmap of vsr_pool: %s", strerror(-r));
	__atomic_store_n(&b->pool->limit, b->s.pool_limit, __ATOMIC_RELAXED);
	r = map_memory(b->fds[MAP_BLOCKS], b->s.blocks * sizeof(uint64_t), (void **)&b->blocks,
		       &b->blocks_bytes);
	if (r < 0)
		return bpf_fail(r, "mmap of vsr_blocks: %s", strerror(-r));

	b->ring = ring_buffer__new(b->fds[MAP_EVENTS], on_event, b, NULL);
	if (!b->ring) {
		r = -errno;
		return bpf_fail(r, "ring buffer vsr_events: %s", strerror(-r));
	}
	return 0;
}

static int open_stats(struct ingest_bpf *b)
{
	b->cpus = libbpf_num_possible_cpus();
	if (b->cpus < 0)
		return bpf_fail(b->cpus, "number of CPUs: %s", strerror(-b->cpus));
	b->per_cpu = calloc(b->cpus, sizeof(*b->per_cpu));
	if (!b->per_cpu)
		return bpf_fail(-ENOMEM, "memory for vsr_stats");
	return 0;
}

static int write_abi(struct ingest_bpf *b)
{
	struct vsr_abi_info info = { .version = VSR_ABI_VERSION };
	uint32_t zero = 0;
	int r;

	r = bpf_map_update_elem(b->fds[MAP_ABI], &zero, &info, BPF_ANY);
	if (r < 0)
		return bpf_fail(r, "write of vsr_abi: %s", strerror(-r));
	return 0;
}

/* ---- pins --------------------------------------------------------------------------------------- */

static int pin_path(const struct ingest_bpf *b, int i, char *ret, size_t size)
{
	int n = snprintf(ret, size, "%s/%s", b->s.pin_dir, map_names[i]);

	return n < 0 || (size_t)n >= size ? -ENAMETOOLONG : 0;
}

/* Its parent must be a BPF file system: elsewhere it could be made, but nothing pinned in it. */
static int make_pin_dir(struct ingest_bpf *b)
{
	_cleanup_free_ char *parent = strdup(b->s.pin_dir);
	struct statfs fs;
	char *slash;

	if (!parent)
		return bpf_fail(-ENOMEM, "memory for the pin directory");
	slash = strrchr(parent, '/');
	if (!slash || slash == parent)
		return bpf_fail(-EINVAL, "pin directory %s: not below a mount point", b->s.pin_dir);
	*slash = '\0';
	if (statfs(parent, &fs) < 0 || fs.f_type != BPF_FS_MAGIC)
		return bpf_fail(-EOPNOTSUPP, "%s is no BPF file system (mount -t bpf bpf %s)",
				parent, parent);

	if (mkdir(b->s.pin_dir, 0700) < 0 && errno != EEXIST)
		return bpf_fail(-errno, "mkdir %s: %s", b->s.pin_dir, strerror(errno));
	return 0;
}

/* Makes the directory if it is not there, and opens it. It may be all that a sandbox shows of a BPF
 * file system (vsock-relayd.service), so where it is there, its parent does not matter. */
static int open_pin_dir(struct ingest_bpf *b)
{
	struct statfs fs;

	if (statfs(b->s.pin_dir, &fs) < 0 || fs.f_type != BPF_FS_MAGIC) {
		int r = make_pin_dir(b);

		if (r < 0)
			return r;
	}
	b->pin_fd = open(b->s.pin_dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (b->pin_fd < 0)
		return bpf_fail(-errno, "open %s: %s", b->s.pin_dir, strerror(errno));
	if (fchmod(b->pin_fd, 0700) < 0 || fchown(b->pin_fd, b->s.pin_uid, b->s.pin_gid) < 0)
		return bpf_fail(-errno, "owner of %s: %s", b->s.pin_dir, strerror(errno));
	return 0;
}

/* The pinned map of that name, if it has the type and sizes that ours would have. Returns its
 * descriptor, or -ENOENT. */
static int open_pinned(const struct ingest_bpf *b, int i)
{
	_cleanup_close_ int fd = -1;
	struct bpf_map_info info = {};
	uint32_t size = sizeof(info);
	char path[4096];

	if (pin_path(b, i, path, sizeof(path)) < 0)
		return -ENOENT;
	fd = bpf_obj_get(path);
	if (fd < 0 || bpf_obj_get_info_by_fd(fd, &info, &size) < 0)
		return -ENOENT;
	if (info.type != bpf_map__type(b->maps[i]) ||
	    info.key_size != bpf_map__key_size(b->maps[i]) ||
	    info.value_size != bpf_map__value_size(b->maps[i]) ||
	    info.max_entries != bpf_map__max_entries(b->maps[i]) ||
	    info.map_flags != bpf_map__map_flags(b->maps[i]))
		return -ENOENT;
	return TAKE_FD(fd);
}

/* Whether what is pinned was written with our layout. */
static bool same_abi(const struct ingest_bpf *b)
{
	_cleanup_close_ int fd = open_pinned(b, MAP_ABI);
	struct vsr_abi_info info;
	uint32_t zero = 0;

	return fd >= 0 && bpf_map_lookup_elem(fd, &zero, &info) == 0 &&
	       info.version == VSR_ABI_VERSION;
}

/* Before the load: takes over the maps that survive a restart, where they fit. */
static int reuse_pinned(struct ingest_bpf *b)
{
	int i, r;

	if (!same_abi(b))
		return 0;
	for (i = MAP_FIRST_KEPT; i < MAP_COUNT; i++) {
		_cleanup_close_ int fd = open_pinned(b, i);

		if (fd < 0)
			continue;
		r = bpf_map__reuse_fd(b->maps[i], fd);
		if (r < 0)
			return bpf_fail(r, "re-use of pinned %s: %s", map_names[i], strerror(-r));
	}
	return 0;
}

static void unpin(struct ingest_bpf *b, int first, int end)
{
	int i;

	for (i = first; i < end; i++)
		(void)unlinkat(b->pin_fd, map_names[i], 0);
}

/* After the load: every pin is of our map now. vsr_abi comes last, so that a crash in between
 * leaves no version beside maps of another one: without it nothing is re-used. */
static int pin_all(struct ingest_bpf *b)
{
	static const int order[MAP_COUNT] = {
		MAP_SOCKS,  MAP_CONNS, MAP_GRANTS, MAP_BUFS,	 MAP_POOL, MAP_BLOCKS,
		MAP_EVENTS, MAP_STATS, MAP_VMS,	   MAP_VM_STATE, MAP_ABI,
	};
	char path[4096];
	size_t k;
	int r;

	unpin(b, MAP_ABI, MAP_ABI + 1);
	b->pinned = true;
	for (k = 0; k < ARRAY_SIZE(order); k++) {
		int i = order[k];

		unpin(b, i, i + 1);
		if (!map_wanted(b, i))
			continue;
		r = pin_path(b, i, path, sizeof(path));
		if (r == 0)
			r = bpf_obj_pin(b->fds[i], path);
		if (r < 0)
			return bpf_fail(r, "pin of %s in %s: %s", map_names[i], b->s.pin_dir,
					strerror(-r));
	}
	return 0;
}

/* ---- life --------------------------------------------------------------------------------------- */

static int start(struct ingest_bpf *b)
{
	int r;

	b->skel = ingest_bpf__open();
	if (!b->skel) {
		r = -errno;
		return bpf_fail(classify(r), "open of the BPF object: %s",
				*bpf_heard() ? bpf_heard() : strerror(-r));
	}
	r = configure(b);
	if (r == 0 && b->s.pin_dir)
		r = open_pin_dir(b);
	if (r == 0 && b->s.pin_dir)
		r = reuse_pinned(b);
	if (r == 0)
		r = load(b);
	if (r == 0 && !b->s.maps_only)
		r = attach_program(b);
	if (r == 0 && !b->s.maps_only)
		r = open_memory(b);
	/* Without it the credit alone bounds what nobody sees. */
	if (r == 0 && !b->s.maps_only)
		(void)unseen_new(b->fds[MAP_SOCKS], &b->unseen);
	if (r == 0)
		r = open_stats(b);
	if (r == 0)
		r = write_abi(b);
	if (r == 0 && b->s.pin_dir)
		r = pin_all(b);
	return r;
}

int ingest_bpf_new(const struct ingest_bpf_settings *s, struct ingest_bpf **ret)
{
	_cleanup_(ingest_bpf_freep)
	struct ingest_bpf *b = NULL;
	int i, r;

	r = check_settings(s);
	if (r < 0)
		return r;
	b = calloc(1, sizeof(*b));
	if (!b)
		return bpf_fail(-ENOMEM, "memory");
	b->s = *s;
	b->pin_fd = -1;
	for (i = 0; i < MAP_COUNT; i++)
		b->fds[i] = -1;
	if (s->pin_dir) {
		b->s.pin_dir = strdup(s->pin_dir);
		if (!b->s.pin_dir)
			return bpf_fail(-ENOMEM, "memory");
	}

	bpf_hear_begin();
	r = start(b);
	bpf_hear_end();
	if (r < 0)
		return r;
	*ret = TAKE_PTR(b);
	return 0;
}

struct ingest_bpf *ingest_bpf_free(struct ingest_bpf *b)
{
	if (!b)
		return NULL;
	if (b->pinned)
		unpin(b, 0, MAP_FIRST_KEPT);
	safe_close(b->pin_fd);
	unseen_free(b->unseen);
	ring_buffer__free(b->ring);
	if (b->grants)
		munmap(b->grants, b->grants_bytes);
	if (b->pool)
		munmap(b->pool, b->pool_bytes);
	if (b->blocks)
		munmap(b->blocks, b->blocks_bytes);
	ingest_bpf__destroy(b->skel);
	free(b->per_cpu);
	free((char *)b->s.pin_dir);
	free(b);
	return NULL;
}

struct unseen *ingest_bpf_unseen(const struct ingest_bpf *b)
{
	return b->unseen;
}

bool ingest_bpf_maps_only(const struct ingest_bpf *b)
{
	return b->s.maps_only;
}

/* ---- one connection ----------------------------------------------------------------------------- */

/* Sockmap takes connected sockets only, and says EOPNOTSUPP for all others as well as for a
 * family that it does not know. Which of the two it was can be seen on the socket. */
static bool peer_left(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLRDHUP };

	return poll(&p, 1, 0) > 0 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR));
}

int ingest_bpf_attach(struct ingest_bpf *b, int fd, uint64_t cookie, const struct vsr_vm_id *vm,
		      uint32_t slot)
{
	struct vsr_conn conn = { .vm = *vm, .slot = slot, .fold = b->s.seed };
	uint64_t value = fd;
	int r;

	if (slot >= b->s.slots)
		return bpf_fail(-EINVAL, "slot %u of %u", slot, b->s.slots);
	r = bpf_map_update_elem(b->fds[MAP_CONNS], &cookie, &conn, BPF_NOEXIST);
	if (r < 0)
		return bpf_fail(r, "insert into vsr_conns: %s", strerror(-r));
	r = bpf_map_update_elem(b->fds[MAP_SOCKS], &cookie, &value, BPF_NOEXIST);
	if (r < 0) {
		(void)bpf_map_delete_elem(b->fds[MAP_CONNS], &cookie);
		if (r == -EOPNOTSUPP && peer_left(fd))
			return bpf_fail(-ENOTCONN, "insert into vsr_socks: the peer left");
		return bpf_fail(r, "insert into vsr_socks: %s", strerror(-r));
	}
	return 0;
}

/*
 * Passes once through the socket's lock. Every setsockopt() of level AF_VSOCK takes it
 * (vsock_connectible_setsockopt() in net/vmw_vsock/af_vsock.c); this option has no meaning for a
 * connected socket.
 */
static int pass_socket_lock(int fd)
{
	const struct timeval tv = { .tv_sec = 2 };

	return setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &tv, sizeof(tv)) < 0 ? -errno
											    : 0;
}

int ingest_bpf_detach(struct ingest_bpf *b, int fd, uint64_t cookie, uint32_t slot,
		      struct vsr_conn *ret_conn)
{
	struct vsr_conn conn;
	int r;

	if (fd >= 0) {
		/* No new verdict after the first, none left after the second. */
		(void)bpf_map_delete_elem(b->fds[MAP_SOCKS], &cookie);
		r = pass_socket_lock(fd);
		if (r < 0)
			return r;
	}
	r = bpf_map_lookup_elem(b->fds[MAP_CONNS], &cookie, &conn);
	if (r < 0)
		return r;
	(void)bpf_map_delete_elem(b->fds[MAP_CONNS], &cookie);
	ingest_bpf_grant_set(b, slot, 0, 0);
	ingest_bpf_grant_match(b, slot, 0, 0);
	if (ret_conn)
		*ret_conn = conn;
	return 0;
}

int ingest_bpf_read(struct ingest_bpf *b, uint64_t cookie, struct vsr_conn *ret)
{
	struct vsr_conn conn;
	uint32_t flags;
	int r;

	/* The program stores flags last. A copy is not atomic as a whole: the flags of a first copy
	 * with the rest of a second, later one are never ahead of it. */
	r = bpf_map_lookup_elem(b->fds[MAP_CONNS], &cookie, &conn);
	if (r < 0)
		return r;
	flags = conn.flags;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	r = bpf_map_lookup_elem(b->fds[MAP_CONNS], &cookie, &conn);
	if (r < 0)
		return r;
	conn.flags = flags;
	*ret = conn;
	return 0;
}

int ingest_bpf_buf(struct ingest_bpf *b, uint32_t slot, struct vsr_buf *ret)
{
	if (slot >= b->s.slots)
		return -EINVAL;
	return bpf_map_lookup_elem(b->fds[MAP_BUFS], &slot, ret);
}

void ingest_bpf_grant_set(struct ingest_bpf *b, uint32_t slot, uint64_t reservation,
			  uint64_t buffered)
{
	struct vsr_grant *g;

	if (slot >= b->s.slots)
		return;
	g = &b->grants[slot];
	/* The program must not see a raised buffer beside a reservation that is yet to be raised:
	 * it would refuse a packet that fits. */
	if (reservation >= __atomic_load_n(&g->reservation, __ATOMIC_RELAXED)) {
		__atomic_store_n(&g->reservation, reservation, __ATOMIC_RELAXED);
		__atomic_store_n(&g->buffered, buffered, __ATOMIC_RELEASE);
	} else {
		__atomic_store_n(&g->buffered, buffered, __ATOMIC_RELAXED);
		__atomic_store_n(&g->reservation, reservation, __ATOMIC_RELEASE);
	}
}

void ingest_bpf_grant_match(struct ingest_bpf *b, uint32_t slot, uint64_t first, uint64_t bytes)
{
	struct vsr_grant *g;

	if (slot >= b->s.slots)
		return;
	/* No verdict runs on this slot now: in any order. The syscalls of the attach see to it that
	 * one finds both, and the digests. */
	g = &b->grants[slot];
	__atomic_store_n(&g->extent, first, __ATOMIC_RELAXED);
	__atomic_store_n(&g->extent_bytes, bytes, __ATOMIC_RELEASE);
}

uint64_t *ingest_bpf_blocks(struct ingest_bpf *b, uint32_t *ret_n)
{
	*ret_n = b->s.blocks;
	return b->blocks;
}

/* ---- shared reserve ----------------------------------------------------------------------------- */

struct vsr_pool *ingest_bpf_pool(struct ingest_bpf *b)
{
	return b->pool;
}

/* ---- events ------------------------------------------------------------------------------------- */

int ingest_bpf_events_fd(const struct ingest_bpf *b)
{
	return ring_buffer__epoll_fd(b->ring);
}

int ingest_bpf_events_consume(struct ingest_bpf *b, ingest_bpf_event_cb cb, void *userdata)
{
	b->event_cb = cb;
	b->event_userdata = userdata;
	return ring_buffer__consume(b->ring);
}

/* ---- maps for people ---------------------------------------------------------------------------- */

static void sum_stats(const struct vsr_stats *per_cpu, int cpus, struct vsr_stats *ret)
{
	struct vsr_stats sum = {};
	uint64_t *to = (uint64_t *)&sum;
	size_t field;
	int cpu;

	_Static_assert(sizeof(struct vsr_stats) % sizeof(uint64_t) == 0, "all fields are u64");
	for (cpu = 0; cpu < cpus; cpu++)
		for (field = 0; field < sizeof(sum) / sizeof(*to); field++)
			to[field] += ((const uint64_t *)&per_cpu[cpu])[field];
	*ret = sum;
}

int ingest_bpf_stats(struct ingest_bpf *b, struct vsr_stats *ret)
{
	uint32_t zero = 0;
	int r;

	r = bpf_map_lookup_elem(b->fds[MAP_STATS], &zero, b->per_cpu);
	if (r < 0)
		return r;
	sum_stats(b->per_cpu, b->cpus, ret);
	return 0;
}

int ingest_bpf_stats_pinned(const char *pin_dir, struct vsr_stats *ret, uint32_t *ret_id)
{
	_cleanup_free_ struct vsr_stats *per_cpu = NULL;
	_cleanup_free_ char *path = NULL;
	_cleanup_close_ int fd = -1;
	struct bpf_map_info info = {};
	uint32_t size = sizeof(info), zero = 0;
	int cpus = libbpf_num_possible_cpus(), r;

	if (cpus < 0)
		return cpus;
	if (asprintf(&path, "%s/%s", pin_dir, map_names[MAP_STATS]) < 0) {
		path = NULL;
		return -ENOMEM;
	}
	fd = bpf_obj_get(path);
	if (fd < 0)
		return -errno;
	if (bpf_obj_get_info_by_fd(fd, &info, &size) < 0)
		return -errno;
	if (info.type != BPF_MAP_TYPE_PERCPU_ARRAY || info.value_size != sizeof(*per_cpu))
		return -EPROTONOSUPPORT;
	per_cpu = calloc(cpus, sizeof(*per_cpu));
	if (!per_cpu)
		return -ENOMEM;
	r = bpf_map_lookup_elem(fd, &zero, per_cpu);
	if (r < 0)
		return r;
	sum_stats(per_cpu, cpus, ret);
	*ret_id = info.id;
	return 0;
}

int ingest_bpf_vm_state_update(struct ingest_bpf *b, const struct vsr_vm_id *id,
			       const struct vsr_vm_state *v)
{
	return bpf_map_update_elem(b->fds[MAP_VM_STATE], id, v, BPF_ANY);
}

int ingest_bpf_vm_state_lookup(struct ingest_bpf *b, const struct vsr_vm_id *id,
			       struct vsr_vm_state *ret)
{
	return bpf_map_lookup_elem(b->fds[MAP_VM_STATE], id, ret);
}

int ingest_bpf_vm_seen_update(struct ingest_bpf *b, const struct vsr_vm_id *id,
			      const struct vsr_vm_seen *v)
{
	if (!b->s.maps_only)
		return -EBUSY;
	return bpf_map_update_elem(b->fds[MAP_VMS], id, v, BPF_ANY);
}

int ingest_bpf_vm_seen_lookup(struct ingest_bpf *b, const struct vsr_vm_id *id,
			      struct vsr_vm_seen *ret)
{
	return bpf_map_lookup_elem(b->fds[MAP_VMS], id, ret);
}

int ingest_bpf_vms_foreach(struct ingest_bpf *b, ingest_bpf_vm_cb cb, void *userdata)
{
	struct vsr_vm_id id, next;
	const struct vsr_vm_id *prev = NULL;
	struct vsr_vm_seen seen;
	int n = 0, r;
	uint32_t i;

	/* The iteration starts again at the front when its key was evicted meanwhile. */
	for (i = 0; i < b->s.vms; i++) {
		r = bpf_map_get_next_key(b->fds[MAP_VMS], prev, &next);
		if (r == -ENOENT)
			break;
		if (r < 0)
			return r;
		id = next;
		prev = &id;
		if (bpf_map_lookup_elem(b->fds[MAP_VMS], &id, &seen) < 0)
			continue;
		cb(&id, &seen, userdata);
		n++;
	}
	return n;
}

int ingest_bpf_conns_count(struct ingest_bpf *b)
{
	uint64_t key, next;
	const uint64_t *prev = NULL;
	int n, r;

	for (n = 0; n < (int)b->s.slots; n++) {
		r = bpf_map_get_next_key(b->fds[MAP_CONNS], prev, &next);
		if (r == -ENOENT)
			break;
		if (r < 0)
			return r;
		key = next;
		prev = &key;
	}
	return n;
}
