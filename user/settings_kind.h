/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kinds of values that settings have: how each is read from text, written as text, compared
 * and described. A row of the table in settings.c is a struct settings_row.
 */
#ifndef VSR_SETTINGS_KIND_H
#define VSR_SETTINGS_KIND_H

#include "settings.h"
#include "yaml_tree.h"

enum settings_kind {
	KIND_BOOL,	/* bool */
	KIND_UINT,	/* uint32_t */
	KIND_MODE,	/* uint32_t, octal */
	KIND_NUMBER,	/* double, not negative */
	KIND_DURATION,	/* uint64_t usec */
	KIND_SIZE,	/* uint64_t bytes */
	KIND_KIB,	/* uint64_t bytes, written as a plain number of KiB */
	KIND_CHOICE,	/* an enum or int */
	KIND_TEXT,	/* char * */
	KIND_ADDRESS,	/* struct settings_address */
	KIND_UIDS,	/* struct settings_uids */
	KIND_WORDS,	/* struct settings_words */
	KIND_SOCKETS,	/* struct settings_hybrid * and size_t, in that order */
	KIND_LISTENERS, /* struct settings_listeners */
};

struct settings_choice {
	const char *name; /* NULL ends the list */
	int value;
};

struct settings_row {
	const char *name;
	enum settings_kind kind;
	size_t offset;	 /* of the field in struct settings */
	const char *def; /* as text; what depends on the upstream stands in def_for */
	const char *def_for[SETTINGS_UPSTREAM_MAX];
	const char *env_ref; /* the reference relay's variable */
	bool needs_restart;
	const char *help;

	/* bounds, both inclusive: UINT, NUMBER, DURATION (usec), SIZE (bytes), KIB (KiB) */
	uint64_t min, max;
	const char *word; /* UINT: taken too, and stands for word_value */
	uint32_t word_value;
	const char *unit;		       /* NUMBER: may stand behind it */
	uint64_t instead_of_none;	       /* DURATION: what 0 and negative values mean */
	const struct settings_choice *choices; /* CHOICE */
	bool (*valid)(const char *text);       /* TEXT */
	const char *expects;		       /* TEXT: in words */
};

/*
 * Reads text into the field of s. Returns 0, -EINVAL (not what the row expects), -ENOMEM; the
 * field is untouched on failure, and what it held is freed on success.
 */
int settings_kind_parse(const struct settings_row *row, const char *text, struct settings *s);

/* The field as text that settings_kind_parse() reads back; NULL if there is no memory. */
char *settings_kind_format(const struct settings_row *row, const struct settings *s);

/* What a good value looks like, for "expected ...". Returns buf. */
char *settings_kind_expects(const struct settings_row *row, char *buf, size_t size);

/* Frees what the field holds. */
void settings_kind_done(const struct settings_row *row, struct settings *s);

/* Adds one listener to a KIND_SOCKETS field: cid 0 for a pattern. Returns 0, -EINVAL (the path is
 * not what settings_kind_expects() says), -E2BIG (too many), -ENOMEM. */
int settings_sockets_add(const struct settings_row *row, struct settings *s, const char *path,
			 uint32_t cid);

/* Adds one listener to a KIND_LISTENERS field: NAMESPACE=PATH or NAMESPACE:PORT=PATH. Returns 0,
 * -EINVAL (not of that form), -E2BIG (too many), -ENOMEM. */
int settings_listeners_add(const struct settings_row *row, struct settings *s, const char *text);

/* A decimal CID of a VM: 1 to 2^32 - 2. Returns 0, -EINVAL. */
int settings_parse_cid(const char *text, uint32_t *ret);

/* An absolute path without "..", for KIND_TEXT. */
bool settings_valid_path(const char *text);

#define SETTINGS_SOCKETS_MAX 1024

#endif
