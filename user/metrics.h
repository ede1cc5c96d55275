/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The metrics (SPEC section 10): one table, in this file, of everything that is counted. All
 * series of a metric exist from the start with the value 0, so that "it never happened" can be
 * told from "it is not measured". Static memory, no allocation but for rendering; counting is an
 * addition. Event-loop thread only.
 *
 * Counters that are counted elsewhere (by BPF, the cache, the kernel) are copied here when they
 * are asked for, with metric_set().
 */
#ifndef VSR_METRICS_H
#define VSR_METRICS_H

#include <linux/types.h>

#include "reason.h"
#include "util.h"
#include "vsr_abi.h"

/* ---- label values; each set belongs to one or more metrics ----------------------------------- */

enum metric_failed { METRIC_SENT_OK, METRIC_SENT_FAILED };	/* failed="false|true" */
enum metric_result { METRIC_SUCCESS, METRIC_FAILURE };		/* result="success|failure" */
enum metric_lookup { METRIC_HIT, METRIC_MISS };			/* result="hit|miss" */
enum metric_action { METRIC_ACK, METRIC_NACK };			/* action="ACK|NACK" */
enum metric_rate { METRIC_RATE_NORMAL, METRIC_RATE_STALE_ACK }; /* reason="normal|stale_ack" */
enum metric_place { METRIC_KERNEL, METRIC_DAEMON };		/* place="kernel|daemon" */
enum metric_bpf_mode { METRIC_BPF_KERNEL, METRIC_BPF_USER };	/* mode="kernel|user" */
enum metric_listener { METRIC_VSOCK, METRIC_HYBRID };		/* kind="vsock|hybrid" */
enum metric_sandbox { METRIC_SECCOMP, METRIC_LANDLOCK };	/* part="seccomp|landlock" */

/* Why no place was had, as the reference says it. */
enum metric_sem {
	METRIC_SEM_LIMIT,    /* reason="concurrency_limit": waited in vain, or too many wait */
	METRIC_SEM_CANCELED, /* reason="context_canceled": the relay stops, or the peer left */
	METRIC_SEM_UNKNOWN,  /* reason="unknown": anything else */
};
/* Payload bytes of reports by what became of the report. */
enum metric_outcome {
	METRIC_BYTES_ACCEPTED,
	METRIC_BYTES_DUPLICATE,
	METRIC_BYTES_SUPPRESSED,
	METRIC_BYTES_REFUSED,
};
/* Why an entry left the cache: the order of enum cache_end (user/cache.h). */
enum metric_removal {
	METRIC_REMOVED_ACKED,
	METRIC_REMOVED_DROPPED,
	METRIC_REMOVED_SLOTS,
	METRIC_REMOVED_BYTES,
	METRIC_REMOVED_TTL,
	METRIC_REMOVED_DAMAGED,
};
/* Why content that was kept after its ACK went. */
enum metric_unkept {
	METRIC_UNKEPT_BYTES,  /* for the room */
	METRIC_UNKEPT_SILENT, /* its VM has not reported for 24 h */
	METRIC_UNKEPT_OFF,    /* cache.keep_acked was turned off */
};
/* How custody of a content ended. */
enum metric_ended {
	METRIC_ENDED_ACKED,
	METRIC_ENDED_SUPERSEDED, /* by newer content of the VM */
	METRIC_ENDED_NACKED,	 /* permanently */
	METRIC_ENDED_REJECTED,	 /* the upstream would not have this content, three times */
	METRIC_ENDED_MAX_AGE,	 /* custody_max_age */
	METRIC_ENDED_SLOTS,	 /* with its cache entry, without a state directory */
	METRIC_ENDED_BYTES,	 /* likewise */
	METRIC_ENDED_TTL,	 /* likewise */
	METRIC_ENDED_LOST,	 /* its file is gone or damaged, and it is not in memory */
	METRIC_ENDED_OPERATOR,	 /* `vsock-relayctl cache drop --lose` */
	METRIC_ENDED_DAMAGED,	 /* it could not be unpacked any more; not in the spool either */
};
/* What an ACK or NACK that came apart from its call did (SPEC 7). */
enum metric_ack_outcome {
	METRIC_ACK_SETTLED,
	METRIC_ACK_STALE,     /* named another VM than the reports that were sent */
	METRIC_ACK_UNMATCHED, /* settled nothing */
};
/* Valid reports that were not taken into custody. */
enum metric_dropped { METRIC_DROPPED_NO_CACHE, METRIC_DROPPED_NO_SPOOL, METRIC_DROPPED_INTERNAL };
/* What failed in the spool. */
enum metric_spool_op {
	METRIC_SPOOL_WRITE,
	METRIC_SPOOL_READ,
	METRIC_SPOOL_REMOVE,
	METRIC_SPOOL_PROBE,
};
/* Places taken by those who may take only a part of them (SPEC 3). */
enum metric_class { METRIC_CLASS_LIMITED, METRIC_CLASS_OFFENDER };

/* ---- the table --------------------------------------------------------------------------------
 *
 * SERIES: id, kind, name (an '=' in front: the name is complete, without the prefix), label,
 * its values, help
 */
#define METRIC_SERIES(X)                                                                           \
	/* the reference's */                                                                      \
	X(CONNECTIONS_ACCEPTED, COUNTER, "connections_accepted_total", NULL, NONE,                 \
	  "Connections accepted from VMs.")                                                        \
	X(REPORTS_RECEIVED, COUNTER, "index_reports_received_total", NULL, NONE,                   \
	  "Index reports received completely.")                                                    \
	X(CID_MISMATCHES, COUNTER, "index_reports_mismatching_vsock_cid_total", NULL, NONE,        \
	  "Index reports whose vsock_cid is not the CID of the peer.")                             \
	X(REPORTS_SENT, COUNTER, "index_reports_sent_total", "failed", FAILED,                     \
	  "Index reports sent to the upstream.")                                                   \
	X(SEND_ATTEMPTS, COUNTER, "index_report_send_attempts_total", "result", RESULT,            \
	  "Attempts to send an index report to the upstream.")                                     \
	X(SEM_FAILURES, COUNTER, "sem_acquisition_failures_total", "reason", SEM,                  \
	  "Connections that got no place.")                                                        \
	X(SEM_HOLDING, GAUGE, "sem_holding_size", NULL, NONE, "Connections that have a place.")    \
	X(SEM_QUEUE, GAUGE, "sem_queue_size", NULL, NONE, "Connections that wait for a place.")    \
	X(LISTEN_RETRIES, COUNTER, "retry_attempts_total", NULL, NONE,                             \
	  "Attempts to listen on vsock after the first.")                                          \
	X(RATE_LIMITED, COUNTER, "reports_rate_limited_total", "reason", RATE,                     \
	  "Index reports whose sending was put off by the rate limit.")                            \
	X(ACKS_RECEIVED, COUNTER, "acks_received_total", NULL, NONE, "ACKs received.")             \
	X(UPSTREAM_ACKS, COUNTER, "index_acks_from_sensor_total", "action", ACTION,                \
	  "ACKs and NACKs for index reports from the upstream.")                                   \
	X(CACHE_SLOTS_USED, GAUGE, "index_report_cache_slots_used", NULL, NONE,                    \
	  "Entries in the payload cache.")                                                         \
	X(CACHE_SLOTS, GAUGE, "index_report_cache_slots_capacity", NULL, NONE,                     \
	  "Entries that the payload cache can hold.")                                              \
	X(CACHE_LOOKUPS, COUNTER, "index_report_cache_lookups_total", "result", LOOKUP,            \
	  "Lookups in the payload cache, for resends.")                                            \
	/* reports and contents; the conservation law is over these (metrics_conservation()) */    \
	X(REFUSED, COUNTER, "reports_refused_total", "reason", REASON,                             \
	  "Connections and reports refused.")                                                      \
	X(VALID, COUNTER, "reports_valid_total", NULL, NONE,                                       \
	  "Reports that were found valid, or recognised as a repeat of a valid one.")              \
	X(DUPLICATES, COUNTER, "duplicates_total", "place", PLACE,                                 \
	  "Reports equal to content in custody, by where they were recognised.")                   \
	X(SUPPRESSED, COUNTER, "reports_suppressed_total", NULL, NONE,                             \
	  "Reports equal to content that was ACKed, not forwarded again.")                         \
	X(DROPPED, COUNTER, "reports_dropped_total", "reason", DROPPED,                            \
	  "Valid reports that were not taken into custody.")                                       \
	X(CONTENTS_ENDED, COUNTER, "contents_ended_total", "how", ENDED,                           \
	  "Contents whose custody ended.")                                                         \
	X(CONTENTS_HELD, GAUGE, "contents_held", NULL, NONE, "Contents in custody now.")           \
	X(CONTENTS_IN_FLIGHT, GAUGE, "contents_in_flight", NULL, NONE, "Contents being sent now.") \
	X(CONTENTS_AWAITING_ACK, GAUGE, "contents_awaiting_ack", NULL, NONE,                       \
	  "Contents sent at least once and not ACKed.")                                            \
	X(OLDEST_UNACKED, GAUGE, "oldest_unacked_age_seconds", NULL, NONE,                         \
	  "Age of the oldest content in custody.")                                                 \
	X(CONSERVATION, GAUGE, "conservation_difference", NULL, NONE,                              \
	  "Valid reports less all that became of them. Must stay 0.")                              \
	X(BYTES, COUNTER, "report_bytes_total", "outcome", OUTCOME,                                \
	  "Payload bytes of reports, by what became of the report.")                               \
	X(BYTES_READ, COUNTER, "read_bytes_total", NULL, NONE,                                     \
	  "Bytes that were copied from the kernel to the daemon.")                                 \
	X(BYTES_KNOWN, COUNTER, "known_bytes_total", "place", PLACE,                               \
	  "Bytes that equalled the cached content and were not kept.")                             \
	X(RESENDS, COUNTER, "resends_total", NULL, NONE, "Sends of content after its first.")      \
	/* cache */                                                                                \
	X(CACHE_BYTES, GAUGE, "cache_bytes", NULL, NONE, "Memory held by the payload cache.")      \
	X(CACHE_BYTES_LIMIT, GAUGE, "cache_capacity_bytes", NULL, NONE,                            \
	  "Memory that the payload cache may hold.")                                               \
	X(CACHE_REMOVALS, COUNTER, "cache_removals_total", "reason", REMOVAL,                      \
	  "Entries that left the payload cache.")                                                  \
	X(CACHE_KEPT, GAUGE, "cache_kept_contents", NULL, NONE,                                    \
	  "Contents kept after their ACK, beside the payload cache's entries.")                    \
	X(CACHE_KEPT_BYTES, GAUGE, "cache_kept_bytes", NULL, NONE,                                 \
	  "Memory held by contents kept after their ACK; part of cache_bytes.")                    \
	X(CACHE_KEPT_REMOVALS, COUNTER, "cache_kept_removals_total", "reason", UNKEPT,             \
	  "Contents kept after their ACK that went and were not replaced.")                        \
	/* spool */                                                                                \
	X(RESTORED, COUNTER, "contents_restored_total", NULL, NONE,                                \
	  "Contents in custody that were found in the state directory at the start.")              \
	X(SPOOL_STATE, GAUGE, "spool_state", "state", SPOOL_STATE,                                 \
	  "1 for the state that the spool is in; none without a state directory.")                 \
	X(SPOOL_FILES, GAUGE, "spool_files", NULL, NONE, "Contents in the state directory.")       \
	X(SPOOL_BYTES, GAUGE, "spool_bytes", NULL, NONE,                                           \
	  "Bytes of the contents in the state directory.")                                         \
	X(SPOOL_FILES_LIMIT, GAUGE, "spool_capacity_files", NULL, NONE,                            \
	  "Contents that the state directory may hold.")                                           \
	X(SPOOL_BYTES_LIMIT, GAUGE, "spool_capacity_bytes", NULL, NONE,                            \
	  "Bytes that the state directory may hold.")                                              \
	X(SPOOL_READS, COUNTER, "spool_reads_total", NULL, NONE,                                   \
	  "Contents read from the state directory to be sent.")                                    \
	X(SPOOL_ERRORS, COUNTER, "spool_errors_total", "operation", SPOOL_OP,                      \
	  "What failed in the state directory.")                                                   \
	X(SPOOL_SET_ASIDE, COUNTER, "spool_set_aside_total", NULL, NONE,                           \
	  "Damaged and foreign files found in the state directory.")                               \
	X(UNSPOOLED, COUNTER, "contents_unspooled_total", NULL, NONE,                              \
	  "Contents taken into custody in memory since the state directory took none.")            \
	X(UNSPOOLED_NOW, GAUGE, "contents_unspooled", NULL, NONE,                                  \
	  "Contents in custody that are in memory alone, though there is a state directory.")      \
	X(CACHE_PACKED, GAUGE, "cache_compressed_contents", NULL, NONE,                            \
	  "Contents in the cache that are compressed.")                                            \
	X(CACHE_PACKED_BYTES, GAUGE, "cache_compressed_bytes", NULL, NONE,                         \
	  "Memory held by compressed contents; part of cache_bytes.")                              \
	X(CACHE_PACKED_LENGTH, GAUGE, "cache_compressed_payload_bytes", NULL, NONE,                \
	  "Payload bytes that the compressed contents stand for.")                                 \
	/* admission */                                                                            \
	X(PLACES, GAUGE, "places_capacity", NULL, NONE, "Places for connections.")                 \
	X(PLACES_CLASS, GAUGE, "places_used_by_class", "class", CLASS,                             \
	  "Places taken by VMs that may take only a part of them.")                                \
	X(MEMORY_BUDGET, GAUGE, "memory_budget_bytes", NULL, NONE,                                 \
	  "Memory for all reports being received.")                                                \
	X(MEMORY_RESERVED, GAUGE, "memory_reserved_bytes", NULL, NONE,                             \
	  "Memory reserved by connections that have a place.")                                     \
	X(MEMORY_DEBT, GAUGE, "memory_debt_bytes", NULL, NONE,                                     \
	  "Memory that closed connections left queued for guests.")                                \
	X(MEMORY_SHARED, GAUGE, "memory_shared_reserve_drawn_bytes", NULL, NONE,                   \
	  "Bytes drawn from the reserve that all connections share.")                              \
	X(MEMORY_PINNED, GAUGE, "memory_pinned_bytes", NULL, NONE,                                 \
	  "Contents that left the cache while streams are compared with them.")                    \
	X(MATCH_BLOCKS, GAUGE, "match_blocks_used", NULL, NONE,                                    \
	  "Block digests of cached contents that BPF compares with.")                              \
	X(MATCH_BLOCKS_LIMIT, GAUGE, "match_blocks_capacity", NULL, NONE,                          \
	  "Block digests that there is room for.")                                                 \
	X(MATCH_NO_ROOM, COUNTER, "match_no_room_total", NULL, NONE,                               \
	  "Contents that BPF cannot compare with, as there was no room for their digests.")        \
	X(MEMORY_IDLE, GAUGE, "memory_idle_bytes", NULL, NONE,                                     \
	  "Memory kept for the next reports, outside the budget.")                                 \
	X(VMS, GAUGE, "vms", NULL, NONE, "VM records.")                                            \
	X(VMS_DEBT, GAUGE, "vms_with_debt", NULL, NONE, "VMs with debt.")                          \
	X(LISTENERS, GAUGE, "listeners", "kind", LISTENER, "Sockets that are listened on.")        \
	/* upstream */                                                                             \
	X(ACK_OUTCOMES, COUNTER, "ack_outcomes_total", "outcome", ACK_OUTCOME,                     \
	  "ACKs and NACKs for index reports, by what they settled.")                               \
	X(UPSTREAM_RPCS, COUNTER, "upstream_rpcs_total", "code", RPC_CODE,                         \
	  "Calls to a gRPC upstream, by their status.")                                            \
	X(UPSTREAM_READY, GAUGE, "upstream_ready", NULL, NONE,                                     \
	  "1 while the upstream is connected.")                                                    \
	X(UPSTREAM_PAUSED, GAUGE, "upstream_paused", NULL, NONE,                                   \
	  "1 while sending is paused since the upstream refuses all.")                             \
	/* BPF */                                                                                  \
	X(BPF_MODE, GAUGE, "bpf_mode", "mode", BPF_MODE,                                           \
	  "1 for the mode in use: verdicts in the kernel, or all in user space.")                  \
	X(BPF_PACKETS, COUNTER, "bpf_packets_total", NULL, NONE, "Packets that BPF saw.")          \
	X(BPF_SEEN, COUNTER, "bpf_seen_bytes_total", NULL, NONE, "Bytes that BPF saw.")            \
	X(BPF_BYTES, COUNTER, "bpf_verdict_bytes_total", "verdict", VERDICT,                       \
	  "Bytes that BPF saw, by verdict.")                                                       \
	X(BPF_EVENTS, COUNTER, "bpf_limits_total", "limit", LIMIT,                                 \
	  "Limits and rules that BPF enforced.")                                                   \
	X(BPF_ERRORS, COUNTER, "bpf_errors_total", "error", BPF_ERROR,                             \
	  "Errors within BPF. Must stay 0.")                                                       \
	X(BPF_DIGEST, COUNTER, "digest_mismatch_bpf_total", NULL, NONE,                            \
	  "Reports that BPF and the daemon hashed differently. Must stay 0.")                      \
	X(LOG_HELD_BACK, COUNTER, "log_held_back_total", NULL, NONE,                               \
	  "Refusals that were not logged, since the VM had been logged for that just before.")     \
	/* process: the conventional names, without our prefix */                                  \
	X(SANDBOX, GAUGE, "sandbox", "part", SANDBOX,                                              \
	  "What is in force: 1 for a seccomp filter, the version of Landlock's ABI; 0: not.")      \
	X(BUILD_INFO, GAUGE, "build_info", "version", VERSION, "1 for the running version.")       \
	X(PROCESS_CPU, GAUGE_COUNTER, "=process_cpu_seconds_total", NULL, NONE,                    \
	  "User and system CPU time spent.")                                                       \
	X(PROCESS_RSS, GAUGE, "=process_resident_memory_bytes", NULL, NONE,                        \
	  "Resident memory size.")                                                                 \
	X(PROCESS_VSIZE, GAUGE, "=process_virtual_memory_bytes", NULL, NONE,                       \
	  "Virtual memory size.")                                                                  \
	X(PROCESS_FDS, GAUGE, "=process_open_fds", NULL, NONE, "Open file descriptors.")           \
	X(PROCESS_MAX_FDS, GAUGE, "=process_max_fds", NULL, NONE,                                  \
	  "Most file descriptors that may be open.")                                               \
	X(PROCESS_START, GAUGE, "=process_start_time_seconds", NULL, NONE,                         \
	  "Start time of the process since the epoch.")

/* HISTOGRAMS: id, name, label, its values, buckets, help */
#define METRIC_HISTOGRAMS(X)                                                           \
	X(SEND_DURATION, "index_report_send_duration_seconds", "result", RESULT, SEND, \
	  "Time that an attempt to send took.")                                        \
	X(CACHE_RESIDENCY, "index_report_cache_residency_seconds", NULL, NONE, CACHE,  \
	  "Time from the last change of a cached payload to its removal.")             \
	X(CACHE_LIFETIME, "index_report_cache_lifetime_seconds", NULL, NONE, CACHE,    \
	  "Time from the first insert of a cache entry to its removal.")

enum metric {
#define X(id, kind, name, label, values, help) METRIC_##id,
	METRIC_SERIES(X)
#undef X
		METRIC_MAX,
};

enum histogram {
#define X(id, name, label, values, buckets, help) HISTOGRAM_##id,
	METRIC_HISTOGRAMS(X)
#undef X
		HISTOGRAM_MAX,
};

/* Metrics without a label. */
void metric_add(enum metric m, uint64_t n);
static inline void metric_inc(enum metric m)
{
	metric_add(m, 1);
}
void metric_set(enum metric m, double value);

/* Metrics with a label; `value` is one of its enum, for METRIC_REFUSED an enum reason. */
void metric_add_label(enum metric m, unsigned int value, uint64_t n);
static inline void metric_inc_label(enum metric m, unsigned int value)
{
	metric_add_label(m, value, 1);
}
void metric_set_label(enum metric m, unsigned int value, double v);

/* Observes a time; label is 0 for histograms without one. */
void metric_observe(enum histogram h, unsigned int label, uint64_t usec);

/* Current values, for tests and status; label as above. */
double metric_get(enum metric m, unsigned int label);
uint64_t histogram_count(enum histogram h, unsigned int label);

/* Everything back to 0 (tests). */
void metrics_reset(void);

/* Copies BPF's totals. */
void metrics_set_bpf(const struct vsr_stats *stats);

/* Reads memory, CPU time and file descriptors of this process from /proc. Returns 0, or -errno
 * of the first figure that could not be read (the others are set nevertheless). */
int metrics_read_process(void);

/* Conservation (SPEC 10), over what was set and counted so far: valid reports less duplicates,
 * suppressed, dropped, ended and held. 0, or somebody forgot a content. */
int64_t metrics_conservation(void);

#define METRICS_PREFIX_DEFAULT	 "vsock_relay"
#define METRICS_PREFIX_REFERENCE "rox_compliance_virtual_machine_relay"

/* What names begin with. Returns 0, -EINVAL if it is no metric name, or longer than
 * METRICS_PREFIX_MAX bytes. */
#define METRICS_PREFIX_MAX 100
int metrics_set_prefix(const char *prefix);

/* All of it in Prometheus' text format, which the caller frees; *ret_len without the NUL.
 * Returns 0, -ENOMEM. */
int metrics_render(char **ret, size_t *ret_len);

#endif
