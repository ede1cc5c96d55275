/* SPDX-License-Identifier: Apache-2.0 */
#include "collect.h"

#include <sys/utsname.h>

#include "dpkg.h"
#include "identity.h"
#include "log.h"
#include "synthetic.h"
#include "vmreport.h"

static void rootfs_closep(struct rootfs *root)
{
	rootfs_close(root);
}

static int read_file(const char *path, uint8_t **ret, size_t *ret_len)
{
	_cleanup_fclose_ FILE *f = fopen(path, "re");
	_cleanup_free_ uint8_t *data = NULL;
	size_t n;

	if (!f)
		return log_error_errno(errno, "%s", path);
	data = malloc(COLLECT_FILE_MAX + 1);
	if (!data)
		return log_error_errno(ENOMEM, "%s", path);
	n = fread(data, 1, COLLECT_FILE_MAX + 1, f);
	if (ferror(f))
		return log_error_errno(EIO, "%s", path);
	if (n > COLLECT_FILE_MAX)
		return log_error_errno(EFBIG, "%s: longer than %llu MiB", path,
				       COLLECT_FILE_MAX / MIB);
	*ret = TAKE_PTR(data);
	*ret_len = n;
	return 0;
}

static int read_machine(struct inventory *inv, const struct options *o, int stop_fd)
{
	_cleanup_(rootfs_closep)
	struct rootfs root = { .fd = -1 };
	struct utsname uts;
	int r;

	(void)stop_fd;
	r = rootfs_open(o->root, &root);
	if (r < 0)
		return log_error_errno(r, "%s", o->root);
	r = osrelease_read(inv->arena, &root, &inv->os);
	if (r < 0)
		log_warning_errno(r, "os-release cannot be read, the distribution is unknown");
	r = dpkg_read(inv, &root);
	if (r == -ENOENT)
		return log_error_errno(r, "%s: no package database here", o->root);
	if (r < 0)
		return log_error_errno(r, "the database of dpkg cannot be read");
	if (rootfs_is_system(&root) && uname(&uts) == 0)
		inv->arch = arena_text(inv->arena, uts.machine, strlen(uts.machine)) ?: "";
	if (inv->skipped > 0)
		log_warning("%zu damaged entries of the package database were left out",
			    inv->skipped);
	inventory_finish(inv);
	return 0;
}

static int own_cid(const struct options *o, char cid[static IDENTITY_CID_MAX])
{
	uint32_t n = o->cid;
	int r;

	if (!o->cid_given) {
		r = identity_own_cid(&n);
		if (r < 0)
			return log_error_errno(r,
					       "the own CID cannot be found, give it with --cid");
	}
	snprintf(cid, IDENTITY_CID_MAX, "%u", n);
	return 0;
}

static int vm_id(const struct options *o, char id[static IDENTITY_ID_MAX])
{
	_cleanup_(rootfs_closep)
	struct rootfs root = { .fd = -1 };
	int r;

	id[0] = '\0';
	if (o->vm_id) {
		if (strlen(o->vm_id) >= IDENTITY_ID_MAX) {
			log_error("--vm-id: longer than %d bytes", IDENTITY_ID_MAX - 1);
			return -EINVAL;
		}
		strcpy(id, o->vm_id);
		return 0;
	}
	r = rootfs_open(o->root, &root);
	if (r < 0)
		return log_error_errno(r, "%s", o->root);
	if (identity_vm_id(&root, id) < 0)
		log_warning("neither product_uuid nor machine-id can be read: no VM id");
	return 0;
}

static int build(const struct options *o, int stop_fd, uint8_t **ret, size_t *ret_len)
{
	_cleanup_(inventory_freep)
	struct inventory *inv = NULL;
	char cid[IDENTITY_CID_MAX], id[IDENTITY_ID_MAX];
	int r;

	r = inventory_new(&inv);
	if (r < 0)
		return log_error_errno(r, "no inventory");
	r = own_cid(o, cid);
	if (r < 0)
		return r;
	r = vm_id(o, id);
	if (r < 0)
		return r;
	if (o->synthetic_given) {
		r = synthetic_fill(inv, o->synthetic, o->seed);
		if (r < 0)
			return log_error_errno(r, "no synthetic inventory");
	} else {
		r = read_machine(inv, o, stop_fd);
		if (r < 0)
			return r;
	}
	r = vmreport_pack(inv, cid, id, ret, ret_len);
	if (r < 0)
		return log_error_errno(r, "no report");
	log_info("report of CID %s: %zu packages, %zu bytes", cid, inv->n_packages, *ret_len);
	return 0;
}

int collect_report(const struct options *o, int stop_fd, uint8_t **ret, size_t *ret_len)
{
	int r = o->file ? read_file(o->file, ret, ret_len) : build(o, stop_fd, ret, ret_len);

	if (r < 0)
		return r;
	if (*ret_len > VMREPORT_LIMIT)
		log_warning(
			"the report has %zu bytes, more than the %llu KiB that a relay takes by "
			"default: it will be refused unless the relay's limit was raised",
			*ret_len, VMREPORT_LIMIT / KIB);
	return 0;
}
