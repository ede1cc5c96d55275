/* SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <fcntl.h>
#include <grp.h>
#include <inttypes.h>
#include <pwd.h>
#include <sys/capability.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "privilege.h"

/* More than any account on a sane system needs. */
#define LOOKUP_BUFFER_MAX (1024 * 1024)

/* ---- whom to become ---- */

/* All of text as a number that an account can have: (uid_t) -1 means "unchanged". */
static bool parse_id(const char *text, uint32_t *ret)
{
	unsigned long long v;
	char *end;

	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	v = strtoull(text, &end, 10);
	if (errno || *end || v >= UINT32_MAX)
		return false;
	*ret = (uint32_t)v;
	return true;
}

struct account {
	char name[256];
	uid_t uid;
	gid_t gid;
};

/* One try with a buffer of that size: 0, -ERANGE if it is too small, -ESRCH, -errno. */
static int try_user(const char *user, char *buf, size_t size, struct account *ret)
{
	struct passwd pw, *found = NULL;
	uint32_t uid;
	int r;

	r = parse_id(user, &uid) ? getpwuid_r(uid, &pw, buf, size, &found)
				 : getpwnam_r(user, &pw, buf, size, &found);
	if (r != 0 && r != ENOENT)
		return -r;
	if (!found)
		return -ESRCH;
	ret->uid = found->pw_uid;
	ret->gid = found->pw_gid;
	snprintf(ret->name, sizeof(ret->name), "%s", found->pw_name);
	return 0;
}

static int try_group(const char *group, char *buf, size_t size, gid_t *ret)
{
	struct group gr, *found = NULL;
	int r = getgrnam_r(group, &gr, buf, size, &found);

	if (r != 0 && r != ENOENT)
		return -r;
	if (!found)
		return -ENOENT;
	*ret = found->gr_gid;
	return 0;
}

static int find_user(const char *user, struct account *ret)
{
	for (size_t size = 4096; size <= LOOKUP_BUFFER_MAX; size *= 4) {
		_cleanup_free_ char *buf = malloc(size);
		int r;

		if (!buf)
			return -ENOMEM;
		r = try_user(user, buf, size, ret);
		if (r != -ERANGE)
			return r;
	}
	return -ERANGE;
}

static int find_group(const char *group, gid_t *ret)
{
	uint32_t gid;

	if (parse_id(group, &gid)) {
		*ret = gid;
		return 0;
	}
	for (size_t size = 4096; size <= LOOKUP_BUFFER_MAX; size *= 4) {
		_cleanup_free_ char *buf = malloc(size);
		int r;

		if (!buf)
			return -ENOMEM;
		r = try_group(group, buf, size, ret);
		if (r != -ERANGE)
			return r;
	}
	return -ERANGE;
}

int privilege_resolve(const char *user, const char *group, struct privilege_identity *ret)
{
	struct privilege_identity id = {};
	struct account account = {};
	uint32_t number;
	int r;

	r = find_user(user, &account);
	if (r == -ESRCH && *group && parse_id(user, &number))
		account.uid = number;
	else if (r < 0)
		return r;
	if (*group) {
		r = find_group(group, &account.gid);
		if (r < 0)
			return r;
	}
	id.uid = account.uid;
	id.gid = account.gid;
	if (*account.name) {
		id.n_groups = PRIVILEGE_GROUPS_MAX;
		if (getgrouplist(account.name, account.gid, id.groups, &id.n_groups) < 0)
			return -E2BIG;
	}
	*ret = id;
	return 0;
}

int privilege_add_group(struct privilege_identity *id, const char *group)
{
	gid_t gid;
	int r;

	r = find_group(group, &gid);
	if (r < 0)
		return r;
	for (int i = 0; i < id->n_groups; i++)
		if (id->groups[i] == gid)
			return 0;
	if (id->n_groups == PRIVILEGE_GROUPS_MAX)
		return -E2BIG;
	id->groups[id->n_groups++] = gid;
	return 0;
}

/* ---- the drop ---- */

static int cap_freep(cap_t *c)
{
	return *c ? cap_free(*c) : 0;
}

static bool has_capability(cap_value_t cap)
{
	_cleanup_(cap_freep)
	cap_t caps = cap_get_proc();
	cap_flag_value_t value = CAP_CLEAR;

	return caps && cap_get_flag(caps, cap, CAP_EFFECTIVE, &value) == 0 && value == CAP_SET;
}

/* Without /proc nobody can tell; then the caller's word is taken. */
static bool has_threads(void)
{
	DIR *dir = opendir("/proc/self/task");
	unsigned int n = 0;

	if (!dir)
		return false;
	for (struct dirent *e; (e = readdir(dir));)
		n += e->d_name[0] != '.';
	closedir(dir);
	return n > 1;
}

static int clear_bounding_set(void)
{
	for (cap_value_t cap = 0; CAP_IS_SUPPORTED(cap); cap++)
		if (cap_drop_bound(cap) < 0)
			return -errno;
	return 0;
}

static bool is_bounding_set_clear(void)
{
	for (cap_value_t cap = 0; CAP_IS_SUPPORTED(cap); cap++)
		if (cap_get_bound(cap) > 0)
			return false;
	return true;
}

static bool is_ambient_set_clear(void)
{
	for (cap_value_t cap = 0; CAP_AMBIENT_SUPPORTED() && CAP_IS_SUPPORTED(cap); cap++)
		if (cap_get_ambient(cap) == CAP_SET)
			return false;
	return true;
}

static int clear_capabilities(void)
{
	_cleanup_(cap_freep)
	cap_t none = cap_init();

	if (!none)
		return -ENOMEM;
	if (CAP_AMBIENT_SUPPORTED() && cap_reset_ambient() < 0)
		return -errno;
	/* Effective, permitted and inheritable at once. */
	return cap_set_proc(none) < 0 ? -errno : 0;
}

static bool are_capabilities_clear(void)
{
	_cleanup_(cap_freep)
	cap_t none = cap_init(), now = cap_get_proc();

	return none && now && cap_compare(none, now) == 0;
}

static bool is_identity(const struct privilege_identity *id)
{
	uid_t uid[3];
	gid_t gid[3];

	if (getresuid(&uid[0], &uid[1], &uid[2]) < 0 || getresgid(&gid[0], &gid[1], &gid[2]) < 0)
		return false;
	for (size_t i = 0; i < 3; i++)
		if (uid[i] != id->uid || gid[i] != id->gid)
			return false;
	return true;
}

/* The kernel sorts the list; ours has no repeats that it would not have. */
static bool are_groups(const struct privilege_identity *id)
{
	gid_t now[PRIVILEGE_GROUPS_MAX];
	int n = getgroups(ARRAY_SIZE(now), now);

	if (n != id->n_groups)
		return false;
	for (int i = 0; i < n; i++) {
		bool found = false;

		for (int j = 0; j < id->n_groups && !found; j++)
			found = now[i] == id->groups[j];
		if (!found)
			return false;
	}
	return true;
}

/* Groups first: the user that we become may not change them. */
static int become(const struct privilege_identity *id)
{
	if (has_capability(CAP_SETGID)) {
		if (setgroups((size_t)id->n_groups, id->groups) < 0)
			return -errno;
		if (!are_groups(id))
			return -ENOTRECOVERABLE;
	}
	if (is_identity(id))
		return 0;
	if (setresgid(id->gid, id->gid, id->gid) < 0 || setresuid(id->uid, id->uid, id->uid) < 0)
		return -errno;
	return 0;
}

static bool has_no_core_dumps(void)
{
	struct rlimit core;

	return getrlimit(RLIMIT_CORE, &core) == 0 && core.rlim_cur == 0 && core.rlim_max == 0;
}

static int verify(const struct privilege_identity *id, bool bounding_set, bool core_dumps)
{

	if (id && !is_identity(id))
		return -ENOTRECOVERABLE;
	/* The test that counts: the way back is closed. */
	if (id && id->uid != 0 && setresuid((uid_t)-1, 0, (uid_t)-1) == 0)
		return -ENOTRECOVERABLE;
	if (!are_capabilities_clear() || !is_ambient_set_clear() ||
	    (bounding_set && !is_bounding_set_clear()))
		return -ENOTRECOVERABLE;
	if (prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1)
		return -ENOTRECOVERABLE;
	return core_dumps || has_no_core_dumps() ? 0 : -ENOTRECOVERABLE;
}

int privilege_drop(const struct privilege_identity *id, bool core_dumps)
{
	static const struct rlimit no_core = { 0, 0 };
	bool bounding_set = has_capability(CAP_SETPCAP);
	int r;

	if (has_threads())
		return -EBUSY;
	if (!core_dumps && setrlimit(RLIMIT_CORE, &no_core) < 0)
		return -errno;
	if (bounding_set) {
		r = clear_bounding_set();
		if (r < 0)
			return r;
	}
	if (id) {
		r = become(id);
		if (r < 0)
			return r;
	}
	r = clear_capabilities();
	if (r < 0)
		return r;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return -errno;
	/* The change of the user took the dumps away, whatever the limit says (core(5)). */
	if (core_dumps && prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) < 0)
		return -errno;
	return verify(id, bounding_set, core_dumps);
}

int privilege_state(struct privilege_state *ret)
{
	_cleanup_fclose_ FILE *f = fopen("/proc/self/status", "re");
	struct privilege_state s = {};
	unsigned int uid = 0, gid = 0, no_new_privs = 0, seccomp = 0;
	const struct {
		const char *format;
		void *to;
	} fields[] = {
		{ "Uid: %*u %u", &uid },
		{ "Gid: %*u %u", &gid },
		{ "CapInh: %" SCNx64, &s.inheritable },
		{ "CapPrm: %" SCNx64, &s.permitted },
		{ "CapEff: %" SCNx64, &s.effective },
		{ "CapBnd: %" SCNx64, &s.bounding },
		{ "CapAmb: %" SCNx64, &s.ambient },
		{ "NoNewPrivs: %u", &no_new_privs },
		{ "Seccomp: %u", &seccomp },
	};
	size_t n = 0;
	char line[256];

	if (!f)
		return -errno;
	/* In the order of the file. A kernel without seccomp has no line of it, which is the last. */
	while (n < ARRAY_SIZE(fields) && fgets(line, sizeof(line), f))
		n += sscanf(line, fields[n].format, fields[n].to) == 1;
	if (n + 1 < ARRAY_SIZE(fields))
		return -EBADMSG;
	s.uid = uid;
	s.gid = gid;
	s.no_new_privs = no_new_privs;
	s.seccomp = (int)seccomp;
	*ret = s;
	return 0;
}

int privilege_make_directory(int at, const char *name, mode_t mode, uid_t uid, gid_t gid, int *ret)
{
	bool made = mkdirat(at, name, mode) == 0;
	_cleanup_close_ int fd = -1;
	int r;

	if (!made && errno != EEXIST)
		return -errno;
	fd = openat(at, name,
		    O_RDONLY | O_DIRECTORY | O_CLOEXEC | (at == AT_FDCWD ? 0 : O_NOFOLLOW));
	if (fd < 0 || (made && fchown(fd, uid, gid) < 0)) {
		r = -errno;
		if (made)
			(void)unlinkat(at, name, AT_REMOVEDIR);
		return r;
	}
	*ret = TAKE_FD(fd);
	return 0;
}

int privilege_check_readable(const char *const *paths, const char **ret_path)
{
	for (; *paths; paths++) {
		_cleanup_close_ int fd = -1;

		if (!**paths)
			continue;
		fd = open(*paths, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
		if (fd < 0) {
			*ret_path = *paths;
			return -errno;
		}
	}
	return 0;
}
