/* SPDX-License-Identifier: Apache-2.0 */
#include "log_journal.h"

#include <inttypes.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <sys/uio.h>

/* Where in our source a line comes from is no news to an operator. */
#define SD_JOURNAL_SUPPRESS_LOCATION
#include <systemd/sd-journal.h>

#define FIELDS_MAX 8
#define FIELD_LEN  1200

bool log_journal_is_ours(void)
{
	const char *stream = getenv("JOURNAL_STREAM");
	unsigned long long dev, ino;
	struct stat st;

	return stream && sscanf(stream, "%llu:%llu", &dev, &ino) == 2 &&
	       fstat(STDERR_FILENO, &st) == 0 && st.st_dev == dev && st.st_ino == ino;
}

struct fields {
	char text[FIELDS_MAX][FIELD_LEN];
	struct iovec iov[FIELDS_MAX];
	int n;
};

static _printf_(2, 3) void add(struct fields *f, const char *fmt, ...)
{
	va_list ap;
	int len;

	va_start(ap, fmt);
	len = vsnprintf(f->text[f->n], FIELD_LEN, fmt, ap);
	va_end(ap);
	if (len < 0)
		return;
	f->iov[f->n].iov_base = f->text[f->n];
	f->iov[f->n].iov_len = MIN((size_t)len, (size_t)FIELD_LEN - 1);
	f->n++;
}

int log_journal_send(const struct log_entry *e)
{
	struct fields f = { .n = 0 };

	add(&f, "MESSAGE=%s", e->message);
	add(&f, "PRIORITY=%d", e->level);
	if (e->about.vm) {
		add(&f, "VSR_VM=%u:%u", e->about.vm->ns, e->about.vm->cid);
		add(&f, "VSR_NS=%u", e->about.vm->ns);
		add(&f, "VSR_CID=%u", e->about.vm->cid);
	}
	if (e->about.reason)
		add(&f, "VSR_REASON=%s", e->about.reason);
	if (e->about.generation)
		add(&f, "VSR_GENERATION=%" PRIu64, e->about.generation);
	if (e->about.held_back)
		add(&f, "VSR_HELD_BACK=%u", e->about.held_back);
	return sd_journal_sendv(f.iov, f.n);
}
