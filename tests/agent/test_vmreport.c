/* SPDX-License-Identifier: Apache-2.0 */
#include "agent_test.h"

#include "agent/synthetic.h"
#include "agent/vmreport.h"
#include "virtualmachine/v1/report.pb-c.h"

typedef Virtualmachine__V1__VMReport Report;

struct packed {
	uint8_t *data;
	size_t len;
	Report *report;
};

static struct packed pack(const struct inventory *inv, const char *cid)
{
	struct packed p = {};

	assert_int_equal(vmreport_pack(inv, cid, "vm-1", &p.data, &p.len), 0);
	p.report = virtualmachine__v1__vmreport__unpack(NULL, p.len, p.data);
	assert_non_null(p.report);
	return p;
}

static void packed_done(struct packed *p)
{
	virtualmachine__v1__vmreport__free_unpacked(p->report, NULL);
	free(p->data);
}

static struct inventory *two_packages(void)
{
	struct inventory *inv = new_inventory();
	const struct package b = { .name = "b", .version = "2", .arch = "amd64", .db = "db" };
	const struct package a = {
		.name = "a",
		.version = "1",
		.arch = "all",
		.db = "db",
		.source = "src",
		.source_version = "0.1",
		.repository_hint = "hint",
		.module = "m:1",
	};
	const struct repository cpe = { .name = "cpe:/x",
					.key = REPOSITORY_KEY_RHEL,
					.cpe = "cpe:/x" };
	const struct repository other = { .name = "other", .uri = "http://other" };

	assert_int_equal(inventory_add_package(inv, &b), 0);
	assert_int_equal(inventory_add_package(inv, &a), 0);
	assert_int_equal(inventory_add_repository(inv, &cpe), 0);
	assert_int_equal(inventory_add_repository(inv, &other), 0);
	inv->os.id = "rhel";
	inv->os.name = "Red Hat Enterprise Linux";
	inv->os.version_id = "9.4";
	inv->activation = ACTIVATION_INACTIVE;
	inv->dnf_metadata = DNF_METADATA_AVAILABLE;
	inventory_finish(inv);
	return inv;
}

static void a_report_says_who_sends_it_and_what_system_it_is(void **state)
{
	struct inventory *inv = two_packages();
	struct packed p = pack(inv, "42");
	const Virtualmachine__V1__DiscoveredData *d = p.report->discovered_data;

	(void)state;
	assert_string_equal(p.report->index_report->vsock_cid, "42");
	assert_string_equal(p.report->index_report->vm_id, "vm-1");
	assert_true(p.report->index_report->index_v4->success);
	assert_string_equal(p.report->index_report->index_v4->state, "IndexFinished");
	assert_int_equal(d->detected_os, VIRTUALMACHINE__V1__DETECTED_OS__RHEL);
	assert_string_equal(d->os_version, "9.4");
	assert_int_equal(d->activation_status, VIRTUALMACHINE__V1__ACTIVATION_STATUS__INACTIVE);
	assert_int_equal(d->dnf_metadata_status,
			 VIRTUALMACHINE__V1__DNF_METADATA_STATUS__AVAILABLE);
	packed_done(&p);
	inventory_free(inv);
}

static void a_system_other_than_rhel_is_unknown_with_its_name_in_the_version(void **state)
{
	struct inventory *inv = two_packages();
	struct packed p;

	(void)state;
	inv->os.id = "debian";
	inv->os.version_id = "12";
	p = pack(inv, "42");
	assert_int_equal(p.report->discovered_data->detected_os,
			 VIRTUALMACHINE__V1__DETECTED_OS__UNKNOWN);
	assert_string_equal(p.report->discovered_data->os_version, "debian 12");
	packed_done(&p);
	inventory_free(inv);
}

static void packages_are_keyed_by_id_and_listed_for_older_receivers(void **state)
{
	struct inventory *inv = two_packages();
	struct packed p = pack(inv, "42");
	const Scanner__V4__Contents *c = p.report->index_report->index_v4->contents;
	const Scanner__V4__Package *a;

	(void)state;
	assert_int_equal(c->n_packages, 2);
	assert_int_equal(c->n_packages_deprecated, 2);
	a = c->packages[0]->value;
	assert_string_equal(c->packages[0]->key, a->id);
	assert_string_not_equal(c->packages[0]->key, c->packages[1]->key);
	assert_string_equal(c->packages_deprecated[0]->name, a->name);
	assert_string_equal(a->name, "a");
	assert_string_equal(a->version, "1");
	assert_string_equal(a->kind, "binary");
	assert_string_equal(a->arch, "all");
	assert_string_equal(a->package_db, "db");
	assert_string_equal(a->repository_hint, "hint");
	assert_string_equal(a->module, "m:1");
	assert_int_equal(a->normalized_version->n_v, 10);
	assert_string_equal(a->source->name, "src");
	assert_string_equal(a->source->version, "0.1");
	assert_string_equal(a->source->kind, "source");
	assert_null(a->source->source);
	assert_null(c->packages[1]->value->source);
	packed_done(&p);
	inventory_free(inv);
}

static void each_package_has_an_environment_of_known_ids(void **state)
{
	struct inventory *inv = two_packages();
	struct packed p = pack(inv, "42");
	const Scanner__V4__Contents *c = p.report->index_report->index_v4->contents;

	(void)state;
	assert_int_equal(c->n_environments, 2);
	assert_int_equal(c->n_environments_deprecated, 2);
	assert_int_equal(c->n_distributions, 1);
	assert_int_equal(c->n_distributions_deprecated, 1);
	assert_int_equal(c->n_repositories, 2);
	assert_int_equal(c->n_repositories_deprecated, 2);
	assert_string_equal(c->repositories[0]->key, "cpe:/x");
	for (size_t i = 0; i < 2; i++) {
		const Scanner__V4__Environment *e = c->environments[i]->value->environments[0];

		assert_string_equal(c->environments[i]->key, c->packages[i]->key);
		assert_string_equal(c->environments_deprecated[i]->key, c->packages[i]->key);
		assert_string_equal(e->distribution_id, c->distributions[0]->key);
		assert_string_equal(e->package_db, "db");
		/* The scanner takes a digest and nothing else: sha256: and 64 hex digits. */
		assert_int_equal(strlen(e->introduced_in), 7 + 64);
		assert_int_equal(e->n_repository_ids, 2);
		for (size_t k = 0; k < 2; k++)
			assert_string_equal(e->repository_ids[k], c->repositories[k]->key);
	}
	packed_done(&p);
	inventory_free(inv);
}

static void the_order_in_which_packages_are_found_does_not_change_the_bytes(void **state)
{
	struct inventory *inv = two_packages(), *other = new_inventory();
	struct packed p = pack(inv, "42"), q;

	(void)state;
	for (size_t i = inv->n_packages; i-- > 0;)
		assert_int_equal(inventory_add_package(other, &inv->packages[i]), 0);
	for (size_t i = 0; i < inv->n_repositories; i++)
		assert_int_equal(inventory_add_repository(other, &inv->repositories[i]), 0);
	other->os = inv->os;
	other->activation = inv->activation;
	other->dnf_metadata = inv->dnf_metadata;
	inventory_finish(other);
	q = pack(other, "42");
	assert_int_equal(p.len, q.len);
	assert_memory_equal(p.data, q.data, p.len);
	packed_done(&p);
	packed_done(&q);
	inventory_free(inv);
	inventory_free(other);
}

static void an_empty_inventory_gives_a_report_with_its_cid(void **state)
{
	struct inventory *inv = new_inventory();
	struct packed p = pack(inv, "7");

	(void)state;
	assert_string_equal(p.report->index_report->vsock_cid, "7");
	assert_int_equal(p.report->index_report->index_v4->contents->n_packages, 0);
	assert_int_equal(p.report->index_report->index_v4->contents->n_distributions, 0);
	packed_done(&p);
	inventory_free(inv);
}

static void a_report_is_printed_without_control_bytes(void **state)
{
	struct inventory *inv = two_packages();
	char *text = NULL;
	size_t len = 0;
	struct packed p;
	FILE *f;

	(void)state;
	inv->packages[0].name = "evil\x1b[2J\x7f";
	p = pack(inv, "42");
	f = open_memstream(&text, &len);
	assert_int_equal(vmreport_print(p.data, p.len, f), 0);
	fclose(f);
	assert_null(strchr(text, '\x1b'));
	assert_non_null(strstr(text, "evil?[2J? "));
	assert_non_null(strstr(text, "packages       2\n"));
	assert_non_null(strstr(text, "cid            42\n"));
	free(text);
	packed_done(&p);
	inventory_free(inv);
}

static char *printed(const Virtualmachine__V1__VMReport *report)
{
	size_t len = virtualmachine__v1__vmreport__get_packed_size(report), size;
	uint8_t *data = malloc(len + 1);
	char *text = NULL;
	FILE *f = open_memstream(&text, &size);

	assert_non_null(data);
	virtualmachine__v1__vmreport__pack(report, data);
	assert_int_equal(vmreport_print(data, len, f), 0);
	fclose(f);
	free(data);
	return text;
}

/* What other agents send is printed too. */
static void a_report_is_printed_whatever_it_leaves_out(void **state)
{
	Virtualmachine__V1__VMReport report = VIRTUALMACHINE__V1__VMREPORT__INIT;
	Virtualmachine__V1__IndexReport index = VIRTUALMACHINE__V1__INDEX_REPORT__INIT;
	Virtualmachine__V1__DiscoveredData discovered = VIRTUALMACHINE__V1__DISCOVERED_DATA__INIT;
	Scanner__V4__IndexReport v4 = SCANNER__V4__INDEX_REPORT__INIT;
	Scanner__V4__Contents contents = SCANNER__V4__CONTENTS__INIT;
	Scanner__V4__Contents__PackagesEntry package = SCANNER__V4__CONTENTS__PACKAGES_ENTRY__INIT;
	Scanner__V4__Contents__RepositoriesEntry repository =
		SCANNER__V4__CONTENTS__REPOSITORIES_ENTRY__INIT;
	Scanner__V4__Contents__DistributionsEntry distribution =
		SCANNER__V4__CONTENTS__DISTRIBUTIONS_ENTRY__INIT;
	Scanner__V4__Contents__PackagesEntry *packages[] = { &package };
	Scanner__V4__Contents__RepositoriesEntry *repositories[] = { &repository };
	Scanner__V4__Contents__DistributionsEntry *distributions[] = { &distribution };
	char *text;

	(void)state;
	text = printed(&report);
	assert_string_equal(text, "size           0 bytes\n");
	free(text);

	report.index_report = &index;
	report.discovered_data = &discovered;
	discovered.activation_status = VIRTUALMACHINE__V1__ACTIVATION_STATUS__ACTIVE;
	discovered.dnf_metadata_status = VIRTUALMACHINE__V1__DNF_METADATA_STATUS__AVAILABLE;
	text = printed(&report);
	assert_non_null(strstr(text, "cid            -\n"));
	assert_non_null(strstr(text, "activation     active\n"));
	assert_non_null(strstr(text, "dnf metadata   available\n"));
	assert_null(strstr(text, "packages"));
	free(text);

	index.index_v4 = &v4;
	discovered.activation_status = VIRTUALMACHINE__V1__ACTIVATION_STATUS__INACTIVE;
	discovered.dnf_metadata_status = VIRTUALMACHINE__V1__DNF_METADATA_STATUS__UNAVAILABLE;
	discovered.detected_os = VIRTUALMACHINE__V1__DETECTED_OS__RHEL;
	text = printed(&report);
	assert_non_null(strstr(text, "detected os    RHEL\n"));
	assert_non_null(strstr(text, "activation     inactive\n"));
	assert_non_null(strstr(text, "dnf metadata   unavailable\n"));
	free(text);

	/* Entries of a map without a value. */
	v4.contents = &contents;
	contents.packages = packages;
	contents.repositories = repositories;
	contents.distributions = distributions;
	contents.n_packages = contents.n_repositories = contents.n_distributions = 1;
	text = printed(&report);
	assert_non_null(strstr(text, "packages       1\n"));
	assert_null(strstr(text, "repository"));
	assert_null(strstr(text, "distribution"));
	free(text);
}

static void output_that_cannot_be_written_is_an_error(void **state)
{
	FILE *full = fopen("/dev/full", "we");
	struct inventory *inv = two_packages();
	struct packed p = pack(inv, "42");

	(void)state;
	assert_non_null(full);
	assert_int_equal(vmreport_print(p.data, p.len, full), -EIO);
	fclose(full);
	packed_done(&p);
	inventory_free(inv);
}

static void bytes_that_are_no_report_are_not_printed(void **state)
{
	static const uint8_t bad[] = { 0x0a, 0xff };
	char *text = NULL;
	size_t len = 0;
	FILE *f = open_memstream(&text, &len);

	(void)state;
	assert_int_equal(vmreport_print(bad, sizeof(bad), f), -EBADMSG);
	fclose(f);
	free(text);
}

static struct packed synthetic(size_t n, uint64_t seed)
{
	struct inventory *inv = new_inventory();
	struct packed p;

	assert_int_equal(synthetic_fill(inv, n, seed), 0);
	assert_int_equal(inv->n_packages, n);
	p = pack(inv, "42");
	inventory_free(inv);
	return p;
}

static void each_synthetic_package_takes_600_to_2600_bytes(void **state)
{
	size_t last, smallest = SIZE_MAX, largest = 0;
	struct packed p = synthetic(0, 1);

	(void)state;
	last = p.len;
	packed_done(&p);
	for (size_t n = 1; n <= 400; n++) {
		p = synthetic(n, 1);
		smallest = MIN(smallest, p.len - last);
		largest = MAX(largest, p.len - last);
		last = p.len;
		packed_done(&p);
	}
	assert_in_range(smallest, 600, 1000);
	assert_in_range(largest, 1800, 2600);
}

static void a_synthetic_inventory_depends_on_its_seed_alone(void **state)
{
	struct packed a = synthetic(100, 5), b = synthetic(100, 5), c = synthetic(100, 6);

	(void)state;
	assert_int_equal(a.len, b.len);
	assert_memory_equal(a.data, b.data, a.len);
	assert_true(a.len != c.len || memcmp(a.data, c.data, a.len) != 0);
	assert_string_equal(
		a.report->index_report->index_v4->contents->packages[99]->value->repository_hint,
		b.report->index_report->index_v4->contents->packages[99]->value->repository_hint);
	packed_done(&a);
	packed_done(&b);
	packed_done(&c);
}

static void synthetic_packages_have_a_bound(void **state)
{
	struct inventory *inv = new_inventory();

	(void)state;
	assert_int_equal(synthetic_fill(inv, INVENTORY_PACKAGES_MAX + 1, 1), -E2BIG);
	inventory_free(inv);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_report_says_who_sends_it_and_what_system_it_is),
		cmocka_unit_test(a_system_other_than_rhel_is_unknown_with_its_name_in_the_version),
		cmocka_unit_test(packages_are_keyed_by_id_and_listed_for_older_receivers),
		cmocka_unit_test(each_package_has_an_environment_of_known_ids),
		cmocka_unit_test(the_order_in_which_packages_are_found_does_not_change_the_bytes),
		cmocka_unit_test(an_empty_inventory_gives_a_report_with_its_cid),
		cmocka_unit_test(a_report_is_printed_without_control_bytes),
		cmocka_unit_test(a_report_is_printed_whatever_it_leaves_out),
		cmocka_unit_test(output_that_cannot_be_written_is_an_error),
		cmocka_unit_test(bytes_that_are_no_report_are_not_printed),
		cmocka_unit_test(each_synthetic_package_takes_600_to_2600_bytes),
		cmocka_unit_test(a_synthetic_inventory_depends_on_its_seed_alone),
		cmocka_unit_test(synthetic_packages_have_a_bound),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
