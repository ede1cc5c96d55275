/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One attempt to hand a report to the relay: connect, send, wait for the answer, within one
 * deadline. The relay holds a connection that has no place yet at zero credit, so connect()
 * succeeds and send() would block: nothing here blocks but poll().
 */
#ifndef VSR_AGENT_SEND_H
#define VSR_AGENT_SEND_H

#include "util.h"
#include "vsr_frame.h"

struct relay_address {
	const char *unix_path; /* NULL: AF_VSOCK */
	uint32_t cid, port;
};

/* How an attempt ended. */
enum send_end {
	SEND_ANSWERED,	  /* status holds the relay's final answer */
	SEND_CLOSED,	  /* raw mode: all bytes went out and the relay closed; nobody knows more */
	SEND_UNREACHABLE, /* no connection; error says why */
	SEND_REFUSED,	  /* closed or reset before a byte went out: busy */
	SEND_CUT,	  /* closed or reset later, without an answer */
	SEND_TIMEOUT,	  /* the deadline passed */
	SEND_BAD_ANSWER,  /* what came back is no answer of a relay */
	SEND_STOPPED,	  /* stop_fd became readable */
};

struct send_result {
	enum send_end end;
	uint32_t status; /* enum vsr_status */
	int error;	 /* errno of the call that failed, or 0 */
	size_t header;	 /* bytes of the header that the kernel took */
	size_t sent;	 /* bytes of the payload that the kernel took */
};

/*
 * mode is VSR_MODE_RAW, VSR_MODE_VSR1 or VSR_MODE_VSR2; timeout is in microseconds from now;
 * stop_fd (or -1) ends the attempt when it becomes readable. Always fills *ret.
 */
void send_report(const struct relay_address *relay, uint32_t mode, const uint8_t *data,
		 uint32_t len, uint64_t timeout, int stop_fd, struct send_result *ret);

#endif
