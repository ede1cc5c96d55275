/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes protobuf by hand, for tests and benches that need messages no library would write, or
 * large ones. Nothing here checks anything; running out of memory ends the program.
 */
#ifndef VSR_TEST_WIRE_H
#define VSR_TEST_WIRE_H

#include <stdarg.h>

#include "util.h"

struct wire {
	uint8_t *data;
	size_t len;
	size_t size;
};

static inline void wire_done(struct wire *w)
{
	free(w->data);
	*w = (struct wire){};
}

#define _cleanup_wire_ _cleanup_(wire_done)

static inline void wire_raw(struct wire *w, const void *p, size_t n)
{
	if (w->len + n > w->size) {
		w->size = MAX(2 * w->size, w->len + n + 256);
		w->data = realloc(w->data, w->size);
		if (!w->data)
			abort();
	}
	if (n > 0)
		memcpy(w->data + w->len, p, n);
	w->len += n;
}

static inline void wire_byte(struct wire *w, uint8_t b)
{
	wire_raw(w, &b, 1);
}

/* In at least n bytes: more than needed makes an overlong encoding. */
static inline void wire_varint_n(struct wire *w, uint64_t v, unsigned n)
{
	for (; v >= 0x80 || n > 1; v >>= 7, n -= n > 0)
		wire_byte(w, (v & 0x7f) | 0x80);
	wire_byte(w, v);
}

static inline void wire_varint(struct wire *w, uint64_t v)
{
	wire_varint_n(w, v, 1);
}

static inline void wire_tag(struct wire *w, uint64_t field, unsigned wire_type)
{
	wire_varint(w, field << 3 | wire_type);
}

static inline void wire_bytes(struct wire *w, uint64_t field, const void *p, size_t n)
{
	wire_tag(w, field, 2);
	wire_varint(w, n);
	wire_raw(w, p, n);
}

static inline void wire_string(struct wire *w, uint64_t field, const char *s)
{
	wire_bytes(w, field, s, strlen(s));
}

static inline void wire_stringf(struct wire *w, uint64_t field, const char *fmt, ...)
	_printf_(3, 4);
static inline void wire_stringf(struct wire *w, uint64_t field, const char *fmt, ...)
{
	char s[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(s, sizeof(s), fmt, ap);
	va_end(ap);
	wire_string(w, field, s);
}

static inline void wire_int(struct wire *w, uint64_t field, uint64_t v)
{
	wire_tag(w, field, 0);
	wire_varint(w, v);
}

/* The message in m becomes a field of w; m is emptied for the next one, its memory kept. */
static inline void wire_message(struct wire *w, uint64_t field, struct wire *m)
{
	wire_bytes(w, field, m->data, m->len);
	m->len = 0;
}

#endif
