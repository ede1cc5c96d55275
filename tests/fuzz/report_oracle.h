/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The validator held against protobuf-c's own unpack. The two must agree but for the differences
 * that user/report.h numbers, and those are looked for here, by a slow walk of its own that reads
 * a message as protobuf-c does: a report is valid if and only if protobuf-c unpacks it and the
 * walk finds none of them. Shared by the fuzzer and the unit test.
 */
#ifndef VSR_REPORT_ORACLE_H
#define VSR_REPORT_ORACLE_H

#include "report.h"
#include "virtualmachine/v1/report.pb-c.h"

/* The numbers of user/report.h. */
enum difference {
	DIFF_UTF8 = 1 << 1,
	DIFF_REPEAT = 1 << 2,
	DIFF_FIELD_NUMBER = 1 << 3,
	DIFF_VARINT = 1 << 4,
	DIFF_BOOL = 1 << 5,
	DIFF_DEPTH = 1 << 6,
};

struct oracle {
	unsigned differences;
	unsigned n_index_report, n_vsock_cid, n_discovered;
	const uint8_t *cid; /* the last one */
	size_t cid_len;
};

/* By decoding code points, unlike user/report.c, which compares byte ranges. */
static inline bool oracle_utf8(const uint8_t *s, size_t n)
{
	static const uint32_t least[] = { 0, 0x80, 0x800, 0x10000 };

	for (size_t i = 0; i < n;) {
		unsigned more = s[i] < 0x80   ? 0
				: s[i] < 0xc0 ? 9
				: s[i] < 0xe0 ? 1
				: s[i] < 0xf0 ? 2
					      : 3;
		uint32_t c;

		if (more > 3 || s[i] >= 0xf8 || i + more >= n)
			return false;
		c = more == 0 ? s[i] : s[i] & (0x3fU >> more);
		for (unsigned k = 1; k <= more; k++) {
			if ((s[i + k] & 0xc0) != 0x80)
				return false;
			c = c << 6 | (s[i + k] & 0x3f);
		}
		if (c < least[more] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000))
			return false;
		i += more + 1;
	}
	return true;
}

static inline const ProtobufCFieldDescriptor *oracle_field(const ProtobufCMessageDescriptor *desc,
							   uint64_t number)
{
	for (unsigned i = 0; i < desc->n_fields; i++)
		if (desc->fields[i].id == number)
			return &desc->fields[i];
	return NULL;
}

/* Bytes of the varint at p; the caller knows that it ends. The value's lowest 64 bits. */
static inline size_t oracle_varint(const uint8_t *p, uint64_t *ret)
{
	size_t n = 0;

	*ret = 0;
	do {
		if (n < 10)
			*ret |= (uint64_t)(p[n] & 0x7f) << 7 * n;
	} while (p[n++] & 0x80);
	return n;
}

static inline void oracle_walk(struct oracle *o, const ProtobufCMessageDescriptor *desc,
			       const uint8_t *p, size_t len, unsigned depth);

static inline void oracle_bytes(struct oracle *o, const ProtobufCMessageDescriptor *desc,
				const ProtobufCFieldDescriptor *f, const uint8_t *p, size_t len,
				unsigned depth)
{
	if (f->type == PROTOBUF_C_TYPE_STRING && !oracle_utf8(p, len))
		o->differences |= DIFF_UTF8;
	if (f->type == PROTOBUF_C_TYPE_BOOL)
		o->differences |= DIFF_BOOL;
	if (f->type == PROTOBUF_C_TYPE_INT32)
		for (size_t i = 0, n; i < len; i += n) {
			uint64_t v;

			n = oracle_varint(p + i, &v);
			if (n == 10 && p[i + 9] > 1)
				o->differences |= DIFF_VARINT;
		}
	if (desc == &virtualmachine__v1__vmreport__descriptor && f->id == 1 &&
	    o->n_index_report++ > 0)
		o->differences |= DIFF_REPEAT;
	if (desc == &virtualmachine__v1__vmreport__descriptor && f->id == 2)
		o->n_discovered++;
	if (desc == &virtualmachine__v1__index_report__descriptor && f->id == 1) {
		if (o->n_vsock_cid++ > 0)
			o->differences |= DIFF_REPEAT;
		o->cid = p;
		o->cid_len = len;
	}
	if (f->type == PROTOBUF_C_TYPE_MESSAGE)
		oracle_walk(o, f->descriptor, p, len, depth + 1);
}

/* Walks over a message that protobuf-c has unpacked: nothing in it is cut. */
static inline void oracle_walk(struct oracle *o, const ProtobufCMessageDescriptor *desc,
			       const uint8_t *p, size_t len, unsigned depth)
{
	const uint8_t *end = p + len;

	if (depth > REPORT_DEPTH_MAX)
		o->differences |= DIFF_DEPTH;
	while (p < end) {
		const ProtobufCFieldDescriptor *f;
		uint64_t tag, v;
		size_t n;

		p += oracle_varint(p, &tag);
		if (tag >> 3 == 0 || tag >> 3 >= 1 << 29)
			o->differences |= DIFF_FIELD_NUMBER;
		f = oracle_field(desc, tag >> 3);
		switch (tag & 7) {
		case 0:
			n = oracle_varint(p, &v);
			if (n == 10 && p[9] > 1)
				o->differences |= DIFF_VARINT;
			p += n;
			break;
		case 2:
			p += oracle_varint(p, &v);
			if (f)
				oracle_bytes(o, desc, f, p, v, depth);
			p += v;
			break;
		default:
			if (f && f->type == PROTOBUF_C_TYPE_BOOL)
				o->differences |= DIFF_BOOL;
			p += (tag & 7) == 1 ? 8 : 4;
		}
	}
}

/* The differences that may stand behind what the validator said. */
static inline unsigned oracle_expected(const char *what)
{
	static const struct {
		const char *what;
		unsigned differences;
	} table[] = {
		{ "string is not UTF-8", DIFF_UTF8 }, { "repeated", DIFF_REPEAT },
		{ "bad tag", DIFF_FIELD_NUMBER },     { "bad varint", DIFF_VARINT },
		{ "wrong wire type", DIFF_BOOL },     { "nested too deep", DIFF_DEPTH },
	};

	for (size_t i = 0; i < ARRAY_SIZE(table); i++)
		if (streq(table[i].what, what))
			return table[i].differences;
	return 0;
}

static inline bool oracle_same(const char *c_string, const char *s, size_t len)
{
	return strnlen(s ? s : "", len) < len || /* protobuf-c's strings end at a NUL */
	       (strlen(c_string) == len && (len == 0 || memcmp(c_string, s, len) == 0));
}

/* Why what a valid report says differs from what protobuf-c unpacked; NULL if it does not. */
static inline const char *oracle_compare_info(const Virtualmachine__V1__VMReport *m,
					      const struct oracle *o,
					      const struct report_info *info)
{
	const Virtualmachine__V1__IndexReport *index = m->index_report;
	const Scanner__V4__Contents *c = index->index_v4 ? index->index_v4->contents : NULL;
	const Virtualmachine__V1__DiscoveredData *d = m->discovered_data;

	if (!oracle_same(index->vm_id, info->vm_id, info->vm_id_len))
		return "vm_id differs";
	if (info->packages != (c ? c->n_packages : 0) ||
	    info->packages_deprecated != (c ? c->n_packages_deprecated : 0))
		return "number of packages differs";
	/* When protobuf-c merges a repeated message, it loses the earlier one's numbers. */
	if (o->n_discovered == 1 && (uint32_t)d->detected_os != info->detected_os)
		return "detected_os differs";
	if (d && !oracle_same(d->os_version, info->os_version, info->os_version_len))
		return "os_version differs";
	return NULL;
}

static inline bool oracle_same_text(const char *a, size_t a_len, const char *b, size_t b_len)
{
	return a == b && a_len == b_len;
}

/* Whether the two say the same, of the same report. */
static inline bool oracle_same_result(int r, const struct report_error *e,
				      const struct report_info *i, int r2,
				      const struct report_error *e2, const struct report_info *i2)
{
	if (r != r2)
		return false;
	if (r < 0)
		return streq(e->what, e2->what) && streq(e->message, e2->message) &&
		       e->field == e2->field && e->offset == e2->offset &&
		       streq(e->claimed_cid, e2->claimed_cid);
	return oracle_same_text(i->vsock_cid, i->vsock_cid_len, i2->vsock_cid, i2->vsock_cid_len) &&
	       oracle_same_text(i->vm_id, i->vm_id_len, i2->vm_id, i2->vm_id_len) &&
	       oracle_same_text(i->os_version, i->os_version_len, i2->os_version,
				i2->os_version_len) &&
	       i->detected_os == i2->detected_os && i->packages == i2->packages &&
	       i->packages_deprecated == i2->packages_deprecated;
}

/* Validates the report as it comes: in pieces of a length that is random up to `piece`, in an
 * allocation that ends with it, but of which only `max` is known. Each piece is written just before
 * it is announced, so that what is read too early is not what it will be. */
static inline const char *oracle_check_pieces(const uint8_t *data, size_t len, uint32_t cid,
					      size_t piece, size_t max, uint64_t random)
{
	struct report_error error = {}, error2 = {};
	struct report_info info = {}, info2 = {};
	struct report_check check;
	uint8_t *copy = malloc(MAX(len, (size_t)1));
	const char *problem = NULL;
	int r, r2;

	if (!copy)
		return "no memory";
	memset(copy, 0xff, len);
	report_check_begin(&check, copy, max);
	for (size_t have = 0; have < len;) {
		size_t n;

		random = random * 6364136223846793005ULL + 1442695040888963407ULL;
		n = MIN(1 + (size_t)(random >> 33) % piece, len - have);
		memcpy(copy + have, data + have, n);
		have += n;
		if (have < len || random >> 63)
			report_check_more(&check, have);
	}
	r = report_check_end(&check, len, cid, &error, &info);
	r2 = report_validate(copy, len, cid, &error2, &info2);
	if (!oracle_same_result(r, &error, &info, r2, &error2, &info2))
		problem = "what is said of the pieces is not what is said of the whole";
	free(copy);
	return problem;
}

/* The same with pieces of several sizes, chosen by the bytes themselves. */
static inline const char *oracle_check_splits(const uint8_t *data, size_t len, uint32_t cid)
{
	static const size_t pieces[] = { 1, 3, 40, 5000 };
	uint64_t random = len;
	const char *problem = NULL;

	for (size_t i = 0; i < MIN(len, (size_t)256); i++)
		random = random * 31 + data[i];
	for (size_t i = 0; i < ARRAY_SIZE(pieces) && !problem; i++)
		problem = oracle_check_pieces(data, len, cid, pieces[i],
					      len + (size_t)(random >> i & 3) * 100, random + i);
	return problem;
}

/* Validates the report both ways. Returns NULL if they agree, or what is wrong. */
static inline const char *oracle_check(const uint8_t *data, size_t len, uint32_t cid)
{
	struct report_error error = {};
	struct report_info info = {};
	struct oracle o = {};
	Virtualmachine__V1__VMReport *m;
	const char *problem = NULL;
	char canonical[16];
	bool cid_fits;
	int r;

	problem = oracle_check_splits(data, len, cid);
	if (problem)
		return problem;
	r = report_validate(data, len, cid, &error, &info);
	m = virtualmachine__v1__vmreport__unpack(NULL, len, data);
	if (!m)
		return r == -EBADMSG ? NULL : "protobuf-c refuses it, the validator does not";

	oracle_walk(&o, m->base.descriptor, data, len, 0);
	snprintf(canonical, sizeof(canonical), "%u", cid);
	cid_fits = o.cid_len == strlen(canonical) && memcmp(o.cid, canonical, o.cid_len) == 0;

	if (r == -EBADMSG && o.differences == 0)
		problem = "protobuf-c accepts it, the validator does not";
	else if (r == -EBADMSG && !(oracle_expected(error.what) & o.differences))
		problem = "refused for a reason that it does not have";
	else if (r == -EBADMSG && error.offset >= len)
		problem = "refused at an offset outside of it";
	else if (r != -EBADMSG && o.differences != 0)
		problem = "accepted in spite of a documented difference";
	else if (r != -EBADMSG && (r == 0) != cid_fits)
		problem = "wrong about the CID";
	else if (r == 0)
		problem = oracle_compare_info(m, &o, &info);
	virtualmachine__v1__vmreport__free_unpacked(m, NULL);
	return problem;
}

#endif
