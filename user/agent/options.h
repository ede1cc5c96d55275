/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The command line of vsock-agent.
 */
#ifndef VSR_AGENT_OPTIONS_H
#define VSR_AGENT_OPTIONS_H

#include "send.h"

#define OPTIONS_RETRIES_DEFAULT UINT32_MAX

struct options {
	/* when */
	bool once;
	uint64_t interval, start_within; /* usec */
	/* where to */
	struct relay_address relay;
	uint32_t mode;	  /* enum vsr_mode */
	uint64_t timeout; /* usec */
	uint32_t retries; /* OPTIONS_RETRIES_DEFAULT: not given */
	/* what */
	const char *root, *rpm_command, *file, *vm_id;
	bool cid_given, synthetic_given;
	uint32_t cid, synthetic;
	uint64_t seed;
	/* where instead of the relay */
	bool print;
	const char *dump;
	bool verbose;
};

enum options_result {
	OPTIONS_RUN,
	OPTIONS_HELP,	 /* --help or --version: written to stdout */
	OPTIONS_INVALID, /* said on stderr */
};

/* Parses the command line; the strings in *ret are those of argv. */
enum options_result options_parse(int argc, char *argv[], struct options *ret);

#endif
