/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Durations as Go writes them: a sequence of decimal numbers, each with a unit, such as "4h",
 * "1m30s", "250ms", "1.5h", "-5s"; the number 0 alone needs no unit. Units: ns, us (also with
 * the micro sign), ms, s, m, h. Operators paste the reference relay's values, so its grammar
 * (time.ParseDuration) is taken whole, its bound of 2^63 ns (292 years) too.
 */
#ifndef VSR_DURATION_H
#define VSR_DURATION_H

#include "util.h"

/* Longest text of duration_format(), with its NUL. */
#define DURATION_TEXT_MAX 40

/* The longest duration that can be written: 2^63 - 1 ns in usec, rounded up. */
#define DURATION_MAX_USEC (((uint64_t)INT64_MAX + NSEC_PER_USEC - 1) / NSEC_PER_USEC)

/*
 * Parses the whole of s into microseconds. Parts of a microsecond are rounded away from 0: what
 * was not 0 never becomes 0, which means "off" or "unlimited" for some settings.
 * Returns 0, -EINVAL (not a duration), -ERANGE (a negative one other than 0, or too long).
 */
int duration_parse(const char *s, uint64_t *ret_usec);

/* The same for durations that may be negative. Returns 0, -EINVAL, -ERANGE (too long). */
int duration_parse_signed(const char *s, int64_t *ret_usec);

/*
 * Writes usec as the shortest text that duration_parse() reads back to the same value: "4h",
 * "1m30s", "1.5s", "250ms", "0s"; "infinity" (which is not read back) for anything above
 * DURATION_MAX_USEC. Returns buf.
 */
char *duration_format(uint64_t usec, char buf[static DURATION_TEXT_MAX]);

#endif
