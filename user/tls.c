/* SPDX-License-Identifier: Apache-2.0 */
#include "tls.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>
#include <xxhash.h>

#include "log.h"

/* A file beyond this is none of ours. */
#define PEM_MAX (1 * MIB)

struct pem {
	const char *path;
	char *text;
	size_t len;
};

static void pem_done(struct pem *p)
{
	/* It may be a private key. */
	if (p->text)
		OPENSSL_cleanse(p->text, p->len);
	free(p->text);
	p->text = NULL;
}

static int pem_read(struct pem *p, const char *path)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat st;

	p->path = path;
	if (fd < 0 || fstat(fd, &st) < 0)
		return log_error_errno(errno, "cannot read %s", path);
	if (!S_ISREG(st.st_mode) || st.st_size > (off_t)PEM_MAX)
		return log_error_errno(-EINVAL, "%s is no PEM file", path);
	p->text = calloc(1, (size_t)st.st_size + 1);
	if (!p->text)
		return -ENOMEM;
	while (p->len < (size_t)st.st_size) {
		ssize_t n = read(fd, p->text + p->len, (size_t)st.st_size - p->len);

		if (n < 0)
			return log_error_errno(errno, "cannot read %s", path);
		if (n == 0)
			break;
		p->len += (size_t)n;
	}
	return 0;
}

/* No key of ours has a password, and nobody is there to be asked. */
static int no_password(char *buf _unused_, int size _unused_, int writing _unused_,
		       void *userdata _unused_)
{
	return -1;
}

static int bad(const struct pem *p, const char *what)
{
	char text[160] = "";
	unsigned long e = ERR_peek_last_error();

	if (e)
		ERR_error_string_n(e, text, sizeof(text));
	ERR_clear_error();
	log_error("%s: %s%s%s", p->path, what, *text ? ": " : "", text);
	return -EINVAL;
}

/* Calls f with every certificate of the file; returns how many, or a negative errno. */
static int each_certificate(const struct pem *p, int (*f)(X509 *, int i, SSL_CTX *), SSL_CTX *c)
{
	BIO *bio = BIO_new_mem_buf(p->text, (int)p->len);
	int n = 0, r = 0;
	X509 *x;

	if (!bio)
		return -ENOMEM;
	while (r == 0 && (x = PEM_read_bio_X509(bio, NULL, no_password, NULL))) {
		r = f(x, n++, c);
		X509_free(x);
	}
	BIO_free(bio);
	/* The end of the file is an error to OpenSSL. */
	if (r == 0 && n > 0)
		ERR_clear_error();
	return r < 0 ? r : n;
}

static int add_ca(X509 *x, int i _unused_, SSL_CTX *c)
{
	return X509_STORE_add_cert(SSL_CTX_get_cert_store(c), x) ? 0 : -EINVAL;
}

static int add_own(X509 *x, int i, SSL_CTX *c)
{
	int ok = i == 0 ? SSL_CTX_use_certificate(c, x) : (int)SSL_CTX_add1_chain_cert(c, x);

	return ok ? 0 : -EINVAL;
}

static int use_ca(SSL_CTX *c, const struct pem *ca)
{
	int n = each_certificate(ca, add_ca, c);

	return n > 0 ? 0 : n == -ENOMEM ? n : bad(ca, "no CA certificate");
}

static int use_pair(SSL_CTX *c, const struct pem *certificate, const struct pem *key)
{
	int n = each_certificate(certificate, add_own, c);
	EVP_PKEY *pkey;
	BIO *bio;
	int ok;

	if (n <= 0)
		return n == -ENOMEM ? n : bad(certificate, "no certificate");
	bio = BIO_new_mem_buf(key->text, (int)key->len);
	if (!bio)
		return -ENOMEM;
	pkey = PEM_read_bio_PrivateKey(bio, NULL, no_password, NULL);
	BIO_free(bio);
	if (!pkey)
		return bad(key, "no private key");
	ok = SSL_CTX_use_PrivateKey(c, pkey) && SSL_CTX_check_private_key(c);
	EVP_PKEY_free(pkey);
	if (ok)
		return 0;
	bad(key, "is not the key of the certificate");
	return -EKEYREJECTED;
}

static int context_new(const struct pem *pem, SSL_CTX **ret)
{
	static const unsigned char alpn[] = { 2, 'h', '2' };
	_cleanup_(tls_context_freep)
	SSL_CTX *c = SSL_CTX_new(TLS_client_method());
	int r;

	if (!c || !SSL_CTX_set_min_proto_version(c, TLS1_2_VERSION) ||
	    SSL_CTX_set_alpn_protos(c, alpn, sizeof(alpn)) != 0)
		return -ENOMEM;
	SSL_CTX_set_verify(c, SSL_VERIFY_PEER, NULL);
	SSL_CTX_set_mode(c, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
				    SSL_MODE_RELEASE_BUFFERS);
	SSL_CTX_set_options(c, SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION);
	r = use_ca(c, &pem[0]);
	if (r == 0 && pem[1].text)
		r = use_pair(c, &pem[1], &pem[2]);
	if (r < 0)
		return r;
	*ret = TAKE_PTR(c);
	return 0;
}

int tls_context_new(const struct tls_files *files, SSL_CTX **ret, uint64_t *ret_digest)
{
	struct pem pem[3] = { 0 };
	uint64_t digest = 0;
	int r;

	ERR_clear_error();
	r = pem_read(&pem[0], files->ca);
	if (r == 0 && *files->certificate) {
		r = pem_read(&pem[1], files->certificate);
		if (r == 0)
			r = pem_read(&pem[2], files->key);
	}
	if (r == 0)
		r = context_new(pem, ret);
	for (size_t i = 0; i < ARRAY_SIZE(pem); i++) {
		if (pem[i].text)
			digest = XXH64(pem[i].text, pem[i].len, digest + i);
		pem_done(&pem[i]);
	}
	if (r == 0)
		*ret_digest = digest;
	return r;
}

static int check_pair(const struct pem *certificate, const struct pem *key)
{
	_cleanup_(tls_context_freep)
	SSL_CTX *c = SSL_CTX_new(TLS_server_method());

	return c ? use_pair(c, certificate, key) : -ENOMEM;
}

int tls_pair_read(const char *certificate, const char *key, struct tls_pair *ret)
{
	struct pem c = { 0 }, k = { 0 };
	int r;

	ERR_clear_error();
	r = pem_read(&c, certificate);
	if (r == 0)
		r = pem_read(&k, key);
	if (r == 0)
		r = check_pair(&c, &k);
	if (r == 0)
		*ret = (struct tls_pair){ TAKE_PTR(c.text), TAKE_PTR(k.text) };
	pem_done(&c);
	pem_done(&k);
	return r;
}

void tls_pair_done(struct tls_pair *p)
{
	if (p->key)
		OPENSSL_cleanse(p->key, strlen(p->key));
	free(p->key);
	free(p->certificate);
	*p = (struct tls_pair){ 0 };
}

static bool is_address(const char *name)
{
	struct in6_addr a;

	return inet_pton(AF_INET, name, &a) == 1 || inet_pton(AF_INET6, name, &a) == 1;
}

int tls_connection_new(SSL_CTX *context, int fd, const char *name, SSL **ret)
{
	SSL *ssl = SSL_new(context);
	int ok;

	if (!ssl)
		return -ENOMEM;
	if (is_address(name)) {
		ok = X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl), name);
	} else {
		SSL_set_hostflags(ssl, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
		ok = SSL_set1_host(ssl, name) && SSL_set_tlsext_host_name(ssl, name);
	}
	if (!ok || !SSL_set_fd(ssl, fd)) {
		SSL_free(ssl);
		ERR_clear_error();
		return -ENOMEM;
	}
	SSL_set_connect_state(ssl);
	*ret = ssl;
	return 0;
}

bool tls_is_h2(const SSL *ssl)
{
	const unsigned char *protocol;
	unsigned int len;

	SSL_get0_alpn_selected(ssl, &protocol, &len);
	return len == 2 && memcmp(protocol, "h2", 2) == 0;
}

/* It told us which CAs it takes, and we had nothing to show. Not all servers that ask do tell. */
static bool asks_for_certificate(const SSL *ssl)
{
	const STACK_OF(X509_NAME) *names = SSL_get0_peer_CA_list(ssl);

	return !SSL_get_certificate(ssl) && names && sk_X509_NAME_num(names) > 0;
}

void tls_why(const SSL *ssl, int r, char *buf, size_t size)
{
	int saved = errno, error = SSL_get_error(ssl, r);
	long verify = SSL_get_verify_result(ssl);
	unsigned long e = ERR_peek_last_error();
	bool eof =
		error == SSL_ERROR_ZERO_RETURN ||
		(error == SSL_ERROR_SSL && ERR_GET_REASON(e) == SSL_R_UNEXPECTED_EOF_WHILE_READING);

	if (eof && asks_for_certificate(ssl))
		snprintf(buf, size, "closed by the server, which asks for a certificate of ours");
	else if (eof)
		snprintf(buf, size, "connection closed by the server");
	else if (verify != X509_V_OK)
		snprintf(buf, size, "the server's certificate: %s",
			 X509_verify_cert_error_string(verify));
	else if (error == SSL_ERROR_SYSCALL && e == 0)
		snprintf(buf, size, "%s", saved ? strerror(saved) : "connection closed");
	else
		snprintf(buf, size, "TLS: %s", e ? ERR_reason_error_string(e) : "failed");
	ERR_clear_error();
}
