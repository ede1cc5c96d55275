/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Parts of a text that lies elsewhere: what the parsers of the agent cut lines into. A part may
 * hold any byte; of an empty part s may be NULL.
 */
#ifndef VSR_AGENT_TEXT_H
#define VSR_AGENT_TEXT_H

#include <strings.h>

#include "util.h"

struct text {
	const char *s;
	size_t n;
};

static inline bool text_is_blank(char c)
{
	return c == ' ' || c == '\t' || c == '\r' || c == '\f' || c == '\v';
}

/* Without the blanks at both ends. */
static inline struct text text_trim(struct text t)
{
	while (t.n > 0 && text_is_blank(t.s[0])) {
		t.s++;
		t.n--;
	}
	while (t.n > 0 && text_is_blank(t.s[t.n - 1]))
		t.n--;
	return t;
}

static inline bool text_is(struct text t, const char *word)
{
	return t.n == strlen(word) && (t.n == 0 || memcmp(t.s, word, t.n) == 0);
}

/* The same, without regard to case. */
static inline bool text_is_nocase(struct text t, const char *word)
{
	return t.n == strlen(word) && (t.n == 0 || strncasecmp(t.s, word, t.n) == 0);
}

/* What is before and behind the first c; returns false, and leaves both untouched, without c. */
static inline bool text_split(struct text t, char c, struct text *ret_before,
			      struct text *ret_behind)
{
	const char *p = t.n > 0 ? memchr(t.s, c, t.n) : NULL;

	if (!p)
		return false;
	*ret_before = (struct text){ t.s, p - t.s };
	*ret_behind = (struct text){ p + 1, t.s + t.n - (p + 1) };
	return true;
}

/* Cuts the first line, without its newline, off *t. */
static inline struct text text_next_line(struct text *t)
{
	struct text line = *t;

	if (!text_split(*t, '\n', &line, t))
		t->n = 0;
	return line;
}

/* Cuts the first word off the trimmed *t, and the blanks behind it. */
static inline struct text text_next_word(struct text *t)
{
	struct text word = { t->s, 0 };

	while (word.n < t->n && !text_is_blank(t->s[word.n]))
		word.n++;
	if (word.n > 0)
		*t = text_trim((struct text){ t->s + word.n, t->n - word.n });
	return word;
}

#endif
