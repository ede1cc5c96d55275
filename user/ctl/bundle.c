/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vsock-relayctl bundle: what a helper would ask for, in one tar archive. No report, no key and no
 * certificate is in it; what is text is gone through for secrets besides (redact.h).
 */
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>

#include "client.h"
#include "commands.h"
#include "doctor.h"
#include "maps.h"
#include "redact.h"
#include "settings.h"

#define BLOCK	 512
#define TEXT_MAX (8 * MIB)

struct bundle {
	struct ctl *ctl;
	FILE *f;
	char name[64]; /* folder within the archive */
	json_t *files;
	bool failed;
};

/* ---- the archive: POSIX ustar -------------------------------------------------------------------- */

static void write_header(struct bundle *b, const char *name, size_t size)
{
	char h[BLOCK] = { 0 };
	unsigned int sum = 0;

	snprintf(h, 100, "%s/%s", b->name, name);
	snprintf(h + 100, 8, "%07o", 0600);
	snprintf(h + 108, 8, "%07o", 0);
	snprintf(h + 116, 8, "%07o", 0);
	snprintf(h + 124, 12, "%011o", (unsigned int)size); /* below 4 GiB */
	snprintf(h + 136, 12, "%011o", (unsigned int)time(NULL));
	memset(h + 148, ' ', 8); /* the checksum counts itself as blanks */
	h[156] = '0';
	memcpy(h + 257, "ustar\00000", 8);
	snprintf(h + 265, 32, "root");
	snprintf(h + 297, 32, "root");
	for (size_t i = 0; i < BLOCK; i++)
		sum += (unsigned char)h[i];
	snprintf(h + 148, 8, "%06o", sum & 0777777U);
	b->failed |= fwrite(h, 1, BLOCK, b->f) != BLOCK;
}

static void write_padding(struct bundle *b, size_t n)
{
	static const char zeros[2 * BLOCK];

	b->failed |= fwrite(zeros, 1, n, b->f) != n;
}

/* Adds a file of this text, without its secrets. */
static void add(struct bundle *b, const char *name, const char *text)
{
	_cleanup_free_ char *clean = redact(text);
	size_t len;

	if (!clean) {
		b->failed = true;
		return;
	}
	len = strlen(clean);
	write_header(b, name, len);
	b->failed |= fwrite(clean, 1, len, b->f) != len;
	if (len % BLOCK)
		write_padding(b, BLOCK - len % BLOCK);
	json_array_append_new(b->files, json_string(name));
}

/* Takes the reference over. */
static void add_json(struct bundle *b, const char *name, json_t *value)
{
	_cleanup_free_ char *text = value ? json_dumps(value, JSON_INDENT(1) | JSON_ENCODE_ANY |
								      JSON_REAL_PRECISION(12))
					  : NULL;

	json_decref(value);
	add(b, name, text ? text : "not to be had\n");
}

/* ---- what is in it ------------------------------------------------------------------------------- */

static void add_version(struct bundle *b)
{
	char text[1024], now[64];
	time_t t = time(NULL);
	struct utsname u;
	struct tm tm;

	uname(&u);
	strftime(now, sizeof(now), "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&t, &tm));
	snprintf(text, sizeof(text), "vsock-relayctl %s, map layout %d\n%s %s %s %s\n%s\n",
		 VSR_VERSION, VSR_ABI_VERSION, u.sysname, u.release, u.version, u.machine, now);
	add(b, "version.txt", text);
}

/* As they are in force, key by key: comments of the file may hold anything. */
static void add_settings(struct bundle *b)
{
	struct settings_key_info key;
	char *text = NULL;
	size_t len;
	FILE *f = open_memstream(&text, &len);

	if (!f)
		return;
	for (size_t i = 0; settings_key(i, &key); i++) {
		_cleanup_free_ char *value = settings_value(b->ctl->settings, i);

		fprintf(f, "%s: %s\n", key.name, value ? value : "?");
	}
	if (b->ctl->errors->n > 0)
		fprintf(f, "\n");
	for (size_t i = 0; i < b->ctl->errors->n; i++)
		fprintf(f, "# %s\n", b->ctl->errors->message[i].text);
	if (fclose(f) == 0)
		add(b, "settings.txt", text);
	free(text);
}

static void add_page(struct bundle *b, const char *name, const char *page)
{
	_cleanup_free_ char *body = NULL;
	char why[512];
	int r = *b->ctl->socket ? client_request(b->ctl->socket, "GET", page, &body)
				: -EDESTADDRREQ;

	add(b, name, r < 0 ? ctl_why(b->ctl, r, why, sizeof(why)) : body);
}

static void add_vms(struct bundle *b)
{
	json_t *list = NULL;
	char why[1024];

	if (ctl_vms_from(b->ctl, NULL, &list, why, sizeof(why)) < 0)
		add(b, "vms.json", why);
	else
		add_json(b, "vms.json", list);
}

static void add_maps(struct bundle *b)
{
	json_t *list = json_array();
	uint32_t layout = 0;
	char why[512];
	int r = maps_layout(b->ctl->pin_dir, &layout);

	if (r == 0)
		r = maps_describe(b->ctl->pin_dir, list);
	if (r < 0) {
		json_decref(list);
		add(b, "maps.json", maps_why(b->ctl->pin_dir, r, why, sizeof(why)));
		return;
	}
	add_json(b, "maps.json",
		 json_pack("{s:I, s:o}", "layout", (json_int_t)layout, "maps", list));
}

/* What a command prints; it is not there on every machine. */
static void add_command(struct bundle *b, const char *name, char *const argv[])
{
	_cleanup_free_ char *text = malloc(TEXT_MAX);
	_cleanup_close_ int out = -1;
	size_t len = 0;
	ssize_t n;
	int fds[2];
	pid_t pid;

	if (!text || pipe2(fds, O_CLOEXEC) < 0)
		return;
	out = fds[0];
	fflush(b->f);
	pid = fork();
	if (pid == 0) {
		dup2(fds[1], STDOUT_FILENO);
		dup2(fds[1], STDERR_FILENO);
		execvp(argv[0], argv);
		dprintf(STDERR_FILENO, "%s: %s\n", argv[0], strerror(errno));
		_exit(127);
	}
	close(fds[1]);
	while (len < TEXT_MAX - 1 && (n = read(out, text + len, TEXT_MAX - 1 - len)) > 0)
		len += (size_t)n;
	text[len] = '\0';
	if (pid > 0)
		waitpid(pid, NULL, 0);
	add(b, name, text);
}

static void fill(struct bundle *b)
{
	static char *const journal[] = { (char *)"journalctl",
					 (char *)"-u",
					 (char *)"vsock-relayd",
					 (char *)"-n",
					 (char *)"2000",
					 (char *)"--no-pager",
					 (char *)"-o",
					 (char *)"short-iso-precise",
					 NULL };
	static char *const unit[] = {
		(char *)"systemctl",
		(char *)"show",
		(char *)"vsock-relayd",
		(char *)"--no-pager",
		(char *)"-p",
		(char *)"ActiveState,SubState,Result,NRestarts,ExecMainStatus,"
			"MemoryCurrent,ActiveEnterTimestamp",
		NULL
	};
	static char *const sockets[] = { (char *)"ss", (char *)"--vsock", (char *)"-a", NULL };
	unsigned int problems;

	add_version(b);
	add_settings(b);
	add_json(b, "doctor.json", doctor_examine(b->ctl, &problems));
	add_page(b, "status.json", "/status.json");
	add_page(b, "readyz.txt", "/readyz");
	add_page(b, "metrics.txt", "/metrics");
	add_page(b, "cache.json", "/cache.json");
	add_vms(b);
	add_maps(b);
	add_command(b, "journal.txt", journal);
	add_command(b, "unit.txt", unit);
	add_command(b, "sockets.txt", sockets);
	write_padding(b, 2 * BLOCK);
}

static int run_bundle(struct ctl *ctl, int argc, char *argv[])
{
	int r = ctl_check_args(ctl, argc, argv, 0, 1, "bundle [FILE]"), fd;
	struct bundle b = { .ctl = ctl };
	char path[4096], now[32];
	time_t t = time(NULL);
	struct tm tm;

	if (r != CTL_OK)
		return r;
	strftime(now, sizeof(now), "%Y%m%dT%H%M%SZ", gmtime_r(&t, &tm));
	snprintf(b.name, sizeof(b.name), "vsock-relay-%s", now);
	if (argc == 2)
		snprintf(path, sizeof(path), "%s", argv[1]);
	else
		snprintf(path, sizeof(path), "%s.tar", b.name);
	/* Never over something that is there, and for nobody else to read. */
	fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	b.f = fd < 0 ? NULL : fdopen(fd, "w");
	if (!b.f)
		return ctl_error(ctl, CTL_FAILED, "%s: %s", path, strerror(errno));
	b.files = json_array();
	fill(&b);
	if (fclose(b.f) != 0 || b.failed) {
		unlink(path);
		json_decref(b.files);
		return ctl_error(ctl, CTL_FAILED, "%s could not be written: %s", path,
				 strerror(errno));
	}
	if (ctl->json) {
		ctl_print_json(ctl, json_pack("{s:s, s:o}", "file", path, "contents", b.files));
		return CTL_OK;
	}
	printf("%s: %zu files. No report, key or certificate is in it; names of VMs and addresses "
	       "are.\n",
	       path, json_array_size(b.files));
	json_decref(b.files);
	return CTL_OK;
}

const struct ctl_command ctl_bundle_commands[] = {
	{ "", "[FILE]", "an archive (tar) for whoever helps, without secrets",
	  "      Settings, doctor, status, metrics, VMs, maps, the last lines of the journal. Default:\n"
	  "      vsock-relay-TIME.tar in this directory, mode 0600.\n",
	  run_bundle },
	{},
};
