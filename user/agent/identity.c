/* SPDX-License-Identifier: Apache-2.0 */
#include "identity.h"

#include <ctype.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

int identity_own_cid(uint32_t *ret)
{
	_cleanup_close_ int fd = open("/dev/vsock", O_RDONLY | O_CLOEXEC);
	unsigned int cid;

	if (fd < 0)
		return -errno;
	if (ioctl(fd, IOCTL_VM_SOCKETS_GET_LOCAL_CID, &cid) < 0)
		return -errno;
	if (cid == VMADDR_CID_ANY)
		return -EADDRNOTAVAIL;
	*ret = cid;
	return 0;
}

/* Copies the first line of file if it is an id: printable, not empty, not too long. */
static int read_id(const struct rootfs *root, const char *file, char id[static IDENTITY_ID_MAX])
{
	_cleanup_free_ char *text = NULL;
	size_t len;
	int r;

	r = rootfs_read(root, file, 4096, &text, &len);
	if (r < 0)
		return r;
	len = strcspn(text, " \t\r\n");
	if (len == 0 || len >= IDENTITY_ID_MAX)
		return -EINVAL;
	for (size_t i = 0; i < len; i++)
		if (!isgraph((uint8_t)text[i]) || (uint8_t)text[i] >= 0x80)
			return -EINVAL;
	for (size_t i = 0; i < len; i++)
		id[i] = tolower((uint8_t)text[i]);
	id[len] = '\0';
	return 0;
}

int identity_vm_id(const struct rootfs *root, char id[static IDENTITY_ID_MAX])
{
	if (read_id(root, "sys/class/dmi/id/product_uuid", id) == 0)
		return 0;
	if (read_id(root, "etc/machine-id", id) == 0)
		return 0;
	return -ENOENT;
}
