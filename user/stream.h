/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The stream of one granted connection: bytes from the kernel into one buffer, with the rules
 * that make them trustworthy (KERNEL.md 0, DESIGN 2). Two ways to the same decisions:
 *
 * With BPF, the verdict has hashed and charged every byte before we see it. We look at its entry
 * in vsr_conns and read
 *  - never more than it passed, never when nothing is owed (read rule: bytes that bypassed the
 *    program would come up otherwise);
 *  - not at all before half of the reservation is used or the report is complete, so that a
 *    duplicate is recognised by its digest and never read.
 * The stream has ended when the peer has closed and all that BPF saw was read or known (end
 * rule: recv() never says 0 here, it says EAGAIN for ever).
 *
 * Without BPF (user-space mode, hybrid sockets), the bytes are read as they come and everything
 * is computed from them.
 *
 * Either way a stream is compared with what the cache has of the VM (user/match.h), and what equals
 * it is not kept: the verdict drops it, and user space reads it into a window that all streams share.
 * At the first difference the beginning is restored from the cache, and the rest read as ever.
 */
#ifndef VSR_STREAM_H
#define VSR_STREAM_H

#include <xxhash.h>

#include "buf.h"
#include "credit.h"
#include "digest.h"
#include "match.h"
#include "reason.h"
#include "report.h"
#include "vsr_abi.h"
#include "vsr_frame.h"

struct ingest_bpf;

/* What all streams share. */
struct stream_config {
	struct ingest_bpf *bpf; /* NULL: user-space mode */
	struct vsr_pool *pool;	/* the shared reserve: BPF's (mapped) or one of our own */
	uint64_t seed;		/* of the digest */
	uint32_t max_report;	/* bytes of payload, exactly this many are accepted */
	bool xxh64_of_raw;	/* is wanted at once: it will be the checksum of a file */
};

struct stream {
	const struct stream_config *config;
	struct ingest_bpf *bpf; /* with attached: config->bpf as it was then */
	int fd;
	bool vsock;	      /* AF_VSOCK: has credit, SO_MEMINFO means what DESIGN 2 says */
	bool attached;	      /* the verdict runs on it */
	uint32_t slot;	      /* with attached */
	uint64_t cookie;      /* with attached */
	uint64_t reserved;    /* bytes it may cost in all, the share of the reserve not counted */
	uint64_t share;	      /* drawn from the reserve in user-space mode */
	struct credit credit; /* with vsock */
	struct vsr_conn seen; /* what BPF saw; in user-space mode kept by us in the same terms */
	uint64_t read;	      /* bytes of the stream so far, header included, that were read or
			       * restored; without BPF also those that were only compared */
	uint64_t received;    /* bytes copied from the kernel */
	struct match *match;  /* a reference: what it is compared with; NULL: nothing, or no more */
	struct compare *compare; /* with match: by digests, in user space */
	bool ended;
	bool offer_told;
	bool sealed;
	struct buf *buf; /* NULL as long as nothing is to be kept */
	/* What was read is looked at while it is in the CPU's cache, up to `looked_at`, an offset into
	 * the stream: the payload's digest, its XXH64 if it is wanted, whether it is well-formed. */
	struct digest digest;
	struct report_check check; /* begins with buf */
	XXH64_state_t *xxh64;	   /* made with buf */
	uint64_t *blocks;	   /* likewise: XXH64 of the payload's whole blocks */
	uint64_t looked_at;
};

enum stream_state {
	STREAM_MORE,	/* nothing to decide yet */
	STREAM_OFFER,	/* the header of a VSR2 is there; said once */
	STREAM_ENDED,	/* complete: length and digest are known, stream_take() gets the bytes */
	STREAM_REFUSED, /* *ret_reason says why */
};

/*
 * Opens the stream of a connection that was granted a place: attaches the verdict, then raises
 * credit from zero, in this order, so that BPF misses no byte (KERNEL.md 3). reserved is the
 * bytes it may cost. match, or NULL, is what it is compared with: the stream takes a reference of
 * its own, which it gives back when it is done with it. The fd stays the caller's.
 *
 * Returns 0; -EOPNOTSUPP, -ENOTCONN: the peer has left already; other negative errno of bpf()
 * or setsockopt().
 */
int stream_open(struct stream *s, const struct stream_config *config, int fd, bool vsock,
		struct vsr_vm_id vm, uint32_t slot, uint64_t reserved, struct match *match);

/* Looks at the stream: what BPF and the kernel say of it; reads where the mode demands it.
 * Never blocks. */
enum stream_state stream_look(struct stream *s, enum reason *ret_reason);

/* After STREAM_ENDED: reads what is not read yet, and seals the buffer. Returns 0; -EAGAIN: the
 * kernel has not handed over all of it yet (look again later); -EINPROGRESS: there is more to read,
 * but others have waited long enough; -EPROTO with *ret_reason: what was
 * read is not what was seen, or libxxhash does not confirm the digest of BPF. */
int stream_take(struct stream *s, enum reason *ret_reason);

/* Whether the verdict wants its packets to be read as they come now (half of the reservation). */
bool stream_wants_input(const struct stream *s);

/* After STREAM_ENDED, before stream_take(): whether its digest and XXH64 are known without reading
 * or keeping a byte more (XXH64 only where it equals cached content, or its header says it). */
bool stream_unread(const struct stream *s);

/* After STREAM_ENDED: it equals all of the content that it was compared with. */
bool stream_repeats(const struct stream *s);

/* What the stream costs now, bytes of kernel and daemon memory as DESIGN 2 charges them. */
uint64_t stream_charge(const struct stream *s);

/* Of it, bytes of a content that is kept only to be compared with this stream. */
size_t stream_pinned(const struct stream *s);

/* A new reservation. */
void stream_reserve(struct stream *s, uint64_t reserved);

/* enum vsr_mode, and for the framed ones the header. */
uint32_t stream_mode(const struct stream *s);
void stream_header(const struct stream *s, struct vsr_header *ret);
static inline bool stream_framed(const struct stream *s)
{
	return s->seen.mode == VSR_MODE_VSR1 || s->seen.mode == VSR_MODE_VSR2;
}

/* After STREAM_ENDED: length of the payload, bytes. */
uint64_t stream_length(const struct stream *s);

/* While stream_unread(), or after stream_take(): the digest. With BPF it is BPF's, of bytes that
 * may not be read yet. Returns 0, or -errno if the maps cannot be read. */
int stream_digest(const struct stream *s, uint64_t *ret);

/* After stream_take(): XXH64, seed 0, of the payload. Returns false if it is not known, in raw mode
 * alone: nobody may ever ask for it (stream_config.xxh64_of_raw). */
bool stream_xxh64(const struct stream *s, uint64_t *ret);

/* After stream_take(): whether the payload is a report of the VM with CID peer_cid. As
 * report_validate(). */
int stream_validate(struct stream *s, uint32_t peer_cid, struct report_error *error,
		    struct report_info *ret);

/* After stream_take(): XXH64 of the payload's whole blocks, or NULL: it is cached content, and they
 * are known. */
const uint64_t *stream_blocks(const struct stream *s);

/* CLOCK_BOOTTIME usec of the last byte, 0 if none came. */
uint64_t stream_last_byte(const struct stream *s);

/* Ends the verdict's part: takes the socket's entry out of the maps and gives back its share of
 * the reserve. The socket may live on (for an answer); bytes that still come are dropped. */
void stream_close(struct stream *s);

/* Of a vsock stream, as the last thing before its socket is closed: takes back the peer's credit,
 * and gives back what that was reckoned to cost; nothing can be sent any more. Returns true if the
 * peer has ended the connection: then the kernel keeps nothing of it behind the close. */
bool stream_end_credit(struct stream *s);

/* Bytes queued in the kernel for (rmem) and towards (wmem) the peer. Returns 0 or -errno. */
int socket_memory(int fd, uint32_t *ret_rmem, uint32_t *ret_wmem);

#endif
