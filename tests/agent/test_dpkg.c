/* SPDX-License-Identifier: Apache-2.0 */
#include "agent_test.h"

#include <sys/syscall.h>

#include "agent/dpkg.h"
#include "utf8.h"

static struct inventory *parse_n(const char *text, size_t n)
{
	struct inventory *inv = new_inventory();

	assert_int_equal(dpkg_parse(inv, text, n, DPKG_STATUS, false), 0);
	return inv;
}

static struct inventory *parse(const char *text)
{
	return parse_n(text, strlen(text));
}

static void each_field_of_an_installed_package_is_read(void **state)
{
	struct inventory *inv = parse("Package: bsdutils\n"
				      "Essential: yes\n"
				      "Status: install ok installed\n"
				      "Priority: required\n"
				      "Architecture: amd64\n"
				      "Multi-Arch: foreign\n"
				      "Source: util-linux (2.38.1-5+deb12u3)\n"
				      "Version: 1:2.38.1-5+deb12u3\n"
				      "Description: basic utilities\n");
	const struct package *p = &inv->packages[0];

	(void)state;
	assert_int_equal(inv->n_packages, 1);
	assert_int_equal(inv->skipped, 0);
	assert_string_equal(p->name, "bsdutils");
	assert_string_equal(p->version, "1:2.38.1-5+deb12u3");
	assert_string_equal(p->arch, "amd64");
	assert_string_equal(p->source, "util-linux");
	assert_string_equal(p->source_version, "2.38.1-5+deb12u3");
	assert_string_equal(p->db, "var/lib/dpkg/status");
	inventory_free(inv);
}

static void a_source_without_version_has_the_binarys(void **state)
{
	struct inventory *inv = parse("Package: libacl1\nStatus: install ok installed\n"
				      "Source: acl\nVersion: 2.3.1-3\n");

	(void)state;
	assert_string_equal(inv->packages[0].source, "acl");
	assert_string_equal(inv->packages[0].source_version, "2.3.1-3");
	inventory_free(inv);
}

static void a_package_without_source_field_is_its_own_source(void **state)
{
	struct inventory *inv = parse("Package: bash\nStatus: install ok installed\n"
				      "Version: 5.2-1\n");

	(void)state;
	assert_string_equal(inv->packages[0].source, "bash");
	assert_string_equal(inv->packages[0].source_version, "5.2-1");
	assert_string_equal(inv->packages[0].arch, "");
	inventory_free(inv);
}

static void only_packages_whose_files_are_installed_count(void **state)
{
	static const struct {
		const char *status;
		size_t n;
	} cases[] = {
		{ "install ok installed", 1 },
		{ "hold ok installed", 1 },
		{ "install reinstreq installed", 1 },
		{ "install ok triggers-awaited", 1 },
		{ "install ok triggers-pending", 1 },
		{ "deinstall ok config-files", 0 },
		{ "purge ok not-installed", 0 },
		{ "install ok half-installed", 0 },
		{ "install ok unpacked", 0 },
		{ "installed", 0 },
		{ "", 0 },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct inventory *inv;
		char text[256];

		snprintf(text, sizeof(text), "Package: a\nStatus: %s\nVersion: 1\n",
			 cases[i].status);
		inv = parse(text);
		assert_int_equal(inv->n_packages, cases[i].n);
		assert_int_equal(inv->skipped, 0);
		inventory_free(inv);
	}
}

static void a_package_without_status_counts_in_status_d_alone(void **state)
{
	static const char text[] = "Package: base\nVersion: 1\n";
	struct inventory *inv = parse(text);

	(void)state;
	assert_int_equal(inv->n_packages, 0);
	assert_int_equal(dpkg_parse(inv, text, strlen(text), "x", true), 0);
	assert_int_equal(inv->n_packages, 1);
	inventory_free(inv);
}

static void continuation_lines_of_other_fields_are_passed_over(void **state)
{
	struct inventory *inv = parse("Package: a\n"
				      "Status: install ok installed\n"
				      "Description: one\n"
				      " Package: not-a-package\n"
				      " .\n"
				      "\tVersion: 9\n"
				      "Conffiles:\n"
				      " /etc/a 0123456789abcdef\n"
				      "Version: 1\n"
				      "\n"
				      "Package: b\n"
				      "Status: install ok installed\n"
				      "Version: 2\n");

	(void)state;
	assert_int_equal(inv->n_packages, 2);
	assert_int_equal(inv->skipped, 0);
	assert_string_equal(find_package(inv, "a")->version, "1");
	assert_string_equal(find_package(inv, "b")->version, "2");
	inventory_free(inv);
}

static void field_names_are_matched_without_case(void **state)
{
	struct inventory *inv = parse("PACKAGE: a\nstatus: install ok installed\nvErSiOn: 1\n");

	(void)state;
	assert_int_equal(inv->n_packages, 1);
	inventory_free(inv);
}

static void blanks_and_carriage_returns_around_lines_do_not_matter(void **state)
{
	struct inventory *inv = parse("\n\r\n  \nPackage:\ta \r\nStatus:install ok installed\r\n"
				      "Version:  1\r\n\r\n\n");

	(void)state;
	assert_int_equal(inv->n_packages, 1);
	assert_string_equal(inv->packages[0].name, "a");
	assert_string_equal(inv->packages[0].version, "1");
	inventory_free(inv);
}

static void damaged_entries_are_skipped_and_counted_and_the_others_stay(void **state)
{
	static const char good[] = "\nPackage: good\nStatus: install ok installed\nVersion: 1\n\n";
	static const char *const damaged[] = {
		"Status: install ok installed\nVersion: 1\n",		/* no name */
		"Package: a\nStatus: install ok installed\n",		/* no version */
		"Package:\nStatus: install ok installed\nVersion: 1\n", /* empty name */
		"Package: a\nPackage: b\nStatus: install ok installed\nVersion: 1\n", /* twice */
		"Package: a\nStatus: install ok installed\nVersion: 1\n 2\n", /* continued */
		"garbage without a colon\n",
		" begins with a blank\n",
		":\n",
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(damaged); i++) {
		struct inventory *inv;
		char text[512];

		snprintf(text, sizeof(text), "%s%s%s", good, damaged[i], good);
		inv = parse(text);
		assert_int_equal(inv->n_packages, 2);
		assert_int_equal(inv->skipped, 1);
		inventory_free(inv);
	}
}

static void a_field_is_taken_up_to_its_limit_and_not_one_byte_more(void **state)
{
	for (size_t n = INVENTORY_FIELD_MAX; n <= INVENTORY_FIELD_MAX + 1; n++) {
		char text[INVENTORY_FIELD_MAX + 256], name[INVENTORY_FIELD_MAX + 2];
		struct inventory *inv;

		memset(name, 'a', n);
		name[n] = '\0';
		snprintf(text, sizeof(text),
			 "Package: %s\nStatus: install ok installed\nVersion: 1\n", name);
		inv = parse(text);
		assert_int_equal(inv->n_packages, n == INVENTORY_FIELD_MAX);
		assert_int_equal(inv->skipped, n > INVENTORY_FIELD_MAX);
		inventory_free(inv);
	}
	(void)state;
}

static void a_huge_line_costs_its_entry_only(void **state)
{
	size_t n = 4 * MIB;
	char *text = malloc(n + 256), *p = text;
	struct inventory *inv;

	(void)state;
	assert_non_null(text);
	p = stpcpy(p, "Package: huge\nStatus: install ok installed\nVersion: ");
	memset(p, '1', n);
	p = stpcpy(p + n, "\n\nPackage: a\nStatus: install ok installed\nVersion: 1\n");
	inv = parse_n(text, p - text);
	assert_int_equal(inv->n_packages, 1);
	assert_int_equal(inv->skipped, 1);
	inventory_free(inv);
	free(text);
}

static void a_file_cut_anywhere_yields_a_prefix_of_its_packages(void **state)
{
	static const char text[] = "Package: a\nStatus: install ok installed\nVersion: 1\n\n"
				   "Package: b\nStatus: install ok installed\nVersion: 2\n\n"
				   "Package: c\nStatus: install ok installed\nVersion: 3\n";
	size_t last = 0;

	(void)state;
	for (size_t n = 0; n < sizeof(text); n++) {
		/* A copy of exactly n bytes, so that ASan sees a read beyond them. */
		char *copy = malloc(n ? n : 1);
		struct inventory *inv;

		assert_non_null(copy);
		memcpy(copy, text, n);
		inv = parse_n(copy, n);
		assert_in_range(inv->n_packages, last, 3);
		last = inv->n_packages;
		inventory_free(inv);
		free(copy);
	}
	assert_int_equal(last, 3);
}

static void bytes_that_are_no_utf8_and_nuls_are_replaced(void **state)
{
	static const char text[] = "Package: a\xff\xc3(\0z\nStatus: install ok installed\n"
				   "Version: 1\xed\xa0\x80\n";
	struct inventory *inv = parse_n(text, sizeof(text) - 1);

	(void)state;
	assert_int_equal(inv->n_packages, 1);
	assert_string_equal(inv->packages[0].name, "a\xef\xbf\xbd\xef\xbf\xbd(\xef\xbf\xbdz");
	assert_string_equal(inv->packages[0].version, "1\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd");
	inventory_free(inv);
}

static void utf8_sequences_are_those_of_rfc_3629(void **state)
{
	static const struct {
		const char *s;
		size_t n;
	} cases[] = {
		{ "a", 1 },
		{ "\x7f", 1 },
		{ "\x80", 0 },
		{ "\xc1\xbf", 0 },
		{ "\xc2\x80", 2 },
		{ "\xdf\xbf", 2 },
		{ "\xdf", 0 },
		{ "\xe0\x9f\xbf", 0 },
		{ "\xe0\xa0\x80", 3 },
		{ "\xed\x9f\xbf", 3 },
		{ "\xed\xa0\x80", 0 },
		{ "\xef\xbf\xbf", 3 },
		{ "\xe1\x80", 0 },
		{ "\xf0\x8f\xbf\xbf", 0 },
		{ "\xf0\x90\x80\x80", 4 },
		{ "\xf4\x8f\xbf\xbf", 4 },
		{ "\xf4\x90\x80\x80", 0 },
		{ "\xf5\x80\x80\x80", 0 },
	};

	(void)state;
	assert_int_equal(utf8_sequence((const uint8_t *)"", 0), 0);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
		assert_int_equal(utf8_sequence((const uint8_t *)cases[i].s, strlen(cases[i].s)),
				 cases[i].n);
}

static void more_packages_than_the_bound_are_an_error(void **state)
{
	struct inventory *inv = new_inventory();
	static const char one[] = "Package: a\nStatus: install ok installed\nVersion: 1\n\n";
	int r = 0;

	(void)state;
	for (size_t i = 0; i <= INVENTORY_PACKAGES_MAX && r == 0; i++)
		r = dpkg_parse(inv, one, strlen(one), DPKG_STATUS, false);
	assert_int_equal(r, -E2BIG);
	assert_int_equal(inv->n_packages, INVENTORY_PACKAGES_MAX);
	inventory_free(inv);
}

static void status_d_is_read_beside_status(void **state)
{
	struct inventory *inv = new_inventory();
	char *tree = new_tree();
	struct rootfs root = open_tree(tree);

	(void)state;
	assert_int_equal(dpkg_read(inv, &root), -ENOENT);
	write_text(tree, "var/lib/dpkg/status.d/base", "Package: base-files\nVersion: 12\n");
	write_text(tree, "var/lib/dpkg/status.d/base.md5sums", "0123 /etc/x\n");
	assert_int_equal(dpkg_read(inv, &root), 0);
	assert_int_equal(inv->n_packages, 1);
	assert_string_equal(inv->packages[0].db, "var/lib/dpkg/status.d/base");
	write_text(tree, "var/lib/dpkg/status",
		   "Package: a\nStatus: install ok installed\nVersion: 1\n");
	assert_int_equal(dpkg_read(inv, &root), 0);
	assert_int_equal(inv->n_packages, 3);
	rootfs_close(&root);
	remove_tree(tree);
	inventory_free(inv);
}

static void a_database_that_is_no_regular_file_is_an_error_and_no_hang(void **state)
{
	struct inventory *inv = new_inventory();
	char *tree = new_tree(), path[512];
	struct rootfs root = open_tree(tree);

	(void)state;
	make_dirs(tree, "var/lib/dpkg/");
	snprintf(path, sizeof(path), "%s/var/lib/dpkg/status", tree);
	assert_int_equal(mkfifo(path, 0600), 0);
	assert_int_equal(dpkg_read(inv, &root), -EINVAL);
	rootfs_close(&root);
	remove_tree(tree);
	inventory_free(inv);
}

static void links_below_another_root_stay_below_it(void **state)
{
	struct inventory *inv = new_inventory();
	char *tree = new_tree(), path[512];
	struct rootfs root = open_tree(tree);

	(void)state;
	make_dirs(tree, "var/lib/dpkg/");
	snprintf(path, sizeof(path), "%s/var/lib/dpkg/status", tree);
	/* Before Linux 5.6, and below valgrind, links lead where they say. */
	if (syscall(SYS_openat2, -1, "", NULL, 0) < 0 && errno == ENOSYS) {
		rootfs_close(&root);
		remove_tree(tree);
		inventory_free(inv);
		skip();
	}
	/* On the machine itself this file exists. */
	assert_int_equal(symlink("/etc/passwd", path), 0);
	assert_int_equal(dpkg_read(inv, &root), -ENOENT);
	write_text(tree, "etc/passwd", "Package: a\nStatus: install ok installed\nVersion: 1\n");
	assert_int_equal(dpkg_read(inv, &root), 0);
	assert_int_equal(inv->n_packages, 1);
	rootfs_close(&root);
	remove_tree(tree);
	inventory_free(inv);
}

static void this_machines_packages_are_those_that_dpkg_lists(void **state)
{
	struct inventory *inv = new_inventory();
	struct rootfs root = open_tree("/");
	size_t n = 0;
	char line[1024];
	FILE *f;

	(void)state;
	if (rootfs_exists(&root, DPKG_STATUS) <= 0) {
		rootfs_close(&root);
		inventory_free(inv);
		skip();
	}
	assert_int_equal(dpkg_read(inv, &root), 0);
	assert_int_equal(inv->skipped, 0);
	f = popen("dpkg-query -W -f '${db:Status-Status}\\t${Package}\\t${Version}\\t"
		  "${Architecture}\\t${source:Package}\\t${source:Version}\\n'",
		  "re");
	assert_non_null(f);
	inventory_finish(inv);
	while (fgets(line, sizeof(line), f)) {
		char *rest = line, *status = strsep(&rest, "\t"), *name = strsep(&rest, "\t");
		char *version = strsep(&rest, "\t"), *arch = strsep(&rest, "\t");
		char *source = strsep(&rest, "\t"), *source_version = strsep(&rest, "\n");
		bool found = false;

		if (!streq(status, "installed") && strncmp(status, "triggers-", 9) != 0)
			continue;
		n++;
		for (size_t i = 0; i < inv->n_packages && !found; i++) {
			const struct package *p = &inv->packages[i];

			found = streq(p->name, name) && streq(p->version, version) &&
				streq(p->arch, arch) && streq(p->source, source) &&
				streq(p->source_version, source_version);
		}
		if (!found)
			fail_msg("%s %s %s from %s %s is missing", name, version, arch, source,
				 source_version);
	}
	assert_int_equal(pclose(f), 0);
	assert_int_equal(inv->n_packages, n);
	rootfs_close(&root);
	inventory_free(inv);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_field_of_an_installed_package_is_read),
		cmocka_unit_test(a_source_without_version_has_the_binarys),
		cmocka_unit_test(a_package_without_source_field_is_its_own_source),
		cmocka_unit_test(only_packages_whose_files_are_installed_count),
		cmocka_unit_test(a_package_without_status_counts_in_status_d_alone),
		cmocka_unit_test(continuation_lines_of_other_fields_are_passed_over),
		cmocka_unit_test(field_names_are_matched_without_case),
		cmocka_unit_test(blanks_and_carriage_returns_around_lines_do_not_matter),
		cmocka_unit_test(damaged_entries_are_skipped_and_counted_and_the_others_stay),
		cmocka_unit_test(a_field_is_taken_up_to_its_limit_and_not_one_byte_more),
		cmocka_unit_test(a_huge_line_costs_its_entry_only),
		cmocka_unit_test(a_file_cut_anywhere_yields_a_prefix_of_its_packages),
		cmocka_unit_test(bytes_that_are_no_utf8_and_nuls_are_replaced),
		cmocka_unit_test(utf8_sequences_are_those_of_rfc_3629),
		cmocka_unit_test(more_packages_than_the_bound_are_an_error),
		cmocka_unit_test(status_d_is_read_beside_status),
		cmocka_unit_test(a_database_that_is_no_regular_file_is_an_error_and_no_hang),
		cmocka_unit_test(links_below_another_root_stay_below_it),
		cmocka_unit_test(this_machines_packages_are_those_that_dpkg_lists),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
