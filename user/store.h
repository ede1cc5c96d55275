/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What makes contents durable: the interface between the relay (core), which decides about custody,
 * and the spool (edge), which has the files. Everything that waits for a disk is asked for, and
 * answered later from the event loop, never from within the call.
 */
#ifndef VSR_STORE_H
#define VSR_STORE_H

#include "buf.h"
#include "vsr_abi.h"

/* A content as it is stored. */
struct store_content {
	struct vsr_vm_id vm;
	uint64_t generation;
	uint64_t length;
	uint64_t digest;    /* SPEC 5 */
	uint64_t xxh64;	    /* of the payload, seed 0 */
	bool xxh64_unknown; /* never of what is written */
	uint64_t vm_id_hash;
	uint64_t age; /* usec since custody began */
};

/* A write under way; embedded in the relay's object, valid until done(). */
struct store_write {
	struct store_content content;
	struct buf *payload; /* a reference of the write's own */
	/* 0: durable; else nothing is kept: -EBADMSG: the payload is damaged (it was packed,
	 * user/pack.h); another -errno: the disk, or no memory. */
	void (*done)(struct store_write *w, int result, uint64_t now);
};

/* A read under way, likewise. */
struct store_read {
	struct vsr_vm_id vm;
	uint64_t generation;
	/* 0 and the payload, valid for the call; -EBADMSG: damaged, and -ENOENT: gone, so it will
	 * not come back; another -errno: try again. */
	void (*done)(struct store_read *rd, int result, struct buf *payload, uint64_t now);
};

struct store;

struct store_ops {
	/* Makes the content durable, beside older ones of its VM. Returns 0 (done() will be called
	 * once), or at once: -EBUSY (enough is under way), -ENOSPC (a bound is reached), -EIO (the
	 * disk is known not to take anything), -ENOMEM. */
	int (*write)(struct store *s, struct store_write *w);
	/* Returns 0 (done() will be called once), -ENOENT (not there), -EBUSY, -ENOMEM. */
	int (*read)(struct store *s, struct store_read *rd);
	/* The VM's contents of these generations are needed no more: removed as soon as may be, also
	 * if they are being written. Cannot fail. */
	void (*drop)(struct store *s, struct vsr_vm_id vm, uint64_t first, uint64_t last);
	/* The highest generation of the VM that may be on the disk; 0: none. A new one must be
	 * higher, or a restart would take the older for the newer. */
	uint64_t (*newest)(const struct store *s, struct vsr_vm_id vm);
};

/* First member of every store. */
struct store {
	const struct store_ops *ops;
	bool ready; /* takes writes, as far as is known; changes only in the event loop, which then
		     * lets the relay run */
	/* Set by the relay: all that was durable is gone (the directory vanished). */
	void (*on_lost)(void *userdata, uint64_t now);
	void *userdata;
};

#endif
