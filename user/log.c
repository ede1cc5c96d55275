/* SPDX-License-Identifier: Apache-2.0 */
#include "log.h"

#include <stdarg.h>

static int max_level = LOG_INFO;

void log_set_level(int level)
{
	max_level = level;
}

int log_level(void)
{
	return max_level;
}

static void write_line(int level, int err, const char *fmt, va_list ap)
{
	char line[1024];
	int n, saved = errno;

	if (level > max_level)
		return;
	n = vsnprintf(line, sizeof(line), fmt, ap);
	if (n < 0)
		return;
	for (char *p = line; *p; p++)
		if ((unsigned char)*p < 0x20 || *p == 0x7f)
			*p = '?';
	/* One call, so that lines of two threads do not mix. */
	if (getenv("JOURNAL_STREAM"))
		fprintf(stderr, "<%d>%s%s%s\n", level, line, err ? ": " : "",
			err ? strerror(err) : "");
	else
		fprintf(stderr, "%s%s%s\n", line, err ? ": " : "", err ? strerror(err) : "");
	errno = saved;
}

void log_write(int level, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	write_line(level, 0, fmt, ap);
	va_end(ap);
}

int log_write_errno(int level, int err, const char *fmt, ...)
{
	va_list ap;

	err = abs(err);
	va_start(ap, fmt);
	write_line(level, err, fmt, ap);
	va_end(ap);
	return -err;
}
