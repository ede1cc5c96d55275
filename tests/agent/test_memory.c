/* SPDX-License-Identifier: Apache-2.0 */
/* What the agent does when memory runs out: each time -ENOMEM, and nothing is lost or torn. */
#include "../failing_malloc.h"
#include "agent_test.h"

#include "agent/dpkg.h"
#include "agent/repositories.h"
#include "agent/rpm.h"
#include "agent/synthetic.h"
#include "agent/vmreport.h"

static int parse_all(struct inventory *inv)
{
	static const char status[] = "Package: a\nStatus: install ok installed\nVersion: 1\n"
				     "Architecture: amd64\nSource: b (2)\n\n";
	static const char rpm[] =
		"a\t0\t1\t2\tx86_64\tb-1-2.src.rpm\tm:1:2:3:4\t8\tab\tKey ID cd\n";
	static const char list[] = "deb http://u:p@a b c\n";
	static const char sources[] = "Types: deb\nURIs: http://a\nSuites: s\nComponents: c\n";
	static const char repo[] = "[r]\nbaseurl=http://x\n";
	static const char os[] = "ID=rhel\nNAME=n\nVERSION_ID=9\n";
	int r;

	r = dpkg_parse(inv, status, strlen(status), DPKG_STATUS, false);
	if (r >= 0)
		r = rpm_parse(inv, rpm, strlen(rpm), "sqlite:var/lib/rpm");
	if (r >= 0)
		r = repositories_parse_list(inv, list, strlen(list));
	if (r >= 0)
		r = repositories_parse_sources(inv, sources, strlen(sources));
	if (r >= 0)
		r = repositories_parse_repo(inv, repo, strlen(repo));
	if (r >= 0)
		r = osrelease_parse(inv->arena, os, strlen(os), &inv->os);
	return r;
}

/* The arena takes its memory in large chunks. Each round leaves less of the first one, so that
 * another of the parsers' allocations is the one that fails. */
static void each_parser_survives_every_failing_allocation(void **state)
{
	unsigned int failed = 0;

	(void)state;
	if (!failures_reach_us())
		skip();
	for (size_t left = 0; left < 2048; left += 16) {
		struct inventory *inv = new_inventory();
		int r;

		assert_non_null(arena_alloc(inv->arena, 64 * KIB - left));
		for (unsigned int n = 1;; n++) {
			fail_at = n;
			r = parse_all(inv);
			if (r == 0)
				break;
			assert_int_equal(r, -ENOMEM);
			failed++;
		}
		fail_at = 0;
		/* What was taken before the failures is whole. */
		for (size_t i = 0; i < inv->n_packages; i++)
			assert_string_equal(inv->packages[i].name, "a");
		inventory_free(inv);
	}
	assert_true(failed >= 128);
}

static void a_report_survives_every_failing_allocation(void **state)
{
	struct inventory *inv = NULL;
	uint8_t *data = NULL;
	size_t len = 0;
	unsigned int n;
	int r;

	(void)state;
	if (!failures_reach_us())
		skip();
	for (n = 1;; n++) {
		fail_at = n;
		r = inventory_new(&inv);
		if (r == 0) {
			r = synthetic_fill(inv, 200, 1);
			if (r == 0)
				r = vmreport_pack(inv, "42", "id", &data, &len);
			fail_at = 0;
			inv = inventory_free(inv);
		}
		if (r == 0)
			break;
		assert_int_equal(r, -ENOMEM);
		assert_null(data);
	}
	assert_true(n > 5);
	assert_true(len > 200 * 600);
	free(data);
}

/* Packs with 0 to 64 repositories, so that the arena's chunks end in other places each time. */
static void pack_with_failures(struct inventory *inv)
{
	for (unsigned int n = 1;; n++) {
		uint8_t *data = NULL;
		size_t len;
		int r;

		fail_at = n;
		r = vmreport_pack(inv, "42", "id", &data, &len);
		fail_at = 0;
		free(data);
		if (r == 0)
			break;
		assert_int_equal(r, -ENOMEM);
		assert_null(data);
	}
}

static void no_part_of_a_report_is_left_out_when_memory_ends_there(void **state)
{
	(void)state;
	if (!failures_reach_us())
		skip();
	for (unsigned int i = 0; i <= INVENTORY_REPOSITORIES_MAX; i++) {
		struct inventory *inv = new_inventory();

		assert_int_equal(synthetic_fill(inv, 200 + i, 1), 0);
		for (unsigned int n = 0; n < i; n++) {
			const struct repository r = {
				.name = arena_printf(inv->arena, "r%u", n),
				.key = "",
				.uri = "u",
				.cpe = "",
			};

			(void)inventory_add_repository(inv, &r);
		}
		inventory_finish(inv);
		pack_with_failures(inv);
		inventory_free(inv);
	}
	/* Large tables have a chunk each: packages, and what stands in front of them. */
	for (unsigned int size = 1000; size < 9000; size += 500) {
		struct inventory *inv = new_inventory();

		assert_int_equal(synthetic_fill(inv, size, 1), 0);
		inv->os.id = "other";
		inv->os.version_id = "1";
		pack_with_failures(inv);
		inventory_free(inv);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_parser_survives_every_failing_allocation),
		cmocka_unit_test(a_report_survives_every_failing_allocation),
		cmocka_unit_test(no_part_of_a_report_is_left_out_when_memory_ends_there),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
