/* SPDX-License-Identifier: Apache-2.0 */
/*
 * os-release, and the lines of the rpm command, from hostile bytes: nothing is read outside them,
 * every value is bounded and valid UTF-8, and a package has a name and a version.
 */
#include "../../user/agent/arena.c"
#include "../../user/agent/command.c"
#include "../../user/agent/inventory.c"
#include "../../user/agent/osrelease.c"
#include "../../user/agent/rootfs.c"
#include "../../user/agent/rpm.c"
#include "check.h"
#include "utf8.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A replaced byte takes three. */
static void check_text(const char *s, size_t max)
{
	size_t n = strlen(s), len;

	CHECK(n <= 3 * max);
	for (size_t i = 0; i < n; i += len) {
		len = utf8_sequence((const uint8_t *)s + i, n - i);
		CHECK(len > 0);
	}
}

static void check_osrelease(const struct osrelease *os)
{
	check_text(os->id, VALUE_MAX);
	check_text(os->name, VALUE_MAX);
	check_text(os->version, VALUE_MAX);
	check_text(os->version_id, VALUE_MAX);
	check_text(os->version_codename, VALUE_MAX);
	check_text(os->pretty_name, VALUE_MAX);
	check_text(os->cpe_name, VALUE_MAX);
}

static void check_packages(const struct inventory *inv)
{
	for (size_t i = 0; i < inv->n_packages; i++) {
		const struct package *p = &inv->packages[i];

		CHECK(p->name[0] && p->version[0]);
		check_text(p->name, INVENTORY_FIELD_MAX);
		check_text(p->version, 3 * INVENTORY_FIELD_MAX + 2);
		check_text(p->arch, INVENTORY_FIELD_MAX);
		check_text(p->source, INVENTORY_FIELD_MAX);
		check_text(p->source_version, INVENTORY_FIELD_MAX);
		check_text(p->module, INVENTORY_FIELD_MAX);
		check_text(p->repository_hint, 2 * INVENTORY_FIELD_MAX + 32);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const char *text = (const char *)data + 1;
	struct inventory *inv;

	if (size == 0)
		return 0;
	size--;
	CHECK(inventory_new(&inv) == 0);
	if (data[0] % 2 == 0) {
		CHECK(osrelease_parse(inv->arena, text, size, &inv->os) == 0);
		check_osrelease(&inv->os);
	} else {
		CHECK(rpm_parse(inv, text, size, "sqlite:var/lib/rpm") == 0);
		check_packages(inv);
	}
	inventory_free(inv);
	return 0;
}
