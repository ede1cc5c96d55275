/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vsock-relayd: gets reports out of virtual machines, reliably. main() alone; see daemon.c for
 * what it is made of, and README.md for a tour.
 */
#include <malloc.h>
#include <sysexits.h>

#include "daemon.h"
#include "log.h"

extern char **environ;

/* Large allocations (a context of zstd's is 1 MiB) are mappings of their own, and gone when they
 * are freed. Left alone, glibc would keep them in its heap after the first few. */
#define MALLOC_MAP_FROM (128 * KIB)

/* What needs no daemon. Returns an exit status, or -1: go on. */
static int do_action(const struct settings *settings)
{
	switch (settings->action) {
	case SETTINGS_HELP:
		settings_help(stdout);
		return EX_OK;
	case SETTINGS_VERSION:
		printf("vsock-relayd %s\n", VSR_VERSION);
		return EX_OK;
	case SETTINGS_CHECK:
		printf("%s: the settings are good\n",
		       *settings->file ? settings->file : "defaults");
		return EX_OK;
	case SETTINGS_RUN:
		break;
	}
	return -1;
}

int main(int argc, char *argv[])
{
	const struct daemon_args args = { .argc = argc, .argv = argv, .envp = environ };
	_cleanup_(settings_freep)
	struct settings *settings = NULL;
	_cleanup_(daemon_freep)
	struct daemon *d = NULL;
	struct settings_errors errors = { 0 };
	int r, status;

	mallopt(M_MMAP_THRESHOLD, MALLOC_MAP_FROM);
	r = settings_load(argc, argv, environ, &settings, &errors);
	settings_errors_log(&errors, "");
	settings_errors_done(&errors);
	if (r == -EINVAL)
		return EX_CONFIG;
	if (r < 0) {
		log_error_errno(r, "cannot read the settings");
		return EX_OSERR;
	}
	status = do_action(settings);
	if (status >= 0)
		return fflush(stdout) == EOF ? EX_IOERR : status;

	daemon_set_log(settings);
	r = daemon_new(&args, TAKE_PTR(settings), &d);
	if (r == 0)
		r = daemon_run(d);
	if (r < 0)
		return r == -EWOULDBLOCK ? EX_TEMPFAIL : EXIT_FAILURE;
	return EX_OK;
}
