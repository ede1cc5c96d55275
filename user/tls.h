/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a TLS client of ours is allowed to do (SPEC 8): TLS 1.2 and up, ALPN h2, the server's
 * certificate checked against our CA and its name, ours shown only as a pair of certificate and
 * key that match. The files are read whole and at once, so that a set that is being replaced
 * is noticed and never mixed.
 */
#ifndef VSR_TLS_H
#define VSR_TLS_H

#include <openssl/ssl.h>

#include "util.h"

/* Paths of PEM files; certificate and key are both "" where the server asks for none. */
struct tls_files {
	const char *ca, *certificate, *key;
};

/* Reads the files. *ret_digest names their content: equal digests, equal files. What is wrong is
 * logged. Returns 0; -EINVAL: not what they should be; -EKEYREJECTED: certificate and key are no
 * pair; -ENOMEM; what open() and read() return. */
int tls_context_new(const struct tls_files *files, SSL_CTX **ret, uint64_t *ret_digest);
static inline SSL_CTX *tls_context_free(SSL_CTX *c)
{
	SSL_CTX_free(c);
	return NULL;
}
DEFINE_CLEANUP(SSL_CTX, tls_context_free);

/* PEM texts of a certificate (with its chain) and its key, for a server of ours. */
struct tls_pair {
	char *certificate, *key;
};
/* Reads both files and makes sure that they belong together. What is wrong is logged.
 * Returns 0, and as above. */
int tls_pair_read(const char *certificate, const char *key, struct tls_pair *ret);
void tls_pair_done(struct tls_pair *p);

/* A connection over fd, ready for SSL_connect(), to a server that must be called name (an address
 * is one, too). Returns 0, -ENOMEM. */
int tls_connection_new(SSL_CTX *context, int fd, const char *name, SSL **ret);

/* Whether the server agreed to HTTP/2. */
bool tls_is_h2(const SSL *ssl);

/* Why the last call on ssl failed, which returned r, in words; it also empties OpenSSL's queue of
 * errors. */
void tls_why(const SSL *ssl, int r, char *buf, size_t size);

#endif
