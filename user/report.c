/* SPDX-License-Identifier: Apache-2.0 */
#include <assert.h>
#include <endian.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

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
	bool repeated;
};

/* What may be done with a field that begins with a certain byte, its tag, without a closer look. */
enum shortcut {
	SHORTCUT_NONE = 0,
	SHORTCUT_BYTES, /* a string or packed numbers: well-formed if it is ASCII */
	SHORTCUT_MESSAGE,
	SHORTCUT_PACKAGE, /* a message that is counted */
};

struct report_message_rule {
	const ProtobufCMessageDescriptor *desc;
	struct field_rule fields[FIELDS_MAX];
	uint8_t shortcuts[256]; /* enum shortcut */
};

static struct report_message_rule schema[MESSAGES_MAX];
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
	return rule;
}

static enum shortcut shortcut_of(const struct field_rule *rule)
{
	if (rule->capture)
		return rule->capture == CAPTURE_PACKAGE ? SHORTCUT_PACKAGE : SHORTCUT_NONE;
	if (rule->kind == KIND_MESSAGE)
		return SHORTCUT_MESSAGE;
	return rule->kind == KIND_STRING || rule->repeated ? SHORTCUT_BYTES : SHORTCUT_NONE;
}

static void schema_build(void)
{
	schema_index(&virtualmachine__v1__vmreport__descriptor);
	for (size_t i = 0; i < n_schema; i++) {
		const ProtobufCMessageDescriptor *desc = schema[i].desc;

		schema[i].fields[0].kind = KIND_INVALID;
		for (unsigned f = 0; f < desc->n_fields; f++) {
			uint32_t number = desc->fields[f].id;

			/* Then its tag is one byte. */
			assert(number < FIELDS_MAX);
			schema[i].fields[number] = field_rule_of(desc, &desc->fields[f]);
			schema[i].shortcuts[number << 3 | WIRE_LENGTH] =
				shortcut_of(&schema[i].fields[number]);
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

#define LOOK 32

/* The high bit of each of the LOOK bytes at p, the first byte's lowest. */
static inline uint64_t high_bits(const uint8_t *p)
{
#ifdef __SSE2__
	const __m128i *v = (const void *)p;

	return (uint32_t)_mm_movemask_epi8(_mm_loadu_si128(v)) |
	       (uint64_t)(uint32_t)_mm_movemask_epi8(_mm_loadu_si128(v + 1)) << 16;
#else
	uint64_t bits = 0;

	/* The multiplication gathers the lowest bits of eight bytes in the highest byte. */
	for (unsigned i = 0; i < LOOK; i += 8)
		bits |= ((le64toh(load64(p + i)) & HIGH_BITS) >> 7) * 0x0102040810204080ULL >>
			56 << i;
	return bits;
#endif
}

/* Whether n bytes are ASCII. room, at least n, is how many bytes may be read: with LOOK of them a
 * short string, the usual one, costs one look and no branch that depends on its length. */
static inline bool ascii(const uint8_t *s, size_t n, size_t room)
{
	uint64_t high = 0;

	if (n <= LOOK && room >= LOOK)
		return (high_bits(s) & ((1ULL << n) - 1)) == 0;
	if (n < LOOK) {
		for (size_t i = 0; i < n; i++)
			high |= s[i] & 0x80;
		return high == 0;
	}
	for (size_t i = 0; i + LOOK < n; i += LOOK)
		high |= high_bits(s + i);
	return (high | high_bits(s + n - LOOK)) == 0; /* some once more */
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

/* ---- the walk over a report -------------------------------------------------------------------
 * It goes on as bytes come in. A field of which a part is missing is looked at again from its tag
 * when there is more; one that need not be looked into is skipped, also beyond what is there.
 */

/* Instead of a reason: a part of the field is not there yet. */
static const char need_more[] = "";

/* Notes what a field of type string or message says. Returns NULL, or why it is malformed. */
static const char *capture_bytes(struct report_check *w, enum capture capture, const uint8_t *p,
				 size_t len)
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

/* Where what there is of the message ends. */
static inline const uint8_t *there(const struct report_check *w)
{
	return MIN(w->end, w->there);
}

/* The message in the field that is being read becomes the one that is being read. */
static inline const char *enter(struct report_check *w, const struct report_message_rule *child,
				const uint8_t *end)
{
	if (w->depth == REPORT_DEPTH_MAX)
		return "nested too deep";
	w->parents[w->depth++] = (struct report_frame){ w->end, w->message };
	w->end = end;
	w->message = child;
	return NULL;
}

/* The message has been read: the one around it goes on. */
static inline void leave(struct report_check *w)
{
	w->depth--;
	w->end = w->parents[w->depth].end;
	w->message = w->parents[w->depth].message;
}

static inline void note_outer(struct report_check *w, const uint8_t *at, uint32_t number,
			      const uint8_t *end)
{
	w->outer_at = at;
	w->outer_number = number;
	w->outer_end = end;
}

/* What varint() failed with: the bytes from p on, of which a varint may have max, may be cut. */
static const char *bad_varint(const struct report_check *w, const uint8_t *p, unsigned max,
			      const char *what)
{
	return w->there < w->end && w->there - p < max ? need_more : what;
}

/* A field with a length. *pp is behind its tag and is moved behind the field, or, if the field is
 * a message, to its first byte. Returns NULL; need_more, with nothing changed but *pp; or why the
 * field is malformed. */
static inline const char *field_with_length(struct report_check *w, const struct field_rule *rule,
					    const uint8_t **pp)
{
	const char *what;
	const uint8_t *p;
	uint64_t len;

	p = varint(*pp, there(w), 5, &len);
	if (!p)
		return bad_varint(w, *pp, 5, "bad length");
	if (len > LENGTH_MAX)
		return "bad length";
	if (len > (size_t)(w->end - p))
		return "longer than the message around it";
	if (w->depth == 0)
		note_outer(w, w->field_at, w->number, p + len);
	if (len > (size_t)(w->there - p) &&
	    (rule->kind == KIND_STRING || rule->kind == KIND_VARINT))
		return need_more;

	if (rule->capture) {
		what = capture_bytes(w, rule->capture, p, len);
		if (what)
			return what;
	}
	*pp = p + len;
	switch (rule->kind) {
	case KIND_STRING:
		if (!ascii(p, len, w->there - p) && !utf8_valid(p, len))
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

static const char *field_varint(struct report_check *w, const struct field_rule *rule,
				const uint8_t **pp)
{
	const uint8_t *p;
	uint64_t v;

	if (rule->kind != KIND_VARINT && rule->kind != KIND_UNKNOWN)
		return "wrong wire type";
	p = varint(*pp, there(w), 10, &v);
	if (!p)
		return bad_varint(w, *pp, 10, "bad varint");
	*pp = p;
	if (rule->capture == CAPTURE_DETECTED_OS)
		w->info.detected_os = v;
	return NULL;
}

static const char *field_fixed(struct report_check *w, const struct field_rule *rule,
			       const uint8_t **pp, ptrdiff_t size)
{
	if (rule->kind != KIND_UNKNOWN)
		return "wrong wire type";
	if (w->end - *pp < size)
		return "cut";
	if (w->there - *pp < size)
		return need_more;
	*pp += size;
	return NULL;
}

/* Reads one field; the same contract as field_with_length(), with *pp before the tag. */
static inline const char *field(struct report_check *w, const uint8_t **pp)
{
	static const struct field_rule unknown = { .kind = KIND_UNKNOWN };
	const struct field_rule *rule = &unknown;
	const uint8_t *p = *pp;
	uint64_t tag;

	w->field_at = p;
	w->number = 0;
	p = varint(p, there(w), 5, &tag);
	if (!p)
		return bad_varint(w, *pp, 5, "bad tag");
	if (tag >> 3 > FIELD_NUMBER_MAX)
		return "bad tag";
	*pp = p;
	w->number = (uint32_t)(tag >> 3);
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

/* Takes the fields that make up nearly all of a report: strings and messages with small field
 * numbers and lengths, of which nothing is noted, and numbers packed. Whatever else begins at the
 * byte that is returned, well-formed or not, or is not all there, is field()'s. */
static inline const uint8_t *take_shortcuts(struct report_check *w, const uint8_t *p)
{
	const struct report_message_rule *message = w->message;
	const uint8_t *end = w->end, *limit = w->there;

	for (;;) {
		enum shortcut shortcut;
		const uint8_t *begin = p + 2;
		size_t len;

		if (p == end && w->depth > 0) {
			leave(w);
			message = w->message;
			end = w->end;
			continue;
		}
		if (limit - p < 2 || end - p < 2)
			break;
		shortcut = message->shortcuts[p[0]];
		len = p[1];
		if (shortcut == SHORTCUT_BYTES) {
			if (len >= 0x80 || len > (size_t)(MIN(end, limit) - begin) ||
			    !ascii(begin, len, limit - begin))
				break;
			p = begin + len;
			continue;
		}
		if (shortcut == SHORTCUT_NONE)
			break;
		if (len >= 0x80) {
			if (begin >= limit || begin >= end || *begin >= 0x80)
				break;
			len = (len & 0x7f) | (size_t)*begin++ << 7;
		}
		if (len > (size_t)(end - begin))
			break;
		if (w->depth == 0)
			note_outer(w, p, p[0] >> 3, begin + len);
		if (len == 0 && w->depth < REPORT_DEPTH_MAX) {
			w->info.packages += shortcut == SHORTCUT_PACKAGE;
			p = begin;
			continue;
		}
		if (enter(w, &schema[message->fields[p[0] >> 3].child], begin + len))
			break;
		w->info.packages += shortcut == SHORTCUT_PACKAGE;
		p = begin;
		message = w->message;
		end = w->end;
	}
	return p;
}

/* Walks over all fields that are there. Returns NULL at the end of the report, need_more, or why it
 * is malformed. */
static const char *walk(struct report_check *w)
{
	const uint8_t *p = w->at;
	const char *what;

	for (;;) {
		p = take_shortcuts(w, p);
		w->at = p;
		if (p == w->end)
			return NULL; /* of the whole: it would have left a message */
		if (p >= w->there)
			return need_more;
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

void report_check_begin(struct report_check *w, const uint8_t *data, size_t max)
{
	if (n_schema == 0)
		schema_build();
	/* Not an initialiser: that would clear the parents too. */
	memset(w, 0, offsetof(struct report_check, parents));
	w->data = w->at = w->there = data;
	w->end = data + max;
	w->message = &schema[0];
}

void report_check_more(struct report_check *w, size_t have)
{
	const char *what;

	w->there = w->data + have;
	if (w->what)
		return;
	what = walk(w);
	/* NULL: all of max is there. */
	w->what = what == need_more ? NULL : what;
}

/* Now it is known where the report ends. What does not fit into it is malformed, before anything
 * that was found in it. */
static void end_walk(struct report_check *w, size_t len)
{
	const uint8_t *end = w->data + len;

	if (w->outer_end && w->outer_end > end) {
		w->what = "longer than the message around it";
		w->message = &schema[0];
		w->number = w->outer_number;
		w->field_at = w->outer_at;
		return;
	}
	if (w->depth > 0)
		w->parents[0].end = end;
	else
		w->end = end;
	report_check_more(w, len);
}

static void describe_malformed(const struct report_check *w, struct report_error *ret)
{
	*ret = (struct report_error){
		.what = w->what,
		.message = w->message->desc->name,
		.field = w->number,
		.offset = (size_t)(w->field_at - w->data),
	};
}

static void describe_mismatch(const struct report_check *w, struct report_error *ret)
{
	*ret = (struct report_error){
		.what = w->seen_vsock_cid ? "not the peer's CID" : "missing",
		.message = virtualmachine__v1__index_report__descriptor.name,
		.field = 1,
	};
	copy_claim(&w->info, ret->claimed_cid, sizeof(ret->claimed_cid));
}

int report_check_end(struct report_check *w, size_t len, uint32_t peer_cid,
		     struct report_error *error, struct report_info *ret)
{
	end_walk(w, len);
	if (w->what) {
		if (error)
			describe_malformed(w, error);
		return -EBADMSG;
	}
	if (!cid_matches(&w->info, peer_cid)) {
		if (error)
			describe_mismatch(w, error);
		return -ESRCH;
	}
	if (ret)
		*ret = w->info;
	return 0;
}

int report_validate(const uint8_t *data, size_t len, uint32_t peer_cid, struct report_error *error,
		    struct report_info *ret)
{
	struct report_check w;

	if (len == 0)
		data = (const uint8_t *)""; /* no arithmetic on NULL */
	report_check_begin(&w, data, len);
	return report_check_end(&w, len, peer_cid, error, ret);
}
