/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>

#include "duration.h"

/* More digits than this behind the point are below a nanosecond of an hour. */
#define FRACTION_DIGITS 18

static const struct unit {
	const char *name;
	uint64_t nsec;
} units[] = {
	/* "ms" before "m": the longest name that matches is the unit. */
	{ "ns", 1 },
	{ "us", NSEC_PER_USEC },
	{ "\xc2\xb5s", NSEC_PER_USEC }, /* U+00B5, micro sign */
	{ "\xce\xbcs", NSEC_PER_USEC }, /* U+03BC, Greek mu */
	{ "ms", NSEC_PER_USEC *USEC_PER_MSEC },
	{ "s", NSEC_PER_USEC *USEC_PER_SEC },
	{ "m", NSEC_PER_USEC *USEC_PER_MIN },
	{ "h", NSEC_PER_USEC *USEC_PER_HOUR },
};

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

/* The unit at *p, which is moved behind it; NULL if there is none. */
static const struct unit *parse_unit(const char **p)
{
	for (size_t i = 0; i < ARRAY_SIZE(units); i++) {
		size_t n = strlen(units[i].name);

		if (strncmp(*p, units[i].name, n) == 0) {
			*p += n;
			return &units[i];
		}
	}
	return NULL;
}

/* One number with its unit at *p, in nanoseconds; moves *p behind it. */
static int parse_term(const char **p, uint64_t *ret_nsec)
{
	uint64_t whole = 0, fraction = 0, scale = 1, nsec;
	const struct unit *unit;
	bool digits = false;
	const char *s = *p;

	for (; is_digit(*s); s++) {
		digits = true;
		if (__builtin_mul_overflow(whole, 10, &whole) ||
		    __builtin_add_overflow(whole, (uint64_t)(*s - '0'), &whole))
			return -ERANGE;
	}
	if (*s == '.') {
		s++;
		for (unsigned int n = 0; is_digit(*s); s++, n++) {
			digits = true;
			if (n >= FRACTION_DIGITS)
				continue;
			fraction = fraction * 10 + (uint64_t)(*s - '0');
			scale *= 10;
		}
	}
	if (!digits)
		return -EINVAL;

	unit = parse_unit(&s);
	if (!unit)
		return -EINVAL;
	if (__builtin_mul_overflow(whole, unit->nsec, &nsec))
		return -ERANGE;
	/* Below one unit, so the sum fits: fraction < scale. */
	nsec += (uint64_t)((unsigned __int128)fraction * unit->nsec / scale);
	*p = s;
	*ret_nsec = nsec;
	return 0;
}

int duration_parse_signed(const char *s, int64_t *ret_usec)
{
	bool negative = *s == '-';
	uint64_t sum = 0;
	int64_t usec;
	int r;

	if (*s == '-' || *s == '+')
		s++;
	if (!*s)
		return -EINVAL;
	if (streq(s, "0")) {
		*ret_usec = 0;
		return 0;
	}
	while (*s) {
		uint64_t nsec;

		r = parse_term(&s, &nsec);
		if (r < 0)
			return r;
		if (__builtin_add_overflow(sum, nsec, &sum) || sum > INT64_MAX)
			return -ERANGE;
	}
	usec = (int64_t)((sum + NSEC_PER_USEC - 1) / NSEC_PER_USEC);
	*ret_usec = negative ? -usec : usec;
	return 0;
}

int duration_parse(const char *s, uint64_t *ret_usec)
{
	int64_t usec;
	int r;

	r = duration_parse_signed(s, &usec);
	if (r < 0)
		return r;
	if (usec < 0)
		return -ERANGE;
	*ret_usec = (uint64_t)usec;
	return 0;
}

/* "12.034" without trailing zeros, for value / 10^digits. */
static void append_decimal(char *buf, uint64_t value, unsigned int digits, const char *unit)
{
	uint64_t scale = 1;
	size_t n = strlen(buf);

	for (unsigned int i = 0; i < digits; i++)
		scale *= 10;
	while (digits > 0 && value % 10 == 0) {
		value /= 10;
		scale /= 10;
		digits--;
	}
	if (digits == 0)
		snprintf(buf + n, DURATION_TEXT_MAX - n, "%" PRIu64 "%s", value, unit);
	else
		snprintf(buf + n, DURATION_TEXT_MAX - n, "%" PRIu64 ".%0*" PRIu64 "%s",
			 value / scale, (int)digits, value % scale, unit);
}

char *duration_format(uint64_t usec, char buf[static DURATION_TEXT_MAX])
{
	uint64_t hours = usec / USEC_PER_HOUR, minutes = usec / USEC_PER_MIN % 60;
	uint64_t rest = usec % USEC_PER_MIN;

	buf[0] = '\0';
	if (usec > DURATION_MAX_USEC) {
		snprintf(buf, DURATION_TEXT_MAX, "infinity");
		return buf;
	}
	if (hours > 0)
		append_decimal(buf, hours, 0, "h");
	if (minutes > 0)
		append_decimal(buf, minutes, 0, "m");
	if (rest == 0 && usec > 0)
		return buf;
	if (rest >= USEC_PER_SEC || usec == 0)
		append_decimal(buf, rest, 6, "s");
	else if (rest >= USEC_PER_MSEC)
		append_decimal(buf, rest, 3, "ms");
	else
		append_decimal(buf, rest, 0, "us");
	return buf;
}
