/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guest's package databases and repository files, from hostile bytes. What must hold:
 *
 *  - no parser reads outside the bytes, whatever they are;
 *  - what they take is bounded by what they were given;
 *  - what they take makes a report that protobuf's own reader accepts, with valid UTF-8 in it.
 */
#include "../../user/agent/arena.c"
#include "../../user/agent/dpkg.c"
#include "../../user/agent/inventory.c"
#include "../../user/agent/osrelease.c"
#include "../../user/agent/repositories.c"
#include "../../user/agent/rootfs.c"
#include "../../user/agent/vmreport.c"
#include "check.h"
#include "utf8.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_text(const char *s)
{
	size_t n = strlen(s), len;

	for (size_t i = 0; i < n; i += len) {
		len = utf8_sequence((const uint8_t *)s + i, n - i);
		CHECK(len > 0);
	}
}

static void check_inventory(const struct inventory *inv, size_t size)
{
	/* Each entry, taken or not, has at least a line of its own. */
	CHECK(inv->n_packages + inv->skipped <= size);
	for (size_t i = 0; i < inv->n_packages; i++) {
		const struct package *p = &inv->packages[i];

		CHECK(p->name[0] && p->version[0]);
		check_text(p->name);
		check_text(p->version);
		check_text(p->arch);
		check_text(p->source);
		check_text(p->source_version);
	}
	CHECK(inv->n_repositories <= INVENTORY_REPOSITORIES_MAX);
	for (size_t i = 0; i < inv->n_repositories; i++) {
		check_text(inv->repositories[i].name);
		check_text(inv->repositories[i].uri);
	}
}

static void check_report(const struct inventory *inv)
{
	Virtualmachine__V1__VMReport *report;
	uint8_t *bytes;
	size_t len;

	CHECK(vmreport_pack(inv, "42", "id", &bytes, &len) == 0);
	report = virtualmachine__v1__vmreport__unpack(NULL, len, bytes);
	CHECK(report);
	CHECK(report->index_report->index_v4->contents->n_packages == inv->n_packages);
	virtualmachine__v1__vmreport__free_unpacked(report, NULL);
	free(bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct inventory *inv;
	const char *text = (const char *)data + 1;

	if (size == 0)
		return 0;
	size--;
	CHECK(inventory_new(&inv) == 0);
	switch (data[0] % 5) {
	case 0:
		CHECK(dpkg_parse(inv, text, size, DPKG_STATUS, false) == 0);
		break;
	case 1:
		CHECK(dpkg_parse(inv, text, size, DPKG_STATUS_DIR "/x", true) == 0);
		break;
	case 2:
		CHECK(repositories_parse_list(inv, text, size) == 0);
		break;
	case 3:
		CHECK(repositories_parse_sources(inv, text, size) == 0);
		break;
	case 4:
		CHECK(repositories_parse_repo(inv, text, size) == 0);
		break;
	}
	check_inventory(inv, size);
	inventory_finish(inv);
	check_report(inv);
	inventory_free(inv);
	return 0;
}
