/* SPDX-License-Identifier: Apache-2.0 */
#include <yaml.h>

#include "yaml_tree.h"

struct reader {
	yaml_parser_t parser;
	const char *yaml;
	size_t len;
	struct yaml_tree_error *error;
	size_t n_nodes;
	unsigned int depth;
};

struct yaml_tree *yaml_tree_free(struct yaml_tree *t)
{
	if (!t)
		return NULL;
	for (size_t i = 0; i < t->n_children; i++)
		yaml_tree_free(t->children[i]);
	free(t->children);
	free(t->text);
	free(t);
	return NULL;
}

bool yaml_tree_is_null(const struct yaml_tree *t)
{
	return t->kind == YAML_SCALAR && t->plain &&
	       (streq(t->text, "") || streq(t->text, "~") || streq(t->text, "null"));
}

static int fail(struct reader *rd, yaml_mark_t at, const char *text)
{
	rd->error->line = at.line + 1;
	rd->error->column = at.column + 1;
	snprintf(rd->error->text, sizeof(rd->error->text), "%s", text);
	return -EINVAL;
}

/* libyaml gives an offset, but no line, for bytes that are no text. */
static yaml_mark_t mark_of_offset(const char *yaml, size_t offset)
{
	yaml_mark_t m = { .index = offset };

	for (size_t i = 0; i < offset; i++) {
		m.column++;
		if (yaml[i] == '\n') {
			m.line++;
			m.column = 0;
		}
	}
	return m;
}

static int parser_failed(struct reader *rd)
{
	const yaml_parser_t *p = &rd->parser;
	yaml_mark_t at = p->problem_mark;
	char text[sizeof(rd->error->text)];

	if (p->error == YAML_MEMORY_ERROR)
		return -ENOMEM;
	if (p->error == YAML_READER_ERROR)
		at = mark_of_offset(rd->yaml, MIN(p->problem_offset, rd->len));
	snprintf(text, sizeof(text), "not YAML: %s%s%s", p->problem ? p->problem : "unreadable",
		 p->context ? " " : "", p->context ? p->context : "");
	return fail(rd, at, text);
}

static int next_event(struct reader *rd, yaml_event_t *ret)
{
	if (!yaml_parser_parse(&rd->parser, ret))
		return parser_failed(rd);
	return 0;
}

static int add_child(struct yaml_tree *t, struct yaml_tree *child)
{
	/* Grows at powers of two, so that no capacity has to be kept. */
	if ((t->n_children & (t->n_children - 1)) == 0) {
		size_t capacity = t->n_children ? 2 * t->n_children : 1;
		struct yaml_tree **p = reallocarray(t->children, capacity, sizeof(*p));

		if (!p)
			return -ENOMEM;
		t->children = p;
	}
	t->children[t->n_children++] = child;
	return 0;
}

/* Says what of an event is not taken, if anything. */
static int check_event(struct reader *rd, const yaml_event_t *ev)
{
	const yaml_char_t *anchor = NULL, *tag = NULL;

	switch (ev->type) {
	case YAML_ALIAS_EVENT:
		return fail(rd, ev->start_mark, "aliases (*name) are not taken here");
	case YAML_SCALAR_EVENT:
		anchor = ev->data.scalar.anchor;
		tag = ev->data.scalar.tag;
		if (strlen((const char *)ev->data.scalar.value) != ev->data.scalar.length)
			return fail(rd, ev->start_mark, "a value holds a zero byte");
		break;
	case YAML_SEQUENCE_START_EVENT:
		anchor = ev->data.sequence_start.anchor;
		tag = ev->data.sequence_start.tag;
		break;
	case YAML_MAPPING_START_EVENT:
		anchor = ev->data.mapping_start.anchor;
		tag = ev->data.mapping_start.tag;
		break;
	default:
		return fail(rd, ev->start_mark, "unexpected end of the document");
	}
	if (anchor)
		return fail(rd, ev->start_mark, "anchors (&name) are not taken here");
	if (tag)
		return fail(rd, ev->start_mark, "tags (!name) are not taken here");
	if (rd->n_nodes++ >= YAML_TREE_NODES_MAX)
		return fail(rd, ev->start_mark, "too many values");
	if (ev->type != YAML_SCALAR_EVENT && rd->depth >= YAML_TREE_DEPTH_MAX)
		return fail(rd, ev->start_mark, "nested too deep");
	return 0;
}

static int new_node(const yaml_event_t *ev, struct yaml_tree **ret)
{
	_cleanup_(yaml_tree_freep)
	struct yaml_tree *t = calloc(1, sizeof(*t));

	if (!t)
		return -ENOMEM;
	t->line = ev->start_mark.line + 1;
	t->column = ev->start_mark.column + 1;
	t->kind = ev->type == YAML_MAPPING_START_EVENT	  ? YAML_MAP
		  : ev->type == YAML_SEQUENCE_START_EVENT ? YAML_LIST
							  : YAML_SCALAR;
	if (t->kind == YAML_SCALAR) {
		t->text = strdup((const char *)ev->data.scalar.value);
		if (!t->text)
			return -ENOMEM;
		t->plain = ev->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
	}
	*ret = TAKE_PTR(t);
	return 0;
}

static int read_node(struct reader *rd, yaml_event_t *ev, struct yaml_tree **ret);

/* The children of t, up to and including the event that ends it. Depth is bounded by
 * check_event(). */
static int read_children(struct reader *rd, struct yaml_tree *t)
{
	for (;;) {
		struct yaml_tree *child;
		yaml_event_t ev;
		int r;

		r = next_event(rd, &ev);
		if (r < 0)
			return r;
		if (ev.type == YAML_SEQUENCE_END_EVENT || ev.type == YAML_MAPPING_END_EVENT) {
			yaml_event_delete(&ev);
			return 0;
		}
		if (t->kind == YAML_MAP && t->n_children % 2 == 0 && ev.type != YAML_SCALAR_EVENT)
			r = fail(rd, ev.start_mark, "a key is a plain word");
		else
			r = read_node(rd, &ev, &child);
		yaml_event_delete(&ev);
		if (r < 0)
			return r;
		r = add_child(t, child);
		if (r < 0) {
			yaml_tree_free(child);
			return r;
		}
	}
}

static int read_node(struct reader *rd, yaml_event_t *ev, struct yaml_tree **ret)
{
	_cleanup_(yaml_tree_freep)
	struct yaml_tree *t = NULL;
	int r;

	r = check_event(rd, ev);
	if (r < 0)
		return r;
	r = new_node(ev, &t);
	if (r < 0)
		return r;
	if (t->kind != YAML_SCALAR) {
		rd->depth++;
		r = read_children(rd, t);
		rd->depth--;
		if (r < 0)
			return r;
	}
	*ret = TAKE_PTR(t);
	return 0;
}

/* Stream start, then at most one document. */
static int read_stream(struct reader *rd, struct yaml_tree **ret)
{
	_cleanup_(yaml_tree_freep)
	struct yaml_tree *t = NULL;

	for (;;) {
		yaml_event_type_t type;
		yaml_event_t ev;
		int r;

		r = next_event(rd, &ev);
		if (r < 0)
			return r;
		type = ev.type;
		if (type == YAML_DOCUMENT_START_EVENT && t)
			r = fail(rd, ev.start_mark, "a second document; one is taken");
		else if (type != YAML_STREAM_START_EVENT && type != YAML_STREAM_END_EVENT &&
			 type != YAML_DOCUMENT_START_EVENT && type != YAML_DOCUMENT_END_EVENT)
			r = read_node(rd, &ev, &t);
		yaml_event_delete(&ev);
		if (r < 0)
			return r;
		if (type == YAML_STREAM_END_EVENT)
			break;
	}
	*ret = TAKE_PTR(t);
	return 0;
}

int yaml_tree_parse(const char *yaml, size_t len, struct yaml_tree **ret,
		    struct yaml_tree_error *error)
{
	struct reader rd = { .yaml = yaml, .len = len, .error = error };
	int r;

	if (!yaml_parser_initialize(&rd.parser))
		return -ENOMEM;
	yaml_parser_set_encoding(&rd.parser, YAML_UTF8_ENCODING);
	yaml_parser_set_input_string(&rd.parser, (const unsigned char *)yaml, len);
	r = read_stream(&rd, ret);
	yaml_parser_delete(&rd.parser);
	return r;
}
