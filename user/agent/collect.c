/* SPDX-License-Identifier: Apache-2.0 */
#include "collect.h"

#include <sys/utsname.h>

#include "discovery.h"
#include "dpkg.h"
#include "identity.h"
#include "log.h"
#include "repositories.h"
#include "rpm.h"
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

/* Reads whichever package databases the machine has. */
static int read_packages(struct inventory *inv, const struct rootfs *root, const struct options *o,
			 int stop_fd)
{
	int dpkg, rpm;

	dpkg = dpkg_read(inv, root);
	if (dpkg < 0 && dpkg != -ENOENT)
		return log_error_errno(dpkg, "the database of dpkg cannot be read");
	rpm = rpm_read(inv, root, o->rpm_command, stop_fd);
	if (rpm == -ECANCELED)
		return rpm;
	if (rpm == -ENOPKG && inv->n_packages > 0) {
		/* Debian's rpm tools leave a database behind that lists nothing. */
		log_warning("there is a database of rpm, but no command %s: left out",
			    o->rpm_command);
		rpm = 0;
	}
	if (rpm == -EIO) {
		log_error("%s failed; --verbose shows what it says", o->rpm_command);
		return rpm;
	}
	if (rpm < 0 && rpm != -ENOENT)
		return log_error_errno(rpm, "the database of rpm cannot be read with %s",
				       o->rpm_command);
	if (dpkg < 0 && rpm < 0)
		return log_error_errno(ENOENT, "%s: no database of dpkg or rpm here", o->root);
	if (inv->skipped > 0)
		log_warning("damaged entries of the package database, left out: %zu", inv->skipped);
	if (inv->n_packages == 0) {
		/* The receiver would believe that nothing is installed. */
		log_error("%s: the package database lists no package, nothing to report", o->root);
		return -ENOENT;
	}
	return 0;
}

static int read_machine(struct inventory *inv, const struct options *o, int stop_fd)
{
	_cleanup_(rootfs_closep)
	struct rootfs root = { .fd = -1 };
	struct utsname uts;
	int r;

	r = rootfs_open(o->root, &root);
	if (r < 0)
		return log_error_errno(r, "%s", o->root);
	r = osrelease_read(inv->arena, &root, &inv->os);
	if (r < 0)
		log_warning_errno(r, "os-release cannot be read, the distribution is unknown");
	r = read_packages(inv, &root, o, stop_fd);
	if (r < 0)
		return r;
	r = repositories_read(inv, &root);
	if (r < 0)
		return log_error_errno(r, "the repositories cannot be read");
	inv->activation = discovery_activation(&root);
	inv->dnf_metadata = discovery_dnf_metadata(&root);
	if (rootfs_is_system(&root) && uname(&uts) == 0)
		inv->arch = arena_text(inv->arena, uts.machine, strlen(uts.machine)) ?: "";
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
