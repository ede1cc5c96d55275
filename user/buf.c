/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Why recycling. CPU time of receiving 2.5 MB from an AF_UNIX socket, per report (microseconds,
 * median of five runs of tests/bench/bufs.c; Linux 6.18 in a VM, where a fresh page costs a walk
 * of two page tables):
 *
 *   one warm buffer, the floor				 474
 *   fresh mapping, pages as they are touched		2267
 *   fresh mapping, MADV_POPULATE_WRITE 512 KiB ahead	2111
 *   fresh mapping, huge pages where they fit		 869
 *   malloc and realloc, doubling			 391
 *   this file: recycled, cut and grown by the kernel	 414
 *
 * Populating ahead gains nothing: clearing the pages is the cost, not the faults. Huge pages
 * gain, but 2 MiB are charged for the first byte, which a guest could use to cost more than it
 * was granted, and what is cut off one stays allocated until memory is short. malloc recycles as
 * well, but what it keeps has no bound that we could state, nor can a tail be given back.
 */
#include "buf.h"

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>

#define PAGE 4096
/* Smaller pieces are not worth the bookkeeping: their pages are fetched anew. */
#define PIECE_MIN (64 * KIB)
#define PIECES	  64

struct buf {
	atomic_uint refs;
	uint8_t *map;
	size_t mapped; /* bytes of address space */
	size_t warm;   /* bytes from the start that are recycled, whole pages; 0 once sealed */
	size_t end;    /* of the bytes so far */
	size_t filled; /* the most that end ever was: memory that a header took is not idle again */
	size_t max;
	size_t stands_for; /* bytes of content, of a packed buffer */
	bool packed;
};

/* A range of memory that nobody uses, always part of a single mapping of the kernel's (it was cut
 * from one, never joined), so that mremap() takes it. */
struct piece {
	uint8_t *map;
	size_t size;
};

static struct {
	pthread_mutex_t lock;
	struct piece pieces[PIECES];
	size_t n;
	size_t limit;
	size_t free;	    /* bytes in pieces */
	size_t unused;	    /* the least that was, since the last trim */
	atomic_size_t idle; /* bytes in pieces, and warm bytes of buffers that are not filled yet;
			     * grows under the lock only */
} pool = {
	.lock = PTHREAD_MUTEX_INITIALIZER,
	.limit = BUF_POOL_DEFAULT,
};

static size_t pages(size_t n)
{
	return (n + PAGE - 1) / PAGE * PAGE;
}

size_t buf_cost_of(size_t length)
{
	return MAX(pages(length), (size_t)PAGE);
}

static void unmap(uint8_t *map, size_t size)
{
	/* Cutting a mapping in two can fail when there are too many mappings; the address space
	 * is then lost, the memory is not. */
	if (size > 0 && munmap(map, size) < 0)
		(void)madvise(map, size, MADV_DONTNEED);
}

/* ---- the pool, under its lock ------------------------------------------------------------------ */

static struct piece piece_take(size_t i)
{
	struct piece p = pool.pieces[i];

	pool.pieces[i] = pool.pieces[--pool.n];
	pool.free -= p.size;
	pool.unused = MIN(pool.unused, pool.free);
	return p;
}

static size_t smallest_piece(void)
{
	size_t smallest = 0;

	for (size_t i = 1; i < pool.n; i++)
		if (pool.pieces[i].size < pool.pieces[smallest].size)
			smallest = i;
	return smallest;
}

/* The smallest piece that holds `want` bytes, or else the largest there is. */
static size_t best_piece(size_t want)
{
	size_t best = 0;

	for (size_t i = 1; i < pool.n; i++) {
		size_t have = pool.pieces[best].size, size = pool.pieces[i].size;

		if (have < want ? size > have : size >= want && size < have)
			best = i;
	}
	return best;
}

/* Takes warm memory into the pool. Returns what has to be unmapped instead: it, or a smaller
 * piece that it replaced. */
static struct piece piece_add(struct piece p)
{
	struct piece out = { 0 };

	if (p.size < PIECE_MIN || atomic_load(&pool.idle) + p.size > pool.limit)
		return p;
	if (pool.n == PIECES) {
		size_t i = smallest_piece();

		if (pool.pieces[i].size >= p.size)
			return p;
		out = piece_take(i);
		atomic_fetch_sub(&pool.idle, out.size);
	}
	pool.pieces[pool.n++] = p;
	pool.free += p.size;
	atomic_fetch_add(&pool.idle, p.size);
	return out;
}

/* ---- the pool ---------------------------------------------------------------------------------- */

static void recycle(uint8_t *map, size_t size)
{
	struct piece out;

	pthread_mutex_lock(&pool.lock);
	out = piece_add((struct piece){ map, size });
	pthread_mutex_unlock(&pool.lock);
	unmap(out.map, out.size);
}

/* A piece for up to `want` bytes; map is NULL if there is none. What is beyond stays in the pool
 * as a piece of its own. The bytes remain counted as idle until they are filled. */
static struct piece reuse(size_t want)
{
	struct piece p = { 0 };

	pthread_mutex_lock(&pool.lock);
	if (pool.n > 0) {
		size_t i = best_piece(want);

		if (pool.pieces[i].size >= want + PIECE_MIN) {
			p = (struct piece){ pool.pieces[i].map, want };
			pool.pieces[i].map += want;
			pool.pieces[i].size -= want;
			pool.free -= want;
			pool.unused = MIN(pool.unused, pool.free);
		} else {
			p = piece_take(i);
		}
	}
	pthread_mutex_unlock(&pool.lock);
	return p;
}

size_t buf_pool_bytes(void)
{
	return atomic_load(&pool.idle);
}

static void free_piece(size_t i)
{
	struct piece p = piece_take(i);

	atomic_fetch_sub(&pool.idle, p.size);
	unmap(p.map, p.size);
}

void buf_pool_set_limit(size_t bytes)
{
	pthread_mutex_lock(&pool.lock);
	pool.limit = bytes;
	while (pool.n > 0 && atomic_load(&pool.idle) > bytes)
		free_piece(smallest_piece());
	pthread_mutex_unlock(&pool.lock);
}

void buf_pool_trim(void)
{
	size_t left;

	pthread_mutex_lock(&pool.lock);
	left = pool.unused;
	while (pool.n > 0) {
		size_t i = smallest_piece(), size = pool.pieces[i].size;

		if (size > left)
			break;
		left -= size;
		free_piece(i);
	}
	pool.unused = pool.free;
	pthread_mutex_unlock(&pool.lock);
}

/* ---- buffers ----------------------------------------------------------------------------------- */

/* Address space of `size` bytes, the first *ret_warm of which have memory already. */
static int map_new(size_t size, uint8_t **ret, size_t *ret_warm, size_t *ret_mapped)
{
	struct piece p = reuse(size);
	void *map;

	if (p.map && p.size < size) {
		map = mremap(p.map, p.size, size, MREMAP_MAYMOVE);
		if (map == MAP_FAILED) {
			atomic_fetch_sub(&pool.idle, p.size);
			unmap(p.map, p.size);
			return -ENOMEM;
		}
	} else if (p.map) {
		map = p.map;
		size = p.size;
	} else {
		map = mmap(NULL, size, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (map == MAP_FAILED)
			return -ENOMEM;
		/* Said once: it stays with the memory through all cuts and moves. Fails only where
		 * there are no huge pages. */
		(void)madvise(map, size, MADV_NOHUGEPAGE);
	}
	*ret = map;
	*ret_warm = p.size;
	*ret_mapped = size;
	return 0;
}

int buf_new(size_t max, struct buf **ret)
{
	_cleanup_free_ struct buf *b = calloc(1, sizeof(*b));
	int r;

	if (!b)
		return -ENOMEM;
	r = map_new(MAX(pages(max), (size_t)PAGE), &b->map, &b->warm, &b->mapped);
	if (r < 0)
		return r;
	b->max = max;
	atomic_init(&b->refs, 1);
	*ret = TAKE_PTR(b);
	return 0;
}

struct buf *buf_ref(struct buf *b)
{
	atomic_fetch_add_explicit(&b->refs, 1, memory_order_relaxed);
	return b;
}

/* Warm bytes that are not filled. */
static size_t idle_bytes(const struct buf *b)
{
	size_t filled = pages(b->filled);

	return b->warm > filled ? b->warm - filled : 0;
}

/* Keeps the first `keep` bytes: recycles what has memory beyond, unmaps the rest. */
static void cut(struct buf *b, size_t keep)
{
	size_t warm = MAX(b->warm, pages(b->filled));

	atomic_fetch_sub(&pool.idle, idle_bytes(b));
	if (warm > keep)
		recycle(b->map + keep, warm - keep);
	else
		warm = keep;
	unmap(b->map + warm, b->mapped - warm);
	b->mapped = keep;
	b->warm = 0;
}

struct buf *buf_unref(struct buf *b)
{
	if (!b)
		return NULL;
	/* Release, so that this thread's reads are done before another one recycles the memory;
	 * acquire, so that the recycling comes after them. */
	if (atomic_fetch_sub_explicit(&b->refs, 1, memory_order_acq_rel) > 1)
		return NULL;
	cut(b, 0);
	free(b);
	return NULL;
}

uint8_t *buf_tail(struct buf *b)
{
	return b->map + b->end;
}

size_t buf_room(const struct buf *b)
{
	return b->max - b->end;
}

void buf_advance(struct buf *b, size_t n)
{
	size_t before = idle_bytes(b);

	b->end += n;
	b->filled = MAX(b->filled, b->end);
	atomic_fetch_sub(&pool.idle, before - idle_bytes(b));
}

void buf_restart(struct buf *b)
{
	b->end = 0;
}

void buf_seal(struct buf *b)
{
	b->max = b->end;
	cut(b, MAX(pages(b->end), (size_t)PAGE));
}

void buf_seal_packed(struct buf *b, size_t length)
{
	buf_seal(b);
	b->stands_for = length;
	b->packed = true;
}

bool buf_packed(const struct buf *b)
{
	return b->packed;
}

const uint8_t *buf_stored(const struct buf *b, size_t *ret_len)
{
	*ret_len = b->end;
	return b->map;
}

const uint8_t *buf_data(const struct buf *b)
{
	assert(!b->packed);
	return b->map;
}

size_t buf_len(const struct buf *b)
{
	return b->packed ? b->stands_for : b->end;
}

size_t buf_cost(const struct buf *b)
{
	return MAX(pages(b->end), (size_t)PAGE);
}
