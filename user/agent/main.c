/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vsock-agent: collects the report, sends it, waits, and does so again.
 */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>

#include "answer.h"
#include "clock.h"
#include "collect.h"
#include "duration.h"
#include "log.h"
#include "retry.h"
#include "vmreport.h"

#define RETRIES_ONCE 5

static int open_stop_fd(void)
{
	sigset_t signals;
	int fd;

	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	if (sigprocmask(SIG_BLOCK, &signals, NULL) < 0)
		return -errno;
	fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
	return fd < 0 ? -errno : fd;
}

/* Returns false if a signal came before until. */
static bool wait_until(uint64_t until, int stop_fd)
{
	struct pollfd pfd = { .fd = stop_fd, .events = POLLIN };

	while (clock_now() < until)
		if (poll(&pfd, 1, clock_poll_timeout(until)) > 0)
			return false;
	return true;
}

static void log_attempt(const struct send_result *result)
{
	static const int levels[] = {
		[VERDICT_DONE] = LOG_INFO,
		[VERDICT_RETRY] = LOG_WARNING,
		[VERDICT_REFUSED] = LOG_ERR,
		[VERDICT_STOPPED] = LOG_INFO,
	};
	char text[ANSWER_TEXT_MAX];

	log_write(levels[answer_verdict(result)], "%s", answer_describe(result, text));
}

/* Sends the report, again while it makes sense, but not after until. */
static enum verdict deliver(const struct options *o, const uint8_t *data, size_t len,
			    uint64_t until, int stop_fd, enum exit_code *ret_code)
{
	uint32_t retries = o->retries;

	if (retries == OPTIONS_RETRIES_DEFAULT && o->once)
		retries = RETRIES_ONCE;
	for (uint32_t n = 0;; n++) {
		char text[DURATION_TEXT_MAX];
		struct send_result result;
		uint64_t delay;

		send_report(&o->relay, o->mode, data, len, o->timeout, stop_fd, &result);
		log_attempt(&result);
		*ret_code = answer_exit_code(&result);
		if (answer_verdict(&result) != VERDICT_RETRY)
			return answer_verdict(&result);
		delay = retry_delay(n, retry_random());
		if (n >= retries || usec_add(clock_now(), delay) >= until) {
			log_error("not delivered, attempts: %u", n + 1);
			return VERDICT_RETRY;
		}
		delay -= delay % USEC_PER_MSEC;
		log_info("trying again in %s", duration_format(delay, text));
		if (!wait_until(usec_add(clock_now(), delay), stop_fd))
			return VERDICT_STOPPED;
	}
}

static enum exit_code collect_exit_code(int r)
{
	switch (r) {
	case -ENOMEM:
		return AGENT_EXIT_INTERNAL;
	case -ECANCELED:
		return AGENT_EXIT_TEMPORARY;
	default:
		return AGENT_EXIT_NO_INPUT;
	}
}

static enum exit_code dump(const char *path, const uint8_t *data, size_t len)
{
	bool to_stdout = streq(path, "-");
	FILE *f = to_stdout ? stdout : fopen(path, "we");
	bool failed;

	if (!f) {
		log_error_errno(errno, "%s", path);
		return AGENT_EXIT_OUTPUT;
	}
	failed = fwrite(data, 1, len, f) != len;
	failed |= (to_stdout ? fflush(f) : fclose(f)) != 0;
	if (failed)
		log_error_errno(errno, "%s cannot be written", path);
	return failed ? AGENT_EXIT_OUTPUT : AGENT_EXIT_OK;
}

/* --print and --dump. */
static enum exit_code show(const struct options *o, int stop_fd)
{
	_cleanup_free_ uint8_t *data = NULL;
	enum exit_code code = AGENT_EXIT_OK;
	size_t len;
	int r;

	r = collect_report(o, stop_fd, &data, &len);
	if (r < 0)
		return collect_exit_code(r);
	if (o->print) {
		r = vmreport_print(data, len, stdout);
		if (r == -EBADMSG)
			log_error("%s: this is no VMReport", o->file);
		else if (r < 0)
			log_error_errno(r, "standard output cannot be written");
		if (r < 0)
			return r == -EBADMSG ? AGENT_EXIT_NO_INPUT : AGENT_EXIT_OUTPUT;
	}
	if (o->dump)
		code = dump(o->dump, data, len);
	return code;
}

/* One report, to its end. */
static enum verdict report(const struct options *o, uint64_t until, int stop_fd,
			   enum exit_code *ret_code)
{
	_cleanup_free_ uint8_t *data = NULL;
	size_t len;
	int r;

	r = collect_report(o, stop_fd, &data, &len);
	if (r < 0) {
		*ret_code = collect_exit_code(r);
		return r == -ECANCELED ? VERDICT_STOPPED : VERDICT_REFUSED;
	}
	return deliver(o, data, len, until, stop_fd, ret_code);
}

static enum exit_code run(const struct options *o, int stop_fd)
{
	uint64_t due = usec_add(clock_now(), retry_share(o->start_within, retry_random()));
	char text[DURATION_TEXT_MAX];
	enum exit_code code;

	if (o->once) {
		report(o, USEC_INFINITY, stop_fd, &code);
		return code;
	}
	for (;;) {
		uint64_t wait = usec_sub(due, clock_now());

		log_info("next report in %s", duration_format(wait - wait % USEC_PER_SEC, text));
		if (!wait_until(due, stop_fd))
			break;
		due = usec_add(clock_now(), retry_jitter(o->interval, retry_random()));
		if (report(o, due, stop_fd, &code) == VERDICT_STOPPED)
			break;
	}
	log_info("stopped by a signal");
	return AGENT_EXIT_OK;
}

int main(int argc, char *argv[])
{
	_cleanup_close_ int stop_fd = -1;
	struct options o;

	switch (options_parse(argc, argv, &o)) {
	case OPTIONS_HELP:
		return fflush(stdout) == 0 ? AGENT_EXIT_OK : AGENT_EXIT_OUTPUT;
	case OPTIONS_INVALID:
		return AGENT_EXIT_USAGE;
	case OPTIONS_RUN:
		break;
	}
	if (o.verbose)
		log_set_level(LOG_DEBUG);
	stop_fd = open_stop_fd();
	if (stop_fd < 0) {
		log_error_errno(stop_fd, "no signals can be taken");
		return AGENT_EXIT_INTERNAL;
	}
	return o.print || o.dump ? show(&o, stop_fd) : run(&o, stop_fd);
}
