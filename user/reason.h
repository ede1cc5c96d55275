/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Why a connection or a report was refused: one list, whose names are the `reason` label of the
 * metrics, the words in the log, and what decides the answer in framed mode.
 */
#ifndef VSR_REASON_H
#define VSR_REASON_H

#include "util.h"
#include "vsr_frame.h"

/* name, what the agent is answered, offence (SPEC 3, places), in words */
#define REASONS(X)                                                                              \
	/* admission: refused before the grant */                                               \
	X(RESERVED_CID, "reserved_cid", VSR_STATUS_REFUSED, false, "peer CID 0, 1 or 2")        \
	X(PEER_UID, "peer_uid", VSR_STATUS_REFUSED, false, "peer's uid is not allowed")         \
	X(VM_CONNECTIONS, "vm_connections", VSR_STATUS_BUSY, false,                             \
	  "fourth connection of this VM")                                                       \
	X(WAITING_FULL, "waiting_full", VSR_STATUS_BUSY, false, "too many connections wait")    \
	X(VM_TABLE_FULL, "vm_table_full", VSR_STATUS_BUSY, false,                               \
	  "no room for another VM's record")                                                    \
	X(WAIT_TIMEOUT, "wait_timeout", VSR_STATUS_BUSY, false, "no place in time")             \
	X(DEBT, "debt", VSR_STATUS_BUSY, false, "the VM's debt is not settled")                 \
	X(SHUTDOWN, "shutdown", VSR_STATUS_BUSY, false, "the relay stops")                      \
	X(WAITER_GONE, "waiter_gone", VSR_STATUS_BUSY, false, "peer left while it waited")      \
	/* memory */                                                                            \
	X(OFFER_BUSY, "offer_busy", VSR_STATUS_BUSY, false, "no memory for the offer")          \
	X(OVER_BUDGET, "over_budget", VSR_STATUS_BUSY, false, "outgrew its reservation")        \
	/* time */                                                                              \
	X(DEADLINE, "deadline", VSR_STATUS_DEADLINE, true, "report took too long")              \
	X(IDLE, "idle", VSR_STATUS_DEADLINE, true, "no byte for too long")                      \
	/* violations of the protocol below the report */                                       \
	X(TOO_LARGE, "too_large", VSR_STATUS_TOO_LARGE, true, "longer than the report limit")   \
	X(BAD_HEADER, "bad_header", VSR_STATUS_MALFORMED, true, "begins with V, but no magic")  \
	X(ZERO_LENGTH, "zero_length", VSR_STATUS_REFUSED, true, "packet without payload")       \
	X(BAD_PACKET, "bad_packet", VSR_STATUS_REFUSED, true, "packet with impossible length")  \
	X(BYPASS, "bypass", VSR_STATUS_REFUSED, true, "bytes that BPF did not see")             \
	X(AFTER_END, "after_end", VSR_STATUS_REFUSED, true, "bytes after the stream's own end") \
	X(UNREAD_UPDATES, "unread_updates", VSR_STATUS_REFUSED, true,                           \
	  "guest does not read its credit updates")                                             \
	X(KERNEL_DIGEST, "kernel_digest", VSR_STATUS_INTERNAL, false,                           \
	  "BPF and libxxhash disagree (must stay 0)")                                           \
	X(ABORTED, "aborted", VSR_STATUS_INTERNAL, false, "connection ended within the report") \
	/* the report itself */                                                                 \
	X(MALFORMED, "malformed", VSR_STATUS_MALFORMED, false, "not a well-formed VMReport")    \
	X(CID_MISMATCH, "cid_mismatch", VSR_STATUS_CID_MISMATCH, false,                         \
	  "vsock_cid is not the peer's CID")                                                    \
	X(DIGEST_MISMATCH, "digest_mismatch", VSR_STATUS_DIGEST_MISMATCH, false,                \
	  "payload does not match the header's XXH64")                                          \
	/* after validation */                                                                  \
	X(NO_CACHE, "no_cache", VSR_STATUS_BUSY, false, "no cache slot to hold it")             \
	X(NO_SPOOL, "no_spool", VSR_STATUS_BUSY, false, "it cannot be made durable")            \
	X(INTERNAL, "internal", VSR_STATUS_INTERNAL, false, "internal error")

enum reason {
	REASON_NONE = 0,
#define X(id, name, status, offence, words) REASON_##id,
	REASONS(X)
#undef X
		REASON_MAX,
};

/* The label; "none" for REASON_NONE. */
const char *reason_name(enum reason r);
/* One line for a person. */
const char *reason_words(enum reason r);
/* What a framed agent is answered. */
enum vsr_status reason_status(enum reason r);
/* Whether the VM's next connection counts as an offender's (SPEC 3, places). */
bool reason_is_offence(enum reason r);

#endif
