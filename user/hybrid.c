/* SPDX-License-Identifier: Apache-2.0 */
#include "hybrid.h"

#include <dirent.h>
#include <fcntl.h>
#include <grp.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "log.h"
#include "privilege.h"
#include "vm.h"

/* A watched directory is also read again this often: a VM's directory may be made before the
 * directories in it, and an overflowing inotify queue tells nothing. */
#define RESCAN_USEC (5 * USEC_PER_SEC)
/* ... and this long after something moved there: one look for all that moves at once. */
#define SETTLE_USEC (20 * USEC_PER_MSEC)
/* Of one look in a turn of the loop, a few milliseconds; the rest follows after REST_USEC. */
#define LOOKS_PER_TURN 512 /* sockets that are looked at */
#define ADDS_PER_TURN  64  /* and that are made */
#define REST_USEC      (5 * USEC_PER_MSEC)
#define SOCKETS_MAX    VM_TABLE_MAX

struct hybrid_socket {
	struct list list;	  /* in hybrid.singles, or watch.sockets */
	struct vmmap_node by_cid; /* in watch.by_cid */
	struct listener *listener;
	struct hybrid_watch *watch; /* NULL: a single path */
	int dir_fd;		    /* of the directory that it is in */
	bool shares_dir_fd;	    /* it is the watch's */
	char *name;		    /* in that directory */
	char *vm_name;		    /* what carries the CID, in the watched directory */
	uint32_t cid;
	dev_t dev; /* of the socket that we made */
	ino_t ino;
};

/* A VM that cannot be listened for: said once, tried again with each look. */
struct hybrid_failure {
	struct list list;
	uint32_t cid;
	bool again; /* failed again in this look */
};

/* One pattern: DIR/PREFIX{cid}SUFFIX or DIR/PREFIX{cid}SUFFIX/REST. */
struct hybrid_watch {
	struct list list;
	struct hybrid *hybrid;
	int dir_fd;
	char *prefix, *suffix;
	char *rest; /* NULL: the component with the CID is the VMM's socket itself */
	char *path; /* the pattern, for the log */
	sd_event_source *inotify;
	struct list sockets; /* those already looked at are moved to the end */
	struct vmmap by_cid;
	size_t looked_at; /* of them, in a look that goes on */
	bool again;	  /* something moved since it began */
	struct list failures;
	bool full_told;
};

struct hybrid {
	sd_event *event;
	struct ingest *ingest;
	const struct settings *settings;
	sd_event_source *rescan;
	bool rescan_soon;
	uid_t service_uid; /* who makes sockets after the drop of privileges; (uid_t) -1: nobody */
	gid_t gid;	   /* (gid_t) -1: as it comes */
	struct list singles, watches;
	unsigned n_sockets;
};

/* ---- one socket ---------------------------------------------------------------------------------- */

static struct hybrid_socket *socket_free(struct hybrid_socket *s)
{
	struct stat st;

	if (!s)
		return NULL;
	listener_free(s->listener);
	if (s->name && s->ino && fstatat(s->dir_fd, s->name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
	    st.st_dev == s->dev && st.st_ino == s->ino)
		unlinkat(s->dir_fd, s->name, 0);
	if (!s->shares_dir_fd)
		safe_close(s->dir_fd);
	free(s->name);
	free(s->vm_name);
	free(s);
	return NULL;
}
DEFINE_CLEANUP(struct hybrid_socket, socket_free);

/* The address of a name beneath a directory descriptor: as long as the path may be, it fits. */
static int address(int dir_fd, const char *name, struct sockaddr_un *ret)
{
	int n;

	*ret = (struct sockaddr_un){ .sun_family = AF_UNIX };
	n = snprintf(ret->sun_path, sizeof(ret->sun_path), "/proc/self/fd/%d/%s", dir_fd, name);
	return n < 0 || (size_t)n >= sizeof(ret->sun_path) ? -ENAMETOOLONG : 0;
}

/* Removes a socket that a relay left behind when it was killed: it is one, it is ours, and nobody
 * listens. Returns 0; -EADDRINUSE if it is anything else. */
static int remove_stale(const struct hybrid *h, int dir_fd, const char *name,
			const struct sockaddr_un *sa)
{
	_cleanup_close_ int fd = -1;
	struct stat st;

	if (fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return errno == ENOENT ? 0 : -errno;
	if (!S_ISSOCK(st.st_mode) || (st.st_uid != geteuid() && st.st_uid != h->service_uid))
		return -EADDRINUSE;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	if (connect(fd, (const struct sockaddr *)sa, sizeof(*sa)) == 0 || errno != ECONNREFUSED)
		return -EADDRINUSE;
	return unlinkat(dir_fd, name, 0) < 0 ? -errno : 0;
}

/* Sets group and mode of the socket that we have just bound. The directory's owner may put
 * something else there at any moment, so it is held by a descriptor, looked at, and changed only
 * through that. */
static int set_access(const struct hybrid *h, int dir_fd, const char *name, struct stat *ret_st)
{
	_cleanup_close_ int fd = openat(dir_fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	char path[32];

	if (fd < 0 || fstat(fd, ret_st) < 0)
		return -errno;
	if (!S_ISSOCK(ret_st->st_mode) || ret_st->st_uid != geteuid())
		return -ESTALE;
	if (h->gid != (gid_t)-1 && fchownat(fd, "", (uid_t)-1, h->gid, AT_EMPTY_PATH) < 0)
		return -errno;
	/* fchmod() refuses O_PATH; the link in /proc leads to the same inode. */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return chmod(path, h->settings->hybrid.mode) < 0 ? -errno : 0;
}

/* Binds name beneath dir_fd and listens. */
static int bind_beneath(const struct hybrid *h, int dir_fd, const char *name, struct stat *ret_st,
			int *ret_fd)
{
	_cleanup_close_ int fd = -1;
	struct sockaddr_un sa;
	int r;

	r = address(dir_fd, name, &sa);
	if (r < 0)
		return r;
	r = remove_stale(h, dir_fd, name, &sa);
	if (r < 0)
		return r;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	if (bind(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0)
		return -errno;
	/* Nobody can connect before listen(), and so not before group and mode are right. */
	r = set_access(h, dir_fd, name, ret_st);
	if (r == 0 && listen(fd, (int)h->settings->listen.backlog) < 0)
		r = -errno;
	if (r < 0) {
		unlinkat(dir_fd, name, 0);
		return r;
	}
	*ret_fd = TAKE_FD(fd);
	return 0;
}

/* Listens on uds_name + "_PORT" beneath dir_fd, which is taken over unless it is the watch's. */
static int socket_add(struct hybrid *h, struct hybrid_watch *watch, int dir_fd,
		      const char *uds_name, const char *vm_name, uint32_t cid)
{
	bool shares_dir_fd = watch && dir_fd == watch->dir_fd;
	_cleanup_(socket_freep)
	struct hybrid_socket *s = NULL;
	struct stat st;
	int fd = -1, r;

	s = calloc(1, sizeof(*s));
	if (!s) {
		if (!shares_dir_fd)
			close(dir_fd);
		return -ENOMEM;
	}
	s->dir_fd = dir_fd;
	s->shares_dir_fd = shares_dir_fd;
	s->watch = watch;
	s->cid = cid;
	s->vm_name = strdup(vm_name);
	if (!s->vm_name || asprintf(&s->name, "%s_%u", uds_name, h->settings->listen.port) < 0) {
		s->name = NULL;
		return -ENOMEM;
	}
	r = bind_beneath(h, dir_fd, s->name, &st, &fd);
	if (r < 0)
		return r;
	s->dev = st.st_dev;
	s->ino = st.st_ino;
	r = listener_unix_new(h->event, h->ingest, fd,
			      (struct vsr_vm_id){ .ns = h->settings->ns, .cid = cid },
			      &h->settings->hybrid.allowed_uids, &s->listener);
	if (r < 0) {
		close(fd);
		return r;
	}
	log_info("listening on hybrid socket %s for VM %u:%u", s->name, h->settings->ns, cid);
	list_add_last(watch ? &watch->sockets : &h->singles, &s->list);
	if (watch)
		vmmap_add(&watch->by_cid, &s->by_cid, (struct vsr_vm_id){ .cid = cid });
	h->n_sockets++;
	TAKE_PTR(s);
	return 0;
}

static void socket_remove(struct hybrid *h, struct hybrid_socket *s)
{
	list_del(&s->list);
	if (s->watch)
		vmmap_remove(&s->watch->by_cid, &s->by_cid);
	h->n_sockets--;
	socket_free(s);
}

/* ---- patterns ------------------------------------------------------------------------------------ */

/* The CID that a name of the watched directory carries, in canonical decimal. */
static bool match_name(const struct hybrid_watch *w, const char *name, uint32_t *ret_cid)
{
	size_t prefix = strlen(w->prefix), suffix = strlen(w->suffix), n = strlen(name);
	uint64_t cid = 0;

	if (n <= prefix + suffix || strncmp(name, w->prefix, prefix) != 0 ||
	    !streq(name + n - suffix, w->suffix))
		return false;
	n -= prefix + suffix;
	name += prefix;
	if (n > 10 || (name[0] == '0' && n > 1))
		return false;
	for (size_t i = 0; i < n; i++) {
		if (name[i] < '0' || name[i] > '9')
			return false;
		cid = cid * 10 + (uint64_t)(name[i] - '0');
	}
	/* 0 to 2 and the last one are no guest's (vm_sockets.h). */
	if (cid <= 2 || cid >= UINT32_MAX)
		return false;
	*ret_cid = (uint32_t)cid;
	return true;
}

/* Opens a directory of dir_fd, not through a link. */
static int open_directory(int dir_fd, const char *name)
{
	struct stat st;
	int fd;

	if (streq(name, ".."))
		return -EINVAL;
	fd = openat(dir_fd, name, O_DIRECTORY | O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	if (fd >= 0)
		return fd;
	/* A link is no directory, says the kernel; we say that it is a link. */
	if (errno == ENOTDIR && fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
	    S_ISLNK(st.st_mode))
		return -ELOOP;
	return -errno;
}

/* Opens the directory of path beneath dir_fd, a component at a time, without following links;
 * *ret_name is path's last component. (openat2() would do it at once; valgrind lacks it.) */
static int open_beneath(int dir_fd, const char *path, int *ret_fd, const char **ret_name)
{
	_cleanup_close_ int fd = open_directory(dir_fd, ".");
	const char *slash;

	while (fd >= 0 && (slash = strchr(path, '/'))) {
		_cleanup_free_ char *name = strndup(path, (size_t)(slash - path));
		int next = name ? open_directory(fd, *name ? name : ".") : -ENOMEM;

		safe_close(fd);
		fd = next;
		path = slash + 1;
	}
	if (fd < 0)
		return fd;
	*ret_fd = TAKE_FD(fd);
	*ret_name = path;
	return 0;
}

/* Says it once for each VM. */
static void tell_failure(struct hybrid_watch *w, uint32_t cid, int error)
{
	struct hybrid_failure *f;

	list_for_each(n, &w->failures) {
		f = list_entry(n, struct hybrid_failure, list);
		if (f->cid == cid) {
			f->again = true;
			return;
		}
	}
	log_warning_errno(error, "cannot listen for VM %u in %s; will be tried again", cid,
			  w->path);
	f = calloc(1, sizeof(*f));
	if (!f)
		return;
	f->cid = cid;
	f->again = true;
	list_add_last(&w->failures, &f->list);
}

/* Forgets those that are gone, or all is well with. */
static void forget_failures(struct hybrid_watch *w, bool all)
{
	list_for_each_safe(n, &w->failures) {
		struct hybrid_failure *f = list_entry(n, struct hybrid_failure, list);

		if (!all && f->again) {
			f->again = false;
			continue;
		}
		list_del(&f->list);
		free(f);
	}
}

/* Whether a socket was made. */
static bool vm_appeared(struct hybrid_watch *w, const char *vm_name)
{
	_cleanup_free_ char *beneath = NULL;
	const char *uds_name = NULL;
	uint32_t cid;
	int fd = -1, r;

	/* A CID has one name: it is canonical. */
	if (!match_name(w, vm_name, &cid) ||
	    vmmap_find(&w->by_cid, (struct vsr_vm_id){ .cid = cid }))
		return false;
	if (w->hybrid->n_sockets >= SOCKETS_MAX) {
		if (!w->full_told)
			log_error("more than %u hybrid sockets: VM %u in %s is not served",
				  SOCKETS_MAX, cid, w->path);
		w->full_told = true;
		return false;
	}
	if (!w->rest) {
		r = socket_add(w->hybrid, w, w->dir_fd, vm_name, vm_name, cid);
	} else {
		if (asprintf(&beneath, "%s/%s", vm_name, w->rest) < 0) {
			beneath = NULL;
			return false;
		}
		r = open_beneath(w->dir_fd, beneath, &fd, &uds_name);
		if (r == 0)
			r = socket_add(w->hybrid, w, fd, uds_name, vm_name, cid);
	}
	/* What is not there yet is looked for again. */
	if (r < 0 && r != -ENOENT && r != -ENOTDIR)
		tell_failure(w, cid, r);
	return r == 0;
}

/* Whether the directory that the socket is in is still the one that its name leads to: a VM's
 * directory may have been replaced. Links need not be feared here, nothing is changed. */
static bool directory_current(const struct hybrid_watch *w, const struct hybrid_socket *s)
{
	const char *slash = w->rest ? strrchr(w->rest, '/') : NULL;
	_cleanup_free_ char *dir = NULL;
	struct stat now, ours;

	if (!w->rest)
		return true;
	if (asprintf(&dir, "%s/%.*s", s->vm_name, slash ? (int)(slash - w->rest) : 0, w->rest) <
	    0) {
		dir = NULL;
		return true;
	}
	return fstatat(w->dir_fd, dir, &now, 0) == 0 && fstat(s->dir_fd, &ours) == 0 &&
	       now.st_dev == ours.st_dev && now.st_ino == ours.st_ino;
}

/* Whether VM and socket are still there. */
static bool socket_current(const struct hybrid_watch *w, const struct hybrid_socket *s)
{
	struct stat st;

	return fstatat(w->dir_fd, s->vm_name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
	       directory_current(w, s) &&
	       fstatat(s->dir_fd, s->name, &st, AT_SYMLINK_NOFOLLOW) == 0 && st.st_ino == s->ino &&
	       st.st_dev == s->dev;
}

/* Who went: up to `max` sockets that were not looked at yet. Returns whether all were. */
static bool watch_look(struct hybrid_watch *w, size_t max)
{
	size_t n = MIN(max, w->by_cid.n - w->looked_at);

	for (; n > 0; n--) {
		struct hybrid_socket *s = list_first_entry(&w->sockets, struct hybrid_socket, list);

		if (socket_current(w, s)) {
			list_move_last(&w->sockets, &s->list);
			w->looked_at++;
			continue;
		}
		log_info("hybrid socket %s of VM %u:%u is gone", s->name, w->hybrid->settings->ns,
			 s->cid);
		socket_remove(w->hybrid, s);
	}
	return w->looked_at == w->by_cid.n;
}

/* Who came: up to `max` sockets are made. Returns whether there may be more. */
static bool watch_add_new(struct hybrid_watch *w, size_t max)
{
	int fd = openat(w->dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
	const struct dirent *e;

	if (!dir) {
		safe_close(fd);
		return false;
	}
	while (max > 0 && (e = readdir(dir)))
		max -= vm_appeared(w, e->d_name);
	closedir(dir);
	if (max > 0)
		forget_failures(w, false);
	return max == 0;
}

/* Who went first: one that came back under the same name is new. Returns when to call it next. */
static uint64_t watch_scan(struct hybrid_watch *w, size_t looks, size_t adds)
{
	if (w->looked_at == 0)
		w->again = false;
	if (!watch_look(w, looks) || watch_add_new(w, adds))
		return REST_USEC;
	w->looked_at = 0;
	return w->again ? SETTLE_USEC : RESCAN_USEC;
}

static int on_inotify(sd_event_source *source _unused_, const struct inotify_event *event _unused_,
		      void *userdata)
{
	struct hybrid_watch *w = userdata;
	struct hybrid *h = w->hybrid;

	w->again = true;
	if (!h->rescan_soon) {
		sd_event_source_set_time_relative(h->rescan, SETTLE_USEC);
		h->rescan_soon = true;
	}
	return 0;
}

static int on_rescan(sd_event_source *source, uint64_t usec _unused_, void *userdata)
{
	struct hybrid *h = userdata;
	uint64_t next = RESCAN_USEC;

	h->rescan_soon = false;
	list_for_each(n, &h->watches)
		next = MIN(next, watch_scan(list_entry(n, struct hybrid_watch, list),
					    LOOKS_PER_TURN, ADDS_PER_TURN));
	sd_event_source_set_time_relative(source, next);
	sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
	return 0;
}

static struct hybrid_watch *watch_free(struct hybrid_watch *w)
{
	if (!w)
		return NULL;
	sd_event_source_disable_unref(w->inotify);
	list_for_each_safe(n, &w->sockets)
		socket_remove(w->hybrid, list_entry(n, struct hybrid_socket, list));
	vmmap_done(&w->by_cid);
	safe_close(w->dir_fd);
	forget_failures(w, true);
	free(w->prefix);
	free(w->suffix);
	free(w->rest);
	free(w->path);
	free(w);
	return NULL;
}
DEFINE_CLEANUP(struct hybrid_watch, watch_free);

/* Splits the pattern (settings checked that it is absolute, and that "{cid}" is in it once, in one
 * component). */
static int watch_split(struct hybrid_watch *w, const char *path, char **ret_dir)
{
	static const char mark[] = "{cid}";
	const char *cid = strstr(path, mark), *start = cid, *end = cid + strlen(mark);

	while (start[-1] != '/')
		start--;
	w->prefix = strndup(start, (size_t)(cid - start));
	w->suffix = strndup(end, strcspn(end, "/"));
	end += strcspn(end, "/");
	w->rest = *end ? strdup(end + 1) : NULL;
	w->path = strdup(path);
	*ret_dir = strndup(path, (size_t)(start - path));
	return w->prefix && w->suffix && (w->rest || !*end) && w->path && *ret_dir ? 0 : -ENOMEM;
}

static int watch_add(struct hybrid *h, const struct settings_hybrid *config)
{
	_cleanup_(watch_freep)
	struct hybrid_watch *w = NULL;
	_cleanup_free_ char *dir = NULL;
	int r;

	w = calloc(1, sizeof(*w));
	if (!w)
		return log_error_errno(-ENOMEM, "hybrid sockets");
	w->hybrid = h;
	w->dir_fd = -1;
	list_init(&w->sockets);
	list_init(&w->failures);
	r = vmmap_init(&w->by_cid);
	if (r == 0)
		r = watch_split(w, config->path, &dir);
	if (r < 0)
		return log_error_errno(r, "hybrid sockets");
	w->dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (w->dir_fd < 0)
		return log_error_errno(errno, "hybrid socket %s: cannot open %s", config->path,
				       dir);
	r = sd_event_add_inotify(h->event, &w->inotify, dir,
				 IN_CREATE | IN_MOVED_TO | IN_DELETE | IN_MOVED_FROM | IN_ONLYDIR,
				 on_inotify, w);
	if (r < 0)
		return log_error_errno(r, "hybrid socket %s: cannot watch %s", config->path, dir);
	list_add_last(&h->watches, &w->list);
	watch_scan(w, SIZE_MAX, SIZE_MAX);
	TAKE_PTR(w);
	return 0;
}

static int path_add(struct hybrid *h, const struct settings_hybrid *config)
{
	/* Settings checked that it is absolute. */
	const char *slash = strrchr(config->path, '/'), *name = slash + 1;
	_cleanup_free_ char *dir = strndup(config->path, (size_t)MAX(slash - config->path, 1));
	int fd, r;

	if (!dir)
		return log_error_errno(-ENOMEM, "hybrid socket %s", config->path);
	fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return log_error_errno(errno, "hybrid socket %s: cannot open %s", config->path,
				       dir);
	r = socket_add(h, NULL, fd, name, name, config->cid);
	if (r == -EADDRINUSE)
		return log_error_errno(
			r,
			"hybrid socket %s_%u: somebody listens there, or it is not a "
			"socket of ours; remove it or stop who owns it",
			config->path, h->settings->listen.port);
	return r < 0 ? log_error_errno(r, "hybrid socket %s_%u", config->path,
				       h->settings->listen.port)
		     : 0;
}

static int find_group(struct hybrid *h)
{
	const char *name = h->settings->hybrid.group;
	const struct group *g;

	h->gid = (gid_t)-1;
	if (!*name)
		return 0;
	errno = 0;
	g = getgrnam(name);
	if (!g)
		return log_error_errno(errno ? errno : ENOENT, "hybrid.group: no group %s", name);
	h->gid = g->gr_gid;
	return 0;
}

/* After the drop of privileges sockets are made by another user: both are ours. */
static int find_user(struct hybrid *h)
{
	struct privilege_identity id;
	int r;

	h->service_uid = (uid_t)-1;
	if (!*h->settings->user)
		return 0;
	r = privilege_resolve(h->settings->user, h->settings->group, &id);
	if (r < 0)
		return log_error_errno(r, "user %s, group %s", h->settings->user,
				       h->settings->group);
	h->service_uid = id.uid;
	return 0;
}

int hybrid_new(sd_event *event, struct ingest *ingest, const struct settings *s,
	       struct hybrid **ret)
{
	_cleanup_(hybrid_freep)
	struct hybrid *h = NULL;
	int r;

	h = calloc(1, sizeof(*h));
	if (!h)
		return log_error_errno(-ENOMEM, "hybrid sockets");
	h->event = event;
	h->ingest = ingest;
	h->settings = s;
	list_init(&h->singles);
	list_init(&h->watches);
	r = sd_event_add_time_relative(event, &h->rescan, CLOCK_BOOTTIME, RESCAN_USEC,
				       SETTLE_USEC / 2, on_rescan, h);
	if (r < 0)
		return log_error_errno(r, "hybrid sockets");
	r = find_group(h);
	if (r == 0)
		r = find_user(h);
	for (size_t i = 0; r == 0 && i < s->hybrid.n_sockets; i++)
		r = s->hybrid.sockets[i].is_pattern ? watch_add(h, &s->hybrid.sockets[i])
						    : path_add(h, &s->hybrid.sockets[i]);
	if (r == 0 && list_empty(&h->watches))
		sd_event_source_set_enabled(h->rescan, SD_EVENT_OFF);
	if (r < 0)
		return r;
	*ret = TAKE_PTR(h);
	return 0;
}

struct hybrid *hybrid_free(struct hybrid *h)
{
	if (!h)
		return NULL;
	sd_event_source_disable_unref(h->rescan);
	list_for_each_safe(n, &h->singles)
		socket_remove(h, list_entry(n, struct hybrid_socket, list));
	list_for_each_safe(n, &h->watches) {
		struct hybrid_watch *w = list_entry(n, struct hybrid_watch, list);

		list_del(&w->list);
		watch_free(w);
	}
	free(h);
	return NULL;
}

static int allow_sockets(const struct list *sockets, struct sandbox *sandbox)
{
	int r = 0;

	list_for_each(n, sockets) {
		const struct hybrid_socket *s = list_entry(n, struct hybrid_socket, list);

		if (r == 0 && !s->shares_dir_fd)
			r = sandbox_allow_fd(sandbox, s->dir_fd, SANDBOX_LISTEN);
	}
	return r;
}

int hybrid_allow(const struct hybrid *h, struct sandbox *sandbox)
{
	int r = allow_sockets(&h->singles, sandbox);

	list_for_each(n, &h->watches) {
		const struct hybrid_watch *w = list_entry(n, struct hybrid_watch, list);

		if (r == 0)
			r = sandbox_allow_fd(sandbox, w->dir_fd, SANDBOX_LISTEN);
		if (r == 0)
			r = allow_sockets(&w->sockets, sandbox);
	}
	return r;
}

unsigned hybrid_count(const struct hybrid *h)
{
	return h->n_sockets;
}
