/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A YAML document as a small tree whose nodes know their line and column. Only what settings
 * need: one document of mappings, sequences and scalars. Anchors, aliases and tags are refused
 * (they let a few bytes stand for many), and so is what is too deep or too much.
 */
#ifndef VSR_YAML_TREE_H
#define VSR_YAML_TREE_H

#include "util.h"

#define YAML_TREE_DEPTH_MAX 8
#define YAML_TREE_NODES_MAX 16384

enum yaml_kind {
	YAML_SCALAR,
	YAML_LIST,
	YAML_MAP,
};

struct yaml_tree {
	enum yaml_kind kind;
	size_t line, column;	     /* from 1 */
	char *text;		     /* of a scalar, else NULL */
	bool plain;		     /* scalar without quotes */
	struct yaml_tree **children; /* of a list; of a map: key, value, key, value, ... */
	size_t n_children;
};

struct yaml_tree_error {
	size_t line, column; /* from 1 */
	char text[160];
};

/*
 * Parses len bytes. *ret is NULL for an empty document. Keys of maps are always scalars; that
 * they differ is the caller's to check. Returns 0, -EINVAL (*error says why and where), -ENOMEM.
 */
int yaml_tree_parse(const char *yaml, size_t len, struct yaml_tree **ret,
		    struct yaml_tree_error *error);

struct yaml_tree *yaml_tree_free(struct yaml_tree *t);
DEFINE_CLEANUP(struct yaml_tree, yaml_tree_free);

/* A scalar that YAML takes for no value at all: nothing, "~" or "null", without quotes. */
bool yaml_tree_is_null(const struct yaml_tree *t);

#endif
