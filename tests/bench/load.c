/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Load for the bench: VMs that report as fast as they are served, over hybrid sockets or AF_VSOCK, and
 * the times that it takes.
 *
 *   load TARGET FIRST_CID VMS PACKAGES REPOSITORIES KIND MODE THREADS SECONDS OUTPUT PORT
 *
 * TARGET: a directory with sockets vm-<cid>_818, or "vsock": port 818 of the loopback, whose CID is 1.
 * KIND: distinct: each report is new; changed: its last one, but for 8 bytes in the middle; duplicate:
 * its last one. MODE: raw, vsr1 or vsr2. OUTPUT: the directory of the `file` upstream, or "-": nobody
 * stores anything. PORT: of the daemon's HTTP server, or 0.
 *
 * Each VM reports once before. Then it prints "ready" and waits for a line on its input; then THREADS
 * VMs at a time report for SECONDS, each again when its last report was stored. Prints JSON: reports,
 * bytes taken by the kernel, seconds; microseconds from connect to the file's being there
 * ("stored_us") and to the answer or the close ("ended_us"); and to the answer to an HTTP request
 * every 5 ms ("http_us"), which is how long the event loop was busy with something else.
 */
#include <arpa/inet.h>
#include <linux/vm_sockets.h>
#include <pthread.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <xxhash.h>

#include "../synthetic.h"
#include "vsr_frame.h"

#define MAX_VMS	    16384
#define MAX_SAMPLES 2000000
#define MAX_THREADS 64
#define TIMEOUT_S   20
#define HTTP_EVERY  5000 /* usec */

struct samples {
	pthread_mutex_t lock;
	uint32_t *usec;
	size_t n;
};

static struct samples stored = { .lock = PTHREAD_MUTEX_INITIALIZER },
		      ended = { .lock = PTHREAD_MUTEX_INITIALIZER },
		      http = { .lock = PTHREAD_MUTEX_INITIALIZER };

static const char *target, *output;
static unsigned first, vms, threads, http_port;
static uint32_t mode;
static bool duplicate, changed, over_vsock;
static volatile bool measuring, over;
static uint64_t deadline;
static uint64_t since[MAX_VMS]; /* when the VM connected whose report is not stored yet; 0: none */
static uint64_t reports, bytes, refused;

static _noreturn_ void die(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t now_usec(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * USEC_PER_SEC + (uint64_t)t.tv_nsec / 1000;
}

static void note(struct samples *s, uint64_t from)
{
	uint64_t usec = now_usec() - from;

	if (!measuring)
		return;
	pthread_mutex_lock(&s->lock);
	if (s->n < MAX_SAMPLES)
		s->usec[s->n++] = (uint32_t)MIN(usec, (uint64_t)UINT32_MAX);
	pthread_mutex_unlock(&s->lock);
}

/* ---- sending ------------------------------------------------------------------------------------- */

static int connect_to(unsigned cid)
{
	struct timeval limit = { .tv_sec = TIMEOUT_S };
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	struct sockaddr_vm vm = { .svm_family = AF_VSOCK,
				  .svm_cid = VMADDR_CID_LOCAL,
				  .svm_port = 818 };
	int fd = socket(over_vsock ? AF_VSOCK : AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		die("socket");
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	snprintf(un.sun_path, sizeof(un.sun_path), "%s/vm-%u_818", target, cid);
	if (over_vsock ? connect(fd, (struct sockaddr *)&vm, sizeof(vm)) < 0
		       : connect(fd, (struct sockaddr *)&un, sizeof(un)) < 0)
		die("connect");
	return fd;
}

/* Returns how many bytes the peer took. */
static size_t send_all(int fd, const uint8_t *p, size_t n)
{
	size_t sent = 0;

	while (sent < n) {
		ssize_t k = send(fd, p + sent, MIN(n - sent, 65536UL), MSG_NOSIGNAL);

		if (k < 0)
			break;
		sent += (size_t)k;
	}
	return sent;
}

static uint32_t answer(int fd)
{
	uint8_t p[VSR_ANSWER_SIZE];
	uint32_t status;

	if (recv(fd, p, sizeof(p), MSG_WAITALL) != sizeof(p) || vsr_answer_read(p, &status) < 0)
		return UINT32_MAX;
	return status;
}

/* Sends a report and waits for its answer, raw: for the relay to close. Returns bytes sent, and in
 * *ret_status the answer. */
static size_t send_report(int fd, const struct wire *w, uint32_t *ret_status)
{
	struct vsr_header h = { .mode = mode, .length = (uint32_t)w->len };
	uint8_t header[VSR_HEADER_SIZE];
	size_t sent;
	char end;

	if (mode == VSR_MODE_RAW) {
		sent = send_all(fd, w->data, w->len);
		shutdown(fd, SHUT_WR);
		while (recv(fd, &end, 1, 0) > 0)
			;
		*ret_status = VSR_STATUS_ACCEPTED;
		return sent;
	}
	h.xxh64 = XXH64(w->data, w->len, 0);
	vsr_header_write(header, &h);
	sent = send_all(fd, header, sizeof(header));
	*ret_status = mode == VSR_MODE_VSR2 ? answer(fd) : VSR_STATUS_GO_ON;
	if (*ret_status == VSR_STATUS_GO_ON) {
		sent += send_all(fd, w->data, w->len);
		*ret_status = answer(fd);
	}
	return sent;
}

/* ---- reports ------------------------------------------------------------------------------------- */

/* A thread's report, and where it is written over to make it another one. */
struct template
{
	struct wire w;
	char *cid, *id, *middle;
};

static char *find_from(const struct wire *w, size_t at, const char *text)
{
	char *p = memmem(w->data + at, w->len - at, text, strlen(text));

	if (!p)
		die(text);
	return p;
}

static void template_init(struct template *t, unsigned packages, unsigned repositories)
{
	char cid[16];

	snprintf(cid, sizeof(cid), "%u", first);
	synthetic_report(&t->w, cid, packages, repositories);
	t->id = find_from(&t->w, 0, SYNTHETIC_VM_ID);
	t->cid = memmem(t->w.data, 64, cid, strlen(cid));
	t->middle = find_from(&t->w, t->w.len / 2, "sha256:") + strlen("sha256:");
}

static void put_text(char *at, const char *format, unsigned a, unsigned b)
{
	char text[32];
	int n = snprintf(text, sizeof(text), format, a, b);

	memcpy(at, text, (size_t)n);
}

/* The report of a VM; number 0 is the one that all begin with. */
static void fill(struct template *t, unsigned cid, unsigned number)
{
	put_text(t->cid, "%u", cid, 0);
	put_text(t->id + 3, "%08u%08u", changed ? 0 : number, cid);
	if (changed)
		put_text(t->middle, "%08u", number, 0);
}

/* Waits until the VM's last report is stored. */
static void wait_stored(unsigned i)
{
	uint64_t until = now_usec() + TIMEOUT_S * USEC_PER_SEC;

	while (__atomic_load_n(&since[i], __ATOMIC_ACQUIRE) != 0) {
		if (now_usec() > until) {
			fprintf(stderr, "report of CID %u: not stored in time\n", first + i);
			exit(1);
		}
		usleep(50);
	}
}

static void one_report(struct template *t, unsigned i, unsigned number, bool is_stored)
{
	uint32_t status;
	uint64_t start;
	size_t sent;
	int fd;

	fill(t, first + i, number);
	wait_stored(i);
	start = now_usec();
	fd = connect_to(first + i);
	if (is_stored)
		__atomic_store_n(&since[i], start, __ATOMIC_RELEASE);
	sent = send_report(fd, &t->w, &status);
	close(fd);
	note(&ended, start);
	if (status > VSR_STATUS_NOTHING_TO_DO) {
		__atomic_fetch_add(&refused, 1, __ATOMIC_RELAXED);
		__atomic_store_n(&since[i], 0, __ATOMIC_RELEASE);
	}
	__atomic_fetch_add(&reports, 1, __ATOMIC_RELAXED);
	__atomic_fetch_add(&bytes, sent, __ATOMIC_RELAXED);
}

struct sender {
	pthread_t thread;
	struct template t;
	unsigned n; /* of all senders */
	unsigned number;
	bool prepares;
};

static void *run_sender(void *arg)
{
	struct sender *s = arg;
	bool stores = !streq(output, "-");

	if (s->prepares) {
		for (unsigned i = s->n; i < vms; i += threads)
			one_report(&s->t, i, 0, stores);
		return NULL;
	}
	while (now_usec() < deadline) {
		s->number++;
		for (unsigned i = s->n; i < vms && now_usec() < deadline; i += threads)
			one_report(&s->t, i, duplicate ? 0 : s->number, stores && !duplicate);
	}
	return NULL;
}

static void run_senders(struct sender *s, bool prepare)
{
	for (unsigned i = 0; i < threads; i++) {
		s[i].prepares = prepare;
		if (pthread_create(&s[i].thread, NULL, run_sender, &s[i]) != 0)
			die("thread");
	}
	for (unsigned i = 0; i < threads; i++)
		pthread_join(s[i].thread, NULL);
	for (unsigned i = 0; i < vms; i++)
		wait_stored(i);
}

/* ---- watching ------------------------------------------------------------------------------------ */

static void *watch_output(void *arg)
{
	static _Alignas(struct inotify_event) char events[65536];
	int fd = *(int *)arg;
	ssize_t n;

	while ((n = read(fd, events, sizeof(events))) > 0)
		for (ssize_t at = 0; at < n;) {
			struct inotify_event *e = (struct inotify_event *)(events + at);
			unsigned ns, cid;
			uint64_t start;

			at += (ssize_t)(sizeof(*e) + e->len);
			if (sscanf(e->name, "%u-%u.pb", &ns, &cid) != 2 || cid < first ||
			    cid >= first + vms)
				continue;
			start = __atomic_exchange_n(&since[cid - first], 0, __ATOMIC_ACQ_REL);
			if (start)
				note(&stored, start);
		}
	return NULL;
}

/* A page that is not there costs the daemon next to nothing. */
static void http_request(void)
{
	static const char request[] = "GET /nothing HTTP/1.0\r\n\r\n";
	struct sockaddr_in sa = { .sin_family = AF_INET,
				  .sin_port = htons((uint16_t)http_port),
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct timeval limit = { .tv_sec = 2 };
	uint64_t start = now_usec();
	char got[1024];
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		die("socket");
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) == 0 &&
	    send(fd, request, sizeof(request) - 1, MSG_NOSIGNAL) > 0 &&
	    recv(fd, got, sizeof(got), 0) > 0)
		note(&http, start);
	close(fd);
}

static void *watch_http(void *arg _unused_)
{
	while (!over) {
		http_request();
		usleep(HTTP_EVERY);
	}
	return NULL;
}

/* ---- results ------------------------------------------------------------------------------------- */

static int compare(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

static void print_samples(const char *name, struct samples *s)
{
	printf(", \"%s\": ", name);
	if (s->n == 0) {
		printf("null");
		return;
	}
	qsort(s->usec, s->n, sizeof(*s->usec), compare);
	printf("{\"p50\": %u, \"p99\": %u, \"max\": %u}", s->usec[s->n / 2],
	       s->usec[s->n * 99 / 100], s->usec[s->n - 1]);
}

static void allocate(struct samples *s)
{
	s->usec = malloc(MAX_SAMPLES * sizeof(*s->usec));
	if (!s->usec)
		die("malloc");
}

int main(int argc, char **argv)
{
	static struct sender senders[MAX_THREADS];
	pthread_t watcher;
	uint64_t start, end;
	double seconds;
	int fd;

	if (argc != 12) {
		fputs("usage: load TARGET FIRST_CID VMS PACKAGES REPOSITORIES KIND MODE THREADS "
		      "SECONDS OUTPUT PORT\n",
		      stderr);
		return 2;
	}
	target = argv[1];
	over_vsock = streq(target, "vsock");
	first = (unsigned)strtoul(argv[2], NULL, 10);
	vms = (unsigned)MIN(strtoul(argv[3], NULL, 10), (unsigned long)MAX_VMS);
	duplicate = streq(argv[6], "duplicate");
	changed = streq(argv[6], "changed");
	mode = streq(argv[7], "vsr2")	? VSR_MODE_VSR2
	       : streq(argv[7], "vsr1") ? VSR_MODE_VSR1
					: VSR_MODE_RAW;
	threads = (unsigned)MIN(strtoul(argv[8], NULL, 10), (unsigned long)MAX_THREADS);
	threads = MIN(threads, vms);
	seconds = strtod(argv[9], NULL);
	output = argv[10];
	http_port = (unsigned)strtoul(argv[11], NULL, 10);
	for (unsigned i = 0; i < threads; i++) {
		senders[i].n = i;
		template_init(&senders[i].t, (unsigned)strtoul(argv[4], NULL, 10),
			      (unsigned)strtoul(argv[5], NULL, 10));
	}
	allocate(&stored);
	allocate(&ended);
	allocate(&http);
	if (!streq(output, "-")) {
		fd = inotify_init1(IN_CLOEXEC);
		if (fd < 0 || inotify_add_watch(fd, output, IN_MOVED_TO) < 0 ||
		    pthread_create(&watcher, NULL, watch_output, &fd) != 0)
			die(output);
	}

	run_senders(senders, true);
	puts("ready");
	fflush(stdout);
	if (getchar() == EOF)
		return 1;
	reports = bytes = refused = 0;
	measuring = true;
	if (http_port && pthread_create(&watcher, NULL, watch_http, NULL) != 0)
		die("thread");
	start = now_usec();
	deadline = start + (uint64_t)(seconds * USEC_PER_SEC);
	run_senders(senders, false);
	end = now_usec();
	measuring = false;
	over = true;
	printf("{\"reports\": %llu, \"bytes\": %llu, \"refused\": %llu, \"seconds\": %.3f, "
	       "\"report_bytes\": %zu",
	       (unsigned long long)reports, (unsigned long long)bytes, (unsigned long long)refused,
	       (double)(end - start) / USEC_PER_SEC, senders[0].t.w.len);
	print_samples("stored_us", &stored);
	print_samples("ended_us", &ended);
	print_samples("http_us", &http);
	puts("}");
	return 0;
}
