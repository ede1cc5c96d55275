/* SPDX-License-Identifier: Apache-2.0 */
#include "vmreport.h"

#include "scanner/v4/index_report.pb-c.h"
#include "virtualmachine/v1/report.pb-c.h"

typedef Scanner__V4__Contents Contents;
typedef Scanner__V4__Distribution Distribution;
typedef Scanner__V4__Environment Environment;
typedef Scanner__V4__Environment__List EnvironmentList;
typedef Scanner__V4__NormalizedVersion NormalizedVersion;
typedef Scanner__V4__Package Package;
typedef Scanner__V4__Repository Repository;
typedef Scanner__V4__Contents__DistributionsEntry DistributionEntry;
typedef Scanner__V4__Contents__EnvironmentsDeprecatedEntry EnvironmentDeprecatedEntry;
typedef Scanner__V4__Contents__EnvironmentsEntry EnvironmentEntry;
typedef Scanner__V4__Contents__PackagesEntry PackageEntry;
typedef Scanner__V4__Contents__RepositoriesEntry RepositoryEntry;

/* The scanner parses this field as the digest of an image layer. A VM has no layers; the
 * reference's agent sends this one. */
#define LAYER_DIGEST "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
/* A CPE that says nothing: an empty string is none. */
#define ANY_CPE "cpe:2.3:*:*:*:*:*:*:*:*:*:*:*"
/* What the reference's scanner calls a finished report. */
#define STATE_FINISHED	"IndexFinished"
#define DISTRIBUTION_ID "1"

/* Nodes are never written through, but protobuf-c's strings are not const. */
static char *str(const char *s)
{
	return (char *)s;
}

static char *cpe_or_any(const char *cpe)
{
	return str(cpe[0] ? cpe : ANY_CPE);
}

/* A node of the arena, initialised as the generated init value says; NULL: out of memory. */
#define NODE(arena, type, init)                                 \
	({                                                      \
		type *_node = arena_alloc(arena, sizeof(type)); \
		if (_node)                                      \
			*_node = (type)init;                    \
		_node;                                          \
	})

/* Versions are compared as strings by kind of package; the ten numbers are for other kinds. */
static NormalizedVersion *no_normalized_version(void)
{
	static int32_t zeros[10];
	static NormalizedVersion none = SCANNER__V4__NORMALIZED_VERSION__INIT;

	none.v = zeros;
	none.n_v = ARRAY_SIZE(zeros);
	return &none;
}

static Package *build_source(struct arena *a, const struct package *p)
{
	Package *node = NODE(a, Package, SCANNER__V4__PACKAGE__INIT);

	if (!node)
		return NULL;
	node->name = str(p->source);
	node->version = str(p->source_version);
	node->normalized_version = no_normalized_version();
	node->kind = str("source");
	node->package_db = str(p->db);
	node->module = str(p->module);
	node->cpe = str(ANY_CPE);
	return node;
}

static Package *build_package(struct arena *a, const struct package *p, char *id)
{
	Package *node = NODE(a, Package, SCANNER__V4__PACKAGE__INIT);

	if (!node)
		return NULL;
	node->id = id;
	node->name = str(p->name);
	node->version = str(p->version);
	node->normalized_version = no_normalized_version();
	node->kind = str("binary");
	node->package_db = str(p->db);
	node->repository_hint = str(p->repository_hint);
	node->module = str(p->module);
	node->arch = str(p->arch);
	node->cpe = str(ANY_CPE);
	if (p->source[0]) {
		node->source = build_source(a, p);
		if (!node->source)
			return NULL;
	}
	return node;
}

static EnvironmentList *build_environments(struct arena *a, const struct package *p,
					   char **repository_ids, char *distribution_id)
{
	EnvironmentList *list = NODE(a, EnvironmentList, SCANNER__V4__ENVIRONMENT__LIST__INIT);
	Environment *node = NODE(a, Environment, SCANNER__V4__ENVIRONMENT__INIT);
	Environment **nodes = arena_alloc(a, sizeof(*nodes));

	if (!list || !node || !nodes)
		return NULL;
	node->package_db = str(p->db);
	node->introduced_in = str(LAYER_DIGEST);
	node->distribution_id = distribution_id;
	node->repository_ids = repository_ids;
	node->n_repository_ids = p->n_repositories;
	nodes[0] = node;
	list->environments = nodes;
	list->n_environments = 1;
	return list;
}

/* Repositories: fills both forms of c, and *ret_ids for the environments. */
static int build_repositories(struct arena *a, const struct inventory *inv, Contents *c,
			      char ***ret_ids)
{
	size_t n = inv->n_repositories;
	Repository **list = arena_alloc(a, n * sizeof(*list));
	RepositoryEntry **map = arena_alloc(a, n * sizeof(*map));
	char **ids = arena_alloc(a, n * sizeof(*ids));

	if (!list || !map || !ids)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++) {
		const struct repository *r = &inv->repositories[i];
		Repository *node = NODE(a, Repository, SCANNER__V4__REPOSITORY__INIT);
		RepositoryEntry *entry =
			NODE(a, RepositoryEntry, SCANNER__V4__CONTENTS__REPOSITORIES_ENTRY__INIT);

		/* The scanner keys RHEL's by their name, which is a CPE, and others by number. */
		ids[i] = streq(r->key, REPOSITORY_KEY_RHEL) ? str(r->name)
							    : arena_printf(a, "%zu", i + 1);
		if (!node || !entry || !ids[i])
			return -ENOMEM;
		node->id = ids[i];
		node->name = str(r->name);
		node->key = str(r->key);
		node->uri = str(r->uri);
		node->cpe = cpe_or_any(r->cpe);
		entry->key = ids[i];
		entry->value = node;
		list[i] = node;
		map[i] = entry;
	}
	c->repositories_deprecated = list;
	c->n_repositories_deprecated = n;
	c->repositories = map;
	c->n_repositories = n;
	*ret_ids = ids;
	return 0;
}

static bool distribution_known(const struct osrelease *os)
{
	return os->id[0] || os->name[0];
}

static int build_distribution(struct arena *a, const struct inventory *inv, Contents *c)
{
	const struct osrelease *os = &inv->os;
	Distribution *node = NODE(a, Distribution, SCANNER__V4__DISTRIBUTION__INIT);
	DistributionEntry *entry =
		NODE(a, DistributionEntry, SCANNER__V4__CONTENTS__DISTRIBUTIONS_ENTRY__INIT);
	Distribution **list = arena_alloc(a, sizeof(*list));
	DistributionEntry **map = arena_alloc(a, sizeof(*map));

	if (!node || !entry || !list || !map)
		return -ENOMEM;
	node->id = str(DISTRIBUTION_ID);
	node->did = str(os->id);
	node->name = str(os->name);
	node->version = str(os->version);
	node->version_code_name = str(os->version_codename);
	node->version_id = str(os->version_id);
	node->arch = str(inv->arch);
	node->cpe = cpe_or_any(os->cpe_name);
	node->pretty_name = str(os->pretty_name);
	entry->key = str(DISTRIBUTION_ID);
	entry->value = node;
	list[0] = node;
	map[0] = entry;
	c->distributions_deprecated = list;
	c->n_distributions_deprecated = 1;
	c->distributions = map;
	c->n_distributions = 1;
	return 0;
}

/* The entries of package i, in the four places that have one. */
static int build_entries(struct arena *a, const struct inventory *inv, size_t i,
			 char **repository_ids, Contents *c)
{
	const struct package *p = &inv->packages[i];
	PackageEntry *entry = NODE(a, PackageEntry, SCANNER__V4__CONTENTS__PACKAGES_ENTRY__INIT);
	EnvironmentEntry *env =
		NODE(a, EnvironmentEntry, SCANNER__V4__CONTENTS__ENVIRONMENTS_ENTRY__INIT);
	EnvironmentDeprecatedEntry *old_env =
		NODE(a, EnvironmentDeprecatedEntry,
		     SCANNER__V4__CONTENTS__ENVIRONMENTS_DEPRECATED_ENTRY__INIT);
	char *id = arena_printf(a, "%zu", i + 1);

	if (!entry || !env || !old_env || !id)
		return -ENOMEM;
	entry->key = id;
	entry->value = build_package(a, p, id);
	env->key = old_env->key = id;
	env->value = build_environments(a, p, repository_ids,
					str(distribution_known(&inv->os) ? DISTRIBUTION_ID : ""));
	old_env->value = env->value;
	if (!entry->value || !env->value)
		return -ENOMEM;
	c->packages[i] = entry;
	c->packages_deprecated[i] = entry->value;
	c->environments[i] = env;
	c->environments_deprecated[i] = old_env;
	return 0;
}

static int build_contents(struct arena *a, const struct inventory *inv, Contents *c)
{
	char **repository_ids;
	size_t n = inv->n_packages;
	int r;

	r = build_repositories(a, inv, c, &repository_ids);
	if (r < 0)
		return r;
	if (distribution_known(&inv->os)) {
		r = build_distribution(a, inv, c);
		if (r < 0)
			return r;
	}
	c->packages = arena_alloc(a, n * sizeof(*c->packages));
	c->packages_deprecated = arena_alloc(a, n * sizeof(*c->packages_deprecated));
	c->environments = arena_alloc(a, n * sizeof(*c->environments));
	c->environments_deprecated = arena_alloc(a, n * sizeof(*c->environments_deprecated));
	if (!c->packages || !c->packages_deprecated || !c->environments ||
	    !c->environments_deprecated)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++) {
		r = build_entries(a, inv, i, repository_ids, c);
		if (r < 0)
			return r;
	}
	c->n_packages = c->n_packages_deprecated = n;
	c->n_environments = c->n_environments_deprecated = n;
	return 0;
}

static int build_discovered(struct arena *a, const struct inventory *inv,
			    Virtualmachine__V1__DiscoveredData *d)
{
	static const Virtualmachine__V1__ActivationStatus activation[] = {
		[ACTIVATION_ACTIVE] = VIRTUALMACHINE__V1__ACTIVATION_STATUS__ACTIVE,
		[ACTIVATION_INACTIVE] = VIRTUALMACHINE__V1__ACTIVATION_STATUS__INACTIVE,
	};
	static const Virtualmachine__V1__DnfMetadataStatus dnf[] = {
		[DNF_METADATA_AVAILABLE] = VIRTUALMACHINE__V1__DNF_METADATA_STATUS__AVAILABLE,
		[DNF_METADATA_UNAVAILABLE] = VIRTUALMACHINE__V1__DNF_METADATA_STATUS__UNAVAILABLE,
	};
	const struct osrelease *os = &inv->os;

	d->activation_status = activation[inv->activation];
	d->dnf_metadata_status = dnf[inv->dnf_metadata];
	if (streq(os->id, "rhel")) {
		d->detected_os = VIRTUALMACHINE__V1__DETECTED_OS__RHEL;
		d->os_version = str(os->version_id);
		return 0;
	}
	/* For people only, where the system is not RHEL; so the name goes with it (ref). */
	d->os_version = os->version_id[0] ? arena_printf(a, "%s %s", os->id[0] ? os->id : "unknown",
							 os->version_id)
					  : str(os->id);
	return d->os_version ? 0 : -ENOMEM;
}

int vmreport_pack(const struct inventory *inv, const char *cid, const char *vm_id, uint8_t **ret,
		  size_t *ret_len)
{
	_cleanup_(arena_freep)
	struct arena *a = NULL;
	Virtualmachine__V1__VMReport report = VIRTUALMACHINE__V1__VMREPORT__INIT;
	Virtualmachine__V1__IndexReport index = VIRTUALMACHINE__V1__INDEX_REPORT__INIT;
	Virtualmachine__V1__DiscoveredData discovered = VIRTUALMACHINE__V1__DISCOVERED_DATA__INIT;
	Scanner__V4__IndexReport v4 = SCANNER__V4__INDEX_REPORT__INIT;
	Contents contents = SCANNER__V4__CONTENTS__INIT;
	uint8_t *data;
	size_t len;
	int r;

	r = arena_new(&a);
	if (r < 0)
		return r;
	r = build_contents(a, inv, &contents);
	if (r < 0)
		return r;
	r = build_discovered(a, inv, &discovered);
	if (r < 0)
		return r;
	v4.state = str(STATE_FINISHED);
	v4.success = true;
	v4.contents = &contents;
	index.vsock_cid = str(cid);
	index.vm_id = str(vm_id);
	index.index_v4 = &v4;
	report.index_report = &index;
	report.discovered_data = &discovered;

	len = virtualmachine__v1__vmreport__get_packed_size(&report);
	data = malloc(len);
	if (!data)
		return -ENOMEM;
	virtualmachine__v1__vmreport__pack(&report, data);
	*ret = data;
	*ret_len = len;
	return 0;
}

static const char *os_name(Virtualmachine__V1__DetectedOS os)
{
	return os == VIRTUALMACHINE__V1__DETECTED_OS__RHEL ? "RHEL" : "UNKNOWN";
}

static const char *activation_name(Virtualmachine__V1__ActivationStatus s)
{
	switch (s) {
	case VIRTUALMACHINE__V1__ACTIVATION_STATUS__ACTIVE:
		return "active";
	case VIRTUALMACHINE__V1__ACTIVATION_STATUS__INACTIVE:
		return "inactive";
	default:
		return "not known";
	}
}

static const char *dnf_name(Virtualmachine__V1__DnfMetadataStatus s)
{
	switch (s) {
	case VIRTUALMACHINE__V1__DNF_METADATA_STATUS__AVAILABLE:
		return "available";
	case VIRTUALMACHINE__V1__DNF_METADATA_STATUS__UNAVAILABLE:
		return "unavailable";
	default:
		return "not known";
	}
}

/* Writes s without the control bytes that a hostile inventory could send to a terminal. */
static void put(FILE *f, const char *s, int width)
{
	int n = 0;

	for (; *s; s++, n++)
		fputc((uint8_t)*s < 0x20 || *s == 0x7f ? '?' : *s, f);
	for (; n < width; n++)
		fputc(' ', f);
}

static void put_line(FILE *f, const char *label, const char *value)
{
	fprintf(f, "%-14s ", label);
	put(f, value[0] ? value : "-", 0);
	fputc('\n', f);
}

static void print_contents(const Contents *c, FILE *f)
{
	for (size_t i = 0; i < c->n_distributions; i++) {
		const Distribution *d = c->distributions[i]->value;

		if (d)
			put_line(f, "distribution", d->pretty_name[0] ? d->pretty_name : d->name);
	}
	for (size_t i = 0; i < c->n_repositories; i++) {
		const Repository *r = c->repositories[i]->value;

		if (!r)
			continue;
		fprintf(f, "%-14s ", "repository");
		put(f, r->name, 0);
		fputc(' ', f);
		put(f, r->uri, 0);
		fputc('\n', f);
	}
	fprintf(f, "%-14s %zu\n", "packages", c->n_packages);
	for (size_t i = 0; i < c->n_packages; i++) {
		const Package *p = c->packages[i]->value;

		if (!p)
			continue;
		fputs("  ", f);
		put(f, p->name, 40);
		fputc(' ', f);
		put(f, p->version, 32);
		fputc(' ', f);
		put(f, p->arch, 0);
		fputc('\n', f);
	}
}

int vmreport_print(const uint8_t *data, size_t len, FILE *f)
{
	const Virtualmachine__V1__DiscoveredData *d;
	Virtualmachine__V1__VMReport *report;

	report = virtualmachine__v1__vmreport__unpack(NULL, len, data);
	if (!report)
		return -EBADMSG;
	fprintf(f, "%-14s %zu bytes\n", "size", len);
	if (report->index_report) {
		put_line(f, "cid", report->index_report->vsock_cid);
		put_line(f, "vm id", report->index_report->vm_id);
	}
	d = report->discovered_data;
	if (d) {
		put_line(f, "detected os", os_name(d->detected_os));
		put_line(f, "os version", d->os_version);
		put_line(f, "activation", activation_name(d->activation_status));
		put_line(f, "dnf metadata", dnf_name(d->dnf_metadata_status));
	}
	if (report->index_report && report->index_report->index_v4 &&
	    report->index_report->index_v4->contents)
		print_contents(report->index_report->index_v4->contents, f);
	virtualmachine__v1__vmreport__free_unpacked(report, NULL);
	return fflush(f) != 0 || ferror(f) ? -EIO : 0;
}
