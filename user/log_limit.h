/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How often a VM may appear in the log: for each reason one line in LOG_LIMIT_USEC (SPEC 3, refused
 * report). What was held back is counted and said when that time is over, also if nothing more
 * came. Pure core: the clock is an argument.
 *
 * The table is of a fixed size. With more VMs and reasons at a time than LOG_LIMIT_ENTRIES the
 * one that began longest ago is forgotten, and what it held back is in the metric
 * `log_held_back_total` alone.
 */
#ifndef VSR_LOG_LIMIT_H
#define VSR_LOG_LIMIT_H

#include "util.h"
#include "vsr_abi.h"

#define LOG_LIMIT_USEC	  (10 * USEC_PER_SEC)
#define LOG_LIMIT_WAYS	  4
#define LOG_LIMIT_SETS	  256
#define LOG_LIMIT_ENTRIES (LOG_LIMIT_WAYS * LOG_LIMIT_SETS)

/* All zero is an empty one. For reading; only log_limit.c changes it. */
struct log_limit {
	struct log_limit_entry {
		struct vsr_vm_id vm;
		uint32_t reason;
		uint32_t held_back;
		uint64_t until; /* 0: not in use */
	} entries[LOG_LIMIT_ENTRIES];
	uint32_t n_holding; /* entries that hold something back */
};

/* An event of this VM, for this reason: whether it is to be logged now. If so, *ret_held_back is how
 * many were not logged before, and not said yet. */
bool log_limit_pass(struct log_limit *l, struct vsr_vm_id vm, uint32_t reason, uint64_t now,
		    uint32_t *ret_held_back);

/* One whose time is over and that held something back; it is to be said now, and its time begins
 * anew. Returns false: none. */
bool log_limit_next(struct log_limit *l, uint64_t now, struct vsr_vm_id *ret_vm,
		    uint32_t *ret_reason, uint32_t *ret_held_back);

/* When to call log_limit_next(); USEC_INFINITY: never. */
uint64_t log_limit_next_event(const struct log_limit *l);

#endif
