/* SPDX-License-Identifier: Apache-2.0 */
#include "agent_test.h"

#include "agent/discovery.h"
#include "agent/repositories.h"

typedef int (*parse_fn)(struct inventory *inv, const char *text, size_t len);

/* The repositories of the text as "name uri" lines. */
static void expect(parse_fn parse, const char *text, const char *lines)
{
	struct inventory *inv = new_inventory();
	char got[4096] = "", *p = got;

	assert_int_equal(parse(inv, text, strlen(text)), 0);
	for (size_t i = 0; i < inv->n_repositories; i++)
		p += snprintf(p, got + sizeof(got) - p, "%s %s\n", inv->repositories[i].name,
			      inv->repositories[i].uri);
	assert_string_equal(got, lines);
	inventory_free(inv);
}

static void apt_lists_give_one_repository_a_component(void **state)
{
	(void)state;
	expect(repositories_parse_list,
	       "# deb http://no main\n"
	       "deb http://deb.debian.org/debian bookworm main contrib # comment\n"
	       "deb-src http://deb.debian.org/debian bookworm main\n"
	       "  deb [signed-by=/x arch=amd64] https://example.org/apt stable main\r\n"
	       "deb http://flat.example.org ./\n"
	       "deb [unfinished http://x y z\n"
	       "deb http://nothing\n"
	       "deb http://deb.debian.org/debian bookworm main\n",
	       "bookworm/main http://deb.debian.org/debian\n"
	       "bookworm/contrib http://deb.debian.org/debian\n"
	       "stable/main https://example.org/apt\n"
	       "./ http://flat.example.org\n");
}

static void apt_sources_are_read_unless_disabled(void **state)
{
	(void)state;
	expect(repositories_parse_sources,
	       "Types: deb deb-src\n"
	       "# comment\n"
	       "URIs: http://a http://b\n"
	       "Suites: s1 s2\n"
	       "Components: main\n"
	       "Signed-By:\n"
	       " -----BEGIN\n"
	       " Types: no\n"
	       "\n"
	       "Types: deb\nURIs: http://off\nSuites: x\nEnabled: no\n"
	       "\n\n"
	       "Types: deb-src\nURIs: http://source\nSuites: x\n"
	       "\n"
	       "Types: deb\nURIs: http://c\nSuites: ./",
	       "s1/main http://a\ns2/main http://a\ns1/main http://b\ns2/main http://b\n"
	       "./ http://c\n");
}

static void dnf_repositories_are_read_unless_disabled(void **state)
{
	(void)state;
	expect(repositories_parse_repo,
	       "[main]\ngpgcheck=1\nbaseurl=http://no\n"
	       "[baseos]\nname=BaseOS\nbaseurl = http://a/$releasever/ http://b\nenabled=1\n"
	       "# baseurl=http://no\n"
	       "[off]\nbaseurl=http://off\nenabled = 0\n"
	       "[meta]\nmetalink=https://m/link?repo=x&arch=y\n"
	       "[mirrors]\nmirrorlist=https://l\n"
	       "[nothing]\n"
	       "[broken\nbaseurl=http://no\n",
	       "baseos http://a/$releasever/\nmeta https://m/link\nmirrors https://l\nnothing \n");
}

static void dnf_lines_that_say_nothing_are_passed_over(void **state)
{
	(void)state;
	expect(repositories_parse_repo,
	       "\n[a]\n\n baseurl=http://continued\nbaseurl\n=http://x\n#\nbaseurl=http://a\n[]\nbaseurl=http://b\n"
	       "[MAIN]\nbaseurl=http://c\n",
	       "a http://a\n");
	expect(repositories_parse_repo, "", "");
}

static void every_word_for_no_disables(void **state)
{
	static const char *const words[] = {
		"0", "no", "NO", "false", "off", "disable", "without"
	};
	char text[256];

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
		snprintf(text, sizeof(text),
			 "Types: deb\nURIs: http://a\nSuites: s/\nEnabled: %s\n", words[i]);
		expect(repositories_parse_sources, text, "");
		snprintf(text, sizeof(text), "[a]\nbaseurl=http://a\nenabled=%s\n", words[i]);
		expect(repositories_parse_repo, text, "");
	}
	expect(repositories_parse_repo, "[a]\nbaseurl=http://a\nenabled=nope\n", "a http://a\n");
}

/* A field of n bytes in each place of each kind of file; whether it is there. */
static void with_field(size_t n, bool there)
{
	static const struct {
		parse_fn parse;
		const char *before, *behind;
	} places[] = {
		{ repositories_parse_list, "deb ", " s c\n" },
		{ repositories_parse_list, "deb u ", " c\n" },
		{ repositories_parse_list, "deb u s ", "\n" },
		{ repositories_parse_sources, "Types: deb\nURIs: ", "\nSuites: s/\n" },
		{ repositories_parse_sources, "Types: deb\nURIs: u\nSuites: ", "\n" },
		{ repositories_parse_repo, "[", "]\nbaseurl=u\n" },
		{ repositories_parse_repo, "[a]\nbaseurl=", "\n" },
	};
	char text[INVENTORY_FIELD_MAX + 256], field[INVENTORY_FIELD_MAX + 2] = "";

	memset(field, 'x', n);
	for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
		struct inventory *inv = new_inventory();
		int len = snprintf(text, sizeof(text), "%s%s%s", places[i].before, field,
				   places[i].behind);

		assert_int_equal(places[i].parse(inv, text, (size_t)len), 0);
		assert_int_equal(inv->n_repositories, there);
		inventory_free(inv);
	}
}

static void a_field_that_is_too_long_is_no_repository(void **state)
{
	(void)state;
	with_field(INVENTORY_FIELD_MAX, true);
	with_field(INVENTORY_FIELD_MAX + 1, false);
}

static void secrets_in_uris_are_left_out(void **state)
{
	(void)state;
	expect(repositories_parse_list,
	       "deb https://user:secret@example.org/apt a\n"
	       "deb https://u:p@ss@example.org b\n"
	       "deb https://example.org/x@y c\n"
	       "deb https://example.org/x?token=secret d\n"
	       "deb https://user:secret@ e\n"
	       "deb :// f\n"
	       "deb ?://@ g\n",
	       "a https://example.org/apt\nb https://example.org\nc https://example.org/x@y\n"
	       "d https://example.org/x\ne https://\nf ://\ng \n");
}

static void more_repositories_than_the_bound_are_passed_over(void **state)
{
	struct inventory *inv = new_inventory();

	(void)state;
	for (int i = 0; i < 2 * INVENTORY_REPOSITORIES_MAX; i++) {
		char line[64];

		snprintf(line, sizeof(line), "deb http://example.org s%d\n", i);
		assert_int_equal(repositories_parse_list(inv, line, strlen(line)), 0);
	}
	assert_int_equal(inv->n_repositories, INVENTORY_REPOSITORIES_MAX);
	inventory_free(inv);
}

static void files_are_read_in_the_order_of_their_names(void **state)
{
	struct inventory *inv = new_inventory();
	char *tree = new_tree();
	struct rootfs root = open_tree(tree);

	(void)state;
	write_text(tree, "etc/apt/sources.list.d/b.list", "deb http://b b\n");
	write_text(tree, "etc/apt/sources.list.d/a.list", "deb http://a a\n");
	write_text(tree, "etc/apt/sources.list.d/c.list.disabled", "deb http://c c\n");
	write_text(tree, "etc/yum.repos.d/r.repo", "[r]\nbaseurl=http://r\n");
	assert_int_equal(repositories_read(inv, &root), 0);
	assert_int_equal(inv->n_repositories, 3);
	assert_string_equal(inv->repositories[0].name, "a");
	assert_string_equal(inv->repositories[1].name, "b");
	assert_string_equal(inv->repositories[2].name, "r");
	rootfs_close(&root);
	remove_tree(tree);
	inventory_free(inv);
}

static void rhel_names_its_repository_by_its_cpe(void **state)
{
	struct inventory *inv = new_inventory();
	char *tree = new_tree();
	struct rootfs root = open_tree(tree);

	(void)state;
	inv->os.id = "fedora";
	inv->os.cpe_name = "cpe:/o:redhat:enterprise_linux:9::baseos";
	assert_int_equal(repositories_read(inv, &root), 0);
	assert_int_equal(inv->n_repositories, 0);
	inv->os.id = "rhel";
	assert_int_equal(repositories_read(inv, &root), 0);
	assert_int_equal(inv->n_repositories, 1);
	assert_string_equal(inv->repositories[0].name, inv->os.cpe_name);
	assert_string_equal(inv->repositories[0].cpe, inv->os.cpe_name);
	assert_string_equal(inv->repositories[0].key, "rhel-cpe-repository");
	rootfs_close(&root);
	remove_tree(tree);
	inventory_free(inv);
}

static void a_guest_is_active_if_a_certificate_has_its_key(void **state)
{
	char *tree = new_tree();
	struct rootfs root = open_tree(tree);

	(void)state;
	assert_int_equal(discovery_activation(&root), ACTIVATION_UNKNOWN);
	make_dirs(tree, "etc/pki/entitlement/");
	assert_int_equal(discovery_activation(&root), ACTIVATION_INACTIVE);
	write_text(tree, "etc/pki/entitlement/12-key.pem", "");
	write_text(tree, "etc/pki/entitlement/123.pem", "");
	write_text(tree, "etc/pki/entitlement/-key.pem", "");
	assert_int_equal(discovery_activation(&root), ACTIVATION_INACTIVE);
	write_text(tree, "etc/pki/entitlement/12.pem", "");
	assert_int_equal(discovery_activation(&root), ACTIVATION_ACTIVE);
	rootfs_close(&root);
	remove_tree(tree);
}

static void dnf_metadata_need_a_repository_and_its_cache(void **state)
{
	char *tree = new_tree();
	struct rootfs root = open_tree(tree);

	(void)state;
	assert_int_equal(discovery_dnf_metadata(&root), DNF_METADATA_UNKNOWN);
	make_dirs(tree, "etc/yum.repos.d/");
	assert_int_equal(discovery_dnf_metadata(&root), DNF_METADATA_UNAVAILABLE);
	write_text(tree, "etc/yum.repos.d/redhat.repo", "");
	assert_int_equal(discovery_dnf_metadata(&root), DNF_METADATA_UNKNOWN);
	make_dirs(tree, "var/cache/dnf/other/");
	write_text(tree, "var/cache/dnf/a-rpms-file", "");
	assert_int_equal(discovery_dnf_metadata(&root), DNF_METADATA_UNAVAILABLE);
	make_dirs(tree, "var/cache/dnf/rhel-9-baseos-rpms-0123/");
	assert_int_equal(discovery_dnf_metadata(&root), DNF_METADATA_AVAILABLE);
	rootfs_close(&root);
	remove_tree(tree);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(apt_lists_give_one_repository_a_component),
		cmocka_unit_test(apt_sources_are_read_unless_disabled),
		cmocka_unit_test(dnf_repositories_are_read_unless_disabled),
		cmocka_unit_test(dnf_lines_that_say_nothing_are_passed_over),
		cmocka_unit_test(every_word_for_no_disables),
		cmocka_unit_test(a_field_that_is_too_long_is_no_repository),
		cmocka_unit_test(secrets_in_uris_are_left_out),
		cmocka_unit_test(more_repositories_than_the_bound_are_passed_over),
		cmocka_unit_test(files_are_read_in_the_order_of_their_names),
		cmocka_unit_test(rhel_names_its_repository_by_its_cpe),
		cmocka_unit_test(a_guest_is_active_if_a_certificate_has_its_key),
		cmocka_unit_test(dnf_metadata_need_a_repository_and_its_cache),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
