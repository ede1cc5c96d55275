/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Validation of a report (SPEC section 3): the whole VMReport is checked in place against the
 * descriptors that protobuf-c generates from include/, in one pass over its bytes, without a
 * tree, an allocation or recursion. The accepted bytes are forwarded as they are, so what is
 * checked here must be what every receiver will read, whichever protobuf library it uses.
 *
 * The yardstick is protobuf-c's own unpack: what it accepts is accepted here and what it refuses
 * is refused here (tests/fuzz/fuzz_report.c), groups included, which it does not know. Beyond it,
 * these are malformed:
 *
 *  1. a string that is not UTF-8: proto3 demands it, and a Go receiver refuses the whole message;
 *  2. a second VMReport.index_report or IndexReport.vsock_cid: receivers merge repeats, and the
 *     last one wins, so they would see another CID than the one we compared (SPEC 3);
 *  3. a field number of 0 or above 2^29-1: protobuf-c takes it for an unknown field, Go refuses
 *     it, and readers that keep 32 bits of the tag take it for a small number, 1 for instance;
 *  4. a varint that does not fit 64 bits (ten bytes of which the last is above 1): protobuf-c
 *     drops the excess, Go refuses it;
 *  5. a bool that is not a varint: the one type whose wire type protobuf-c does not check;
 *  6. messages nested deeper than REPORT_DEPTH_MAX: protobuf-c recurses without a limit.
 *
 * Allowed, and treated as every receiver does: overlong encodings of tags (up to 5 bytes),
 * lengths (up to 5, below 2^31) and varints (up to 10), which count as the value that they
 * encode, so that a repeat in such disguise is still a repeat; repeats of all other fields;
 * unknown fields; enum values without a name; repeated scalars both packed and not.
 */
#ifndef VSR_REPORT_H
#define VSR_REPORT_H

#include "reason.h"
#include "util.h"

/* Sub-messages within sub-messages, the report itself not counted: the default limit of the C++
 * and Java libraries. The source of a package is at depth 6. */
#define REPORT_DEPTH_MAX 100

/* What a valid report says of itself: claims of the VM, except the CID. Pointers are into the
 * report, without a terminating NUL, and as long-lived as it; NULL with length 0 where absent. */
struct report_info {
	const char *vsock_cid; /* the peer's CID in canonical decimal: this one was compared */
	size_t vsock_cid_len;
	const char *vm_id; /* the last one, as receivers take it */
	size_t vm_id_len;
	const char *os_version;
	size_t os_version_len;
	uint32_t detected_os; /* Virtualmachine__V1__DetectedOS, or a value it does not name */
	uint32_t packages;    /* entries of the map */
	uint32_t packages_deprecated; /* entries of the list that older agents send */
};

/* Why a report was refused, for the log. */
struct report_error {
	const char *what;     /* static words: "string is not UTF-8" */
	const char *message;  /* static name of the message type: "scanner.v4.Package" */
	uint32_t field;	      /* number of the field in it; 0: none was read */
	size_t offset;	      /* byte of the report at which the offending field begins */
	char claimed_cid[16]; /* with -ESRCH: what vsock_cid says, cut; "" where it is missing */
};

/*
 * Validates the len bytes at data as a VMReport from the VM with CID peer_cid. Fills *ret (may
 * be NULL) on success, *error (may be NULL) on failure. No allocation, time linear in len.
 *
 * Returns 0; -EBADMSG: malformed (REASON_MALFORMED); -ESRCH: well-formed, but vsock_cid is not
 * peer_cid in canonical decimal (no sign, space or leading zero), or it or index_report is
 * missing, as in an empty report (REASON_CID_MISMATCH).
 */
int report_validate(const uint8_t *data, size_t len, uint32_t peer_cid, struct report_error *error,
		    struct report_info *ret);

/*
 * The same while the report comes in, so that its bytes are looked at while they are in the CPU's
 * cache. What is said in the end, error and position included, is what report_validate() says of
 * the whole: how the bytes came makes no difference. Nothing is said before the end, since only that
 * tells what is cut. Plain data, needs no destructor.
 */
struct report_message_rule;

struct report_frame {
	const uint8_t *end;
	const struct report_message_rule *message;
};

struct report_check {
	const uint8_t *data;
	const uint8_t *there; /* the end of what there is of the report */
	const uint8_t *at;    /* the next field; beyond that end if it is skipped */
	const char *what;     /* why the report is malformed, unless it ends before that; or NULL */
	unsigned depth;
	/* the message that is being read */
	const uint8_t *end;
	const struct report_message_rule *message;
	/* the field that is being read */
	const uint8_t *field_at;
	uint32_t number;
	/* the field of the report itself that it is in, or is; only of those with a length */
	const uint8_t *outer_at, *outer_end;
	uint32_t outer_number;
	bool seen_index_report;
	bool seen_vsock_cid;
	struct report_info info;
	struct report_frame parents[REPORT_DEPTH_MAX];
};

/* A report of at most max bytes is going to come to `data`, where it stays. */
void report_check_begin(struct report_check *c, const uint8_t *data, size_t max);
/* Its first `have` bytes are there: at least as many as at the last call. Time over all calls is
 * linear in them. */
void report_check_more(struct report_check *c, size_t have);
/* The report has come and has len bytes. Arguments and result are those of report_validate(). */
int report_check_end(struct report_check *c, size_t len, uint32_t peer_cid,
		     struct report_error *error, struct report_info *ret);

/* The reason to count for what report_validate() returned. */
static inline enum reason report_reason(int r)
{
	return r == 0 ? REASON_NONE : r == -ESRCH ? REASON_CID_MISMATCH : REASON_MALFORMED;
}

/* Whether the n bytes at s are well-formed UTF-8 (RFC 3629: no overlong forms, no surrogates,
 * nothing above U+10FFFF; NUL is allowed, as in protobuf). */
bool utf8_valid(const uint8_t *s, size_t n);

#endif
