/* SPDX-License-Identifier: Apache-2.0 */
#include "utf8.h"

static bool is_tail(uint8_t b)
{
	return (b & 0xc0) == 0x80;
}

size_t utf8_sequence(const uint8_t *s, size_t n)
{
	uint8_t low = 0x80, high = 0xbf;
	size_t len;

	if (n == 0)
		return 0;
	if (s[0] < 0x80)
		return 1;
	if (s[0] >= 0xc2 && s[0] <= 0xdf)
		len = 2;
	else if (s[0] >= 0xe0 && s[0] <= 0xef)
		len = 3;
	else if (s[0] >= 0xf0 && s[0] <= 0xf4)
		len = 4;
	else
		return 0;

	/* The second byte has a narrower range after four of the first bytes. */
	if (s[0] == 0xe0)
		low = 0xa0;
	else if (s[0] == 0xed)
		high = 0x9f;
	else if (s[0] == 0xf0)
		low = 0x90;
	else if (s[0] == 0xf4)
		high = 0x8f;

	if (n < len || s[1] < low || s[1] > high)
		return 0;
	for (size_t i = 2; i < len; i++)
		if (!is_tail(s[i]))
			return 0;
	return len;
}
