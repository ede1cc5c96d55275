/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the end of an attempt means for the one who waits: done, again, or never; in words and as
 * an exit code.
 */
#ifndef VSR_AGENT_ANSWER_H
#define VSR_AGENT_ANSWER_H

#include "send.h"

/* Exit codes, those of sysexits.h where they fit. */
enum exit_code {
	AGENT_EXIT_OK = 0,	  /* delivered, or nothing to do */
	AGENT_EXIT_USAGE = 64,	  /* bad options */
	AGENT_EXIT_REFUSED = 65,  /* the relay does not want this report */
	AGENT_EXIT_NO_INPUT = 66, /* no package database, no CID, or no file to send */
	AGENT_EXIT_UNAVAILABLE =
		69,		   /* this kernel has no AF_VSOCK, or there is no host behind it */
	AGENT_EXIT_INTERNAL = 70,  /* out of memory and the like */
	AGENT_EXIT_OUTPUT = 74,	   /* the dump could not be written */
	AGENT_EXIT_TEMPORARY = 75, /* busy, unreachable, cut: try later */
	AGENT_EXIT_PROTOCOL = 76,  /* what answers there is no relay */
};

enum verdict {
	VERDICT_DONE,	 /* nothing more to do for this report */
	VERDICT_RETRY,	 /* the same report may be taken later */
	VERDICT_REFUSED, /* trying the same report again is of no use */
	VERDICT_STOPPED, /* a signal ended the attempt */
};

enum verdict answer_verdict(const struct send_result *r);

/* The exit code if this is the last attempt. */
enum exit_code answer_exit_code(const struct send_result *r);

#define ANSWER_TEXT_MAX 256

/* One line: what happened, and, where somebody should do something, what. Returns buf. */
char *answer_describe(const struct send_result *r, char buf[static ANSWER_TEXT_MAX]);

#endif
