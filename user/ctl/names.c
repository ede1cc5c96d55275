/* SPDX-License-Identifier: Apache-2.0 */
#include "names.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

#define LINE_LEN	1024
#define COMMAND_LEN_MAX (256 * KIB)

static bool same_vm(struct vsr_vm_id a, struct vsr_vm_id b)
{
	return a.ns == b.ns && a.cid == b.cid;
}

static int parse_number(const char *text, size_t len, uint32_t *ret)
{
	uint64_t v = 0;

	if (len == 0 || len > 10)
		return -EINVAL;
	for (size_t i = 0; i < len; i++) {
		if (!isdigit((unsigned char)text[i]))
			return -EINVAL;
		v = 10 * v + (uint64_t)(text[i] - '0');
	}
	if (v > UINT32_MAX)
		return -EINVAL;
	*ret = (uint32_t)v;
	return 0;
}

int names_parse_id(const char *text, size_t len, uint32_t ns, struct vsr_vm_id *ret)
{
	const char *colon = memchr(text, ':', len);
	struct vsr_vm_id id = { .ns = ns };

	if (colon) {
		if (parse_number(text, (size_t)(colon - text), &id.ns) < 0)
			return -EINVAL;
		len -= (size_t)(colon + 1 - text);
		text = colon + 1;
	}
	if (parse_number(text, len, &id.cid) < 0)
		return -EINVAL;
	*ret = id;
	return 0;
}

static int add(struct names *names, struct vsr_vm_id id, const char *text, size_t len)
{
	struct name *e = reallocarray(names->entries, names->n + 1, sizeof(*e));

	if (!e)
		return -ENOMEM;
	names->entries = e;
	e += names->n++;
	e->id = id;
	len = MIN(len, (size_t)NAMES_LEN_MAX);
	memcpy(e->text, text, len);
	e->text[len] = '\0';
	/* It is shown on terminals. */
	for (char *p = e->text; *p; p++)
		if ((unsigned char)*p < 0x20 || *p == 0x7f)
			*p = '?';
	return 0;
}

static int add_line(struct names *names, char *line, uint32_t ns)
{
	struct vsr_vm_id id;
	size_t n;

	line[strcspn(line, "#\n")] = '\0';
	line += strspn(line, " \t\r");
	n = strcspn(line, " \t\r");
	if (n == 0)
		return 0;
	if (names_parse_id(line, n, ns, &id) < 0)
		return -EINVAL;
	line += n;
	line += strspn(line, " \t");
	n = strlen(line);
	while (n > 0 && isspace((unsigned char)line[n - 1]))
		n--;
	return n == 0 ? -EINVAL : add(names, id, line, n);
}

int names_read_file(struct names *names, const char *path, uint32_t ns, size_t *ret_line)
{
	_cleanup_fclose_ FILE *f = fopen(path, "re");
	char line[LINE_LEN];
	int r = 0;

	if (!f)
		return -errno;
	for (size_t n = 1; r == 0 && fgets(line, sizeof(line), f); n++) {
		r = add_line(names, line, ns);
		if (r < 0)
			*ret_line = n;
	}
	return r;
}

/* The CID behind guest-cid= or "guest-cid": of a -device. */
static int find_cid(const char *arg, uint32_t *ret)
{
	const char *p = strstr(arg, "guest-cid");

	if (!p)
		return -ENOENT;
	p += strlen("guest-cid");
	p += strspn(p, "\"=: ");
	return parse_number(p, strspn(p, "0123456789"), ret);
}

/* "-name web-1,process=x" or "-name guest=web-1,debug-threads=on". A comma in a name is doubled. */
static void read_name(const char *arg, char ret[static NAMES_LEN_MAX + 1])
{
	size_t n = 0;

	if (strncmp(arg, "guest=", 6) == 0)
		arg += 6;
	for (; *arg && n < NAMES_LEN_MAX; arg++) {
		if (*arg == ',' && *++arg != ',')
			break;
		ret[n++] = *arg;
	}
	ret[n] = '\0';
}

int names_add_command_line(struct names *names, const char *args, size_t len, uint32_t ns)
{
	char name[NAMES_LEN_MAX + 1] = "";
	struct vsr_vm_id id = { .ns = ns };
	bool has_cid = false;
	const char *previous = "";
	int r;

	for (size_t i = 0; i < len; i += strlen(args + i) + 1) {
		const char *arg = args + i;

		if (streq(previous, "-name") || streq(previous, "--name"))
			read_name(arg, name);
		else if (streq(previous, "-device") || streq(previous, "--device"))
			has_cid = has_cid || find_cid(arg, &id.cid) == 0;
		previous = arg;
	}
	if (!has_cid || !*name || names_find(names, id))
		return false;
	r = add(names, id, name, strlen(name));
	return r < 0 ? r : true;
}

/* The command line of a process, NUL-terminated. Returns its length, 0 if it cannot be read. */
static size_t read_command_line(int proc, const char *pid, char *buf, size_t size)
{
	_cleanup_close_ int fd = -1;
	char path[64];
	size_t len = 0;
	ssize_t n;

	snprintf(path, sizeof(path), "%.20s/cmdline", pid);
	fd = openat(proc, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	while (len < size - 1 && (n = read(fd, buf + len, size - 1 - len)) > 0)
		len += (size_t)n;
	buf[len] = '\0';
	return len;
}

/* Of the VMs of that process. */
static uint32_t ns_of_process(int proc, const char *pid, uint32_t ns,
			      const struct settings_listeners *listeners)
{
	struct stat own, there;
	char path[64];

	snprintf(path, sizeof(path), "%.20s/ns/net", pid);
	if (listeners->n == 0 || fstatat(proc, path, &own, 0) < 0)
		return ns;
	for (size_t i = 0; i < listeners->n; i++)
		if (stat(listeners->item[i].netns, &there) == 0 && there.st_ino == own.st_ino &&
		    there.st_dev == own.st_dev)
			return listeners->item[i].ns;
	return ns;
}

void names_scan_processes(struct names *names, const char *proc, uint32_t ns,
			  const struct settings_listeners *listeners)
{
	_cleanup_free_ char *args = malloc(COMMAND_LEN_MAX);
	DIR *d = args ? opendir(proc) : NULL;
	struct dirent *e;

	if (!d)
		return;
	while ((e = readdir(d))) {
		size_t len;

		if (!isdigit((unsigned char)e->d_name[0]))
			continue;
		len = read_command_line(dirfd(d), e->d_name, args, COMMAND_LEN_MAX);
		if (len > 0)
			(void)names_add_command_line(names, args, len,
						     ns_of_process(dirfd(d), e->d_name, ns,
								   listeners));
	}
	closedir(d);
}

const char *names_find(const struct names *names, struct vsr_vm_id id)
{
	for (size_t i = 0; i < names->n; i++)
		if (same_vm(names->entries[i].id, id))
			return names->entries[i].text;
	return NULL;
}

int names_lookup(const struct names *names, const char *text, struct vsr_vm_id *ret)
{
	const struct name *found = NULL;

	for (size_t i = 0; i < names->n; i++) {
		const struct name *e = &names->entries[i];

		if (!streq(e->text, text))
			continue;
		if (found && !same_vm(found->id, e->id))
			return -ENOTUNIQ;
		found = e;
	}
	if (!found)
		return -ENOENT;
	*ret = found->id;
	return 0;
}

struct names *names_free(struct names *names)
{
	if (names)
		free(names->entries);
	free(names);
	return NULL;
}
