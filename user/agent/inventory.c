/* SPDX-License-Identifier: Apache-2.0 */
#include "inventory.h"

int inventory_new(struct inventory **ret)
{
	_cleanup_(inventory_freep)
	struct inventory *inv = calloc(1, sizeof(*inv));
	int r;

	if (!inv)
		return -ENOMEM;
	r = arena_new(&inv->arena);
	if (r < 0)
		return r;
	osrelease_init(&inv->os);
	inv->arch = "";
	*ret = TAKE_PTR(inv);
	return 0;
}

struct inventory *inventory_free(struct inventory *inv)
{
	if (!inv)
		return NULL;
	arena_free(inv->arena);
	free(inv->packages);
	free(inv);
	return NULL;
}

static const char *or_empty(const char *s)
{
	return s ? s : "";
}

int inventory_add_package(struct inventory *inv, const struct package *p)
{
	if (inv->n_packages == INVENTORY_PACKAGES_MAX)
		return -E2BIG;
	if (inv->n_packages == inv->room_packages) {
		size_t room = inv->room_packages ? inv->room_packages * 2 : 256;
		struct package *bigger = reallocarray(inv->packages, room, sizeof(*bigger));

		if (!bigger)
			return -ENOMEM;
		inv->packages = bigger;
		inv->room_packages = room;
	}
	inv->packages[inv->n_packages++] = (struct package){
		.name = or_empty(p->name),
		.version = or_empty(p->version),
		.arch = or_empty(p->arch),
		.source = or_empty(p->source),
		.source_version = or_empty(p->source_version),
		.db = or_empty(p->db),
		.repository_hint = or_empty(p->repository_hint),
		.module = or_empty(p->module),
		.n_repositories = p->n_repositories,
	};
	return 0;
}

int inventory_add_repository(struct inventory *inv, const struct repository *r)
{
	struct repository new = {
		.name = or_empty(r->name),
		.key = or_empty(r->key),
		.uri = or_empty(r->uri),
		.cpe = or_empty(r->cpe),
	};

	for (size_t i = 0; i < inv->n_repositories; i++)
		if (streq(inv->repositories[i].name, new.name) &&
		    streq(inv->repositories[i].uri, new.uri))
			return 0;
	if (inv->n_repositories == INVENTORY_REPOSITORIES_MAX)
		return -E2BIG;
	inv->repositories[inv->n_repositories++] = new;
	return 0;
}

static int compare_packages(const void *a, const void *b)
{
	const struct package *p = a, *q = b;
	int r;

	r = strcmp(p->name, q->name);
	if (r == 0)
		r = strcmp(p->arch, q->arch);
	if (r == 0)
		r = strcmp(p->version, q->version);
	if (r == 0)
		r = strcmp(p->db, q->db);
	return r;
}

void inventory_finish(struct inventory *inv)
{
	if (inv->n_packages > 0)
		qsort(inv->packages, inv->n_packages, sizeof(*inv->packages), compare_packages);
	for (size_t i = 0; i < inv->n_packages; i++)
		inv->packages[i].n_repositories = inv->n_repositories;
}
