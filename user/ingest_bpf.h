/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The BPF side of ingest: loads bpf/ingest.bpf.c, creates and pins its maps (SPEC section 11), and
 * hides libbpf and the generated skeleton from everybody else.
 *
 * Everything that needs a capability (create, load, pin, mmap, attach of the program to the map)
 * happens in ingest_bpf_new(); all other functions work on file descriptors and mappings and need
 * none. The wrapper logs nothing: it returns negative errno, and ingest_bpf_why() says more.
 * One thread at a time; the kernel side runs concurrently.
 */
#ifndef VSR_INGEST_BPF_H
#define VSR_INGEST_BPF_H

#include <sys/types.h>

#include "util.h"
#include "vsr_abi.h"

struct ingest_bpf;
struct unseen;

struct ingest_bpf_settings {
	uint64_t seed;	       /* of the digest: the node's */
	uint64_t report_limit; /* most payload bytes of a report, exactly this much is accepted */
	uint32_t slots;	       /* connections that can be attached at a time; at least 1 */
	uint32_t vms;	       /* entries of vsr_vms and of vsr_vm_state; at least 1 */
	uint32_t blocks;       /* entries of vsr_blocks, one for 4 KiB of cache; at least 1 */
	uint64_t pool_limit;   /* bytes of the shared reserve */
	const char *pin_dir;   /* VSR_PIN_DIR, or NULL: nothing is pinned, nothing is re-used */
	/* Owner of pin_dir, so that ingest_bpf_free() can remove the pins after the drop of
	 * privileges. Opening a pinned map needs CAP_BPF besides. (uid_t) -1: not changed. */
	uid_t pin_uid;
	gid_t pin_gid;
	/* User-space mode: only vsr_vms, vsr_vm_state and vsr_stats, for people to read; no
	 * program. Then only the functions marked (maps) below may be called. */
	bool maps_only;
};

/*
 * Creates the maps, loads the program and attaches it to vsr_socks. With pin_dir set: the
 * directory is made (0700, one level), vsr_vms and vsr_vm_state are re-used if what is pinned
 * there has the same ABI version (the pinned map vsr_abi), type, key, value and number of entries,
 * else replaced; pins of all other maps are replaced. On failure none of these others stays
 * pinned.
 *
 * Returns 0, or
 *   -EOPNOTSUPP  this kernel cannot do it (no BPF, verifier or kfunc too old, no BPF file system
 *                at pin_dir): user-space mode serves
 *   -EPERM       bpf() is forbidden to us (capabilities, seccomp, lockdown): user-space mode serves
 *   -EINVAL      a setting is out of range
 *   -ENOMEM, -ENOENT, -EACCES, -EMFILE and what else mkdir, open and mmap return.
 * In each case ingest_bpf_why() names the step.
 */
int ingest_bpf_new(const struct ingest_bpf_settings *s, struct ingest_bpf **ret);

/* What the last failed ingest_bpf_new() or ingest_bpf_attach() could not do, one line; "" if none
 * failed. Static storage, valid until the next failure. (maps) */
const char *ingest_bpf_why(void);

/* Closes everything. The pins of vsr_vms and vsr_vm_state (and vsr_abi) stay, all others are
 * removed: a program that still refers to them ends with its last socket. Returns NULL. (maps) */
struct ingest_bpf *ingest_bpf_free(struct ingest_bpf *b);
DEFINE_CLEANUP(struct ingest_bpf, ingest_bpf_free);

/* True in user-space mode. (maps) */
bool ingest_bpf_maps_only(const struct ingest_bpf *b);

/* Who looks for packets that no verdict was shown (user/unseen.h); NULL: this kernel has no
 * iterator over sockets in a map. Belongs to b. */
struct unseen *ingest_bpf_unseen(const struct ingest_bpf *b);

/* ---- one connection --------------------------------------------------------------------------
 * slot: 0 to slots - 1, chosen by the caller, one connection each. The order of a connection is
 * grant_set, attach, raise the credit of the socket, read..., detach, and only then the slot may
 * be given to another connection.
 */

/*
 * Puts the accepted socket fd (credit still zero) under the program: first its entry in vsr_conns,
 * then the socket into vsr_socks. cookie is its SO_COOKIE.
 * Returns 0, or with nothing left behind
 *   -ENOTCONN    the peer left before (sockmap takes only connected vsock sockets)
 *   -EOPNOTSUPP  the peer is there, so this kernel's AF_VSOCK knows no sockmap (before 6.4, or
 *                without CONFIG_BPF_SYSCALL): user-space mode serves
 *   -EINVAL      slot out of range
 *   -EEXIST      the cookie is attached already
 *   -ENOMEM, -E2BIG (more sockets than slots; cannot happen while slots are used as said above).
 */
int ingest_bpf_attach(struct ingest_bpf *b, int fd, uint64_t cookie, const struct vsr_vm_id *vm,
		      uint32_t slot);

/*
 * Takes the connection out of both maps. On return no verdict runs on its behalf any more, so the
 * slot can be used again: vsr_conns elements, vsr_bufs and vsr_grants are re-used memory, and a
 * verdict that runs on another CPU would write to the next connection's. That is why fd must be
 *   - the socket, still open: the function then passes once through the socket's lock, under which
 *     verdicts run. What was queued by the program and not yet read is thrown away; later packets
 *     go to the socket's own queue, under the flow control of its credit; or
 *   - -1: the caller has closed the socket (its only descriptor), which does the same.
 * The slot's grant is set to 0. What the connection drew from the shared reserve
 * (vsr_conn.pool_share, final once this returns) is stored in *ret_conn together with the rest of
 * the entry, and has to be given back to ingest_bpf_pool().
 * ret_conn may be NULL. Returns 0, -ENOENT if the cookie was not attached (*ret_conn untouched).
 */
int ingest_bpf_detach(struct ingest_bpf *b, int fd, uint64_t cookie, uint32_t slot,
		      struct vsr_conn *ret_conn);

/*
 * A copy of the connection's entry. Its flags are never newer than the rest: with
 * VSR_CONN_FRAME_DONE, say, payload and fold are those of the whole frame.
 * Returns 0, -ENOENT.
 */
int ingest_bpf_read(struct ingest_bpf *b, uint64_t cookie, struct vsr_conn *ret);

/* The slot's two block buffers: for digest_finish_partial(). Stable only while no packet can come
 * in that counts: the frame is complete, the peer has shut down, or the connection is refused.
 * Returns 0, -EINVAL if the slot is out of range. */
int ingest_bpf_buf(struct ingest_bpf *b, uint32_t slot, struct vsr_buf *ret);

/* Publishes what the slot's connection may cost, and how much of it the daemon's receive buffer
 * holds; the daemon raises buffered before it grows the buffer. Bytes. */
void ingest_bpf_grant_set(struct ingest_bpf *b, uint32_t slot, uint64_t reservation,
			  uint64_t buffered);

/*
 * Before the attach: the stream of the slot's connection will be compared with a content of `bytes`
 * bytes, whose block digests lie from entry `first` of vsr_blocks on. Both stay as they are until
 * the detach, which ends the comparison.
 */
void ingest_bpf_grant_match(struct ingest_bpf *b, uint32_t slot, uint64_t first, uint64_t bytes);

/* vsr_blocks itself, and its number of entries. Belongs to b. */
uint64_t *ingest_bpf_blocks(struct ingest_bpf *b, uint32_t *ret_n);

/* ---- shared reserve --------------------------------------------------------------------------- */
/* The reserve itself: the daemon gives back what ended connections had drawn, and draws for those that
 * BPF does not see; with atomics, as BPF does. */
struct vsr_pool *ingest_bpf_pool(struct ingest_bpf *b);

/* ---- events ----------------------------------------------------------------------------------- */
/* A descriptor for epoll: readable when events wait. Belongs to b. */
int ingest_bpf_events_fd(const struct ingest_bpf *b);
typedef void (*ingest_bpf_event_cb)(const struct vsr_event *e, void *userdata);
/* Hands all waiting events to cb. An event may be of a connection that was detached since: look
 * it up by its cookie. cb must not call this. Returns their number, negative errno. */
int ingest_bpf_events_consume(struct ingest_bpf *b, ingest_bpf_event_cb cb, void *userdata);

/* ---- maps for people -------------------------------------------------------------------------- */
/* Totals over all CPUs since the load. Returns 0 or negative errno. (maps) */
int ingest_bpf_stats(struct ingest_bpf *b, struct vsr_stats *ret);
/* The same of whatever relay has pinned its maps in pin_dir; *ret_id is the map's, another one after
 * each start. Returns 0; -ENOENT: nothing pinned; -EPROTONOSUPPORT: of another layout; negative errno. */
int ingest_bpf_stats_pinned(const char *pin_dir, struct vsr_stats *ret, uint32_t *ret_id);
/* Writes the VM's entry in vsr_vm_state. Returns 0 or negative errno. (maps) */
int ingest_bpf_vm_state_update(struct ingest_bpf *b, const struct vsr_vm_id *id,
			       const struct vsr_vm_state *v);
/* Returns 0, -ENOENT. (maps) */
int ingest_bpf_vm_state_lookup(struct ingest_bpf *b, const struct vsr_vm_id *id,
			       struct vsr_vm_state *ret);
/* Writes the VM's entry in vsr_vms: in user-space mode only, since BPF is that map's one writer
 * otherwise (then -EBUSY). Returns 0 or negative errno. (maps) */
int ingest_bpf_vm_seen_update(struct ingest_bpf *b, const struct vsr_vm_id *id,
			      const struct vsr_vm_seen *v);
/* Returns 0, -ENOENT. (maps) */
int ingest_bpf_vm_seen_lookup(struct ingest_bpf *b, const struct vsr_vm_id *id,
			      struct vsr_vm_seen *ret);
typedef void (*ingest_bpf_vm_cb)(const struct vsr_vm_id *id, const struct vsr_vm_seen *v,
				 void *userdata);
/* Calls cb for the entries of vsr_vms, in no order. While BPF inserts and evicts, an entry may be
 * missed or seen twice; the number of calls is bounded. Returns their number, negative errno.
 * (maps) */
int ingest_bpf_vms_foreach(struct ingest_bpf *b, ingest_bpf_vm_cb cb, void *userdata);
/* Entries of vsr_conns now: 0 when no connection is attached; for tests and status. Returns the
 * number, negative errno. */
int ingest_bpf_conns_count(struct ingest_bpf *b);

#endif
