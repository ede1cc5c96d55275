/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Logging: one line an event, to standard error; with the journal's <level> prefix when standard
 * error is the journal (JOURNAL_STREAM). A function either logs or returns an error, never both.
 */
#ifndef VSR_LOG_H
#define VSR_LOG_H

#include <syslog.h>

#include "util.h"

/* Sets the most verbose level that is written: LOG_ERR to LOG_DEBUG. Default LOG_INFO. */
void log_set_level(int level);
int log_level(void);

/* Writes one line; newlines and control bytes in it come out as '?'. level: LOG_ERR... */
void log_write(int level, const char *fmt, ...) _printf_(2, 3);

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
