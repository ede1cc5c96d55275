/* SPDX-License-Identifier: Apache-2.0 */
#include <assert.h>
#include <endian.h>

#include "report.h"
#include "virtualmachine/v1/report.pb-c.h"

#define WIRE_VARINT  0
#define WIRE_FIXED64 1
#define WIRE_LENGTH  2
#define WIRE_FIXED32 5

/* https://protobuf.dev/programming-guides/proto3/#assigning: field numbers have 29 bits. */
#define FIELD_NUMBER_MAX ((1U << 29) - 1)
#define LENGTH_MAX	 ((uint64_t)INT32_MAX)

/* ---- the schema, as one small table ----------------------------------------------------------
 * protobuf-c looks a field up by binary search over ranges of numbers. A report has some ten
 * thousand fields, all with small numbers, so here each message type has an array indexed by
 * number, built once from the same descriptors.
 */
#define MESSAGES_MAX 24
#define FIELDS_MAX   16

enum field_kind {
	KIND_UNKNOWN = 0, /* any wire type that exists */
	KIND_INVALID,	  /* number 0 */
	KIND_VARINT,
	KIND_STRING,
	KIND_MESSAGE,
};

/* Fields that are more to us than well-formed or not. */
enum capture {
	CAPTURE_NONE = 0,
	CAPTURE_INDEX_REPORT,
	CAPTURE_VSOCK_CID,
	CAPTURE_VM_ID,
	CAPTURE_DETECTED_OS,
	CAPTURE_OS_VERSION,
	CAPTURE_PACKAGE,
	CAPTURE_PACKAGE_DEPRECATED,
};

struct field_rule {
	uint8_t kind;	 /* enum field_kind */
	uint8_t child;	 /* KIND_MESSAGE: index into schema */
	uint8_t capture; /* enum capture */
	bool repeated : 1;
	bool plain : 1; /* a string that is nothing but well-formed or not */
};

struct message_rule {
	const ProtobufCMessageDescriptor *desc;
	struct field_rule fields[FIELDS_MAX];
};

static struct message_rule schema[MESSAGES_MAX];
static size_t n_schema;

static const struct {
	const ProtobufCMessageDescriptor *desc;
	const char *field;
	enum capture capture;
} captures[] = {
	{ &virtualmachine__v1__vmreport__descriptor, "index_report", CAPTURE_INDEX_REPORT },
	{ &virtualmachine__v1__index_report__descriptor, "vsock_cid", CAPTURE_VSOCK_CID },
	{ &virtualmachine__v1__index_report__descriptor, "vm_id", CAPTURE_VM_ID },
	{ &virtualmachine__v1__discovered_data__descriptor, "detected_os", CAPTURE_DETECTED_OS },
	{ &virtualmachine__v1__discovered_data__descriptor, "os_version", CAPTURE_OS_VERSION },
	{ &scanner__v4__contents__descriptor, "packages", CAPTURE_PACKAGE },
	{ &scanner__v4__contents__descriptor, "packages_deprecated", CAPTURE_PACKAGE_DEPRECATED },
};

static enum capture capture_of(const ProtobufCMessageDescriptor *desc, const char *field)
{
	for (size_t i = 0; i < ARRAY_SIZE(captures); i++)
		if (captures[i].desc == desc && streq(captures[i].field, field))
			return captures[i].capture;
	return CAPTURE_NONE;
}

/* The index of a message type in the schema; it is added if it is not there. */
static size_t schema_index(const ProtobufCMessageDescriptor *desc)
{
	for (size_t i = 0; i < n_schema; i++)
		if (schema[i].desc == desc)
			return i;
	assert(n_schema < MESSAGES_MAX);
	schema[n_schema].desc = desc;
	return n_schema++;
}

/* The assertions here are about the .proto files, not about input: they name what this walker
 * would have to learn before a field of a new sort may be added. */
static struct field_rule field_rule_of(const ProtobufCMessageDescriptor *desc,
				       const ProtobufCFieldDescriptor *field)
{
	struct field_rule rule = {
		.capture = capture_of(desc, field->name),
		.repeated = field->label == PROTOBUF_C_LABEL_REPEATED,
	};

	assert(field->label != PROTOBUF_C_LABEL_REQUIRED);
	switch (field->type) {
	case PROTOBUF_C_TYPE_BOOL:
		/* protobuf-c allows only 0 and 1 in packed ones */
		assert(!rule.repeated);
		rule.kind = KIND_VARINT;
		break;
	case PROTOBUF_C_TYPE_INT32:
	case PROTOBUF_C_TYPE_ENUM:
		rule.kind = KIND_VARINT;
		break;
	case PROTOBUF_C_TYPE_STRING:
		rule.kind = KIND_STRING;
		break;
	case PROTOBUF_C_TYPE_MESSAGE:
		rule.kind = KIND_MESSAGE;
		rule.child = schema_index(field->descriptor);
		break;
	default:
		assert(!"field type unknown to the validator");
	}
	rule.plain = rule.kind == KIND_STRING && rule.capture == CAPTURE_NONE;
	return rule;
}

static void schema_build(void)
{
	schema_index(&virtualmachine__v1__vmreport__descriptor);
	for (size_t i = 0; i < n_schema; i++) {
		const ProtobufCMessageDescriptor *desc = schema[i].desc;

		schema[i].fields[0].kind = KIND_INVALID;
		for (unsigned f = 0; f < desc->n_fields; f++) {
			assert(desc->fields[f].id < FIELDS_MAX);
			schema[i].fields[desc->fields[f].id] =
				field_rule_of(desc, &desc->fields[f]);
		}
	}
}

/* ---- UTF-8 ------------------------------------------------------------------------------------ */
#define HIGH_BITS 0x8080808080808080ULL

static inline uint64_t load64(const uint8_t *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return v;
}

/* Length of the well-formed UTF-8 sequence of more than one byte at s, with n bytes left, or 0.
 * The bounds of the second byte are those of table 3-7 of the Unicode standard. */
static size_t utf8_sequence(const uint8_t *s, size_t n)
{
	uint8_t lead = s[0], low = 0x80, high = 0xbf;
	size_t len;

	if (lead < 0xc2 || lead > 0xf4)
		return 0;
	len = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
	if (n < len)
		return 0;
	if (lead == 0xe0)
		low = 0xa0; /* less would be an overlong form */
	else if (lead == 0xed)
		high = 0x9f; /* more would be a surrogate */
	else if (lead == 0xf0)
		low = 0x90; /* less would be an overlong form */
	else if (lead == 0xf4)
		high = 0x8f; /* more would be above U+10FFFF */
	if (s[1] < low || s[1] > high)
		return 0;
	for (size_t i = 2; i < len; i++)
		if ((s[i] & 0xc0) != 0x80)
			return 0;
	return len;
}

bool utf8_valid(const uint8_t *s, size_t n)
{
	while (n > 0) {
		size_t len = 1;

		if (n >= 8 && (load64(s) & HIGH_BITS) == 0)
			len = 8;
		else if (s[0] >= 0x80)
			len = utf8_sequence(s, n);
		if (len == 0)
			return false;
		s += len;
		n -= len;
	}
	return true;
}

/* Whether n bytes are ASCII. room, at least n, is how many bytes may be read: with 8 of them a
 * short string, the usual one, costs one load and no loop. */
static inline bool ascii(const uint8_t *s, size_t n, size_t room)
{
	uint64_t high = 0;
	size_t i;

	if (n < 8) {
		if (room >= 8)
			return (le64toh(load64(s)) & HIGH_BITS & ((1ULL << 8 * n) - 1)) == 0;
		for (i = 0; i < n; i++)
			high |= s[i];
		return (high & 0x80) == 0;
	}
	for (i = 0; i + 32 <= n; i += 32)
		high |= load64(s + i) | load64(s + i + 8) | load64(s + i + 16) | load64(s + i + 24);
	for (; i + 8 <= n; i += 8)
		high |= load64(s + i);
	high |= load64(s + n - 8); /* the rest, and some once more */
	return (high & HIGH_BITS) == 0;
}

/* ---- the wire --------------------------------------------------------------------------------- */

/* Reads a varint of at most max bytes (1 to 10) that ends before end. Returns the byte behind it,
 * or NULL if it is cut, longer, or does not fit 64 bits. */
static const uint8_t *varint_slow(const uint8_t *p, const uint8_t *end, unsigned max, uint64_t *ret)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < max && p < end; i++) {
		uint8_t b = *p++;

		if (i == 9 && b > 1)
			return NULL;
		v |= (uint64_t)(b & 0x7f) << 7 * i;
		if (b < 0x80) {
			*ret = v;
			return p;
		}
	}
	return NULL;
}

static inline const uint8_t *varint(const uint8_t *p, const uint8_t *end, unsigned max,
				    uint64_t *ret)
{
	if (end - p >= 2) {
		if (p[0] < 0x80) {
			*ret = p[0];
			return p + 1;
		}
		if (p[1] < 0x80) {
			*ret = (p[0] & 0x7f) | (uint64_t)p[1] << 7;
			return p + 2;
		}
	}
	return varint_slow(p, end, max, ret);
}

static bool packed_varints_valid(const uint8_t *p, const uint8_t *end)
{
	uint64_t ignored;

	while (p && p < end)
		p = varint(p, end, 10, &ignored);
	return p != NULL;
}

/* ---- the walk over a report ------------------------------------------------------------------- */
struct frame {
	const uint8_t *end;
	const struct message_rule *message;
};

struct walk {
	struct frame parents[REPORT_DEPTH_MAX];
	unsigned depth;
	/* the message that is being read */
	const uint8_t *end;
	const struct message_rule *message;
	/* the field that is being read */
	const uint8_t *field_at;
	uint64_t number;
	/* the whole report */
	const uint8_t *limit;
	bool seen_index_report;
	bool seen_vsock_cid;
	struct report_info info;
};

/* Notes what a field of type string or message says. Returns NULL, or why it is malformed. */
static const char *capture_bytes(struct walk *w, enum capture capture, const uint8_t *p, size_t len)
{
	const char *s = (const char *)p;

	switch (capture) {
	case CAPTURE_INDEX_REPORT:
		if (w->seen_index_report)
			return "repeated";
		w->seen_index_report = true;
		break;
	case CAPTURE_VSOCK_CID:
		if (w->seen_vsock_cid)
			return "repeated";
		w->seen_vsock_cid = true;
		w->info.vsock_cid = s;
		w->info.vsock_cid_len = len;
		break;
	case CAPTURE_VM_ID:
		w->info.vm_id = s;
		w->info.vm_id_len = len;
		break;
	case CAPTURE_OS_VERSION:
		w->info.os_version = s;
		w->info.os_version_len = len;
		break;
	case CAPTURE_PACKAGE:
		w->info.packages++;
		break;
	case CAPTURE_PACKAGE_DEPRECATED:
		w->info.packages_deprecated++;
		break;
	default:
		break;
	}
	return NULL;
}

/* The message in the field that is being read becomes the one that is being read. */
static inline const char *enter(struct walk *w, const struct message_rule *child,
				const uint8_t *end)
{
	if (w->depth == REPORT_DEPTH_MAX)
		return "nested too deep";
	w->parents[w->depth++] = (struct frame){ w->end, w->message };
	w->end = end;
	w->message = child;
	return NULL;
}

/* A field with a length. *pp is behind its tag and is moved behind the field, or, if the field is
 * a message, to its first byte. Returns NULL, or why the field is malformed. */
static inline const char *field_with_length(struct walk *w, const struct field_rule *rule,
					    const uint8_t **pp)
{
	const char *what;
	const uint8_t *p;
	uint64_t len;

	p = varint(*pp, w->end, 5, &len);
	if (!p || len > LENGTH_MAX)
		return "bad length";
	if (len > (size_t)(w->end - p))
		return "longer than the message around it";

	if (rule->capture) {
		what = capture_bytes(w, rule->capture, p, len);
		if (what)
			return what;
	}
	*pp = p + len;
	switch (rule->kind) {
	case KIND_STRING:
		if (!ascii(p, len, w->limit - p) && !utf8_valid(p, len))
			return "string is not UTF-8";
		return NULL;
	case KIND_MESSAGE:
		*pp = p;
		return enter(w, &schema[rule->child], p + len);
	case KIND_VARINT:
		if (!rule->repeated)
			return "wrong wire type";
		return packed_varints_valid(p, p + len) ? NULL : "bad varint";
	default:
		return NULL;
	}
}

static const char *field_varint(struct walk *w, const struct field_rule *rule, const uint8_t **pp)
{
	uint64_t v;

	if (rule->kind != KIND_VARINT && rule->kind != KIND_UNKNOWN)
		return "wrong wire type";
	*pp = varint(*pp, w->end, 10, &v);
	if (!*pp)
		return "bad varint";
	if (rule->capture == CAPTURE_DETECTED_OS)
		w->info.detected_os = v;
	return NULL;
}

static const char *field_fixed(struct walk *w, const struct field_rule *rule, const uint8_t **pp,
			       ptrdiff_t size)
{
	if (rule->kind != KIND_UNKNOWN)
		return "wrong wire type";
	if (w->end - *pp < size)
		return "cut";
	*pp += size;
	return NULL;
}

/* Reads one field; the same contract as field_with_length(), with *pp before the tag. */
static inline const char *field(struct walk *w, const uint8_t **pp)
{
	static const struct field_rule unknown = { .kind = KIND_UNKNOWN };
	const struct field_rule *rule = &unknown;
	uint64_t tag;

	w->field_at = *pp;
	w->number = 0;
	*pp = varint(*pp, w->end, 5, &tag);
	if (!*pp || tag >> 3 > FIELD_NUMBER_MAX)
		return "bad tag";
	w->number = tag >> 3;
	if (w->number < FIELDS_MAX)
		rule = &w->message->fields[w->number];
	if (rule->kind == KIND_INVALID)
		return "bad tag";

	switch (tag & 7) {
	case WIRE_LENGTH:
		return field_with_length(w, rule, pp);
	case WIRE_VARINT:
		return field_varint(w, rule, pp);
	case WIRE_FIXED64:
		return field_fixed(w, rule, pp, 8);
	case WIRE_FIXED32:
		return field_fixed(w, rule, pp, 4);
	default:
		return "unknown wire type"; /* groups, and 6 and 7, which do not exist */
	}
}

/* Skips the fields that make up nearly all of a report: short ASCII strings with small field
 * numbers, of which nothing is noted. Whatever else begins at the byte that is returned, well-formed
 * or not, is field()'s. Without this a report takes a quarter longer. */
static inline const uint8_t *skip_plain_strings(const struct message_rule *message,
						const uint8_t *p, const uint8_t *end,
						const uint8_t *limit)
{
	/* A tag of one byte has a number below FIELDS_MAX. */
	_Static_assert(0x7f >> 3 < FIELDS_MAX, "one-byte tags");
	while (end - p >= 2) {
		unsigned tag = p[0], len = p[1];

		if ((tag & 0x87) != WIRE_LENGTH || !message->fields[tag >> 3].plain ||
		    len >= 0x80 || len > end - p - 2 || !ascii(p + 2, len, limit - p - 2))
			break;
		p += 2 + len;
	}
	return p;
}

/* Walks over all fields from p to w->limit. Returns NULL, or why the report is malformed. */
static const char *walk(struct walk *w, const uint8_t *p)
{
	const char *what;

	for (;;) {
		p = skip_plain_strings(w->message, p, w->end, w->limit);
		if (p == w->end) {
			if (w->depth == 0)
				return NULL;
			w->depth--;
			w->end = w->parents[w->depth].end;
			w->message = w->parents[w->depth].message;
			continue;
		}
		what = field(w, &p);
		if (what)
			return what;
	}
}

/* For the log: what vsock_cid says, cut, with all but printable ASCII replaced. */
static void copy_claim(const struct report_info *info, char *ret, size_t size)
{
	size_t n = MIN(info->vsock_cid_len, size - 1);

	for (size_t i = 0; i < n; i++)
		ret[i] = info->vsock_cid[i] >= ' ' && info->vsock_cid[i] <= '~' ? info->vsock_cid[i]
										: '?';
	ret[n] = 0;
}

static bool cid_matches(const struct report_info *info, uint32_t peer_cid)
{
	char canonical[16];
	int n = snprintf(canonical, sizeof(canonical), "%u", peer_cid);

	return info->vsock_cid && info->vsock_cid_len == (size_t)n &&
	       memcmp(info->vsock_cid, canonical, n) == 0;
}

int report_validate(const uint8_t *data, size_t len, uint32_t peer_cid, struct report_error *error,
		    struct report_info *ret)
{
	struct walk w;
	const char *what;

	if (n_schema == 0)
		schema_build();
	if (len == 0)
		data = (const uint8_t *)""; /* no arithmetic on NULL */

	/* Not an initialiser: that would clear the parents too. */
	w.depth = 0;
	w.end = w.limit = data + len;
	w.message = &schema[0];
	w.seen_index_report = w.seen_vsock_cid = false;
	w.info = (struct report_info){};

	what = walk(&w, data);
	if (what) {
		if (error)
			*error = (struct report_error){
				.what = what,
				.message = w.message->desc->name,
				.field = w.number,
				.offset = w.field_at - data,
			};
		return -EBADMSG;
	}
	if (!cid_matches(&w.info, peer_cid)) {
		if (error) {
			*error = (struct report_error){
				.what = w.seen_vsock_cid ? "not the peer's CID" : "missing",
				.message = virtualmachine__v1__index_report__descriptor.name,
				.field = 1,
			};
			copy_claim(&w.info, error->claimed_cid, sizeof(error->claimed_cid));
		}
		return -ESRCH;
	}
	if (ret)
		*ret = w.info;
	return 0;
}
