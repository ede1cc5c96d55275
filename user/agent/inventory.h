/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is installed on a machine: packages, repositories, distribution. Filled by the readers
 * (dpkg.h, rpm.h, repositories.h, osrelease.h, discovery.h) or invented (synthetic.h), turned
 * into bytes by vmreport.h. All strings are valid UTF-8, owned by the inventory's arena, and
 * never NULL: "" is "not known".
 */
#ifndef VSR_AGENT_INVENTORY_H
#define VSR_AGENT_INVENTORY_H

#include "arena.h"
#include "osrelease.h"

/* Bounds on what a package database may claim; what is beyond them is damaged or hostile. */
#define INVENTORY_FIELD_MAX	   1024
#define INVENTORY_PACKAGES_MAX	   100000
#define INVENTORY_REPOSITORIES_MAX 64

struct package {
	const char *name;
	const char *version;
	const char *arch;
	const char *source; /* name of the source package */
	const char *source_version;
	const char *db;		     /* the database that says so, as the scanner names it */
	const char *repository_hint; /* what the package says about its origin */
	const char *module;	     /* rpm: name:stream */
	/* The first n_repositories of the inventory's are those it may come from. */
	size_t n_repositories;
};

/* The key of repositories that are named by their CPE. */
#define REPOSITORY_KEY_RHEL "rhel-cpe-repository"

struct repository {
	const char *name;
	const char *key;
	const char *uri;
	const char *cpe;
};

enum activation { ACTIVATION_UNKNOWN, ACTIVATION_ACTIVE, ACTIVATION_INACTIVE };
enum dnf_metadata { DNF_METADATA_UNKNOWN, DNF_METADATA_AVAILABLE, DNF_METADATA_UNAVAILABLE };

struct inventory {
	struct arena *arena;
	struct package *packages;
	size_t n_packages, room_packages;
	size_t skipped; /* entries that were damaged or out of bounds */
	struct repository repositories[INVENTORY_REPOSITORIES_MAX];
	size_t n_repositories;
	struct osrelease os;
	const char *arch; /* of the machine, as uname(2) says */
	enum activation activation;
	enum dnf_metadata dnf_metadata;
};

/* Returns 0, -ENOMEM. */
int inventory_new(struct inventory **ret);
struct inventory *inventory_free(struct inventory *inv);
DEFINE_CLEANUP(struct inventory, inventory_free);

/* Copies *p, whose strings already belong to the arena; NULL strings become "". Returns 0,
 * -E2BIG (INVENTORY_PACKAGES_MAX are there), -ENOMEM. */
int inventory_add_package(struct inventory *inv, const struct package *p);

/* The same for a repository; one of an equal name and uri is there already: nothing to do.
 * Returns 0, -E2BIG (INVENTORY_REPOSITORIES_MAX are there). */
int inventory_add_repository(struct inventory *inv, const struct repository *r);

/*
 * Sorts the packages by name, architecture, version and database, and gives each all the
 * repositories. Package managers list in an order of their own that changes without cause; the
 * relay recognises an unchanged report by its bytes.
 */
void inventory_finish(struct inventory *inv);

#endif
