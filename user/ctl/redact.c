/* SPDX-License-Identifier: Apache-2.0 */
#include "redact.h"

#include <ctype.h>
#include <strings.h>

#define REMOVED "[removed]"

/* How much of p is a secret's introduction, such as "password: "; 0: none. */
static size_t introduction(const char *p)
{
	static const struct {
		const char *word;
		bool blank; /* a blank alone separates, too */
	} words[] = {
		{ "password", false }, { "passwd", false },	  { "secret", false },
		{ "token", false },    { "api-key", false },	  { "api_key", false },
		{ "apikey", false },   { "authorization", true }, { "bearer", true },
	};

	for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
		size_t n = strlen(words[i].word), blanks;

		if (strncasecmp(p, words[i].word, n) != 0)
			continue;
		n += p[n] == '"';
		blanks = strspn(p + n, " \t");
		if (p[n + blanks] == ':' || p[n + blanks] == '=') {
			n += blanks + 1;
			n += strspn(p + n, " \t\"'");
			return n;
		}
		if (words[i].blank && blanks > 0)
			return n + blanks;
	}
	return 0;
}

/* Length of the PEM block that p begins with; 0: none. A block without an end goes to the end. */
static size_t pem_block(const char *p)
{
	const char *end;

	if (strncmp(p, "-----BEGIN ", 11) != 0)
		return 0;
	end = strstr(p, "-----END ");
	end = end ? strstr(end + 9, "-----") : NULL;
	return end ? (size_t)(end + 5 - p) : strlen(p);
}

/* Length of "user:password@" behind "//"; 0: none. */
static size_t url_user(const char *p)
{
	size_t n = strcspn(p, "@/ \t\n\"'");

	return p[n] == '@' ? n : 0;
}

/* Also behind an underscore: db_password is a password. */
static bool begins_word(const char *text, const char *p)
{
	return p == text || !isalnum((unsigned char)p[-1]);
}

char *redact(const char *text)
{
	char *out = NULL;
	size_t len;
	FILE *f = open_memstream(&out, &len);
	bool failed;

	if (!f)
		return NULL;
	for (const char *p = text; *p;) {
		size_t n = pem_block(p);

		if (n > 0) {
			fputs(REMOVED, f);
			p += n;
			continue;
		}
		n = begins_word(text, p) ? introduction(p) : 0;
		if (n > 0) {
			fwrite(p, 1, n, f);
			p += n;
			/* "Authorization: Bearer x": the scheme is no secret, what follows is. */
			n = introduction(p);
			fwrite(p, 1, n, f);
			p += n;
			n = strcspn(p, " \t\r\n\"',;");
			if (n > 0)
				fputs(REMOVED, f);
			p += n;
			continue;
		}
		if (p[0] == '/' && p[1] == '/' && (n = url_user(p + 2)) > 0) {
			fputs("//" REMOVED, f);
			p += 2 + n;
			continue;
		}
		fputc(*p++, f);
	}
	failed = ferror(f);
	if (fclose(f) != 0 || failed) {
		free(out);
		return NULL;
	}
	return out;
}
