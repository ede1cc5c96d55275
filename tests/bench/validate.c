/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How fast the validator is: best and median of many runs over reports of 2.5 MB, and over the
 * worst that a guest can send in 16 MiB. Prints one JSON object.
 */
#include <time.h>

#include "../synthetic.h"
#include "report.h"

#define RUNS	 301
#define BIG_RUNS 15

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static void measure(const char *name, const struct wire *w, unsigned runs, const char *sep)
{
	uint64_t ns[RUNS];

	for (unsigned i = 0; i < runs; i++) {
		uint64_t begin = now_ns();
		int r = report_validate(w->data, w->len, 42, NULL, NULL);

		ns[i] = now_ns() - begin;
		if (r < 0) {
			fprintf(stderr, "%s: the report is not valid: %s\n", name, strerror(-r));
			exit(1);
		}
	}
	qsort(ns, runs, sizeof(ns[0]), compare);
	printf("  \"%s\": {\"bytes\": %zu, \"best_us\": %.1f, \"median_us\": %.1f, "
	       "\"best_gb_s\": %.2f, \"median_gb_s\": %.2f}%s\n",
	       name, w->len, ns[0] / 1e3, ns[runs / 2] / 1e3, (double)w->len / ns[0],
	       (double)w->len / ns[runs / 2], sep);
}

/* A report whose bytes are nothing but the given field of it, over and over. */
static void filled(struct wire *w, const void *field, size_t n)
{
	_cleanup_wire_ struct wire index = {};

	wire_string(&index, 1, "42");
	wire_message(w, 1, &index);
	while (w->len + n <= 16384 * KIB)
		wire_raw(w, field, n);
}

int main(void)
{
	_cleanup_wire_ struct wire usual = {}, large = {}, empty_fields = {}, unicode = {},
				   chunk = {};
	_cleanup_wire_ struct wire text = {}, empty_messages = {};

	synthetic_report(&usual, "42", 524, 11);
	synthetic_report(&large, "42", 1100, 49);
	filled(&empty_fields, "\x50\x00", 2);	/* field 10, varint 0 */
	filled(&empty_messages, "\x12\x00", 2); /* discovered_data */
	for (unsigned i = 0; i < 1024; i++)
		wire_raw(&text, "\xf0\x9f\x90\xa7", 4);
	wire_bytes(&chunk, 2, text.data, text.len);
	text.len = 0;
	wire_raw(&text, "\x12", 1); /* discovered_data.os_version */
	wire_varint(&text, chunk.len);
	wire_raw(&text, chunk.data, chunk.len);
	filled(&unicode, text.data, text.len);

	printf("{\n");
	measure("usual_vm", &usual, RUNS, ",");
	measure("large_vm", &large, RUNS, ",");
	measure("worst_empty_fields", &empty_fields, BIG_RUNS, ",");
	measure("worst_empty_messages", &empty_messages, BIG_RUNS, ",");
	measure("worst_unicode", &unicode, BIG_RUNS, "");
	printf("}\n");
	return 0;
}
