/* SPDX-License-Identifier: Apache-2.0 */
/* The shared reserve of the memory budget (SPEC 3, memory; vsr_pool): the daemon's side of it. BPF
 * draws on it at the same time, so atomics only; what is drawn must be given back. */
#ifndef VSR_POOL_H
#define VSR_POOL_H

#include "util.h"
#include "vsr_abi.h"

/* Bytes that nobody has drawn. */
static inline uint64_t pool_left(const struct vsr_pool *pool)
{
	uint64_t limit = __atomic_load_n(&pool->limit, __ATOMIC_RELAXED);
	uint64_t drawn = __atomic_load_n(&pool->drawn, __ATOMIC_RELAXED);

	return limit > drawn ? limit - drawn : 0;
}

static inline void pool_give_back(struct vsr_pool *pool, uint64_t n)
{
	__atomic_sub_fetch(&pool->drawn, n, __ATOMIC_RELAXED);
}

/* Draws n bytes. Returns whether there were as many. */
static inline bool pool_draw(struct vsr_pool *pool, uint64_t n)
{
	/* A draw without hope must not be seen by BPF, not even until it is undone. */
	if (pool_left(pool) < n)
		return false;
	if (__atomic_add_fetch(&pool->drawn, n, __ATOMIC_RELAXED) <=
	    __atomic_load_n(&pool->limit, __ATOMIC_RELAXED))
		return true;
	pool_give_back(pool, n);
	return false;
}

#endif
