/* SPDX-License-Identifier: Apache-2.0 */
#include "log.h"

#include <inttypes.h>
#include <stdarg.h>
#include <time.h>

#include "utf8.h"

#define LINE_MAX_LEN 1024

static int max_level = LOG_INFO;
static enum log_format format = LOG_FORMAT_TEXT;
static log_sink_t sink;
static FILE *copy;

static const char *const level_names[LOG_DEBUG + 1] = {
	[LOG_ERR] = "error", [LOG_WARNING] = "warning", [LOG_NOTICE] = "notice",
	[LOG_INFO] = "info", [LOG_DEBUG] = "debug",
};

void log_set_level(int level)
{
	max_level = level;
}

int log_level(void)
{
	return max_level;
}

const char *log_level_name(int level)
{
	return level >= 0 && level <= LOG_DEBUG ? level_names[level] : NULL;
}

int log_level_from_name(const char *name)
{
	for (int i = LOG_ERR; i <= LOG_DEBUG; i++)
		if (streq(level_names[i], name))
			return i;
	return -EINVAL;
}

void log_set_format(enum log_format f)
{
	format = f;
}

void log_set_sink(log_sink_t s)
{
	sink = s;
}

void log_copy_to(FILE *f)
{
	copy = f;
}

/* ---- one line ------------------------------------------------------------------------------------ */

/* Control bytes are gone already; JSON wants UTF-8 beside that. */
static void write_json_string(FILE *f, const char *text)
{
	size_t left = strlen(text);

	putc('"', f);
	while (left > 0) {
		size_t n = utf8_sequence((const uint8_t *)text, left);

		if (*text == '"' || *text == '\\')
			putc('\\', f);
		if (n == 0)
			putc('?', f);
		else
			fwrite(text, 1, n, f);
		text += n ? n : 1;
		left -= n ? n : 1;
	}
	putc('"', f);
}

static void write_json(FILE *f, const struct log_entry *e)
{
	struct timespec ts;
	struct tm tm;
	char time[32];

	clock_gettime(CLOCK_REALTIME, &ts);
	gmtime_r(&ts.tv_sec, &tm);
	strftime(time, sizeof(time), "%Y-%m-%dT%H:%M:%S", &tm);
	fprintf(f, "{\"time\":\"%s.%06ldZ\",\"level\":\"%s\",\"message\":", time,
		ts.tv_nsec / (long)NSEC_PER_USEC, log_level_name(e->level) ?: "error");
	write_json_string(f, e->message);
	if (e->about.vm)
		fprintf(f, ",\"vm\":\"%u:%u\"", e->about.vm->ns, e->about.vm->cid);
	if (e->about.reason) {
		fputs(",\"reason\":", f);
		write_json_string(f, e->about.reason);
	}
	if (e->about.generation)
		fprintf(f, ",\"generation\":%" PRIu64, e->about.generation);
	if (e->about.held_back)
		fprintf(f, ",\"held_back\":%u", e->about.held_back);
	fputs("}\n", f);
}

/* In one write, so that lines of two threads do not mix. */
static void write_stderr(const struct log_entry *e)
{
	char line[2 * LINE_MAX_LEN + 512] = "";
	FILE *f;

	if (format == LOG_FORMAT_TEXT) {
		if (getenv("JOURNAL_STREAM"))
			fprintf(stderr, "<%d>%s\n", e->level, e->message);
		else
			fprintf(stderr, "%s\n", e->message);
		return;
	}
	f = fmemopen(line, sizeof(line), "w");
	if (!f)
		return;
	write_json(f, e);
	if (fclose(f) == 0)
		fputs(line, stderr);
}

static void write_line(int level, int err, const struct log_about *about, const char *fmt,
		       va_list ap)
{
	char line[LINE_MAX_LEN];
	struct log_entry e = { .level = level, .message = line };
	int n, saved = errno;

	if (level > max_level)
		return;
	n = vsnprintf(line, sizeof(line), fmt, ap);
	if (n < 0)
		return;
	n = (int)MIN((size_t)n, sizeof(line) - 1);
	if (err)
		snprintf(line + n, sizeof(line) - (size_t)n, ": %s", strerror(err));
	for (char *p = line; *p; p++)
		if ((unsigned char)*p < 0x20 || *p == 0x7f)
			*p = '?';
	if (about)
		e.about = *about;
	if (!sink || sink(&e) < 0)
		write_stderr(&e);
	if (copy)
		fprintf(copy, "%s\n", line);
	errno = saved;
}

void log_write(int level, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	write_line(level, 0, NULL, fmt, ap);
	va_end(ap);
}

void log_write_about(int level, const struct log_about *about, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	write_line(level, 0, about, fmt, ap);
	va_end(ap);
}

int log_write_errno(int level, int err, const char *fmt, ...)
{
	va_list ap;

	err = abs(err);
	va_start(ap, fmt);
	write_line(level, err, NULL, fmt, ap);
	va_end(ap);
	return -err;
}
