/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Logging: one line an event, to standard error, as text or as JSON; or to whatever a program sets
 * as its sink (user/log_journal.c). A function either logs or returns an error, never both.
 */
#ifndef VSR_LOG_H
#define VSR_LOG_H

#include <syslog.h>

#include "util.h"
#include "vsr_abi.h"

/* Sets the most verbose level that is written: LOG_ERR to LOG_DEBUG. Default LOG_INFO. */
void log_set_level(int level);
int log_level(void);
/* "error", "warning", "notice", "info", "debug"; NULL for others. */
const char *log_level_name(int level);
/* Returns the level, -EINVAL. */
int log_level_from_name(const char *name);

/* TEXT: with the journal's <level> prefix where JOURNAL_STREAM is set. JSON: an object a line, with
 * "time" (UTC, RFC 3339), "level", "message", and what struct log_about has, named alike. */
enum log_format { LOG_FORMAT_TEXT, LOG_FORMAT_JSON };
void log_set_format(enum log_format format);

/* What an event is about, beside its text. */
struct log_about {
	const struct vsr_vm_id *vm; /* may be NULL */
	const char *reason;	    /* a label of the metrics; may be NULL */
	uint64_t generation;	    /* 0: none */
	uint32_t held_back;	    /* events like this that were not logged */
};

struct log_entry {
	int level;
	const char *message; /* without newline and control bytes */
	struct log_about about;
};

/* Writes entries instead of standard error; one that fails (negative errno) goes there. NULL: none. */
typedef int (*log_sink_t)(const struct log_entry *e);
void log_set_sink(log_sink_t sink);

/* From now on the messages go to f too, a line each; NULL ends it. For whoever asked for something
 * and wants to know what came of it. */
void log_copy_to(FILE *f);

/* Writes one line; newlines and control bytes in it come out as '?'. level: LOG_ERR... */
void log_write(int level, const char *fmt, ...) _printf_(2, 3);
void log_write_about(int level, const struct log_about *about, const char *fmt, ...) _printf_(3, 4);

/* The same with ": <text of errno>" behind it; err is an errno, of either sign. Returns -|err|. */
int log_write_errno(int level, int err, const char *fmt, ...) _printf_(3, 4);

#define log_error(...)		    log_write(LOG_ERR, __VA_ARGS__)
#define log_warning(...)	    log_write(LOG_WARNING, __VA_ARGS__)
#define log_notice(...)		    log_write(LOG_NOTICE, __VA_ARGS__)
#define log_info(...)		    log_write(LOG_INFO, __VA_ARGS__)
#define log_debug(...)		    log_write(LOG_DEBUG, __VA_ARGS__)
#define log_error_errno(err, ...)   log_write_errno(LOG_ERR, err, __VA_ARGS__)
#define log_warning_errno(err, ...) log_write_errno(LOG_WARNING, err, __VA_ARGS__)

#endif
