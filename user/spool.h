/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The spool (SPEC 7, restart): custody that survives the process and the machine. One file per
 * content in the state directory, written and removed by the disk worker (user/disk.h), found again
 * at the next start:
 *
 *   seed            the node's digest seed (SPEC 5)
 *   spool/          NS-CID-GENERATION.vsr, one per content in custody (user/spool_file.h)
 *   damaged/        what was found in spool/ and is no content: at most SPOOL_DAMAGED_MAX files
 *
 * All of it is the service user's, and nobody else may write there. The relay decides what is
 * stored and dropped (user/store.h); this file knows what is on the disk, how much, and whether the
 * disk takes any more.
 */
#ifndef VSR_SPOOL_H
#define VSR_SPOOL_H

#include "disk.h"
#include "privilege.h"
#include "store.h"

#define SPOOL_DAMAGED_MAX 64
/* Writes under way; more are refused until some are done. */
#define SPOOL_WRITES_MAX 64
/* Reads under way are bounded by the relay's sends; besides there are a removal and a probe. */
#define SPOOL_JOBS_MAX (SPOOL_WRITES_MAX + 16)
/* A disk that failed is tried this often. */
#define SPOOL_PROBE_INTERVAL (5 * USEC_PER_SEC)

struct spool;

struct spool_limits {
	size_t max_files;
	uint64_t max_bytes; /* headers included */
};

/*
 * Opens the state directory, making it if it is missing, and reads the seed or draws a new one. id:
 * whose it must be, and to whom what is made is given; NULL: the process's own user. To be called
 * before the drop of privileges. What is wrong is logged.
 *
 * Returns 0, also where the disk is full, read-only or broken just now: then the spool takes
 * nothing until a probe succeeds; -EPERM: another user's, or others may write to it; -ENOMEM;
 * -errno of mkdir() and open().
 */
int spool_open(const char *directory, const struct privilege_identity *id,
	       const struct spool_limits *limits, struct disk *disk, struct spool **ret);

/* After disk_free(), which has ended the jobs; beneath one that hangs nothing is freed. */
struct spool *spool_free(struct spool *s);
DEFINE_CLEANUP(struct spool, spool_free);

/* The node's digest seed. */
uint64_t spool_seed(const struct spool *s);

/*
 * Finds what an earlier process left: calls restored() for the newest content of each VM, oldest
 * custody first. Removes temporary files and older contents, sets aside what is damaged or foreign.
 * Reads every byte, and so takes as long as that does; to be called once, after the drop of
 * privileges and before the first write. If restored() returns an error, the file stays for the
 * next start. Returns 0; -ENOMEM; -errno of reading the directory, which means that nothing could
 * be restored.
 */
typedef int (*spool_restored_t)(const struct store_content *content, void *userdata);
int spool_scan(struct spool *s, spool_restored_t restored, void *userdata);

/* For the relay. */
struct store *spool_store(struct spool *s);

/* Other limits from now on (reload): what is beyond them stays. */
void spool_set_limits(struct spool *s, const struct spool_limits *limits);

/* Does what is due: removals, a probe of a disk that failed. hangs: the disk worker is stuck. */
void spool_run(struct spool *s, bool hangs, uint64_t now);
/* When to call it next; USEC_INFINITY: not before something happens. */
uint64_t spool_next_event(const struct spool *s);

enum spool_state {
	SPOOL_OK,
	SPOOL_FULL,   /* max_files or max_bytes is reached */
	SPOOL_FAILED, /* the last write failed: full, read-only, gone, broken */
	SPOOL_HANGS,  /* the disk has not answered for DISK_DEADLINE */
	SPOOL_STATE_MAX,
};
/* "ok", "full", "failed", "hangs". */
const char *spool_state_name(enum spool_state state);

struct spool_figures {
	enum spool_state state;
	int error;    /* errno, while it has failed */
	size_t files; /* on the disk, those being written or removed too */
	uint64_t bytes;
	unsigned busy; /* writes, removals and the like that are not done */
};
void spool_figures(const struct spool *s, struct spool_figures *ret);

#endif
